"""train.py with a note transformer and Muon: a run that was cut short and goes on ends where an unbroken one ends."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import pianogen_hf as pg
from pianogen_hf.commands.train import main

SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    folder, cache = tmp_path_factory.mktemp("midi"), tmp_path_factory.mktemp("cache")
    random = np.random.default_rng(0)
    for number in range(6):
        notes = pg.Notes.from_columns(
            onset_tick=np.cumsum(random.integers(60, 240, 60)),
            duration_tick=random.integers(60, 400, 60),
            pitch=random.integers(50, 80, 60),
            velocity=random.integers(40, 100, 60),
        )
        pg.write_midi(notes, folder / f"{number}.mid")
    values = {
        "source": f"folder={folder}",
        "cache_dir": cache,
        "model_type": "note_transformer",
        "model_config": json.dumps(SIZES),
        "tokenizer": "ContinuousNotesFeatureExtractor",
        "chunk_length": 33,
        "augmentation": "lazy",
        "optim": "muon",
        "learning_rate": 0.02,
        "decay_share": 0.5,
        "max_steps": 6,
        "save_steps": 3,
        "per_device_train_batch_size": 2,
        "report_to": "none",
        "bf16": "false",
        "disable_tqdm": "true",
        "source_kinds": "jazz",
    }
    return lambda output_dir, **changes: [
        f"--{name}={value}" for name, value in {**values, "output_dir": output_dir, **changes}.items()
    ]


def test_a_resumed_run_equals_an_unbroken_one(options, tmp_path):
    straight, halted = tmp_path / "straight", tmp_path / "halted"
    assert main(options(straight)) == 0
    shutil.copytree(straight, halted)
    shutil.rmtree(halted / "checkpoint-6")
    (halted / "model.safetensors").unlink()
    assert main(options(halted, resume_from_checkpoint="true")) == 0
    begun, one, two = (
        load_file(folder / "model.safetensors") for folder in (straight / "checkpoint-3", straight, halted)
    )
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert any(not torch.equal(one[name], begun[name]) for name in one)
    assert json.loads((straight / "metrics.json").read_text())["validation"]["bits_per_note"] > 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optim": "moun"}, "muon"),
        ({"decay_share": 1.5}, "decay_share must be"),
        ({"decay_share": 0}, "decay_share must be"),
        ({"source_kinds": "rock"}, "source_kinds are classical"),
    ],
)
def test_what_can_not_be_is_one_line(options, tmp_path, capsys, changes, message):
    assert main(options(tmp_path / "run", **changes)) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error
    assert not (tmp_path / "run").exists()
