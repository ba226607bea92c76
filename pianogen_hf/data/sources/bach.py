"""The built-in corpus: Bach's chorales as music21 ships them, with the split of the JSB Chorales benchmark.

The files are read where music21 (Cuthbert and Ariza 2010) has installed them; music21 itself, slow to import, is not.
JSB Chorales (Boulanger-Lewandowski et al. 2012) holds most of these pieces, so they keep its splits: its test chorales
are test here too, its validation chorales validation. `bach_split.json` says so file by file. It was made by matching
the four-voice grid of every file with every JSB piece, and with every other file.

Files form a family where, in some key and octave, they share 64 sixteenths in a row or 0.74 of their four-voice cells:
copies and revisions of one setting. (Different settings of one tune share 0.5 to 0.7; those do stand in two splits, in
JSB as well.) A family stands in one split only. Where JSB has it on several, the one nearest to test stays and the
other files are dropped; what JSB has in both train and validation is dropped altogether.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from pianogen_hf.data.sources.musicxml import read_musicxml
from pianogen_hf.data.split_names import SPLITS
from pianogen_hf.errors import DataError
from pianogen_hf.tokenizers.notes import Notes

VOICES = ("Soprano", "Alto", "Tenor", "Bass")


class BachError(DataError):
    """The corpus isn't there; the message is one line that says what to do."""


@dataclass(frozen=True)
class BachPiece:
    """One file of the corpus, not read yet.

    Attributes:
        name: its number in the catalogue of Bach's works and music21's suffix, such as "bwv1.6".
        path: where it lies.
        family: name of the family it belongs to: the name of one of its pieces.
        side: "train", "validation" or "test", or "drop" if training on it, or testing on it, would not be clean.
        kind: "chorale"; "ensemble" for a chorale whose voices rest for half the piece or more, in the instruments'
            interludes; "keyboard" for a piece without voices.
        jsb: split and index of the JSB piece (or pieces) it was matched to, such as "test 24"; empty if there is none.
        why: why it is dropped; empty if it isn't.
    """

    name: str
    path: Path
    family: str
    side: str
    kind: str = "chorale"
    jsb: str = ""
    why: str = ""


def list_bach(kinds: Collection[str] = ("chorale",), sides: Collection[str] = SPLITS) -> list[BachPiece]:
    """List the pieces of the corpus in the order of their numbers, without reading their music.

    Args:
        kinds: which of "chorale", "ensemble" and "keyboard" to list.
        sides: which of "train", "validation", "test" and "drop" to list.

    Raises:
        BachError: if music21, or a file of its corpus, is not installed.
    """
    folder = _corpus_folder()
    pieces = [BachPiece(Path(file).stem, folder / file, **row) for file, row in _split_table().items()]
    missing = next((piece.path for piece in pieces if not piece.path.is_file()), None)
    if missing:
        raise BachError(f"this music21 lacks {missing}: install a complete one (pip install 'music21>=10.5')")
    return [piece for piece in pieces if piece.kind in kinds and piece.side in sides]


def read_bach(path: str | os.PathLike) -> Notes:
    """Read one file of the corpus: of a chorale its four voices, of any other piece all parts.

    Instruments that double or accompany the voices are left out, and so is the second soprano of the two five-part
    settings (bwv27.6, bwv227.3), as in JSB. Repeats are as written, while JSB plays most of them.

    Returns:
        Notes; for a chorale, tracks 0 to 3 are Soprano, Alto, Tenor and Bass, each a single line.

    Raises:
        MusicXMLError: if the file can't be read.
    """
    notes = read_musicxml(path)
    tracks = [track for voice in VOICES if (track := _first_track(notes, voice)) is not None]
    if len(tracks) < len(VOICES):
        return notes
    voices = notes.where(np.isin(notes["track"], tracks))
    table = voices.table.copy()
    for voice, track in enumerate(tracks):
        table["track"][voices["track"] == track] = voice
    return replace(voices, table=table, track_names=VOICES)


def _first_track(notes: Notes, voice: str) -> int | None:
    """The part of a voice; names such as "Bass Continuo" tell which instruments play along."""
    return next((track for track, name in enumerate(notes.track_names) if name.startswith(voice)), None)


def _corpus_folder() -> Path:
    spec = find_spec("music21")  # finds the package without running it
    if spec is None or not spec.submodule_search_locations:
        raise BachError("the built-in Bach corpus comes with music21: pip install music21, or pianogen_hf[data]")
    return Path(spec.submodule_search_locations[0]) / "corpus" / "bach"


@cache
def _split_table() -> dict[str, dict[str, str]]:
    return json.loads(Path(__file__).with_name("bach_split.json").read_text(encoding="utf-8"))["files"]
