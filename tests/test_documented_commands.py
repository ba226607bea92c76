"""Every command that README and docs show is run, in order, at tiny sizes: none of them ends in an error.

Others than ours, and those that ask the Hub or npm, are left to `test_docs.py`, which holds them against their parsers.
"""

from __future__ import annotations

import json
import re
import tarfile
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from test_docs import COMMANDS, words_of

import pianogen_hf as pg
from pianogen_hf.commands import main

# Added behind a command, so that it is done in seconds. What is said twice counts the second time.
_TINY = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
SMALLER = {
    "train": f"--model_config={json.dumps(_TINY)} --max_steps=1 --chunk_length=65 --per_device_train_batch_size=2 "
    "--eval_strategy=no --save_strategy=no --load_best_model_at_end=false --report_to=none --bf16=false "
    "--disable_tqdm=true --max_pieces=4",
    "generate": "",
    "evaluate": "--num_samples 2 --notes 8 --window 64 --max_pieces 1",
    "audit": "--num_samples 2 --notes 8",
    "compare": "--dry_run --parameters 100k --max_pieces 3",
    "data build": "--chunk_length 65",
}
LENGTHS = {"--seconds": "1", "--notes": "6", "--bars": "1"}
NEEDS = {"--wav": "midirenderer", "export": "onnx", "--engine": "onnxruntime"}


def write_pieces(folder: Path, numbers, seed: int = 0) -> Path:
    for number in numbers:
        random = np.random.default_rng([seed, number])
        notes = pg.Notes.from_columns(
            onset_tick=np.cumsum(random.integers(120, 480, 90)),
            duration_tick=random.integers(60, 400, 90),
            pitch=random.integers(50, 80, 90),
        )
        pg.write_midi(notes, folder / f"{number}.mid")
    return folder


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A home in which everything lies that the documents speak of; what they make is made by their own commands."""
    home = tmp_path_factory.mktemp("home")
    write_pieces(home / "midi", range(12))
    write_pieces(home / "asap", range(8), seed=1)
    release = write_pieces(home / "maestro-v3.0.0", range(6), seed=2)
    rows = [f"{number}.mid,{side}" for number, side in enumerate(["train"] * 4 + ["validation", "test"])]
    (release / "maestro-v3.0.0.csv").write_text("\n".join(["midi_filename,split", *rows]))
    lakh = write_pieces(home / "lakh", range(6), seed=3)
    with tarfile.open(home / "lmd_full.tar.gz", "w:gz") as archive:
        archive.add(lakh, "lmd_full")
    piece = pg.read_midi(home / "midi" / "0.mid").transposed(5)
    pg.write_midi(piece, home / "my.mid")
    pg.write_midi(piece.where(np.arange(12)), home / "melody.mid")
    (home / "maestro").symlink_to(release)
    (home / "configs").symlink_to(Path(pg.__file__).parent.parent / "configs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        patch.setenv("HOME", str(home))
        for made in ("runs/mine", "runs/v7"):
            assert run(f"train.py configs/v7.yaml --source folder=~/midi --output_dir {made}", home) == 0
        assert run("train.py configs/v8.yaml --source folder=~/midi --output_dir runs/v8", home) == 0
        assert run("pianogen data build configs/v7.yaml --source folder=~/midi --output data/mine", home) == 0
        (home / "chunks").symlink_to(home / "data" / "mine" / "chunks")
        if find_spec("onnx") is not None:
            assert run("pianogen export --model runs/mine --output runs/mine --int8", home) == 0
        yield home


def _asks_a_network(words: list[str]) -> bool:
    """The Hub, or npm for the runtime of a page without a server."""
    pushes = "push" in words and "--dry_run" not in words
    return pushes or "--static" in words or "--revision" in words or any("hub=" in word for word in words)


def _is_not_here(words: list[str], home: Path) -> bool:
    """A command that listens until it is stopped, or a model that is to come from elsewhere."""
    models = [word for word in words if word.startswith(("runs/", "exp/"))]
    return words[0] in ("play", "show", "convert") or (
        ("generate" in words or "export" in words) and any(not (home / each).exists() for each in models)
    )


def run(line: str, home: Path) -> int | None:
    """Exit code of a documented line; None for one that is not ours to run."""
    words = words_of(line, home)
    if words is None or _asks_a_network(words) or _is_not_here(words, home):
        return None
    name = " ".join(words[:2]) if words[0] == "data" else words[0]
    lengths: list[str] = []
    if name in ("generate", "evaluate", "audit") and words[1].startswith("-"):  # after a verb they mean a stretch
        lengths = [part for option, value in LENGTHS.items() if option in words for part in (option, value)]
    if name == "generate" and words[1].startswith("-") and not lengths and "--prompt" in words:
        lengths = (
            []
            if any(word.startswith(("--fill", "--accompany", "--vary", "--explain")) for word in words)
            else ["--seconds", "1"]
        )
    smaller = SMALLER.get(name, "")
    if name == "train" and any(word.endswith("v7-xl.yaml") for word in words):
        smaller = smaller.replace(json.dumps(_TINY), json.dumps({**_TINY, "memory_length": 64}))
    return main([*words, *smaller.replace(": ", ":").replace(", ", ",").split(), *lengths])


LINES = sorted({line.partition("  #")[0].strip() for _, line in COMMANDS})  # several documents show the same
# The model of generate.py takes a second for a few notes, and a plan of a comparison makes every model.
SLOW = [
    pytest.param(line, marks=pytest.mark.slow) if re.search(r" compare |generate\.py", line) else line for line in LINES
]


@pytest.mark.parametrize("line", SLOW, ids=lambda line: line[:90])
def test_every_documented_command_does_its_work(line, workplace, capsys):
    for word, package in NEEDS.items():
        if word in line.split() and find_spec(package) is None:
            pytest.skip(f"needs {package}")
    code = run(line, workplace)
    assert code in (0, None), capsys.readouterr().err
