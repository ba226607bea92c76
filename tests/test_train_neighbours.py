"""train.py with the encodings of other systems: what comes out is measured, and writes music with its instruments."""

from __future__ import annotations

import json

import numpy as np
import pytest

import pianogen_hf as pg
from pianogen_hf.commands.train import main
from pianogen_hf.workflows.loading import load_model

SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
PARTS = {
    "mmt": {
        "model_type": "multitrack_music",
        "tokenizer": "MultitrackMusicTokenizer",
        "tokenizer_config": '{"num_beats": 16}',
        "programs": "all",
    },
    "musicautobot": {"model_type": "music_transformer", "tokenizer": "NoteDurationTokenizer"},
    "musicautobot-masked": {
        "model_type": "piano_encoder",
        "model_config": json.dumps({**SIZES, "is_causal": False}),
        "tokenizer": "NoteDurationTokenizer",
        "mask_kinds": "Pitch",
    },
}


def duet(seed):
    """A piano and a violin, each 30 notes, on a channel of its own."""
    random = np.random.default_rng(seed)
    onset = np.cumsum(random.integers(1, 4, (2, 30)) * 120, axis=1).ravel()
    return pg.Notes.from_columns(
        480,
        onset_tick=onset,
        duration_tick=random.integers(1, 5, 60) * 120,
        pitch=np.repeat([50, 70], 30) + random.integers(0, 12, 60),
        program=np.repeat([0, 40], 30),
        channel=np.repeat([0, 1], 30),
        track=np.repeat([0, 1], 30),
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("midi")
    for number in range(5):
        pg.write_midi(duet(number), folder / f"{number}.mid")
    return folder


@pytest.mark.parametrize("name", PARTS)
def test_a_model_trains_is_measured_and_goes_on_from_a_prompt(name, folder, tmp_path):
    values = {
        "source": f"folder={folder}",
        "cache_dir": tmp_path / "cache",
        "model_config": json.dumps(SIZES),
        "chunk_length": 97,
        "max_steps": 2,
        "per_device_train_batch_size": 2,
        "report_to": "none",
        "bf16": "false",
        "disable_tqdm": "true",
        "output_dir": tmp_path / "model",
        **PARTS[name],
    }
    assert main([f"--{option}={value}" for option, value in values.items()]) == 0
    assert json.loads((tmp_path / "model" / "metrics.json").read_text())["validation"]["bits_per_note"] > 0
    model, tokenizer = load_model(tmp_path / "model")
    prompt = duet(9)
    result = pg.continue_notes(model, tokenizer, notes=4, prompt=prompt, seed=0)[0]
    assert len(result.new) >= 4
    programs = {*result.new["program"].tolist()}
    assert programs <= ({0, 40} if name == "mmt" else {0})
    again = pg.read_midi(pg.notes_to_midi_bytes(result.notes), programs=None)
    assert len(again) == len(result.notes)
    assert len(pg.continue_notes(model, tokenizer, notes=3, seed=0)[0].new) >= 3
