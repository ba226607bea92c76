"""The copy audit: how much of some music stands, note for note, in the training pieces, in whatever key.

A run is a stretch of a piece that equals a stretch of a training piece after one transposition of all its notes. It
begins and ends with a frame that sounds, so silence alone is no run; rests inside it must match rests. Pieces are

* grids, int (steps, voices): MIDI pitches, -1 for silence. A frame is a step; pitches, voices and rhythm must agree.
* `Notes`: a frame is a note, in the order of onsets; what begins less than 50 ms apart is one chord, read upwards
  without doublings, and drums are left out. Rhythm, velocity and tracks don't count: whoever plays another's notes in
  another rhythm still copies. What such runs owe to chance (scales, repeated chords) held-out pieces owe as well.

People repeat one another too: `compare_with_base_rate` sets generated music against held-out music.

The training split is a suffix array (Manber and Myers 1993): exact, without hashes, and not slowed by repetition.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pianogen_hf.tokenizers.notes import Notes

LENGTHS = (16, 32, 64)  # for grids of sixteenths: one, two and four bars of 4/4
CHORD_SEC = 0.05

_MAX_VOICES = 7  # as many pitches as fit into 63 bits
_CODE = np.dtype(">u4")  # big-endian: bytes sort as their numbers do
_FIRST_LOOK = 256  # moves that are compared at first; runs are seldom longer

_FALSE_ALARMS = 0.01  # share of harmless sets for which each rule of the alarm may ring
_TAIL = 0.05  # share of held-out pieces that count as the tail of their longest runs
_NUM_SHUFFLES = 1999
_NO_STEPS = (np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int16))


@dataclass(frozen=True)
class PieceAudit:
    """What of one piece stands in the training pieces.

    Attributes:
        frames: its length: steps of a grid, or notes.
        coverage: for each length, the share of frames that lie in a run at least so long, 0..1.
        longest_run: frames of its longest run; 0 if there is none of two frames.
        train_piece: name of a training piece with that run; empty if there is none.
        train_start: frame at which the run begins there.
        start: frame at which it begins here.
    """

    frames: int
    coverage: dict[int, float]
    longest_run: int = 0
    train_piece: str = ""
    train_start: int = 0
    start: int = 0


class RunIndex:
    """All stretches of the training pieces, to be looked up in any key.

    Ten million frames take 80 MB, and 1 GB and half a minute while they are fitted.

    Args:
        lengths: lengths of runs, in frames, at least 2, for which coverage is given.
    """

    def __init__(self, lengths: Sequence[int] = LENGTHS) -> None:
        if not lengths or min(lengths) < 2:
            raise ValueError(f"a run has 2 frames or more, got lengths {tuple(lengths)}")
        self.lengths = tuple(sorted(lengths))

    def fit(self, names: Sequence[str], pieces: Iterable[np.ndarray | Notes]) -> RunIndex:
        """Indexes the training pieces, all grids or all `Notes`, one by one; the names are for the reports.

        Raises:
            ValueError: if names and pieces are not equally many, if grids and notes are mixed, if a grid is not
                (steps, at most 7 voices), or if a pitch is neither -1 nor 0..127.
        """
        self.names, self.unit = tuple(names), ""
        steps = [_NO_STEPS, *(self._steps(piece) for _, piece in zip(self.names, pieces, strict=True))]
        self._starts = np.cumsum([len(shapes) for shapes, _ in steps])
        shapes, references = (np.concatenate(column) for column in zip(*steps, strict=True))
        self._shapes = np.unique(shapes)
        self._moves = np.unique(self._move_keys(_index_in(self._shapes, shapes), references))
        codes = self._encode(shapes, references)
        codes[self._starts[1:][np.diff(self._starts) > 0] - 1] = 0  # no run continues into the next piece
        self._text = codes.tobytes()
        self._codes = np.frombuffer(self._text, _CODE)
        self._suffixes = _suffix_array(codes)
        return self

    def audit(self, piece: np.ndarray | Notes) -> PieceAudit:
        """Finds what of a piece stands in the training pieces. Raises ValueError as `fit` does."""
        shapes, references = self._steps(piece)
        codes, sounds, frame = self._encode(shapes, references), shapes > 0, np.arange(len(shapes))
        text = codes.tobytes()
        found = [self._longest_match(codes, text, start) if sounds[start] else (0, 0) for start in frame.tolist()]
        moves, places = np.array(found, dtype=np.int64).reshape(-1, 2).T
        # n moves join n + 1 frames; silent ones at the end don't count.
        run = np.maximum.accumulate(np.where(sounds, frame, 0))[frame + moves] - frame + 1
        run[(moves == 0) | (run < 2)] = 0
        coverage = {length: _share_covered(run, length) for length in self.lengths}
        if not run.any():
            return PieceAudit(len(codes), coverage)
        best = int(run.argmax())
        train = int(np.searchsorted(self._starts, places[best], side="right")) - 1
        train_start = int(places[best] - self._starts[train])
        return PieceAudit(len(codes), coverage, int(run[best]), self.names[train], train_start, best)

    def audit_set(self, pieces: Iterable[np.ndarray | Notes]) -> dict[str, Any]:
        """Audits many pieces; the result can be written as JSON.

        Returns:
            unit ("steps" or "notes"); frames in all; coverage, the share of all frames, per length; longest_run with
            its train_piece, train_start, piece (an index) and start; per_piece, the same for each piece.
        """
        audits = [self.audit(piece) for piece in pieces]
        frames = np.array([audit.frames for audit in audits])
        coverage = {str(size): np.array([audit.coverage[size] for audit in audits]) for size in self.lengths}
        top = max(range(len(audits)), key=lambda piece: audits[piece].longest_run, default=None)
        longest = PieceAudit(0, {}) if top is None else audits[top]
        return {
            "unit": self.unit,
            "frames": int(frames.sum()),
            "coverage": {n: float(shares @ frames / max(frames.sum(), 1)) for n, shares in coverage.items()},
            "longest_run": longest.longest_run,
            "train_piece": longest.train_piece,
            "train_start": longest.train_start,
            "piece": top,
            "start": longest.start,
            "per_piece": {
                "frames": frames.tolist(),
                "coverage": {n: shares.tolist() for n, shares in coverage.items()},
                "longest_run": [audit.longest_run for audit in audits],
                "train_piece": [audit.train_piece for audit in audits],
            },
        }

    def _steps(self, piece: np.ndarray | Notes) -> tuple[np.ndarray, np.ndarray]:
        """Per frame what transposition leaves alone, 0 for silence, and the lowest pitch (in silence the last one)."""
        unit = "notes" if isinstance(piece, Notes) else "steps"
        if self.unit not in ("", unit):
            raise ValueError(f"this index holds {self.unit}, and a piece comes in {unit}")
        self.unit = unit
        grid = _note_grid(piece) if isinstance(piece, Notes) else np.asarray(piece, dtype=np.int64)
        if not grid.size:
            return _NO_STEPS
        if grid.ndim != 2 or grid.shape[1] > _MAX_VOICES:
            raise ValueError(f"a grid has shape (steps, at most {_MAX_VOICES} voices), got {grid.shape}")
        if grid.min() < -1 or grid.max() > 127:
            raise ValueError(f"a grid holds pitches 0..127 and -1 for rests, got {grid.min()}..{grid.max()}")
        sounds = grid >= 0
        lowest = np.where(sounds, grid, 128).min(axis=1)
        latest = np.maximum.accumulate(np.where(lowest < 128, np.arange(len(grid)), 0))
        shapes = np.where(sounds, grid - lowest[:, None] + 1, 0) << np.arange(grid.shape[1]) * 8
        return np.bitwise_or.reduce(shapes, axis=1), lowest[latest].astype(np.int16)

    def _move_keys(self, shapes: np.ndarray, references: np.ndarray) -> np.ndarray:
        """One number per pair of neighbouring frames: both shapes, by index, and how far the lowest pitch moves."""
        return (shapes[:-1] * len(self._shapes) + shapes[1:]) * 512 + np.diff(references) + 256

    def _encode(self, shapes: np.ndarray, references: np.ndarray) -> np.ndarray:
        """A code for the move from each frame to the next; those that no training piece has share the last code."""
        index = _index_in(self._shapes, shapes)
        move = _index_in(self._moves, self._move_keys(index, references))
        known = (index[:-1] >= 0) & (index[1:] >= 0) & (move >= 0)
        codes = np.full(len(shapes), len(self._moves) + 1, dtype=_CODE)
        codes[:-1][known] = move[known] + 1
        return codes

    def _longest_match(self, codes: np.ndarray, text: bytes, start: int) -> tuple[int, int]:
        """How many moves from `start` on stand in the training text, and where: next to their place in its order."""
        size, look = _CODE.itemsize, _FIRST_LOOK
        while True:
            wanted = text[size * start : size * (start + look)]
            row = bisect_left(range(len(self._suffixes)), wanted, key=lambda row: self._read(row, len(wanted)))
            places = self._suffixes[max(row - 1, 0) : row + 1].tolist()
            best = max(((self._common(codes, start, place, look), place) for place in places), default=(0, 0))
            if best[0] < look:
                return best
            look *= 4

    def _read(self, row: int, num_bytes: int) -> bytes:
        place = _CODE.itemsize * int(self._suffixes[row])
        return self._text[place : place + num_bytes]

    def _common(self, codes: np.ndarray, start: int, place: int, look: int) -> int:
        here, there = codes[start : start + look], self._codes[place : place + look]
        shorter = min(len(here), len(there))
        differs = here[:shorter] != there[:shorter]
        return int(differs.argmax()) if differs.any() else shorter


def compare_with_base_rate(generated: dict[str, Any], heldout: dict[str, Any]) -> dict[str, Any]:
    """Says whether generated music copies more than held-out music does; both as `RunIndex.audit_set` gives them.

    Held-out pieces should be of the same style and about as long. Each of two rules may ring for one harmless set in
    a hundred:

    1. Much is copied. If generated and held-out pieces were alike, it would not matter which are which: p is the share
       of random relabellings, the true one included, with as large a difference in coverage. It rings at p <= 0.01 /
       number of lengths; one piece against fewer than a few hundred never gets there.
    2. One passage is too long. Let the share of pieces with a longest run over x fall exponentially, through the 95th
       percentile q of the held-out pieces; the limit is where one in 100 sets of k pieces gets: q ln(100 k) / ln 20,
       or the shortest of the lengths if that is more.
       (The longest held-out run would be a bad limit: k pieces like the m held-out ones exceed it with probability
       k / (k + m), and a single duplicate among those would hide every copy.)

    Returns:
        alarm; reasons, a line each; coverage per length: generated, heldout, p; longest_run: generated, heldout, limit.

    Raises:
        ValueError: if there are no held-out pieces, or units or lengths differ.
    """
    here, there = generated["per_piece"], heldout["per_piece"]
    if not there["frames"] or (here["frames"] and generated["unit"] != heldout["unit"]):
        raise ValueError("the base rate needs held-out pieces, in the unit of the generated ones")
    if generated["coverage"].keys() != heldout["coverage"].keys():
        raise ValueError("generated and held-out music were audited at different lengths")
    coverage = {
        length: {"generated": generated["coverage"][length], "heldout": heldout["coverage"][length], "p": chance}
        for length, chance in _relabelling_p(here, there).items()
    }
    limit = max(_run_limit(there["longest_run"], len(here["frames"])), float(min(map(int, coverage))))
    runs = {"generated": generated["longest_run"], "heldout": heldout["longest_run"], "limit": limit}
    reasons = [
        f"{row['generated']:.1%} lie in train runs of {length} {generated['unit']} or more; of held-out music "
        f"{row['heldout']:.1%} (p = {row['p']:.4f})"
        for length, row in coverage.items()
        if row["p"] <= _FALSE_ALARMS / len(coverage)
    ]
    if generated["longest_run"] > limit:
        place = f"from {generated['train_piece']}, there at {generated['train_start']}"
        reasons.append(f"{generated['longest_run']} {generated['unit']} in a row {place}; the limit is {limit:.0f}")
    return {"alarm": bool(reasons), "reasons": reasons, "coverage": coverage, "longest_run": runs}


def _relabelling_p(here: dict[str, Any], there: dict[str, Any]) -> dict[str, float]:
    """For each length, how often a random choice of pieces is covered so much more than the others."""
    frames = np.array(here["frames"] + there["frames"], dtype=np.float64)
    shares = np.array([covered + there["coverage"][length] for length, covered in here["coverage"].items()])
    covered, true = shares * frames, np.arange(len(frames)) < len(here["frames"])
    shuffled = np.random.default_rng(0).random((_NUM_SHUFFLES, len(frames))).argsort(axis=1) < true.sum()
    chosen = np.vstack([true, shuffled]).T.astype(np.float64)  # (pieces, labellings)
    rest = 1 - chosen
    excess = covered @ chosen / np.maximum(frames @ chosen, 1) - covered @ rest / np.maximum(frames @ rest, 1)
    reached = (excess >= excess[:, :1] - 1e-12).mean(axis=1)
    return dict(zip(here["coverage"], reached.tolist(), strict=True))


def _run_limit(heldout_runs: Sequence[int], num_pieces: int) -> float:
    """The longest run that is still harmless in so many pieces: rule 2. Few held-out pieces know less of the tail."""
    tail = max(_TAIL, 1 / (len(heldout_runs) + 1))
    usual = float(np.quantile(heldout_runs, 1 - tail, method="higher"))
    return usual * math.log(max(num_pieces, 1) / _FALSE_ALARMS) / math.log(1 / tail)


def _note_grid(notes: Notes) -> np.ndarray:
    """Pitches (notes, 1) chord after chord, each chord upwards without doublings."""
    notes = notes.where(~notes["is_drum"])
    chord = np.cumsum(np.diff(notes.onset_sec, prepend=-1.0) >= CHORD_SEC - 1e-9)
    return np.unique(chord * 128 + notes["pitch"])[:, None] % 128


def _index_in(known: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Places of values in a sorted array, -1 for those that it lacks."""
    if not len(known):
        return np.full(len(values), -1)
    index = np.minimum(np.searchsorted(known, values), len(known) - 1)
    return np.where(known[index] == values, index, -1)


def _share_covered(run: np.ndarray, length: int) -> float:
    """Share of steps that lie in a run of at least `length`, given the longest run from each step on."""
    reach = np.maximum.accumulate(np.where(run >= length, np.arange(len(run)) + run, 0))
    return float(np.mean(reach > np.arange(len(run)))) if len(run) else 0.0


def _suffix_array(codes: np.ndarray) -> np.ndarray:
    """The places of a text, sorted by the text that begins there: each pass sorts the ties by twice as many codes."""
    order = np.argsort(codes, kind="stable")
    ranks = np.empty(len(codes), dtype=np.int64)
    rows, keys = np.arange(len(codes)), codes[order].astype(np.int64)  # rows of `order` that are sorted anew
    step = 1
    while len(rows):
        begins = np.append(True, keys[1:] != keys[:-1])
        ranks[order[rows]] = rows[np.maximum.accumulate(np.where(begins, np.arange(len(rows)), 0))]
        rows = rows[~(begins & np.append(begins[1:], True))]
        following = order[rows] + step
        inside = following < len(codes)
        keys = ranks[order[rows]] * (len(codes) + 1)
        keys[inside] += ranks[following[inside]] + 1
        by_key = np.argsort(keys, kind="stable")
        order[rows], keys = order[rows[by_key]], keys[by_key]
        step *= 2
    return order.astype(np.int32 if len(codes) < 2**31 else np.int64)
