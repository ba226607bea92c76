"""The folder of a Space: what is in it, what is not, and that it needs nothing else."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from functools import partial
from pathlib import Path

import pytest
import torch
from huggingface_hub import SpaceCard
from models_and_tokenizers import FIELD_MODELS, ID_ROW_MODELS, TOKENIZERS, own_tokenizer, some_notes, tiny_model

import pianogen_hf as pg
from pianogen_hf.apps.space import folder as space_folder
from pianogen_hf.apps.space.folder import GRADIO_VERSION, SpaceError, push_space
from pianogen_hf.generation.continuation import Length, continue_notes
from pianogen_hf.hub.errors import HubError
from pianogen_hf.workflows.loading import load_model

write_space = partial(space_folder.write_space, version=pg.__version__)
PROJECT = Path(pg.__file__).parent.parent / "pyproject.toml"


def front_matter(folder: Path) -> dict:
    return SpaceCard.load(folder / "README.md").data.to_dict()


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_space_has_a_page_its_needs_a_card_the_model_and_the_package(tmp_path):
    folder = write_space(tmp_path / "page", pg.BACH_MODEL)
    assert names(folder) == {"app.py", "requirements.txt", "README.md", "model", "pianogen_hf"}
    assert names(folder / "model") >= {"config.json", "model.safetensors", "tokenizer_config.json"}
    compile((folder / "app.py").read_text(), "app.py", "exec")
    assert not (folder / "pianogen_hf" / "checkpoints").exists()


def test_the_card_says_what_the_hub_wants_to_know(tmp_path):
    data = front_matter(write_space(tmp_path / "page", pg.BACH_MODEL, title="Chorales", short_description="Sing"))
    assert data["title"] == "Chorales" and data["short_description"] == "Sing" and data["emoji"]
    assert data["sdk"] == "gradio" and data["sdk_version"] == GRADIO_VERSION and data["app_file"] == "app.py"
    assert data["license"] == "apache-2.0" and "models" not in data


def test_a_model_of_the_hub_is_named_and_not_copied(tmp_path):
    folder = write_space(tmp_path / "page", "someone/waltzes")
    assert front_matter(folder)["models"] == ["someone/waltzes"] and "model" not in names(folder)
    assert "https://huggingface.co/someone/waltzes" in (folder / "README.md").read_text()


def test_what_is_left_of_training_is_not_copied(tmp_path):
    model = tmp_path / "model"
    tiny_model(pg.MusicTransformerForCausalLM).save_pretrained(model)
    private = ("training_args.bin", "optimizer.pt", "split.json", "provenance.safetensors", "metrics.json", ".env")
    for name in private:
        (model / name).write_text("private")
    (model / "checkpoint-5").mkdir()
    folder = write_space(tmp_path / "page", model)
    assert not names(folder / "model") & {*private, "checkpoint-5"}
    assert "license" not in front_matter(folder), "nothing tells the model's licence"


@pytest.mark.parametrize(
    ("model_class", "tokenizer"),
    [
        *((pg.MusicTransformerForCausalLM, each()) for each in TOKENIZERS),
        *((each, own_tokenizer(each)) for each in (*ID_ROW_MODELS, *FIELD_MODELS)),
    ],
    ids=lambda each: getattr(each, "__name__", type(each).__name__),
)
def test_the_copied_model_is_all_that_generating_needs(model_class, tokenizer, tmp_path):
    torch.manual_seed(0)
    if isinstance(tokenizer, pg.RemiTokenizer):  # has a file of its own once byte pairs are learnt
        tokenizer.train_bpe([some_notes(seed) for seed in range(4)], len(tokenizer) + 5)
    settings = {"event_blocks": tokenizer.event_blocks} if model_class in ID_ROW_MODELS else {}
    tiny_model(model_class, len(tokenizer), **settings).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    copy = write_space(tmp_path / "page", tmp_path / "model", vendored=False) / "model"
    assert (copy / "miditok.json").exists() == isinstance(tokenizer, pg.RemiTokenizer)
    (result,) = continue_notes(*load_model(copy), Length(notes=3), seed=0, do_sample=True)
    assert len(result.new) == 3


def test_requirements_are_those_of_the_package(tmp_path):
    if not PROJECT.exists():
        pytest.skip("installed without the source tree")
    project = tomllib.loads(PROJECT.read_text())["project"]
    extras = project["optional-dependencies"]
    lines = (write_space(tmp_path / "page", "a/b") / "requirements.txt").read_text().splitlines()
    wanted = [line for line in lines if not line.startswith("#")]
    assert wanted[0] == f"gradio=={GRADIO_VERSION}"
    assert extras["space"] == [f"gradio>={GRADIO_VERSION.rpartition('.')[0]},<7"]
    assert set(wanted[1:]) <= {*project["dependencies"], *extras["audio"]} and set(wanted) >= set(extras["audio"])


def test_with_an_index_the_package_is_required_and_not_copied(tmp_path):
    folder = write_space(tmp_path / "page", "a/b", vendored=False)
    assert "pianogen_hf" not in names(folder)
    lines = (folder / "requirements.txt").read_text().splitlines()
    assert lines == [f"gradio=={GRADIO_VERSION}", f"pianogen_hf[audio]=={pg.__version__}"]


def test_the_copy_generates_with_what_requirements_txt_names(tmp_path):
    """In a process that has the copy alone, and none of what the package needs only for training."""
    folder = write_space(tmp_path / "page", pg.BACH_MODEL)
    code = """
import sys
sys.modules.update(dict.fromkeys(["accelerate", "datasets", "evaluate", "tensorboard", "music21", "onnxruntime"]))
import pianogen_hf
from pianogen_hf.generation.continuation import Length, continue_notes
from pianogen_hf.workflows.loading import load_model
from pianogen_hf.rendering import audio, piano_roll
(result,) = continue_notes(*load_model("model"), Length(notes=4), seed=1, do_sample=True)
piano_roll.save_piano_roll(result.notes, "a.png")
print(len(result.new), pianogen_hf.__file__)
"""
    run = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    count, file = run.stdout.split(maxsplit=1)
    assert int(count) == 4 and Path(file.strip()).is_relative_to(folder.resolve())


def test_a_folder_that_is_taken_is_left_alone_unless_told(tmp_path):
    folder = tmp_path / "page"
    (folder / "pianogen_hf").mkdir(parents=True)
    for name in ("app.py", "notes.txt", "pianogen_hf/old.py"):
        (folder / name).write_text("mine")
    with pytest.raises(SpaceError, match="--overwrite"):
        write_space(folder, "a/b")
    assert names(folder) == {"app.py", "notes.txt", "pianogen_hf"} and (folder / "app.py").read_text() == "mine"
    write_space(folder, "a/b", overwrite=True)
    assert (folder / "notes.txt").read_text() == "mine" and (folder / "app.py").read_text() != "mine"
    assert not (folder / "pianogen_hf" / "old.py").exists()


def test_a_folder_that_can_t_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SpaceError, match="can't be written"):
        write_space(tmp_path / "file" / "page", "a/b")
    with pytest.raises(SpaceError, match="is there already"):
        write_space(tmp_path / "file", "a/b", overwrite=True)
    with pytest.raises(SpaceError, match="60 characters"):
        write_space(tmp_path / "page", "a/b", short_description="x" * 61)
    assert names(tmp_path) == {"file"}


def test_a_hub_that_can_t_be_reached_is_one_line(tmp_path):
    with pytest.raises(HubError, match="not pushed to someone/page") as caught:
        push_space(tmp_path, "someone/page")
    assert "\n" not in str(caught.value)
