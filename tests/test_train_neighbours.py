"""train.py with the encodings of other systems: what comes out is measured, and writes music with its instruments."""

from __future__ import annotations

import json

import numpy as np
import pytest

import pianogen_hf as pg
from pianogen_hf.commands.train import main
from pianogen_hf.evaluation.likelihood import piece_likelihood
from pianogen_hf.evaluation.scorers import cut
from pianogen_hf.generation.new_notes import GenerationError
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


BART = {
    "d_model": 16,
    **{
        f"{net}_{name}": size
        for net in ("encoder", "decoder")
        for name, size in {"layers": 1, "attention_heads": 2, "ffn_dim": 32}.items()
    },
    "forced_eos_token_id": None,
}


def test_an_encoder_decoder_trains_is_measured_and_writes_below_and_above_alone(folder, tmp_path):
    values = {
        "source": f"folder={folder}",
        "cache_dir": tmp_path / "cache",
        "model_type": "bart",
        "model_config": json.dumps(BART),
        "tokenizer": "NoteDurationTokenizer",
        "chunk_length": 97,
        "augmentation": "lazy",
        "max_steps": 2,
        "per_device_train_batch_size": 2,
        "report_to": "none",
        "bf16": "false",
        "disable_tqdm": "true",
        "output_dir": tmp_path / "model",
    }
    arguments = [f"--{option}={value}" for option, value in values.items()]
    assert main([*arguments, "--transpose", "-6", "5"]) == 0
    measured = json.loads((tmp_path / "model" / "metrics.json").read_text())["validation"]
    model, tokenizer = load_model(tmp_path / "model")
    part = duet(9)
    found = piece_likelihood(model, tokenizer, [("duet", part)], 97, 48)
    # A model that has learnt next to nothing takes about as many bits for each token as for equally likely ones.
    assert found.nats_per_token == pytest.approx(np.log(len(tokenizer)), rel=0.1)
    assert measured["nats_per_token"] == pytest.approx(found.nats_per_token, rel=0.1)
    for side in ("below", "above"):
        result = pg.accompany_notes(model, tokenizer, part, side, seed=1)[0]
        again = pg.accompany_notes(model, tokenizer, part, side, seed=1)[0]
        assert np.array_equal(result.new.table, again.new.table)
        assert len(result.new) and result.new.end_tick <= part.end_tick
        assert len(result.notes) == len(part) + len(result.new)
        for note in result.new.table:
            sounding = part.where((part["onset_tick"] <= note["onset_tick"]) & (part.offset_tick > note["onset_tick"]))
            if len(sounding):
                lowest, highest = sounding["pitch"].min(), sounding["pitch"].max()
                assert note["pitch"] < lowest if side == "below" else note["pitch"] > highest
    assert len(pg.harmonise_notes(model, tokenizer, part, seed=1)[0].new)
    for refused in (
        lambda: pg.continue_notes(model, tokenizer, notes=4, prompt=part),
        lambda: pg.fill_notes(model, tokenizer, part, 1, 2),
        lambda: pg.vary_notes(model, tokenizer, part),
        lambda: pg.accompany_notes(model, tokenizer, part, density=3),
    ):
        with pytest.raises(GenerationError, match="writes one part to another"):
            refused()


def test_each_note_is_written_once_however_a_piece_is_cut():
    tokenizer = pg.NoteDurationTokenizer()
    ids = np.array(tokenizer.encode_piece(duet(3)))
    notes = tokenizer.note_steps(ids)
    counted = 0
    for start, stop, first in cut(len(ids), 65, 32):
        for _, written, is_new in tokenizer.translations(ids[start:stop], first):
            counted += np.count_nonzero(
                is_new & (written > tokenizer.separator_id) & (written < tokenizer.first_duration_id)
            )
    assert counted == len(notes)
    (melody, chords, _), (again, too, _) = tokenizer.translations(ids)
    assert np.array_equal(melody, too)
    assert np.array_equal(chords, again)
    parts = np.concatenate([tokenizer.note_steps(melody), tokenizer.note_steps(chords)])
    assert sorted(parts.tolist()) == sorted(notes.tolist())
    for onset, pitch, _ in tokenizer.note_steps(melody).tolist():
        sounding = notes[(notes[:, 0] <= onset) & (notes[:, 0] + notes[:, 2] > onset)]
        assert pitch == sounding[:, 1].max()


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
