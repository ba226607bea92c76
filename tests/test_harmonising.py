"""Harmonising: the melody stays, new notes lie below it, and attempts are weighted by what is given."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from models_and_tokenizers import CAUSAL_MODELS, loosened, some_notes, tiny_model
from transformers import DynamicCache

import pianogen_hf as pg
from pianogen_hf.generation.harmonising import given_voices
from pianogen_hf.generation.new_notes import GenerationError
from pianogen_hf.generation.voice_writer import FREE, VoiceWriter
from pianogen_hf.tokenizers.notes import NOTE_DTYPE

TOKENIZER = pg.JSBTokenizer()
MELODY = pg.Notes.from_columns(
    480,
    onset_tick=np.cumsum([0, 480, 960, 480, 960]),
    duration_tick=[480, 960, 480, 960, 480],
    pitch=[67, 69, 71, 72, 67],
)


def make_model(model_class=pg.ChoraleTransformerForCausalLM, vocab_size=None):
    torch.manual_seed(0)
    return loosened(tiny_model(model_class, vocab_size or len(TOKENIZER)))


CHORALE = make_model()


def harmonise(melody=MELODY, model=CHORALE, **options):
    return pg.harmonise_notes(model, TOKENIZER, melody, **{"seed": 7, "num_particles": 3, **options})


def assert_below(result, melody):
    assert all(row in result.notes.table.tolist() for row in melody.table.tolist())
    assert len(result.notes) == len(melody) + len(result.new) > len(melody)
    for onset, pitch in zip(result.new["onset_tick"], result.new["pitch"], strict=True):
        sounding = melody["pitch"][(melody["onset_tick"] <= onset) & (melody.offset_tick > onset)]
        assert (sounding >= pitch).all()


@pytest.mark.parametrize("model_class", CAUSAL_MODELS)
def test_three_voices_are_written_below_a_melody_by_any_causal_model(model_class):
    result = harmonise(model=make_model(model_class))[0]
    assert_below(result, MELODY)
    assert result.notes.track_names[-3:] == ("Alto", "Tenor", "Bass")
    assert len(set(result.new["track"].tolist()) | {0}) == 4
    assert len(set(result.new["channel"].tolist()) & set(MELODY["channel"].tolist())) == 0
    grid = TOKENIZER.notes_to_grid(result.new)
    assert (np.diff(np.where(grid[:, 1:] < 0, np.nan, grid[:, 1:]), axis=1) <= 0).sum() > len(grid)  # no voice crosses
    read = pg.read_midi(pg.notes_to_midi_bytes(result.notes), None)
    assert sorted(read["pitch"].tolist()) == sorted(result.notes["pitch"].tolist())


def test_new_notes_fill_the_melody_and_end_with_it():
    """Also where a model's window, here of 31 steps, is shorter than the melody."""
    melody = replace(MELODY, ticks_per_quarter=300)
    result = harmonise(melody, num_particles=1)[0]
    assert result.new["onset_tick"].min() == 0
    assert abs(result.new.end_tick - MELODY.end_tick) <= 75
    assert len(TOKENIZER.notes_to_grid(result.notes)) * 4 > CHORALE.config.max_position_embeddings


def test_voices_that_are_named_are_given_and_the_others_written():
    table = np.concatenate([MELODY.table, MELODY.table])
    table["track"][5:], table["channel"][5:] = 1, 1
    table["pitch"][5:] -= 24
    given = replace(MELODY, table=table, track_names=("Soprano", "bass"))
    result = harmonise(given)[0]
    assert result.notes.track_names == ("Soprano", "bass", "Alto", "Tenor")
    assert all(row in result.notes.table.tolist() for row in table.tolist())
    grid, octaves = given_voices(TOKENIZER, given)
    assert octaves == 0 and (grid[:, [1, 2]] == FREE).all() and (grid[:, [0, 3]] != FREE).all()


def test_a_melody_in_another_octave_is_harmonised_there():
    low = MELODY.transposed(-24)
    grid, octaves = given_voices(TOKENIZER, low)
    assert octaves == 24 and grid[0].tolist() == [67, FREE, FREE, FREE]
    assert_below(harmonise(low)[0], low)


def test_the_seed_decides_samples_differ_and_progress_rises_to_all_of_it():
    shares: list[float] = []
    first, second = harmonise(num_samples=2, on_progress=shares.append)
    assert first.notes == harmonise()[0].notes != second.notes
    assert shares == sorted(shares) and shares[-1] == 1.0


class Taught(torch.nn.Module):
    """The bass of the first step is 40 or 41, equally likely; after 40 a soprano of 70 is nine times as likely."""

    config = SimpleNamespace(max_position_embeddings=65)
    device = torch.device("cpu")

    def forward(self, input_ids, past_key_values, use_cache):
        cache = past_key_values or DynamicCache()
        fed = input_ids[:, None, :, None].float()
        ids = cache.update(fed, fed, 0)[0][:, 0, :, 0].long()
        probabilities = torch.full((len(ids), len(TOKENIZER)), 1e-9)
        low, high = TOKENIZER.convert_tokens_to_ids(["P40", "P41"])
        if ids.shape[1] == 4:
            probabilities[:, [low, high]] = 0.5
        elif ids.shape[1] == 5:
            first, second = TOKENIZER.convert_tokens_to_ids(["P70", "P71"])
            is_low = ids[:, 4] == low
            probabilities[:, first] = torch.where(is_low, 0.9, 0.1)
            probabilities[:, second] = torch.where(is_low, 0.1, 0.9)
        else:
            probabilities[:, TOKENIZER.convert_tokens_to_ids("P60")] = 1.0
        return SimpleNamespace(logits=probabilities.log()[:, None], past_key_values=cache)


@pytest.mark.parametrize(("num_particles", "expected"), [(1, 0.5), (32, 0.9)])
def test_attempts_are_weighted_by_how_likely_they_make_what_is_given(num_particles, expected):
    """Bayes: of attempts with a bass of 40 and 41, equally likely, a given 70 leaves 0.9 and 0.1."""
    grid = np.full((2, 4), FREE)
    grid[:, 0] = 70
    writer, generator = VoiceWriter(Taught(), TOKENIZER, num_particles), torch.Generator().manual_seed(0)
    basses = [writer.write(grid, generator)[0, 3] for _ in range(100)]
    assert set(basses) == {40, 41}
    assert np.mean(np.array(basses) == 40) == pytest.approx(expected, abs=0.13)


# V8 -------------------------------------------------------------------------------------------------------------------


def test_a_note_transformer_writes_chords_that_begin_with_notes_of_the_melody():
    model = make_model(pg.NoteTransformerForCausalLM, 130)
    encoder = pg.ContinuousNotesFeatureExtractor()
    melody = some_notes(num_notes=24, pitches=(60, 72))
    result = pg.harmonise_notes(model, encoder, melody, seed=7, density=4.0)[0]
    assert_below(result, melody)
    assert result.notes.track_names[-1] == "chords"
    onsets = melody.onset_sec
    assert all(np.abs(onsets - onset).min() <= 2e-3 for onset in result.new.onset_sec)


# Nonsense -------------------------------------------------------------------------------------------------------------


def all_four():
    table = np.tile(MELODY.table, 4)
    table["track"] = np.repeat(np.arange(4), len(MELODY))
    return replace(MELODY, table=table, track_names=("Soprano", "Alto", "Tenor", "Bass"))


@pytest.mark.parametrize(
    ("melody", "options", "message"),
    [
        (pg.Notes(np.zeros(0, NOTE_DTYPE)), {}, "nothing to harmonise"),
        (
            replace(MELODY, table=np.concatenate([MELODY.table, all_four().table[:1]])),
            {"num_particles": 0},
            "particles",
        ),
        (all_four(), {}, "all four voices are given"),
        (some_notes(num_notes=40, pitches=(20, 110)), {}, "spans more than the voices"),
        (MELODY, {"density": 3.0}, "note transformer"),
        (MELODY, {"guidance_scale": 3.0}, "note transformer"),
        (MELODY, {"top_k": 5}, "leave out top_k"),
        (MELODY, {"temperature": -1.0}, "temperature must be"),
        (MELODY, {"key": "H"}, "is no key"),
    ],
)
def test_what_can_not_be_harmonised_is_one_line(melody, options, message):
    with pytest.raises(GenerationError, match=message) as error:
        harmonise(melody, **options)
    assert "\n" not in str(error.value)


def test_models_of_no_voices_are_refused():
    tokenizer = pg.PerformanceTokenizer()
    with pytest.raises(GenerationError, match="chorale model"):
        pg.harmonise_notes(tiny_model(pg.MusicTransformerForCausalLM, len(tokenizer)), tokenizer, MELODY)
