"""What of a model folder may go to the Hub, tried with a folder full of temptations."""

import json
import os
import shutil
from pathlib import Path

import pytest
from models_and_tokenizers import CAUSAL_MODELS, FIELD_MODELS, ID_ROW_MODELS, TOKENIZERS, own_tokenizer, tiny_model

import pianogen_hf as pg
from pianogen_hf.errors import PianogenError
from pianogen_hf.hub.errors import reload_fault
from pianogen_hf.hub.models import pickle_fault
from pianogen_hf.publishing.model_card import write_card
from pianogen_hf.publishing.model_files import is_part, select_files

_UP = (
    "LICENSE README.md card_text.md config.json generation_config.json helper_of_mine.py metrics.json "
    "model.safetensors modeling_mine.py onnx/model.onnx onnx/model_int8.onnx provenance.json provenance.safetensors "
    "roll.png samples/step-000600.mid samples/step-000600.png samples/step-000600.wav split.json tokenizer_config.json"
)
_STAYS = (
    ".env .git/config .cache/a.json __pycache__/modeling_mine.cpython-311.pyc checkpoint-600/optimizer.pt "
    "checkpoint-600/model.safetensors chunks/data-00000.arrow data/piece.mid events.out.tfevents.1 log.txt my.mid "
    "optimizer.bin optimizer.safetensors pieces.csv pieces.jsonl pieces.parquet pytorch_model.bin reading_report.json "
    "rng_state_0.pth runs/x/events.out.tfevents.2 samples/deeper/a.mid samples/notes.npz samples/train.midi secrets.py "
    "secrets.json train.log training_args.bin trainer_state.json vocab.pkl wandb/run.json weights.ckpt"
)
GOES_UP, STAYS = _UP.split(), _STAYS.split()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "mine"
    tokenizer = pg.PerformanceTokenizer()
    tiny_model(pg.MusicTransformerForCausalLM, len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for path in folder.glob("*.py"):
        path.unlink()
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModel": "modeling_mine.Mine", "AutoConfig": "else/where--configuration_mine.Mine"}
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer_config = json.loads((folder / "tokenizer_config.json").read_text())
    tokenizer_config.pop("auto_map", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config))
    write_card(folder)
    for name in (*GOES_UP, *STAYS):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            path.write_text("{}" if path.suffix == ".json" else "")
    (folder / "modeling_mine.py").write_text("from .helper_of_mine import something\nimport secrets\n")
    write_card(folder)  # there is a picture now
    return folder


@pytest.fixture
def copy(model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(model, tmp_path / "mine"))


def test_what_belongs_to_the_model_goes_up_and_every_temptation_stays_with_its_reason(model):
    selection = select_files(model, "me/mine")
    assert [each.path for each in selection.uploads] == GOES_UP
    for name in STAYS:
        folders = [f"{parent.as_posix()}/" for parent in Path(name).parents][:-1]
        assert any(selection.left.get(each) for each in (name, *folders)), name
    assert "optimizer" in selection.left["checkpoint-600/"] and "data" in selection.left["my.mid"]
    assert "pickle" in selection.left["pytorch_model.bin"] and "carry" in selection.left["secrets.py"]


def test_links_to_folders_are_not_followed(copy, tmp_path):
    shutil.rmtree(copy / "samples")
    (tmp_path / "private").mkdir()
    (tmp_path / "private" / "a.mid").write_text("")
    (copy / "samples").symlink_to(tmp_path / "private")
    selection = select_files(copy)
    assert not any(each.path.startswith("samples") for each in selection.uploads)
    assert selection.left["samples/"] == "a link to a folder"


def test_the_card_goes_up_under_the_name_that_the_model_has_on_the_hub(copy):
    def card() -> str:
        selection = select_files(copy, "me/other-name")
        (content,) = (each.source for each in selection.uploads if each.path == "README.md")
        return content.decode()

    assert 'name = "me/other-name"' in card() and "# me/other-name" in card()
    assert "me/other-name" not in (copy / "README.md").read_text(), "the folder stays as it was"
    (copy / "README.md").write_text("# By hand\n")
    assert card() == "# By hand\n" and "goes up as it is" in select_files(copy).notes[0]
    (copy / "README.md").unlink()
    assert 'name = "me/other-name"' in card()


FAULTS = {
    "no config": (lambda folder: (folder / "config.json").unlink(), "no config.json"),
    "no weights": (lambda folder: os.remove(folder / "model.safetensors"), "only as pytorch_model.bin"),
    "nothing at all": (
        lambda folder: [
            os.remove(folder / name) for name in ("model.safetensors", "pytorch_model.bin", "weights.ckpt")
        ],
        "still being trained",
    ),
    "cut weights": (lambda folder: os.truncate(folder / "model.safetensors", 900), "is not whole"),
    "a shard missing": (
        lambda folder: (folder / "model.safetensors.index.json").write_text(
            '{"weight_map": {"a": "model-00001-of-00002.safetensors"}}'
        ),
        "lacks model-00001-of-00002.safetensors",
    ),
    "code missing": (lambda folder: (folder / "helper_of_mine.py").unlink(), "lacks helper_of_mine.py"),
    "a token": (
        lambda folder: (folder / "metrics.json").write_text(json.dumps({"command": "--hub_token hf_" + "a" * 34})),
        "metrics.json holds an access token",
    ),
    "no JSON": (lambda folder: (folder / "tokenizer_config.json").write_text("{"), "can't be read"),
}


@pytest.mark.parametrize("what", FAULTS)
def test_a_folder_that_is_no_whole_model_is_refused_in_one_line(copy, what):
    breaks, said = FAULTS[what]
    breaks(copy)
    with pytest.raises(PianogenError, match=said) as error:
        select_files(copy, "me/mine")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("model_class", "tokenizer"),
    [
        *((CAUSAL_MODELS[0], each()) for each in TOKENIZERS),
        *((each, own_tokenizer(each)) for each in (*ID_ROW_MODELS, *FIELD_MODELS)),
    ],
    ids=lambda each: getattr(each, "__name__", type(each).__name__),
)
def test_everything_that_a_model_and_a_tokenizer_save_goes_up(tmp_path, model_class, tokenizer):
    tiny_model(model_class, len(tokenizer)).save_pretrained(tmp_path, max_shard_size="40KB")
    tokenizer.save_pretrained(tmp_path)
    saved = {path.name for path in tmp_path.iterdir()}
    assert any(name.startswith("model-00001") for name in saved)
    assert {each.path for each in select_files(tmp_path).uploads} == {*saved, "README.md"}


def test_parts_of_another_model_are_told_from_what_people_put_there():
    assert all(map(is_part, ("model-00001-of-00002.safetensors", "onnx/model.onnx", "provenance.json", "config.json")))
    assert not any(
        map(is_part, ("README.md", "LICENSE", "samples/a.mid", ".gitattributes", "adapter.safetensors", "a.py"))
    )


def test_pickle_beside_safetensors_is_no_fault():
    assert pickle_fault("x", ["model.safetensors", "pytorch_model.bin"]) is None
    assert pickle_fault("x", ["optimizer.pt", "training_args.bin"]) is None
    assert "x holds its weights only as a.ckpt" in str(pickle_fault("x", ["config.json", "a.ckpt"]))


def test_a_full_disk_beside_a_push_is_no_fault_of_what_was_pushed():
    full = "Traceback ...\n  File ...\nOSError: [Errno 28] No space left on device\n"
    assert "make room, and repeat the command" in reload_fault("me/mine", "abc", full)
    assert (
        reload_fault("me/mine", "abc", "x\nKeyError: 'y'\n")
        == "pushed, but not loadable from me/mine at abc: KeyError: 'y'"
    )
