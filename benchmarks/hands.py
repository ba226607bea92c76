"""How well parts of a piece are found in it: `python benchmarks/hands.py FOLDER [EVERY]` prints a table of families.md.

FOLDER holds MIDI files whose tracks are hands, such as piano-midi.de; of these each EVERYth is taken (default: 4).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np

from pianogen_hf.data.families import MIN_SHARE, fingerprint, related
from pianogen_hf.tokenizers.midi import read_midi
from pianogen_hf.tokenizers.notes import Notes

_LEAST_NOTES = 200  # of a piece; half of it of a hand


def hands(notes: Notes) -> tuple[Notes, Notes] | None:
    """The right hand and the left, if the piece has two tracks with notes enough."""
    tracks = [track for track in np.unique(notes["track"]) if (notes["track"] == track).sum() > _LEAST_NOTES / 2]
    if len(tracks) != 2:
        return None
    one, other = (notes.where(notes["track"] == track) for track in tracks)
    return (one, other) if one["pitch"].mean() > other["pitch"].mean() else (other, one)


def melody(notes: Notes) -> Notes:
    """The highest note of each onset, unless the melody's last one is higher and sounds still."""
    kept, end, top = [], -1, 0
    last = np.flatnonzero(np.append(notes["onset_tick"][1:] != notes["onset_tick"][:-1], True))
    for row in last.tolist():
        onset, pitch = int(notes["onset_tick"][row]), int(notes["pitch"][row])
        if onset >= end or pitch >= top:
            kept.append(row)
            end, top = int(notes.offset_tick[row]), pitch
    return notes.where(np.array(kept))


def with_octaves(notes: Notes) -> Notes:
    """The bass doubled an octave lower."""
    low = notes.table[notes["pitch"] < 52].copy()
    low["pitch"] -= np.minimum(low["pitch"], 12)
    return replace(notes, table=np.concatenate([notes.table, low]))


def together(notes: Notes, other: Notes) -> Notes:
    """Two pieces that sound at once."""
    table, factor = other.table.copy(), notes.ticks_per_quarter / other.ticks_per_quarter
    for name in ("onset_tick", "duration_tick"):
        table[name] = (other[name] * factor).astype(np.int64)
    return replace(notes, table=np.concatenate([notes.table, table]))


def backwards(notes: Notes) -> Notes:
    """The retrograde."""
    table = notes.table.copy()
    table["onset_tick"] = notes.end_tick - notes.offset_tick
    return replace(notes, table=table, pedals=notes.pedals[:0])


PARTS: dict[str, Callable[[Notes, Notes], Notes | None]] = {
    "right hand, by pitch": lambda notes, other: notes.where(notes["pitch"] >= 60),
    "right hand, by track": lambda notes, other: (hands(notes) or (None,))[0],
    "left hand, by pitch": lambda notes, other: notes.where(notes["pitch"] < 60),
    "left hand, by track": lambda notes, other: (hands(notes) or (None,))[-1],
    "melody": lambda notes, other: melody(notes),
    "another piece sounding with it": together,
    "bass in octaves": lambda notes, other: with_octaves(notes),
    "retrograde (0 is right)": lambda notes, other: backwards(notes),
}


def main(folder: Path, every: int) -> None:
    """Measure and print."""
    read = {path.stem: read_midi(path) for path in sorted(folder.rglob("*.mid"))[::every]}
    pieces = {name: notes for name, notes in read.items() if len(notes) > _LEAST_NOTES}
    prints = {name: fingerprint(notes) for name, notes in pieces.items()}
    others = dict(zip(pieces, [*list(pieces.values())[1:], next(iter(pieces.values()))], strict=True))
    print("| part | pieces | found |\n|---|---|---|")
    alone: dict[str, list[tuple[str, np.ndarray]]] = {}
    for part, make in PARTS.items():
        made = [(name, make(notes, others[name])) for name, notes in pieces.items()]
        alone[part] = [(name, fingerprint(notes)) for name, notes in made if notes is not None]
        found = sum(related(prints[name], each) >= MIN_SHARE for name, each in alone[part])
        print(f"| {part} | {len(alone[part])} | {found} |")
    pairs = [(prints[a], prints[b]) for a, b in combinations(prints, 2)]
    parts = [name for name in alone if "hand" in name or name == "melody"]
    strange = [(each, prints[b]) for part in parts for a, each in alone[part] for b in prints if a != b]
    for what, tried in (("pieces", pairs), ("hands and melodies with other pieces", strange)):
        print(
            f"\nfalse alarms among {len(tried):,} pairs of {what}: {sum(related(*pair) >= MIN_SHARE for pair in tried)}"
        )


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit("usage: python benchmarks/hands.py FOLDER [EVERY]")
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) == 3 else 4)
