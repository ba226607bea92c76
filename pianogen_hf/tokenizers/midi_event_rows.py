"""From a score to rows of event parameters, the scheme of SkyTNT's midi-model (https://github.com/SkyTNT/midi-model).

An event is a row: its type, the beat it is in since the row before it, the sixteenth within that beat, the track, and
what it is. Here stand the two vocabularies and the encoding with the scheme's flaws mended; `midi_event_legacy.py` says
what the original does otherwise.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any

from .midi_score import NUM_CHANNELS, Score
from .notes import DRUM_CHANNEL, PEDAL_DOWN

PAD, BEGIN, END = range(3)  # ids
STEPS_PER_BEAT = 16
MAX_TRACKS = 128
# What is told of an event besides its time and track, in the order in which it is handled here.
VALUES = {
    "note": ("channel", "pitch", "velocity", "duration"),
    "patch_change": ("channel", "patch"),
    "control_change": ("channel", "controller", "value"),
    "set_tempo": ("bpm",),
    "time_signature": ("nn", "dd"),
    "key_signature": ("sf", "mi"),
}
_CONTROL_STEP = _TEMPO_STEP = 4  # smaller changes are not written
_SWITCHES = range(64, 70)  # pedals: controllers of which it counts on which side of the middle they are
_C_MAJOR = 7  # in the place of no flats and no sharps
_DEFAULT_BPM = 120  # MIDI's


@dataclass(frozen=True)
class EventLayout:
    """A vocabulary: the ids of event types, then a block of ids for each parameter.

    Attributes:
        events: parameters of each type, in the order of a row.
        sizes: number of values of each parameter.
        order: types in the order in which events of one time and track are written.
    """

    events: dict[str, tuple[str, ...]]
    sizes: dict[str, int]
    order: tuple[str, ...]

    @property
    def types(self) -> dict[str, int]:
        """The id of each type."""
        return {name: END + 1 + index for index, name in enumerate(self.events)}

    @property
    def starts(self) -> dict[str, int]:
        """The first id of each parameter."""
        starts, at = {}, END + 1 + len(self.events)
        for name, size in self.sizes.items():
            starts[name] = at
            at += size
        return starts

    @property
    def row_length(self) -> int:
        """Ids of a row."""
        return 1 + max(len(parameters) for parameters in self.events.values())


_TIME = ("time1", "time2", "track")
_SIZES = {"time1": 128, "time2": STEPS_PER_BEAT, "duration": 2048, "track": MAX_TRACKS, "channel": NUM_CHANNELS}
_SIZES |= dict.fromkeys(("pitch", "velocity", "patch", "controller", "value"), 128)
_NEW_TYPES = ("time_signature", "key_signature")
LAYOUTS = {
    "v1": EventLayout(
        {
            "note": (*_TIME, "duration", "channel", "pitch", "velocity"),
            **{name: (*_TIME, *VALUES[name]) for name in ("patch_change", "control_change", "set_tempo")},
        },
        _SIZES | {"bpm": 256},
        ("set_tempo", "patch_change", "control_change", "note"),
    ),
    "v2": EventLayout(
        {name: (*_TIME, *values) for name, values in VALUES.items()},
        _SIZES | {"bpm": 384, "nn": 16, "dd": 4, "sf": 15, "mi": 2},
        (*_NEW_TYPES, "set_tempo", "patch_change", "control_change", "note"),
    ),
}


@dataclass
class RowEvent:
    """An event on the grid.

    Attributes:
        name: its type. time: in sixteenths. track: number of the track. values: as `VALUES` has them.
    """

    name: str
    time: int
    track: int
    values: list[int]

    @property
    def channel(self) -> int | None:
        """The channel, of types that have one."""
        return self.values[0] if VALUES[self.name][0] == "channel" else None


@dataclass
class Found:
    """The events of a score, and on which tracks its channels are.

    Attributes:
        events: what is kept, track after track.
        key_signatures: those among them; the original's may be more.
        tracks_of: tracks of each channel, channels and tracks in the order in which they appear.
        note_tracks_of: the same of notes alone.
        channels_on: channels of the notes of each track.
        pitch_classes: how often each of the twelve is struck, drums left out.
    """

    events: list[RowEvent] = field(default_factory=list)
    key_signatures: list[RowEvent] = field(default_factory=list)
    tracks_of: dict[int, list[int]] = field(default_factory=dict)
    note_tracks_of: dict[int, list[int]] = field(default_factory=dict)
    channels_on: dict[int, list[int]] = field(default_factory=dict)
    pitch_classes: list[int] = field(default_factory=lambda: [0] * 12)

    def note(self, event: RowEvent) -> None:
        """Remember where an event is, whether or not it is kept."""
        channel = event.channel
        if channel is not None:
            _add(self.tracks_of.setdefault(channel, []), event.track)
        if event.name == "note":
            assert channel is not None
            _add(self.note_tracks_of.setdefault(channel, []), event.track)
            _add(self.channels_on[event.track], channel)
            if channel != DRUM_CHANNEL:
                self.pitch_classes[event.values[1] % 12] += 1
        elif event.name == "key_signature":
            self.key_signatures.append(event)


def _add(values: list[int], value: int) -> None:
    if value not in values:
        values.append(value)


class EventEncoder:
    """Encodes scores.

    Differs from the original in that nothing is lost but what the grid and the vocabulary can't hold: see
    `MidiEventTokenizer`.

    Args:
        layout: the vocabulary.
        optimise_midi: whether to number tracks and channels anew, leave out channels without notes, and name a program
            for every channel.
    """

    def __init__(self, layout: EventLayout, optimise_midi: bool) -> None:
        self.layout, self.optimise_midi = layout, optimise_midi
        self._order = {name: index for index, name in enumerate(layout.order)}
        self._starts, self._types = layout.starts, layout.types

    def rows(self, score: Score) -> list[list[int]]:
        """Rows of ids, without those of beginning and end."""
        found = self.found(score)
        if self.optimise_midi:
            found = renumbered(found)
            self._name_programs(found)
        if "key_signature" in self.layout.events:
            self.settle_key(found)
        return self.written(self.set_up(sorted(found.events, key=self.place)))

    # Onto the grid ---------------------------------------------------------------------------------------------------

    def found(self, score: Score) -> Found:
        """All events on the grid."""
        found = Found()
        for index, track in enumerate(_at_most(score.tracks, MAX_TRACKS)):
            found.channels_on[index] = []
            events = [self._on_grid(event, score.ticks_per_quarter, index) for event in sorted(track, key=_tick)]
            kept = self._without_repetitions([event for event in events if event is not None])
            for event in kept:
                found.note(event)
            found.events += kept
        return found

    def _on_grid(self, event: tuple, ticks_per_quarter: int, track: int) -> RowEvent | None:
        """The event in the numbers of the vocabulary; None for what the vocabulary can't say."""
        name, tick, *values = event
        if name not in self.layout.events:
            return None
        time = to_steps(tick, ticks_per_quarter)
        if name == "note":
            length, channel, pitch, velocity = values
            values = [channel, pitch, velocity, max(1, to_steps(length, ticks_per_quarter))]
        elif name == "set_tempo":
            if not values[0]:
                return None
            values = [min(max(round(60e6 / values[0]), 1), self.layout.sizes["bpm"] - 1)]
        elif name in _NEW_TYPES:
            found = signature_values(name, values)
            if found is None:
                return None
            values = found
        return RowEvent(name, time, track, values)

    def _without_repetitions(self, events: list[RowEvent]) -> list[RowEvent]:
        """The events of a track, of which no two say the same and no two notes of a key overlap."""
        kept: list[RowEvent] = []
        by_subject: dict[tuple, list[RowEvent]] = {}
        for event in events:
            subject = event.name, *event.values[: 2 if event.name == "note" else -1]
            if event.name in _NEW_TYPES:
                subject = (event.name,)
            by_subject.setdefault(subject, []).append(event)
        for subject, own in by_subject.items():
            moments = [list(group) for _, group in groupby(own, key=lambda event: event.time)]
            kept += _not_overlapping(moments) if subject[0] == "note" else _changes(subject, moments)
        return kept

    # Channels, programs, keys ----------------------------------------------------------------------------------------

    def _name_programs(self, found: Found) -> None:
        """A piano for every channel that names no program."""
        named = {event.channel for event in found.events if event.name == "patch_change"}
        for channel, tracks in found.note_tracks_of.items():
            if channel not in named:
                found.events.append(RowEvent("patch_change", 0, tracks[0], [channel, 0]))

    def settle_key(self, found: Found) -> None:
        """Where there is no key but C major, which editors write for want of one, that of the notes or none."""
        if any(event.values != [_C_MAJOR, 0] for event in found.key_signatures):
            return
        key = major_key(found.pitch_classes)
        if key is None:
            found.events[:] = [event for event in found.events if event.name != "key_signature"]
        else:
            self.write_key(found, key)

    def write_key(self, found: Found, key: int) -> None:
        """Put a key into the signatures that there are, or write one on every track; drums have none."""
        if not found.key_signatures:
            found.events += [
                RowEvent("key_signature", 0, track, [_C_MAJOR if channels == [DRUM_CHANNEL] else key, 0])
                for track, channels in found.channels_on.items()
            ]
        for event in found.key_signatures:
            if found.channels_on.get(event.track) != [DRUM_CHANNEL]:
                event.values[:] = key, 0

    # Rows ------------------------------------------------------------------------------------------------------------

    def place(self, event: RowEvent) -> tuple[int, ...]:
        """By what events are sorted: time, track, type, channel; chords upwards."""
        finer = [] if event.channel is None else event.values[: 1 if event.name == "patch_change" else 2]
        return (event.time, event.track, self._order[event.name], *finer)

    def set_up(self, events: list[RowEvent]) -> list[RowEvent]:
        """What can't be heard before the first note, moved to the beginning: programs, controllers and keys."""
        first = min((event.time for event in events if event.name == "note"), default=0)
        setup: dict[tuple, RowEvent] = {}
        rest = []
        for event in events:
            if event.time <= first and event.name in ("patch_change", "control_change", "key_signature"):
                subject = event.values[:-1] if event.channel is not None else []
                setup[event.name, event.track, *subject] = replace(event, time=0)
            else:
                rest.append(event)
        return sorted([*setup.values(), *rest], key=self.place)

    def written(self, events: list[RowEvent]) -> list[list[int]]:
        """Rows of ids. A gap too long for one row is bridged by rows that repeat the tempo."""
        rows: list[list[int]] = []
        beat, bpm, longest = 0, _DEFAULT_BPM, self.layout.sizes["time1"] - 1
        for event in events:
            while event.time // STEPS_PER_BEAT - beat > longest:
                rows.append(self.row(RowEvent("set_tempo", 0, 0, [bpm]), longest))
                beat += longest
            if event.name == "set_tempo":
                bpm = event.values[0]
            elif event.name == "note":
                event.values[3] = min(event.values[3], self.layout.sizes["duration"] - 1)
            event.track = min(event.track, MAX_TRACKS - 1)
            rows.append(self.row(event, event.time // STEPS_PER_BEAT - beat))
            beat = event.time // STEPS_PER_BEAT
        return rows

    def row(self, event: RowEvent, beats: int) -> list[int]:
        """The ids of an event, so many beats after the row before it."""
        return self.ids(event.name, self.parameters(event, beats))

    def parameters(self, event: RowEvent, beats: int) -> dict[str, int]:
        """What a row says, by name."""
        time = {"time1": beats, "time2": event.time % STEPS_PER_BEAT, "track": event.track}
        return {**time, **dict(zip(VALUES[event.name], event.values, strict=True))}

    def ids(self, name: str, parameters: dict[str, int]) -> list[int]:
        """A row of ids, padded."""
        row = [self._types[name], *(self._starts[each] + parameters[each] for each in self.layout.events[name])]
        return row + [PAD] * (self.layout.row_length - len(row))


# Steps of both encoders -----------------------------------------------------------------------------------------------


def to_steps(ticks: int, ticks_per_quarter: int) -> int:
    """Sixteenths, the nearest, of a tie the even one."""
    return round(STEPS_PER_BEAT * ticks / ticks_per_quarter)


def signature_values(name: str, values: list[int]) -> list[int] | None:
    """A time or key signature in the vocabulary's numbers, which begin at 0; None if it can't be said."""
    first, second = values[:2]
    if name == "time_signature":
        return [first - 1, second - 1] if 1 <= first <= 16 and 1 <= second <= 4 else None
    return [first + _C_MAJOR, second] if -7 <= first <= 7 and 0 <= second <= 1 else None


def major_key(pitch_classes: list[int]) -> int | None:
    """The major key (`sf` + 7) whose seven pitch classes are the commonest and hold 70 % of all notes, or None."""
    commonest = sorted(range(12), key=lambda each: -pitch_classes[each])[:7]
    total = sum(pitch_classes)
    if not total or sum(pitch_classes[each] for each in commonest) / total < 0.7:
        return None
    scale = sorted(commonest)
    before = [scale[-1] - 12, *scale[:-1]]
    above_semitones = [each for each, lower in zip(scale, before, strict=True) if each - lower == 1]
    if len(above_semitones) != 2:
        return None
    low, high = above_semitones
    if high - low not in (5, 7):
        return None
    sharps = 7 * (low if high - low == 5 else high) % 12
    return _C_MAJOR + (sharps - 12 if sharps > 6 else sharps)


def renumbered(found: Found) -> Found:
    """Channels by first appearance, tracks by channel; what belongs to no note left out or moved to where notes are.

    Each pair of a channel and a track with its notes gets a track of its own, from 1 on. Tempos and time signatures go
    to track 0, and so do key signatures of tracks without notes; others are copied to each of their track's new ones.
    """
    channels = _new_channels(found)
    tracks: dict[tuple[int, int], int] = {}
    for each in sorted(found.note_tracks_of, key=channels.__getitem__):
        for track in found.tracks_of[each]:
            if track in found.note_tracks_of[each]:
                tracks[each, track] = len(tracks) + 1
    result = Found(pitch_classes=found.pitch_classes)
    copies: list[RowEvent] = []
    for event in found.events:
        channel = event.channel
        if event.name == "key_signature":
            first, *others = _key_signatures(event, tracks) or [replace(event, track=0)]
            result.key_signatures += [first, *others]
            result.events.append(first)
            copies += others
        elif channel is None:
            result.events.append(replace(event, track=0))
        elif channel in found.note_tracks_of:  # what is meant for a silent channel is left out
            own = found.note_tracks_of[channel]
            track = tracks[channel, event.track if event.track in own else own[0]]
            result.events.append(replace(event, track=track, values=[channels[channel], *event.values[1:]]))
    result.events += copies
    for (channel, _), track in sorted(tracks.items()):
        result.note_tracks_of.setdefault(channels[channel], []).append(track)
        result.channels_on[track] = [channels[channel]]
    return result


def _new_channels(found: Found) -> dict[int, int]:
    """Channels with notes first, drums where they were."""
    sounding = [channel for channel in found.tracks_of if channel in found.note_tracks_of]
    silent = [channel for channel in found.tracks_of if channel not in found.note_tracks_of]
    free = iter(number for number in range(NUM_CHANNELS) if number != DRUM_CHANNEL)
    return {each: DRUM_CHANNEL if each == DRUM_CHANNEL else next(free) for each in [*sounding, *silent]}


def _key_signatures(event: RowEvent, tracks: dict[tuple[int, int], int]) -> list[RowEvent]:
    """The signature on each new track that its track has become, by channel; drums have no key."""
    return [
        replace(event, track=new, values=[_C_MAJOR if channel == DRUM_CHANNEL else event.values[0], event.values[1]])
        for (channel, track), new in sorted(tracks.items())
        if track == event.track
    ]


# Steps of the mended encoder ------------------------------------------------------------------------------------------


def _tick(event: tuple) -> int:
    return event[1]


def _at_most(tracks: list[list[Any]], most: int) -> list[list[Any]]:
    """The tracks; where there are too many, empty ones are left out, and then the last ones joined."""
    if len(tracks) > most:
        tracks = [track for track in tracks if track]
    if len(tracks) > most:
        tracks = [*tracks[: most - 1], [event for track in tracks[most - 1 :] for event in track]]
    return tracks


def _not_overlapping(moments: Iterable[list[RowEvent]]) -> Iterator[RowEvent]:
    """Of the strikes of one key the longest of each moment, cut where the next one begins."""
    before: RowEvent | None = None
    for moment in moments:
        event = max(moment, key=lambda each: each.values[3])
        if before is not None:
            before.values[3] = min(before.values[3], event.time - before.time)
            yield before
        before = event
    if before is not None:
        yield before


def _changes(subject: tuple, moments: Iterable[list[RowEvent]]) -> Iterator[RowEvent]:
    """Of a controller, program or the like the last value of each moment, where it is another than before.

    Of a pedal that moves more often than there are sixteenths all of its ups and downs are kept.
    """
    is_switch = subject[0] == "control_change" and subject[2] in _SWITCHES
    step = {"control_change": _CONTROL_STEP, "set_tempo": _TEMPO_STEP}.get(subject[0], 1)
    last: list[int] | None = None
    for moment in moments:
        for is_down, same_split in groupby(moment, key=lambda event: is_switch and event.values[-1] >= PEDAL_DOWN):
            *_, event = same_split
            turned = is_switch and last is not None and (last[-1] >= PEDAL_DOWN) != is_down
            if last is None or turned or subject[0] in _NEW_TYPES or abs(event.values[-1] - last[-1]) >= step:
                yield event
                last = event.values


__all__ = ["LAYOUTS", "EventEncoder", "EventLayout", "Found", "RowEvent"]
