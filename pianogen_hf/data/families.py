"""Families: pieces that share content, whatever their key, tempo, touch, tracks, resolution or performer.

Pieces of one family must stand in one split. They are found in three steps. None compares all pairs, and each
looks at two pieces alone, so that further pieces can only merge families, never part them:

1. Each piece becomes a set of *grams*: the pitches in a window of consecutive notes, seen from the lowest. Their order
   within the window does not count, so chords may be rolled and hands may drift apart without a threshold in
   milliseconds; only a window whose edge parts two swapped notes is lost. That is the difference from the interval
   n-grams of Doraisamy and Rueger ("Robust polyphonic music retrieval with n-grams", JIIS 21, 2003). Of long pieces a
   fixed share of all possible grams is kept, chosen by hash, so that a part keeps what the whole keeps of it (Broder,
   "On the resemblance and containment of documents", 1997).
   Where one hand or the melody alone is to be found in the whole, such windows hold the notes of the other hand, too.
   So a piece has a second set of grams, of its *lines*: the notes above middle C, those below it, and those that no
   higher, or no lower note sounds with. They are compared with lines alone, each with its like.
2. An inverted index counts, for pieces that share grams, how many agree in one transposition.
3. Where these are enough, the longest chain of them that advances in both pieces is their common music. It must hold
   several places apart, which a scale or a broken chord that any two pieces may share does not, and be no shorter than
   the longest that runs backwards in one of them: what is alike from behind is a retrograde.

`benchmarks/families.py` measures it; the constants below are its result.
"""

from __future__ import annotations

import hashlib
import json
import os
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from datasets import Dataset
from datasets.utils import tqdm  # silent where the bars of datasets are
from numpy.lib.stride_tricks import sliding_window_view

from pianogen_hf.tokenizers.files import write_whole
from pianogen_hf.tokenizers.notes import Notes, stable_order

# Of 1,645 pairs known to be one work all but two reach 5 places and a share of 0.039 (0.033 for one noisy recording).
# Of more than 200,000 pairs of different works none reaches 5 places and a share of 0.02. Windows of 8 notes keep more
# of noisy recordings but cost 1.7 times the matches; windows of 10 cost 0.65 times as many and miss more of them.
WINDOW = 9  # notes in a gram
MIN_KINDS = 4  # different gaps in a gram; scales, trills and broken chords have fewer and fill a third of the index
MIN_HAND_KINDS = 5  # in a gram of what is above or below middle C: with 4, hands make more matches than all notes
MIN_SHARE = 0.03  # of the smaller piece's grams
MIN_LINE_SHARE = 0.05  # of the grams of its lines, which hold fewer notes and are more alike
MIN_PLACES = 5  # windows of the chain that do not overlap
# What is enough, too, of lines: in 5.6 million pairs one false one has a share of 0.058.
FEW_LINE_SHARE, FEW_LINE_PLACES = 0.065, 4
SHORT_SHARE, SHORT_PLACES = 0.5, 2  # what is enough, too: half of a piece that is too short to have many places
FULL_NOTES = 1000  # pieces up to this length keep all grams
KEPT_ONE_IN = 4  # longer ones keep this part

_MIDDLE_C = 60  # above and below it are hands, as far as a pitch can tell
_RETROGRADE_SHARE = 0.2  # which no retrograde reaches by what it has in the same order
_HANDS = (1, 2)  # numbers of the lines above and below it
_LOOK_BACK = 12  # notes before one that may sound above it, or below it
_CACHE_VERSION = 2  # raised when families of the same fingerprints change
_PLACE_BITS, _PITCH_BITS = 21, 7  # below 36 bits of hash; the highest bit of a place says that it is one of a line
_LINE_PLACE = 2 ** (_PLACE_BITS - 1)
_MIN_SHARED = 3  # grams in one transposition that make a candidate
_BLOCK = 250_000  # matches looked at in one go, which bounds the memory; more do not fit the cache of a core
_ODD = 0x9E3779B97F4A7C15  # 2^64 over the golden ratio: Knuth, The Art of Computer Programming 3, section 6.4


def fingerprint(notes: Notes) -> np.ndarray:
    """All that is needed of a piece to find its family.

    Only the order of the notes counts, not their times, velocities or tracks. Drums and doubled notes are left out.

    Returns:
        uint64, shape (1 + num_grams,): a hash of the whole piece, which transposed copies share; then its different
        grams in ascending order, each a hash, the place where it first stands (from `_LINE_PLACE` on those of lines)
        and its lowest pitch. About 5 bytes for each note of a long piece.
    """
    strikes = notes["onset_tick"].astype(np.int64) << _PITCH_BITS | notes["pitch"]
    is_new = ~notes["is_drum"]
    ends = notes.offset_tick
    if not is_new.all():
        strikes, ends, is_new = strikes[is_new], ends[is_new], is_new[is_new]
    is_new[1:] = strikes[1:] != strikes[:-1]  # notes come by onset and pitch
    strikes, ends = strikes[is_new], ends[is_new]
    pitches = (strikes & 127).astype(np.uint8)
    head = [np.uint64(_whole_hash(notes.tick_to_sec(strikes >> _PITCH_BITS), pitches))]
    if len(pitches) < WINDOW:
        return np.array(head, dtype=np.uint64)
    grams = [_grams(pitches, np.arange(len(pitches)), 0, len(pitches) > FULL_NOTES)]
    for number, line in enumerate(_lines(strikes >> _PITCH_BITS, ends, pitches), start=1):
        grams.append(_grams(pitches[line], line + _LINE_PLACE, number, len(pitches) > FULL_NOTES))
    return np.concatenate([head, np.sort(np.concatenate(grams))], dtype=np.uint64)


def _grams(pitches: np.ndarray, places: np.ndarray, line: int, is_long: bool) -> np.ndarray:
    """The different grams of a row of pitches, packed, shape (num_grams,); those of a line have hashes of their own."""
    if len(pitches) < WINDOW:
        return np.zeros(0, dtype=np.uint64)
    windows = _sorted_columns(sliding_window_view(pitches, WINDOW).T)
    gaps = np.diff(windows, axis=0)
    hashes = _hash_columns(gaps, line)
    rows = np.flatnonzero(_is_sampled(hashes)) if is_long else np.arange(len(hashes))
    kinds = (np.diff(_sorted_columns(gaps.take(rows, axis=1)), axis=0) > 0).sum(axis=0) + 1
    rows = rows[kinds >= (MIN_HAND_KINDS if line in _HANDS else MIN_KINDS)]
    grams, first = np.unique(hashes[rows], return_index=True)
    rows = rows[first]
    limit = 2 * _LINE_PLACE - 1 if line else _LINE_PLACE - 1
    packed = (grams << (_PLACE_BITS + _PITCH_BITS)) | (np.minimum(places[rows], limit).astype(np.uint64) << _PITCH_BITS)
    return packed | windows[0, rows]


def _lines(onsets: np.ndarray, ends: np.ndarray, pitches: np.ndarray) -> list[np.ndarray]:
    """Rows of the notes above middle C, below it, and of those that none above, or none below them sounds with."""
    is_high = pitches >= _MIDDLE_C
    begins = onsets[1:] != onsets[:-1]
    lowest, highest = np.flatnonzero(np.append(True, begins)), np.flatnonzero(np.append(begins, True))
    heights = pitches.astype(np.int16)
    return [
        np.flatnonzero(is_high),
        np.flatnonzero(~is_high),
        highest[~_is_covered(onsets[highest], ends[highest], heights[highest])],
        lowest[~_is_covered(onsets[lowest], ends[lowest], -heights[lowest])],
    ]


def _is_covered(onsets: np.ndarray, ends: np.ndarray, heights: np.ndarray) -> np.ndarray:
    """Whether one of the notes before each is higher and sounds still, bool (num_notes,)."""
    covered = np.zeros(len(onsets), dtype=bool)
    for back in range(1, min(_LOOK_BACK, len(onsets) - 1) + 1):
        covered[back:] |= (ends[:-back] > onsets[back:]) & (heights[:-back] > heights[back:])
    return covered


def _whole_hash(onset_sec: np.ndarray, pitches: np.ndarray) -> int:
    """Names the steps from note to note; for the shortest pieces, where steps say little, pitches and times."""
    if len(pitches) >= WINDOW:
        content = np.diff(pitches.astype("<i2"))
    else:
        onset_ms = np.rint(onset_sec * 1000).astype(np.int64)
        content = np.stack([onset_ms - onset_ms.min(initial=2**62), pitches.astype(np.int64)]).astype("<i8")
    return int.from_bytes(hashlib.blake2b(content.tobytes(), digest_size=8).digest(), "big")


def _sorted_columns(numbers: np.ndarray) -> np.ndarray:
    """`np.sort(numbers, axis=0)` of few and long rows, many times as fast: neighbours change places, row by row."""
    rows = list(numbers)
    for turn in range(len(rows)):
        for low in range(turn % 2, len(rows) - 1, 2):
            pair = rows[low], rows[low + 1]
            rows[low], rows[low + 1] = np.minimum(*pair), np.maximum(*pair)
    return np.stack(rows)


def _hash_columns(columns: np.ndarray, line: int) -> np.ndarray:
    """Hashes of 36 bits, uint64, shape (num_columns,), of small numbers, shape (num_rows, num_columns), and a line."""
    sums = np.full(columns.shape[1], line * pow(_ODD, len(columns) + 1, 2**64) % 2**64, dtype=np.uint64)
    for number, row in enumerate(columns, start=1):
        sums += row * np.uint64(pow(_ODD, number, 2**64))
    sums ^= sums >> np.uint64(32)
    return sums * np.uint64(_ODD) >> np.uint64(_PLACE_BITS + _PITCH_BITS)


def _is_sampled(hashes: np.ndarray) -> np.ndarray:
    return hashes % np.uint64(KEPT_ONE_IN) == 0


def _unpack(packed: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Hashes (uint64), places and lowest pitches (int64), each of shape (num_grams,)."""
    places = packed >> np.uint64(_PITCH_BITS) & np.uint64(2**_PLACE_BITS - 1)
    pitches = packed & np.uint64(2**_PITCH_BITS - 1)
    return packed >> np.uint64(_PLACE_BITS + _PITCH_BITS), places.astype(np.int64), pitches.astype(np.int64)


def related(a: np.ndarray, b: np.ndarray) -> float:
    """How much of the smaller of two pieces is in the other.

    Args:
        a: what `fingerprint` gave for one piece.
        b: the same for the other.

    Returns:
        The share of its grams, 0 to 1, that lie in order and at one transposition; 0.0 where they hold too few places
        to mean anything. From `MIN_SHARE` on the two are of one family. The grams are those of all notes; where these
        are not enough, those of lines.
    """
    if a[0] == b[0]:
        return 1.0
    a, b = (a, b) if a[0] < b[0] else (b, a)  # where chains are equally long, both ways round must find the same one
    sides = []
    for grams, places, pitches in (_unpack(a[1:]), _unpack(b[1:])):
        of_line = places >= _LINE_PLACE
        sides.append([(grams[chosen], places[chosen], pitches[chosen]) for chosen in (~of_line, of_line)])
    notes, lines = zip(*sides, strict=True)
    share, num_places = _share(*notes)
    if share >= MIN_SHARE and num_places >= (SHORT_PLACES if share >= SHORT_SHARE else MIN_PLACES):
        return share
    share, num_places = _share(*lines)
    least = MIN_PLACES if share < FEW_LINE_SHARE else FEW_LINE_PLACES
    return share if share >= MIN_LINE_SHARE and num_places >= least else 0.0


_Grams = tuple[np.ndarray, np.ndarray, np.ndarray]


def _share(a: _Grams, b: _Grams) -> tuple[float, int]:
    """The share of the smaller one's grams that lie in order at one transposition, and how many places they hold."""
    (grams_a, places_a, pitches_a), (grams_b, places_b, pitches_b) = a, b
    rows_b = np.searchsorted(grams_b, grams_a)  # both are sorted
    rows_a = np.flatnonzero(np.append(grams_b, grams_b[:1])[rows_b] == grams_a) if len(grams_b) else rows_b[:0]
    if len(rows_a) == 0:
        return 0.0, 0
    rows_b = rows_b[rows_a]
    shifts = pitches_b[rows_b] - pitches_a[rows_a] + 127
    agree = shifts == np.bincount(shifts).argmax()
    places_a, places_b = places_a[rows_a[agree]], places_b[rows_b[agree]]
    length, places = _chain(places_a, places_b)
    share = length / min(_comparable_sizes(grams_a, grams_b))
    if MIN_SHARE <= share < _RETROGRADE_SHARE and _chain(places_a, -places_b)[0] > length:
        return 0.0, 0  # it is the other way round
    return share, places


def _comparable_sizes(grams_a: np.ndarray, grams_b: np.ndarray) -> tuple[int, int]:
    """How many grams two pieces have, of those that both would have kept."""
    sampled_a, sampled_b = _is_sampled(grams_a), _is_sampled(grams_b)
    if sampled_a.all() or sampled_b.all():
        return int(sampled_a.sum()), int(sampled_b.sum())
    return len(grams_a), len(grams_b)


def _chain(places_a: np.ndarray, places_b: np.ndarray) -> tuple[int, int]:
    """Length of the longest chain of matches that advances in both pieces, and how many of its windows lie apart.

    It is the longest increasing subsequence by patience sorting (Fredman 1975), in O(n log n).
    """
    order = np.argsort(places_a)
    in_a, in_b = places_a[order].tolist(), places_b[order].tolist()
    ends: list[int] = []  # the lowest end, in b, of a chain of each length, and which match it is
    matches: list[int] = []
    before: list[int] = []
    for match, place in enumerate(in_b):
        if not ends or place > ends[-1]:
            before.append(matches[-1] if matches else -1)
            ends.append(place)
            matches.append(match)
        else:
            length = bisect_left(ends, place)
            before.append(matches[length - 1] if length else -1)
            ends[length], matches[length] = place, match
    match, apart, latest_a, latest_b = matches[-1], 0, 2**62, 2**62
    while match >= 0:
        if in_a[match] <= latest_a and in_b[match] <= latest_b:
            apart, latest_a, latest_b = apart + 1, in_a[match] - WINDOW, in_b[match] - WINDOW
        match = before[match]
    return len(ends), apart


def related_pairs(
    fingerprints: Sequence[np.ndarray], is_settled: Callable[[int, int], bool] | None = None
) -> Iterator[tuple[int, int, float]]:
    """Every two pieces that share music, as (index, higher index, what `related` says), without comparing all.

    Of pieces whose notes are all the same, which can be many, only neighbours are named.

    Args:
        fingerprints: what `fingerprint` gave for each piece.
        is_settled: says of two pieces that nobody asks about them; they are not compared.
    """
    same: dict[int, int] = {}
    for index, each in enumerate(fingerprints):
        whole = int(each[0])
        if whole in same:
            yield same[whole], index, 1.0
        same[whole] = index
    for a, b in _candidates(fingerprints):
        if is_settled is not None and is_settled(a, b):
            continue
        share = related(fingerprints[a], fingerprints[b])
        if share >= MIN_SHARE and fingerprints[a][0] != fingerprints[b][0]:
            yield a, b, share


def _candidates(fingerprints: Sequence[np.ndarray]) -> Iterator[tuple[int, int]]:
    """Pairs with enough grams in common at one transposition, block by block."""
    # Narrow columns: much of the time goes into fetching them from memory in no order.
    owners = np.repeat(np.arange(len(fingerprints), dtype=np.int32), [len(each) - 1 for each in fingerprints])
    if len(owners) == 0:
        return
    packed = np.concatenate([each[1:] for each in fingerprints])
    sizes = _sizes(packed, owners, len(fingerprints))
    order = stable_order(packed >> np.uint64(_PLACE_BITS + _PITCH_BITS))
    owners = owners[order]
    grams, _, pitches = _unpack(packed[order])
    pitches = pitches.astype(np.int16)
    del packed, order
    ends = np.append(np.flatnonzero(np.diff(grams)) + 1, len(grams))
    # Within a gram the owners ascend: each row is matched with the later rows of its gram.
    later = np.repeat(ends, np.diff(ends, prepend=0)) - np.arange(len(grams)) - 1
    rows = stable_order(owners)
    matches = np.concatenate([[0], np.cumsum(np.bincount(owners, later, len(fingerprints)))])
    starts = np.searchsorted(owners[rows], np.arange(len(fingerprints) + 1))
    first = 0
    while first < len(fingerprints):
        last = max(first + 1, int(np.searchsorted(matches, matches[first] + _BLOCK, side="right")) - 1)
        block = rows[starts[first] : starts[last]]
        yield from _frequent(*_matches(block, later[block], owners, pitches), sizes, len(fingerprints))
        first = last


def _sizes(packed: np.ndarray, owners: np.ndarray, count: int) -> np.ndarray:
    """Per piece how many grams it has and how many of them are sampled, shape (2, count); equal for long pieces.

    Of notes or of lines, whichever are fewer: with these it may be related, and must be compared.
    """
    sampled = _is_sampled(packed >> np.uint64(_PLACE_BITS + _PITCH_BITS))
    of_line = packed >> np.uint64(_PITCH_BITS) & np.uint64(_LINE_PLACE) > 0
    sizes = []
    for chosen in (np.ones_like(sampled), sampled):
        notes, lines = (np.bincount(owners[chosen & kind], minlength=count) for kind in (~of_line, of_line))
        sizes.append(np.where((lines > 0) & (lines < notes), lines, notes))
    return np.stack(sizes)


def _matches(
    rows: np.ndarray, later: np.ndarray, owners: np.ndarray, pitches: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Each row with each of its `later` followers: the two owners and the transposition, each (num_matches,)."""
    followers = np.repeat(rows + 1 - (np.cumsum(later) - later), later)
    followers += np.arange(len(followers))
    left_owners, left_pitches = (np.repeat(column.take(rows), later) for column in (owners, pitches))
    return left_owners, owners.take(followers), pitches.take(followers) - left_pitches + 128


def _frequent(
    a: np.ndarray, b: np.ndarray, shifts: np.ndarray, sizes: np.ndarray, count: int
) -> Iterator[tuple[int, int]]:
    """The pairs whose most frequent transposition could reach `MIN_SHARE`."""
    keys = (a.astype(np.int64) * count + b) * 256 + shifts
    if count**2 * 256 < 2**32:
        keys = keys.astype(np.uint32)  # sorted in half the time
    keys, shared = np.unique(keys, return_counts=True)
    keys, shared = keys[shared >= _MIN_SHARED].astype(np.int64) >> 8, shared[shared >= _MIN_SHARED]
    a, b = keys // count, keys % count
    long = (sizes[0] == sizes[1])[np.stack([a, b])].any(axis=0).astype(int)
    needed = MIN_SHARE * np.minimum(sizes[long, a], sizes[long, b])
    yield from ((int(key) // count, int(key) % count) for key in np.unique(keys[shared >= needed]))


def families(fingerprints: Sequence[np.ndarray], known: Sequence[str]) -> list[str]:
    """The family of each piece.

    Args:
        fingerprints: what `fingerprint` gave for each piece.
        known: the family that each piece's source names, or "" where it names none.

    Returns:
        One name per piece, the same for pieces that share content or a known family, directly or through others: the
        alphabetically first known name in the family, else "content/" and the lowest hash among its pieces. It depends
        neither on the order of the pieces nor on any piece outside the family.

    Raises:
        ValueError: if the two lists differ in length.
    """
    if len(fingerprints) != len(known):
        raise ValueError(f"{len(fingerprints)} fingerprints need as many known families, got {len(known)}")
    parents = list(range(len(fingerprints)))

    def root(index: int) -> int:
        while parents[index] != index:
            parents[index] = parents[parents[index]]
            index = parents[index]
        return index

    representative: dict[str, int] = {}
    for index, name in enumerate(known):
        if name:
            parents[root(index)] = root(representative.setdefault(name, index))
    pairs = related_pairs(fingerprints, lambda a, b: root(a) == root(b))
    for a, b, _ in tqdm(pairs, desc="Finding families", unit="pair"):
        parents[root(a)] = root(b)
    names: dict[int, tuple[bool, str]] = {}
    for index, (each, name) in enumerate(zip(fingerprints, known, strict=True)):
        candidate = (not name, name or f"content/{int(each[0]):016x}")  # known names come first
        names[root(index)] = min(names.get(root(index), candidate), candidate)
    return [names[root(index)][1] for index in range(len(fingerprints))]


def join_families(pieces: Dataset, cache_dir: str | os.PathLike) -> Dataset:
    """The pieces with one `family_id` for all that are one work by their source's word, or share content.

    Pieces with an official split belong to families like all others; what follows from that is for `assign_splits` to
    say. Further pieces may merge families, never part them; a family that they merge or join may get another name.

    Args:
        pieces: with `family_id`, "" where the source names none, and `fingerprint`.
        cache_dir: where the answer is kept; a second call with the same pieces only reads it.
    """
    fingerprints, known = stored_fingerprints(pieces), pieces["family_id"][:]
    kept = Path(cache_dir) / "families" / f"{_key(fingerprints, known)}.json"
    if kept.exists():
        family_ids = json.loads(kept.read_text(encoding="utf-8"))
    else:
        family_ids = families(fingerprints, known)
        write_whole(kept, json.dumps(family_ids, indent=0).encode())
    column = pieces.features["family_id"]
    return pieces.remove_columns("family_id").add_column("family_id", family_ids, feature=column)


def stored_fingerprints(pieces: Dataset) -> list[np.ndarray]:
    """The `fingerprint` column, each uint64, shape (1 + num_grams,), as arrays that share its memory."""
    found: list[np.ndarray] = []
    for chunk in pieces.select_columns("fingerprint").with_format("arrow")[:]["fingerprint"].chunks:
        values, offsets = chunk.flatten().to_numpy(), chunk.offsets.to_numpy()
        found += [values[start:end] for start, end in pairwise(offsets - offsets[:1])]
    return found


def _key(fingerprints: Sequence[np.ndarray], known: Sequence[str]) -> str:
    """Names all that the families depend on."""
    limits = [_CACHE_VERSION, MIN_SHARE, MIN_LINE_SHARE, MIN_PLACES, FEW_LINE_SHARE, FEW_LINE_PLACES]
    limits += [SHORT_SHARE, SHORT_PLACES]
    lengths = [len(each) for each in fingerprints]
    digest = hashlib.blake2b(json.dumps([limits, known, lengths]).encode(), digest_size=8)
    for each in fingerprints:
        digest.update(each.data)
    return digest.hexdigest()
