"""What this package saves loads by the Auto classes with the package, and without it from the code in the folder."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import without_package
from models_and_tokenizers import (
    CAUSAL_MODELS,
    FIELD_MODELS,
    ID_ROW_MODELS,
    MASKED_MODELS,
    MODELS,
    ROW_MODELS,
    TOKENIZERS,
    own_tokenizer,
    some_notes,
    tiny_model,
)
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GPT2Config, LlamaConfig, PreTrainedModel
from transformers import pipeline as make_pipeline

import pianogen_hf as pg
from pianogen_hf.errors import PianogenError
from pianogen_hf.models.carried_code import CarriesCode, auto_class, auto_map, code_files
from pianogen_hf.publishing.added_code import add_code
from pianogen_hf.publishing.card_facts import CardError
from pianogen_hf.publishing.model_card import render_card

SIZES = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 128}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def build(kind, tokenizer):
    """A model of one of our classes, or of a stock configuration, over the tokenizer's ids."""
    if issubclass(kind, PreTrainedModel):
        return tiny_model(kind, len(tokenizer), **({"is_causal": False} if kind in MASKED_MODELS else {}))
    sizes = SIZES if kind is GPT2Config else {**SIZES, "intermediate_size": 64}
    return AutoModelForCausalLM.from_config(kind(vocab_size=len(tokenizer), **sizes, **SPECIAL)).eval()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Every model with a tokenizer or its feature extractor, every tokenizer with a model, and the bundled model."""
    root, made = tmp_path_factory.mktemp("models"), {}
    torch.manual_seed(0)
    kinds = (*CAUSAL_MODELS, *MASKED_MODELS, GPT2Config, LlamaConfig)
    pairs = [*((kind, pg.JSBTokenizer) for kind in kinds), *((GPT2Config, each) for each in TOKENIZERS)]
    for kind, tokenizer_class in dict.fromkeys(pairs):
        name = f"{kind.__name__}-{tokenizer_class.__name__}"
        made[name] = str(root / name)
        for part in (build(kind, tokenizer_class()), tokenizer_class()):
            part.save_pretrained(made[name])
    for kind in ROW_MODELS:
        name = f"{kind.__name__}-rows"
        made[name] = str(root / f"{kind.__name__}.rows")
        for part in (tiny_model(kind, 130), pg.ContinuousNotesFeatureExtractor()):
            part.save_pretrained(made[name])
    for kind in (*ID_ROW_MODELS, *FIELD_MODELS):
        name, tokenizer = f"{kind.__name__}-events", own_tokenizer(kind)
        made[name] = str(root / name)
        for part in (build(kind, tokenizer), tokenizer):
            part.save_pretrained(made[name])
    made["bundled"] = str(shutil.copytree(pg.BACH_MODEL, root / "1-bundled"))
    add_code(made["bundled"])
    return made


@pytest.fixture(scope="module")
def prompt(tmp_path_factory):
    """A MIDI file of three notes."""
    path = tmp_path_factory.mktemp("prompt") / "prompt.mid"
    columns = {"onset_tick": [0, 240, 480], "duration_tick": [240, 480, 240], "pitch": [60, 64, 67]}
    pg.write_midi(pg.Notes.from_columns(480, **columns, velocity=[70, 60, 80]), path)
    return str(path)


@pytest.fixture(scope="module")
def kinds(folders):
    """One folder of each model."""
    return [name for name in folders if name.endswith(("JSBTokenizer", "bundled", "rows", "events"))]


@pytest.fixture(scope="module")
def without(folders, kinds, prompt, tmp_path_factory):
    """What the folders answer where the package can't be imported, nor anything that was loaded before."""
    home = tmp_path_factory.mktemp("home")
    no_miditok = shutil.copytree(folders["GPT2Config-RemiTokenizer"], home / "no_miditok")
    work = {"folders": folders, "prompt": prompt, "again": kinds, "needs_miditok": str(no_miditok)}
    (home / "work.json").write_text(json.dumps(work))
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-I", without_package.__file__, str(home / "work.json")],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        cwd=home,
        env={**environment, "HF_HOME": str(home / "hf"), "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def test_every_folder_answers_the_same_with_and_without_the_package(folders, prompt, without):
    """Bit for bit: logits, ids from the same seed, the MIDI file read back, and the pipeline's text."""
    assert without["first"].keys() == folders.keys()
    for name, folder in folders.items():
        told = without["first"][name]
        assert json.loads(json.dumps(without_package.answers(folder, prompt))) == told, name
        assert len(told["written"]) > 4 and len(told["read back"]) > 3  # the prompt's notes at least


def test_what_was_loaded_without_the_package_saves_the_same_folder(folders, kinds, without):
    for name in kinds:
        assert without["again"][name] == without["first"][name]
        first, again = Path(folders[name]), Path(f"{folders[name]}-again")
        saved = sorted(path.name for path in again.iterdir())
        assert saved == sorted(path.name for path in first.iterdir() if name != "bundled" or path.name in saved)
        for path in again.iterdir():
            assert path.read_bytes() == (first / path.name).read_bytes(), path


def test_without_miditok_its_tokenizer_says_what_to_install(without):
    assert without["without miditok"] == "RemiTokenizer needs MidiTok: pip install miditok"


def test_folders_hold_plain_files_of_known_kinds_only(folders):
    for folder in map(Path, folders.values()):
        for path in (path for path in folder.iterdir() if folder.name != "1-bundled"):
            assert path.is_file() and not path.is_symlink() and path.suffix in (".py", ".json", ".safetensors"), path
        assert not list(folder.glob("__init__.py"))


def test_stock_models_carry_their_tokenizer_s_code_alone(folders):
    folder = Path(folders["LlamaConfig-JSBTokenizer"])
    assert "auto_map" not in json.loads((folder / "config.json").read_text())
    assert {path.name for path in folder.glob("*.py")} == {path.name for path in code_files(pg.JSBTokenizer)}


def rigged(folder, copy):
    """The folder with code that must not run."""
    shutil.copytree(folder, copy)
    for path in copy.glob("*.py"):
        path.write_text("raise SystemExit('code of the checkpoint was run')")
    return str(copy)


def test_with_the_package_no_code_of_a_checkpoint_runs_and_nobody_asks(folders, kinds, tmp_path, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked whether to trust"))
    for name in kinds:
        folder = rigged(folders[name], tmp_path / name)
        for part in without_package.load(folder):
            assert type(part).__module__.startswith(("pianogen_hf.", "transformers."))
        if not name.startswith(("GPT2", "Llama")):  # where it is wished for, transformers runs code for its own models
            without_package.load(folder, trust_remote_code=True)


def test_every_model_knows_its_auto_class_and_all_of_its_siblings():
    for model_class in MODELS:
        assert issubclass(model_class, CarriesCode)
        siblings = [each for each in MODELS if each.config_class is model_class.config_class]
        config_class = model_class.config_class
        expected = {auto_class(each): f"{each.__module__.split('.')[-1]}.{each.__name__}" for each in siblings}
        expected["AutoConfig"] = f"{config_class.__module__.split('.')[-1]}.{config_class.__name__}"
        assert auto_map(model_class) == expected and None not in expected


def test_a_class_made_of_ours_is_saved_as_ours(tmp_path):
    """As FSDP2 does, whose classes stand in a module of torch, and as notebooks do."""
    model = tiny_model(pg.MusicTransformerForCausalLM)
    model.__class__ = type("FSDPMusicTransformerForCausalLM", (type(model),), {"__module__": "torch.distributed.fsdp"})
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["auto_map"] == auto_map(pg.MusicTransformerForCausalLM)
    assert {path.name for path in tmp_path.glob("*.py")} == {
        path.name for path in code_files(pg.MusicTransformerForCausalLM)
    }


def test_processes_that_are_not_the_main_one_write_no_code(tmp_path):
    tiny_model(pg.MusicTransformerForCausalLM).save_pretrained(tmp_path, is_main_process=False)
    assert not list(tmp_path.glob("*.py"))


def test_how_a_tokenizer_was_loaded_is_not_saved(folders, tmp_path):
    folder = folders["GPT2Config-PerformanceTokenizer"]
    loaded = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    # Prepared chunks are found again by these settings.
    assert not {"auto_map", "is_local", "local_files_only"} & loaded.init_kwargs.keys()
    loaded.save_pretrained(tmp_path)
    assert (tmp_path / "tokenizer_config.json").read_text() == Path(folder, "tokenizer_config.json").read_text()


def test_a_folder_without_code_gets_what_saving_writes(folders, kinds, tmp_path):
    for name in (each for each in kinds if each != "bundled"):
        folder, saved = tmp_path / name, Path(folders[name])
        shutil.copytree(saved, folder, ignore=shutil.ignore_patterns("*.py"))
        for path in folder.glob("*config.json"):
            content = json.loads(path.read_text())
            content.pop("auto_map", None)
            path.write_text(json.dumps(content))
        for _ in range(2):  # doing it again changes nothing
            assert add_code(folder) == sorted(path.name for path in saved.glob("*.py"))
        for path in saved.glob("*.py"):
            assert (folder / path.name).read_bytes() == path.read_bytes()
        for path in saved.glob("*config.json"):
            assert json.loads((folder / path.name).read_text()) == json.loads(path.read_text())


def test_what_is_none_of_ours_gets_no_code(tmp_path):
    config = '{"model_type": "gpt2"}'
    (tmp_path / "config.json").write_text(config)
    assert add_code(tmp_path) == [] and (tmp_path / "config.json").read_text() == config


def test_a_folder_that_is_no_model_is_refused(tmp_path):
    with pytest.raises(CardError, match="no config.json"):
        add_code(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(PianogenError, match="can't be read"):
        add_code(tmp_path)


def test_cards_tell_of_the_code_whose_ever_it_is(folders):
    assert "trust_remote_code" not in render_card(pg.BACH_MODEL)
    for name in ("bundled", "GPT2Config-JSBTokenizer"):
        assert "trust_remote_code=True" in render_card(folders[name])


def test_a_model_without_tokenizer_says_so_and_gets_none(folders, tmp_path):
    for kind in ROW_MODELS:
        with pytest.raises(ValueError, match="AutoFeatureExtractor"):
            make_pipeline("text-generation", model=folders[f"{kind.__name__}-rows"])
    tiny_model(pg.MusicTransformerForCausalLM).save_pretrained(tmp_path)
    with pytest.raises((ValueError, OSError)):
        AutoTokenizer.from_pretrained(tmp_path)


def test_a_masked_model_refuses_to_be_a_text_generator(folders):
    with pytest.raises(ValueError, match="refill"):
        AutoModelForCausalLM.from_pretrained(folders["PianoEncoderForMaskedLM-JSBTokenizer"])


def test_configurations_keep_no_code_map_that_was_not_saved(folders, tmp_path):
    """A stock model that is made from nothing has none, whatever was loaded before."""
    AutoConfig.from_pretrained(folders["bundled"])
    assert not hasattr(pg.MusicTransformerConfig(), "auto_map")
    assert not hasattr(GPT2Config(), "auto_map")


@pytest.mark.parametrize("tokenizer", [each() for each in TOKENIZERS], ids=lambda each: type(each).__name__)
def test_text_may_be_joined_without_a_space(tokenizer):
    """As a text-generation pipeline joins prompt and answer."""
    ids = tokenizer.encode_notes(some_notes())
    for cut in range(1, 9):
        text = tokenizer.decode(ids[:cut]) + tokenizer.decode(ids[cut:])
        assert tokenizer.text_to_notes(text) == tokenizer.decode_notes(ids)
    with pytest.raises(ValueError, match="no event"):
        tokenizer.text_to_notes(tokenizer.decode(ids[:1]) + "\x01")
