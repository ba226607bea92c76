"""`pipeline("midi-generation")` with the package installed; without it `test_carried_code.py` asks the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from models_and_tokenizers import CAUSAL_MODELS, ROW_MODELS, some_notes, tiny_model
from transformers import AutoModelForCausalLM, GPT2Config, pipeline

import pianogen_hf as pg


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    torch.manual_seed(0)
    root, tokenizer, made = tmp_path_factory.mktemp("models"), pg.PerformanceTokenizer(), {}
    for kind in CAUSAL_MODELS:
        made[kind.__name__] = tiny_model(kind, len(tokenizer)), tokenizer
    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 128}
    special = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config = GPT2Config(vocab_size=len(tokenizer), **sizes, **special)
    made["stock"] = AutoModelForCausalLM.from_config(config), tokenizer
    for kind in ROW_MODELS:
        made[kind.__name__] = tiny_model(kind, 130), pg.ContinuousNotesFeatureExtractor()
    for name, parts in made.items():
        for part in parts:
            part.save_pretrained(root / name)
    return root


NAMES = [*(kind.__name__ for kind in (*CAUSAL_MODELS, *ROW_MODELS)), "stock"]


@pytest.fixture
def midi(tmp_path):
    pg.write_midi(some_notes(num_notes=8), tmp_path / "my.mid")
    return tmp_path / "my.mid"


@pytest.mark.parametrize("name", NAMES)
def test_music_goes_on_whatever_it_comes_as(folders, midi, name):
    pipe = pipeline("midi-generation", model=str(folders / name), max_new_tokens=20, seed=3)
    heard = len(some_notes(num_notes=8))
    inputs = [str(midi), midi, midi.read_bytes(), pg.read_midi(midi)]
    results = pipe(inputs)
    assert len(results) == 4 and all(each["midi"] == results[0]["midi"] for each in results)
    assert pipe(str(midi))["midi"] == results[0]["midi"]
    result = results[0]
    assert len(result["notes"]) == heard + result["new_notes"] and 0 <= result["new_notes"] <= 20
    assert len(pg.read_midi(result["midi"])) == len(result["notes"])


@pytest.mark.parametrize("name", ["stock", "NoteTransformerForCausalLM"])
def test_music_begins_from_nothing_and_several_times(folders, name):
    pipe = pipeline("midi-generation", model=str(folders / name))
    first, second = pipe(max_new_tokens=30, num_return_sequences=2, seed=1)
    assert first["midi"] != second["midi"] and first["new_notes"] == len(first["notes"])
    assert pipe(max_new_tokens=30, num_return_sequences=2, seed=1)[0]["midi"] == first["midi"]


def test_seconds_say_how_much(folders, midi):
    pipe = pipeline("midi-generation", model=str(folders / "NoteTransformerForCausalLM"))
    result = pipe(midi, seconds=3.0, seed=0)
    assert result["notes"].onset_sec.max() <= some_notes(num_notes=8).onset_sec.max() + 3.0 + 0.02
    with pytest.raises(ValueError, match="seconds must be more than 0"):
        pipe(midi, seconds=-1.0)


def test_a_long_prompt_is_heard_in_part(folders, tmp_path):
    pg.write_midi(some_notes(num_notes=64), tmp_path / "long.mid")
    pipe = pipeline("midi-generation", model=str(folders / "stock"), seed=0)
    result = pipe(tmp_path / "long.mid", max_new_tokens=40)
    assert 0 < len(result["notes"]) < 64 + 40


def test_what_is_no_midi_file_says_so(folders, tmp_path):
    (tmp_path / "text.mid").write_text("text")
    with pytest.raises(pg.MidiError, match="not a MIDI file"):
        pipeline("midi-generation", model=str(folders / "stock"))(str(tmp_path / "text.mid"))


def test_a_folder_names_its_pipeline_and_carries_it(folders):
    for kind in (*CAUSAL_MODELS, *ROW_MODELS):
        folder = folders / kind.__name__
        assert '"midi-generation"' in (folder / "config.json").read_text()
        assert Path(folder / "pipeline_midi_generation.py").is_file()
    assert "custom_pipelines" not in (folders / "stock" / "config.json").read_text()
