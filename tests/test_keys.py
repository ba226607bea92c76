"""Finding keys: scales in all 24, chorales by their signature and last bass note, and what stays as it is."""

from __future__ import annotations

import re
import sys
import zipfile

import datasets
import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from pianogen_hf.data import keys
from pianogen_hf.data.keys import find_key, normalized_keys, to_c_major
from pianogen_hf.data.sources.bach import list_bach, read_bach
from pianogen_hf.models.key_finding import _PROFILES
from pianogen_hf.tokenizers.midi import notes_to_midi_bytes, read_midi
from pianogen_hf.tokenizers.notes import Notes

SCALES = {"major": [0, 2, 4, 5, 7, 9, 11, 12], "minor": [0, 2, 3, 5, 7, 8, 11, 12]}  # harmonic minor
WHITE = {0, 2, 4, 5, 7, 9, 11}


def piece(pitches, duration=100) -> Notes:
    onset = np.arange(len(pitches)) * 120
    return Notes.from_columns(480, onset_tick=onset, duration_tick=duration, pitch=pitches)


def scale(tonic: int, mode: str, base: int = 48) -> Notes:
    return piece([base + tonic + step for step in SCALES[mode]])


@pytest.mark.parametrize("mode", SCALES)
@pytest.mark.parametrize("tonic", range(12))
def test_a_scale_in_any_key_goes_the_shortest_way_to_c_major_or_a_minor(tonic, mode):
    notes = scale(tonic, mode)
    assert find_key(notes) == (tonic, mode)
    result = to_c_major(notes)
    assert result["pitch"][0] % 12 == (0 if mode == "major" else 9)
    moved = set((result["pitch"].astype(int) - notes["pitch"]).tolist())
    assert len(moved) == 1 and -5 <= moved.pop() <= 6
    assert to_c_major(result) == result


def test_long_notes_count_more_than_many_short_ones():
    # All twelve pitch classes, equally often: only their lengths say that this is D major.
    long = {(2 + step) % 12 for step in SCALES["major"]}
    pitches = list(range(60, 72))
    assert find_key(piece(pitches, [480 if pitch % 12 in long else 10 for pitch in pitches])) == (2, "major")
    assert find_key(piece([62 + step for step in SCALES["major"]], 0)) == (2, "major")  # no lengths at all


def test_a_piece_at_the_end_of_the_keyboard_goes_the_other_way():
    low, high = piece([1, *(13 + step for step in SCALES["major"])]), piece([127, *scale(7, "major", 60)["pitch"]])
    assert find_key(low) == (1, "major") and find_key(high) == (7, "major")
    assert to_c_major(low)["pitch"][0] == 0
    assert to_c_major(high)["pitch"].max() == 120  # not 132
    both = piece([0, 127, *(67 + step for step in SCALES["major"])])
    assert find_key(both) == (7, "major") and to_c_major(both) == both


def test_a_piece_without_notes_stays_as_it_is():
    assert len(to_c_major(piece([]))) == 0


@settings(max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 127), st.integers(0, 2000)), min_size=1, max_size=12))
def test_any_music_moves_by_one_interval_within_the_keyboard(rows):
    pitches, durations = zip(*rows, strict=True)
    notes = piece(pitches, durations)
    moved = set((to_c_major(notes)["pitch"].astype(int) - notes["pitch"]).tolist())
    assert len(moved) == 1 and -11 <= moved.pop() <= 11


def known_key(chorale, notes: Notes) -> tuple[int, str] | None:
    """The key that a chorale's signature and last bass note agree on; None in a modal one, or after a change."""
    with zipfile.ZipFile(chorale.path) as file:
        name = next(name for name in file.namelist() if name.endswith((".xml", ".musicxml")) and "META" not in name)
        fifths = set(re.findall(rb"<fifths>\s*(-?\d+)\s*</fifths>", file.read(name)))
    bass = notes.table[notes["track"] == 3]
    last = int(bass["pitch"][-1]) % 12
    major = 7 * int(fifths.pop()) % 12
    return None if fifths else {major: (major, "major"), (major + 9) % 12: (last, "minor")}.get(last)


def semitones_home(tonic: int, mode: str) -> int:
    return ((0 if mode == "major" else 9) - tonic) % 12


def test_nearly_all_chorales_come_to_c_major_or_a_minor():
    right = same_key = known = 0
    for chorale in list_bach(sides=("test",)):
        notes = read_bach(chorale.path)
        key = known_key(chorale, notes)
        if key is not None:
            found = find_key(notes)
            known, same_key = known + 1, same_key + (found == key)
            right += semitones_home(*found) == semitones_home(*key)
    assert known > 50
    assert right / known > 0.93  # 0.967 of the 335 in the whole corpus
    assert same_key / known > 0.85  # 0.899


def test_only_the_music_of_a_data_set_changes_and_that_once(tmp_path, monkeypatch):
    datasets.disable_progress_bars()
    tunes = [scale(2, "major"), scale(0, "minor"), scale(0, "major")]
    pieces = Dataset.from_dict(
        {
            "piece_id": ["a", "b", "c"],
            "family_id": ["x", "y", "z"],
            "content": ["1", "2", "3"],
            "midi": [notes_to_midi_bytes(notes) for notes in tunes],
        }
    )
    result = normalized_keys(pieces, tmp_path)
    assert result.remove_columns("midi").to_list() == pieces.remove_columns("midi").to_list()
    assert [read_midi(midi, None) for midi in result["midi"]] == [
        to_c_major(read_midi(midi, None)) for midi in pieces["midi"]
    ]
    assert result["midi"][2] == pieces["midi"][2] and result._fingerprint != pieces._fingerprint

    def refuse(row):
        raise AssertionError("normalised again")

    monkeypatch.setattr(keys, "_normalized", refuse)
    assert normalized_keys(pieces, tmp_path).to_list() == result.to_list()


@settings(max_examples=100)
@given(st.lists(st.integers(0, 2000), min_size=12, max_size=12).filter(any))
def test_keys_are_those_that_music21_finds(lengths):
    """But for ties, where the order of its list decides there."""
    from music21.analysis.discrete import TemperleyKostkaPayne
    from music21.note import Note
    from music21.stream import Stream

    sounding = Stream([Note(60 + pitch, quarterLength=length / 480) for pitch, length in enumerate(lengths) if length])
    found = TemperleyKostkaPayne().getSolution(sounding)
    best = np.sort(_PROFILES @ np.array(lengths, dtype=float))
    if best[-1] - best[-2] > 1e-3 * max(lengths):
        pitch = [each for each in range(12) if lengths[each]]
        notes = piece([60 + each for each in pitch], [lengths[each] for each in pitch])
        assert find_key(notes) == (found.tonic.pitchClass, found.mode)


def test_keys_are_found_without_music21(monkeypatch):
    monkeypatch.setitem(sys.modules, "music21", None)
    assert to_c_major(scale(2, "minor"))["pitch"][0] % 12 == 9
