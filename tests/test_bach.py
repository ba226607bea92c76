"""The built-in corpus: what is listed, that no family spans two sides, and that the voices are right."""

from __future__ import annotations

import sys
from collections import Counter
from importlib.util import find_spec

import numpy as np
import pytest

from pianogen_hf.data.sources import bach
from pianogen_hf.data.sources.bach import BachError, list_bach, read_bach
from pianogen_hf.data.split_names import SPLITS

EVERY_KIND = ("chorale", "ensemble", "keyboard")
EVERY_SIDE = (*SPLITS, "drop")

needs_corpus = pytest.mark.skipif(find_spec("music21") is None, reason="music21, which holds the corpus, is missing")


def everything() -> list[bach.BachPiece]:
    return list_bach(EVERY_KIND, EVERY_SIDE)


def named(name: str) -> bach.BachPiece:
    return next(piece for piece in everything() if piece.name == name)


@needs_corpus
def test_counts_per_side_and_kind():
    assert Counter(piece.side for piece in everything()) == {"train": 243, "validation": 73, "test": 81, "drop": 13}
    assert Counter(piece.kind for piece in everything()) == {"chorale": 404, "ensemble": 5, "keyboard": 1}
    assert Counter(piece.side for piece in list_bach()) == {"train": 238, "validation": 72, "test": 81}


@needs_corpus
def test_every_listed_file_is_there_under_a_name_of_its_own():
    pieces = everything()
    assert all(piece.path.is_file() for piece in pieces)
    assert len({piece.name for piece in pieces}) == len(pieces) == 410


@needs_corpus
def test_no_family_spans_two_sides():
    sides: dict[str, set[str]] = {}
    for piece in list_bach(EVERY_KIND):
        sides.setdefault(piece.family, set()).add(piece.side)
    assert {family for family, found in sides.items() if len(found) > 1} == set()


@needs_corpus
def test_jsb_test_chorales_are_all_here_and_test():
    owners = {jsb: piece for piece in everything() for jsb in piece.jsb.split(", ") if jsb.startswith("test")}
    assert {int(jsb.split()[1]) for jsb in owners} == set(range(77))
    assert {piece.side for piece in owners.values()} == {"test"}


@needs_corpus
def test_jsb_pieces_never_come_nearer_to_training():
    distance = {"train": 0, "validation": 1, "test": 2, "drop": 3}
    for piece in everything():
        for jsb in filter(None, piece.jsb.split(", ")):
            assert distance[piece.side] >= distance[jsb.split()[0]], piece


@needs_corpus
def test_a_dropped_piece_says_why():
    assert {piece.name for piece in everything() if piece.why} == {
        piece.name for piece in list_bach(EVERY_KIND, ["drop"])
    }


@needs_corpus
def test_first_chord_of_a_known_chorale():
    notes = read_bach(named("bwv269").path)  # Riemenschneider 1, in G
    first = notes.table[notes["onset_tick"] == 0]
    assert dict(zip(first["track"].tolist(), first["pitch"].tolist(), strict=True)) == {0: 67, 1: 62, 2: 59, 3: 43}
    assert notes.track_names == ("Soprano", "Alto", "Tenor", "Bass")
    assert notes.time_signatures.tolist() == [(0, 1, 4), (480, 3, 4)]


@needs_corpus
@pytest.mark.parametrize("name", ["bwv1.6", "bwv27.6", "bwv41.6", "bwv171.6", "bwv190.7-inst", "bwv248.64-s"])
def test_chorales_with_more_parts_give_their_four_voices(name):
    notes = read_bach(named(name).path)
    assert set(notes["track"]) == {0, 1, 2, 3}
    medians = [np.median(notes["pitch"][notes["track"] == voice]) for voice in range(4)]
    assert medians == sorted(medians, reverse=True)


@needs_corpus
@pytest.mark.parametrize("side", EVERY_SIDE)
def test_each_voice_is_a_single_line(side):
    for piece in list_bach(sides=[side])[::5]:
        notes = read_bach(piece.path)
        for voice in range(4):
            line = notes.where(notes["track"] == voice)
            assert len(line) > 0
            assert np.all(line["onset_tick"][1:] >= line.offset_tick[:-1]), (piece.name, voice)


@needs_corpus
def test_a_piece_without_voices_is_read_whole():
    piece = next(iter(list_bach(["keyboard"])))
    assert (piece.name, read_bach(piece.path).track_names) == ("bwv846", ("Piano",))


@needs_corpus
def test_listing_does_not_import_music21(monkeypatch):
    monkeypatch.delitem(sys.modules, "music21", raising=False)
    list_bach()
    assert "music21" not in sys.modules


def test_without_music21_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr(bach, "find_spec", lambda name: None)
    with pytest.raises(BachError, match="pip install music21"):
        list_bach()


def test_an_incomplete_corpus_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(bach, "_corpus_folder", lambda: tmp_path)
    with pytest.raises(BachError, match="lacks .*bwv1.6.mxl"):
        list_bach()
