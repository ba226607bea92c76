"""The notes that music21 makes of a MIDI file, without music21: what ids of musicautobot, ai-music and MIDIGen rest on.

These systems parse files with music21 (https://github.com/cuthbertLab/music21), which gathers near strikes into chords,
rounds to sixteenths and triplet eighths, parts chords into voices and, in later versions, cuts notes at bar lines. Each
of these steps moves, cuts or loses notes, and no two versions agree. Two are followed here: 5.7.2, of the time of
musicautobot, and 9.9.2, of MIDIGen's. It is written from their rules, in whole numbers, for `legacy` modes alone.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

from .midi_channels import NOTE_ON, PROGRAM_CHANGE
from .midi_chunks import ChunkEvents

UNITS = 192  # in a quarter: sixteenths, triplet eighths and bars of sixty-fourths are whole numbers of them
_TWELFTH = UNITS // 12
_DIVISORS = (4, 3)  # parts of a quarter that music21 rounds to
_SMPTE_TICKS = 1024  # what it takes a quarter to be where time is counted in frames
_TIME_SIGNATURE = 0x58
# What it keeps beside notes and time signatures: names, tempo and key; of chunks without notes the last two alone.
_MARKS, _CONDUCTOR_MARKS = (0x03, 0x04, 0x51, 0x59), (0x51, 0x59)
_DRUM_CHANNEL = 9
_LONGEST = 2**24  # units: beyond it bars are not counted


class PartNote(NamedTuple):
    """A note of a part; times in `UNITS`."""

    pitch: int
    onset: int
    duration: int


class _Strike(NamedTuple):
    onset: int  # ticks
    offset: int  # ticks
    pitch: int
    is_drum: bool


@dataclass
class _Element:
    """A note or a chord; times in `UNITS`."""

    onset: int
    duration: int
    pitches: list[int]
    is_drum: bool = False

    @property
    def end(self) -> int:
        return self.onset + self.duration


def ticks_per_quarter(division: int) -> int:
    """Ticks of a quarter, as music21 has them."""
    return division if division < 0x8000 else _SMPTE_TICKS


def parts_of_version_5(division: int, chunks: list[ChunkEvents]) -> list[list[PartNote]]:
    """Notes of each chunk that has any, as music21 5.7.2 has them."""
    return [_part_notes(elements) for elements in _elements_of_parts_5(division, chunks)]


def melody_and_chords(division: int, chunks: list[ChunkEvents]) -> list[list[PartNote]]:
    """The two parts of a file as musicautobot tells them: two chunks with notes, or single notes and chords of one.

    Raises:
        ValueError: if there are neither two chunks with notes nor one.
    """
    parts = _elements_of_parts_5(division, chunks)
    if len(parts) == 1:
        single = [element for element in parts[0] if len(element.pitches) == 1]
        parts = [single, [element for element in parts[0] if len(element.pitches) > 1]]
    if len(parts) != 2:
        raise ValueError(f"melody and chords are one or two tracks, and {len(parts)} have notes")
    return [_part_notes(elements) for elements in parts]


def _elements_of_parts_5(division: int, chunks: list[ChunkEvents]) -> list[list[_Element]]:
    ticks = ticks_per_quarter(division)
    parts: list[Any] = []
    for chunk in chunks:
        if not _has_strikes(chunk):
            continue
        chords, needs_voices = _chords(_strikes_in_order(chunk), ticks / 16, ticks / 16, strictly=False)
        elements = [
            _Element(_rounded_5(chord[0].onset, ticks), _length_5(chord, ticks), [strike.pitch for strike in chord])
            for chord in chords
        ]
        elements.sort(key=lambda element: element.onset)
        if needs_voices and _largest_group(elements) > 1:
            elements = [element for voice in _voices(elements, _end_5) for element in voice.elements]
        parts.append(elements)
    return parts


def parts_of_version_9(division: int, chunks: list[ChunkEvents]) -> list[list[PartNote]]:
    """Notes of each chunk that has any, as music21 9.9.2 has them: cut at bar lines, drums left out."""
    ticks = ticks_per_quarter(division)
    # Time signatures, and other marks, of chunks without notes, up to the chunk in hand.
    conductor: list[tuple[int, int]] = []
    conductor_marks: list[int] = []
    parts: list[Any] = []
    for chunk in chunks:
        signatures = _signatures(chunk, ticks)
        if not _has_strikes(chunk):
            conductor += signatures
            conductor_marks += _mark_onsets(chunk, ticks, _CONDUCTOR_MARKS)
            continue
        strikes = _strikes_by_next_release(chunk)
        chords, needs_voices = _chords(strikes, ticks / max(_DIVISORS), ticks / max(_DIVISORS), strictly=True)
        marks = _mark_onsets(chunk, ticks, _MARKS) + _program_onsets(chunk, ticks)
        elements = _quantised_9(chords, marks + [onset for onset, _ in signatures], ticks)
        if not elements:
            parts.append([])
            continue
        measures = _measures(elements, signatures, conductor, marks + conductor_marks)
        if needs_voices:
            for measure in measures:
                measure.part_into_voices()
        _cut_at_bar_lines(measures)
        parts.append(_part_notes([each for each in _one_after_another(measures) if not each.is_drum]))
    return parts


def _part_notes(elements: list[_Element]) -> list[PartNote]:
    return [PartNote(pitch, each.onset, each.duration) for each in elements for pitch in each.pitches]


# Strikes --------------------------------------------------------------------------------------------------------------


def _has_strikes(chunk: ChunkEvents) -> bool:
    return bool(((chunk.status & 0xF0 == NOTE_ON) & (chunk.second > 0)).any())


def _key_events(chunk: ChunkEvents) -> list[tuple[int, int, bool]]:
    """Tick, key (channel and pitch) and whether it is a strike, of every note-on and note-off."""
    kind = chunk.status & 0xF0
    rows = np.flatnonzero(kind <= NOTE_ON)
    key = (chunk.status[rows].astype(np.int64) & 0x0F) << 7 | chunk.first[rows]
    is_on = (kind[rows] == NOTE_ON) & (chunk.second[rows] > 0)
    return list(zip(chunk.tick[rows].tolist(), key.tolist(), is_on.tolist(), strict=True))


def _strike(onset: int, offset: int, key: int) -> _Strike:
    return _Strike(onset, offset, key & 127, key >> 7 == _DRUM_CHANNEL)


def _strikes_in_order(chunk: ChunkEvents) -> list[_Strike]:
    """A strike ends with the next event of its key, be it a release or a strike, which then counts as nothing else."""
    open_strikes: dict[int, int] = {}  # key to place among those found
    found: list[_Strike | None] = []
    for tick, key, is_on in _key_events(chunk):
        if key in open_strikes:
            place = open_strikes.pop(key)
            begun = found[place]
            assert begun is not None
            found[place] = begun._replace(offset=tick)
        elif is_on:
            open_strikes[key] = len(found)
            found.append(_strike(tick, 0, key))
    for place in open_strikes.values():
        found[place] = None
    return [strike for strike in found if strike is not None]


def _strikes_by_next_release(chunk: ChunkEvents) -> list[_Strike]:
    """Each strike ends with the next release of its key, which may end several; those without one are lost."""
    release: dict[int, int] = {}
    found = []
    for tick, key, is_on in reversed(_key_events(chunk)):
        if not is_on:
            release[key] = tick
        elif key in release:
            found.append(_strike(tick, release[key], key))
    return found[::-1]


def _chords(
    strikes: list[_Strike], onset_tolerance: float, offset_tolerance: float, strictly: bool
) -> tuple[list[list[_Strike]], bool]:
    """Strikes gathered with those that begin and end with them, and whether some that begin together end apart.

    A strike that two earlier ones are near enough to gets into both chords: that is how music21 does it.
    """
    gathered = [False] * len(strikes)
    chords, needs_voices = [], False
    for index, first in enumerate(strikes):
        if gathered[index]:
            continue
        chord = [first]
        for other in range(index + 1, len(strikes)):
            apart = strikes[other].onset - first.onset
            if apart > onset_tolerance or (strictly and apart == onset_tolerance):
                break
            if abs(strikes[other].offset - first.offset) > offset_tolerance:
                needs_voices = True
                continue
            chord.append(strikes[other])
            gathered[other] = True
        chords.append(chord)
    return chords, needs_voices


def _length_5(chord: list[_Strike], ticks: int) -> int:
    """From the last strike of a chord to the end of its first note; a quarter where that is nothing."""
    length = chord[0].offset - chord[-1].onset
    return _rounded_5(max(length, 0), ticks) if length else UNITS


# Rounding -------------------------------------------------------------------------------------------------------------


def _rounded_5(tick: int, ticks: int) -> int:
    """The nearest sixteenth or triplet eighth, in units; of two equally near ones the earlier."""
    return _nearest(tick, ticks, lambda place: place)


def _rounded_9(tick: int, ticks: int) -> int:
    """The same, but of two equally near ones the sixteenth; of two sixteenths the earlier."""
    return _nearest(tick, ticks, lambda place: (place % 3 > 0, place))


def _nearest(tick: int, ticks: int, rank: Callable[[int], Any]) -> int:
    quarter, rest = divmod(tick, ticks)
    places = (0, 3, 4, 6, 8, 9, 12)  # twelfths of a quarter
    nearest = min(places, key=lambda place: (abs(12 * rest - place * ticks), rank(place)))
    return (12 * quarter + nearest) * _TWELFTH


def _best_match(length: float, is_sounding: bool, gap: float) -> int:
    """Version 9's rounding of a length, in units.

    A length that fills the gap to what follows is preferred, and sounding notes never get the length 0. The order of
    the candidates hangs on the last bits of their differences: so it is done with numbers in quarters, as it is there.
    """
    found = []
    for divisor in _DIVISORS:
        grain = 1 / divisor
        low = grain * math.floor(length / grain)
        match = low if low <= length <= low + grain / 2 else grain * (math.floor(length / grain) + 1)
        if is_sounding and match == 0:
            match = grain
        error = round(abs(length - match), 7)
        left = 0.0 if gap % grain == 0 else max(gap - match, 0.0)
        found.append((left, error, grain, match))
    return round(min(found)[-1] * 12) * _TWELFTH


def _mark_onsets(chunk: ChunkEvents, ticks: int, kinds: tuple[int, ...]) -> list[int]:
    return [_rounded_9(tick, ticks) for kind in kinds for tick, _ in chunk.metas.get(kind, ())]


def _program_onsets(chunk: ChunkEvents, ticks: int) -> list[int]:
    return [_rounded_9(tick, ticks) for tick in chunk.tick[chunk.status & 0xF0 == PROGRAM_CHANGE].tolist()]


def _quantised_9(chords: list[list[_Strike]], mark_onsets: list[int], ticks: int) -> list[_Element]:
    """Chords with rounded times, by onset."""
    elements = [
        _Element(
            _rounded_9(chord[0].onset, ticks),
            chord[-1].offset - chord[-1].onset,  # ticks, for now
            [strike.pitch for strike in chord],
            any(strike.is_drum for strike in chord),
        )
        for chord in chords
    ]
    order = sorted(range(len(chords)), key=lambda index: chords[index][0].onset)
    elements = [elements[index] for index in order]
    onsets = sorted({each.onset for each in elements} | set(mark_onsets))
    for element in elements:
        following = bisect_right(onsets, element.onset)
        gap = (onsets[following] - element.onset) / UNITS if following < len(onsets) else 0.0
        if element.duration:  # a note without length is a grace note and stays one
            element.duration = _best_match(element.duration / ticks, True, gap)
    return elements


# Voices ---------------------------------------------------------------------------------------------------------------


@dataclass
class _Voice:
    """Elements that do not overlap.

    Attributes:
        elements: by onset.
        end: of the last to end.
        is_known: whether music21 has asked for its end since the last element came in. It then does not notice that a
            chord is cut.
        is_sorted: whether it takes the elements to stand by onset; if not it sorts them, and asks again.
    """

    elements: list[_Element] = field(default_factory=list)
    end: int | Fraction = 0
    is_known: bool = False
    is_sorted: bool = True

    def take(self, element: _Element, end: int | Fraction) -> None:
        """Put an element in that ends there."""
        self.is_sorted &= Fraction(self.end) <= Fraction(element.onset / UNITS) * UNITS  # compared as a float
        self.elements.append(element)
        self.end, self.is_known = max(self.end, end), False


def _end_9(element: _Element) -> int:
    return element.end


def _end_5(element: _Element) -> Fraction:
    """Where an element ends, as the float that version 5 makes of it: a third of a quarter may end too late."""
    onset, duration = (
        units / UNITS if units % (UNITS // 4) == 0 else Fraction(units, UNITS)
        for units in (element.onset, element.duration)
    )
    return Fraction(float(onset + duration)) * UNITS


def _voices(elements: list[_Element], end_of: Callable[[_Element], int | Fraction]) -> list[_Voice]:
    """Elements, which stand by onset, in as many voices as the largest group of overlaps has members.

    One that begins while all voices sound is lost: groups may be too small.
    """
    voices = [_Voice() for _ in range(_largest_group(elements))]
    for element in elements:
        for voice in voices:
            voice.is_known = True
            if voice.end <= element.onset:
                voice.take(element, end_of(element))
                break
    return [voice for voice in voices if voice.elements]


def _largest_group(elements: list[_Element]) -> int:
    """Size of the largest group of overlapping elements, which are gathered around the first of them."""
    overlaps = _overlaps(elements)
    group_of: dict[int, int] = {}  # the onset that names the group of each element
    sizes: dict[int, int] = defaultdict(int)
    for index, others in enumerate(overlaps):
        if not others:
            continue
        name: int | None = None
        for other in [*others, index]:
            if other in group_of:
                name = group_of[other] if other != index else name
                continue
            name = elements[index].onset if name is None else name
            group_of[other] = name
            sizes[name] += 1
    return max(sizes.values(), default=1)


def _overlaps(elements: list[_Element]) -> list[list[int]]:
    """For each element the others that sound with it; the search ends with the first that does not."""
    found: list[list[int]] = [[] for _ in elements]
    for index, element in enumerate(elements):
        for other in range(index + 1, len(elements)):
            first, second = sorted([(element.onset, element.end), (elements[other].onset, elements[other].end)])
            if second[0] >= first[1]:
                break
            found[index].append(other)
            found[other].append(index)
    return [sorted(others) for others in found]


# Bars -----------------------------------------------------------------------------------------------------------------


@dataclass
class _Measure:
    """A measure of version 9; elements in it count time from its beginning.

    Attributes:
        start: where it begins, before any is put off.
        bar: its length by the signature that it was made by.
        cut_at: its length by the signatures that stand in the part.
        elements: those outside of voices.
        voices: none, or more than one as a rule.
        has_marks: whether anything but notes stands behind its beginning.
    """

    start: int
    bar: int
    cut_at: int = 0
    elements: list[_Element] = field(default_factory=list)
    voices: list[_Voice] = field(default_factory=list)
    has_marks: bool = False

    def part_into_voices(self) -> None:
        """Part what overlaps; see `_voices`."""
        self.elements.sort(key=lambda element: (element.onset, element.duration > 0))
        if _largest_group(self.elements) > 1:
            self.voices, self.elements = _voices(self.elements, _end_9), []
            if len(self.voices) > 1 and not self.has_marks:
                self.voices[0].is_known = True  # where the second is put in, the first is asked for its end

    def cut(self) -> list[_Element]:
        """Cut what goes on beyond it; gives the rests, with onset 0."""
        rests = []
        for voice in self.voices or [_Voice(self.elements)]:
            for element in voice.elements:
                if element.onset < self.cut_at < element.end:
                    rests.append(_Element(0, element.end - self.cut_at, element.pitches, element.is_drum))
                    element.duration = self.cut_at - element.onset
                    voice.is_known &= len(element.pitches) > 1 and not element.is_drum
        return rests

    def take_rests(self, rests: list[_Element], of_voices: bool) -> None:
        """Take what was cut from the measure before: into the first voice or, from voices to voices, into none."""
        if of_voices and self.voices:
            self.elements += rests
            for voice in self.voices:
                voice.is_known = voice.is_sorted = True  # they are sorted by now, and asked for their ends
        elif of_voices:
            self.voices, self.elements = [_Voice(self.elements + rests)], []
        elif self.voices:
            self.voices[0].elements += rests
            self.voices[0].is_known = False
        else:
            self.elements += rests

    def placed(self, start: int) -> list[_Element]:
        """All elements, with time from the beginning of the piece, if the measure begins at `start`."""
        inside = [element for voice in self.voices for element in voice.elements]
        return [
            _Element(start + each.onset, each.duration, each.pitches, each.is_drum)
            for each in [*self.elements, *inside]
        ]

    def length(self) -> int:
        """Its length with what is too long for it, and with the rests that fill it up."""
        voices = [voice for voice in self.voices if voice.elements]
        if len(voices) < 2:  # it is given up
            voices = [_Voice([*self.elements, *(each for voice in voices for each in voice.elements)])]
        return max([self._filled(voice) for voice in voices] + [each.end for each in self.elements])

    def _filled(self, voice: _Voice) -> int:
        """Where a voice ends that is filled up with rests."""
        if voice.is_known and voice.is_sorted and not _has_gaps(voice.elements):
            return max(int(voice.end), self.bar)
        end = max((each.end for each in voice.elements), default=0)
        return max(end, self.cut_at if end < self.cut_at < self.bar else self.bar)


def _has_gaps(elements: list[_Element]) -> bool:
    """Whether there is silence before or between elements."""
    end = 0
    for element in sorted(elements, key=lambda element: element.onset):
        if element.onset > end:
            return True
        end = max(end, element.end)
    return False


def _signatures(chunk: ChunkEvents, ticks: int) -> list[tuple[int, int]]:
    """Onset and length of a bar of each time signature, in units."""
    found = [(tick, data) for tick, data in chunk.metas.get(_TIME_SIGNATURE, ()) if len(data) > 1 and data[0]]
    return [(_rounded_9(tick, ticks), max(4 * UNITS * data[0] >> data[1], 1)) for tick, data in found]


def _signature_at(signatures: list[tuple[int, int]], onset: int) -> int:
    """Index of the last signature at or before an onset; of several at one place, the last."""
    return max((at, index) for index, (at, _) in enumerate(signatures) if at <= onset)[1]


def _measures(
    elements: list[_Element], own: list[tuple[int, int]], conductor: list[tuple[int, int]], marks: list[int]
) -> list[_Measure]:
    """Measures that hold the elements; bars follow the conductor's signatures where there are any, else the part's."""
    meters = list(conductor or own)
    if not meters or min(meters)[0] > 0:
        meters.insert(0, (0, 4 * UNITS))
    end = max([each.end for each in elements] + marks + [at for at, _ in [*own, *conductor]])
    measures: list[_Measure] = []
    in_part: list[tuple[int, int]] = []  # signatures where they stand once there are measures
    start, before = 0, -1
    while not measures or start < min(end, _LONGEST):
        index = _signature_at(meters, start)
        measures.append(_Measure(start, meters[index][1]))
        if index != before:
            in_part.append((start, meters[index][1]))
        start, before = start + meters[index][1], index
    starts = [measure.start for measure in measures]
    for element in elements:
        measure = measures[bisect_right(starts, element.onset) - 1]
        element.onset -= measure.start
        measure.elements.append(element)
    within = [each for each in [*own, *conductor] if each[0] not in starts]
    in_part += within
    for onset in [*marks, *(onset for onset, _ in within)]:
        measure = measures[bisect_right(starts, onset) - 1]
        measure.has_marks |= onset > measure.start
    for measure in measures:
        measure.cut_at = in_part[_signature_at(in_part, measure.start)][1]
    return measures


def _cut_at_bar_lines(measures: list[_Measure]) -> None:
    """Cut notes that go on beyond their measure; the rest goes to the next one, and may be cut again there."""
    index = 0
    while index < len(measures):
        measure = measures[index]
        rests = measure.cut()
        if rests and index + 1 == len(measures):
            measures.append(_Measure(measure.start + measure.cut_at, measure.bar, measure.cut_at))
        if rests:
            measures[index + 1].take_rests(rests, of_voices=bool(measure.voices))
        index += 1


def _one_after_another(measures: list[_Measure]) -> list[_Element]:
    """All elements; a measure that holds what is too long for it puts off those after it."""
    placed, start = [], 0
    for measure in measures:
        placed += measure.placed(start)
        start += measure.length()
    return placed


__all__ = ["UNITS", "PartNote", "melody_and_chords", "parts_of_version_5", "parts_of_version_9", "ticks_per_quarter"]
