"""Rows exactly as SkyTNT's midi-model writes them, faults included (https://github.com/SkyTNT/midi-model, f504d5c).

For prompts that must equal what a published checkpoint was trained on, and for comparisons. What each step gets wrong
is said where it stands; `midi_event_rows.py` has the steps that don't.
"""

from __future__ import annotations

from dataclasses import replace

from .midi_event_rows import (
    MAX_TRACKS,
    STEPS_PER_BEAT,
    VALUES,
    EventEncoder,
    Found,
    RowEvent,
    major_key,
    signature_values,
    to_steps,
)
from .midi_score import NUM_CHANNELS, Score

_C_MAJOR = 7
_STEP = 4


class LegacyEventEncoder(EventEncoder):
    """The original's encoder.

    Differs from its parent in every point that `MidiEventTokenizer` lists.
    """

    def found(self, score: Score) -> Found:
        """All events on the grid; tracks after the 128th are not read."""
        found = Found()
        kept: dict[tuple, RowEvent] = {}
        for index, track in enumerate(score.tracks[:MAX_TRACKS]):
            found.channels_on[index] = []
            reader = _TrackReader(self, index, score.ticks_per_quarter)
            struck: dict[tuple[int, ...], tuple[tuple, RowEvent]] = {}
            for each in track:
                event = reader.read(each)
                if event is None:
                    continue
                found.note(event)
                key = _place_in_table(event)
                if event.name == "note":
                    _cut_earlier(kept, struck, event)
                    struck[tuple(event.values[:2])] = key, event
                kept[key] = event
        found.events = list(kept.values())
        return found

    def settle_key(self, found: Found) -> None:
        """As the parent, but A minor counts as no key, too, and two such signatures at one place are an error."""
        if any(event.values[0] != _C_MAJOR for event in found.key_signatures):
            return
        key = major_key(found.pitch_classes)
        if key is not None:
            self.write_key(found, key)
            return
        for event in found.key_signatures:
            if event not in found.events:
                raise ValueError("the original fails on two signatures of C major or A minor at one place")
            found.events.remove(event)

    def place(self, event: RowEvent) -> tuple[int, ...]:
        """By what events are sorted: inside a chord nothing, so that notes stay in the order in which they end."""
        return event.time, event.track, self._order[event.name]

    def set_up(self, events: list[RowEvent]) -> list[RowEvent]:
        """What stands before or in the first chord, moved to the beginning.

        Times are compared by the sum of beats and sixteenths, and of v1's notes of one length in one chord, all but the
        last one are lost.
        """
        setup: dict[tuple, RowEvent] = {}
        has_notes = False
        for index, event in enumerate(events):
            has_next = _same_sum(event, events[index + 1]) if index + 1 < len(events) else False
            has_previous = has_notes and index > 0 and _same_sum(event, events[index - 1])
            if (event.name == "note" and not has_next) or (has_notes and not has_previous):
                return sorted(setup.values(), key=self.place) + events[index:]
            has_notes |= event.name == "note"
            keeps_time = event.name in ("note", "time_signature")
            setup[self._subject(event)] = replace(event, time=event.time if keeps_time else 0)
        return events

    def _subject(self, event: RowEvent) -> tuple:
        """What only the last of is kept: type, track, and the parameters of a row without the last one or two."""
        values = dict(zip(VALUES[event.name], event.values, strict=True))
        ordered = [values[name] for name in self.layout.events[event.name][3:]]
        num_last = 2 if event.name in ("note", "time_signature", "key_signature") else 1
        return event.name, event.track, *ordered[:-num_last]

    def written(self, events: list[RowEvent]) -> list[list[int]]:
        """Rows of ids; one that can't be written is left out and the clock stands still, perhaps for ever."""
        rows: list[list[int]] = []
        beat = 0
        for event in events:
            parameters = self.parameters(event, event.time // STEPS_PER_BEAT - beat)
            names = self.layout.events[event.name]
            if all(0 <= parameters[name] < self.layout.sizes[name] for name in names):
                rows.append(self.ids(event.name, parameters))
                beat = event.time // STEPS_PER_BEAT
        return rows


class _TrackReader:
    """Puts the events of a track on the grid; what it drops gives None."""

    def __init__(self, encoder: EventEncoder, track: int, ticks_per_quarter: int) -> None:
        self.layout, self.track, self.ticks_per_quarter = encoder.layout, track, ticks_per_quarter
        self.programs: dict[int, int] = {}
        self.controls: dict[tuple[int, int], int] = {}
        self.bpm = 0

    def read(self, event: tuple) -> RowEvent | None:
        name, tick, *values = event
        if name not in self.layout.events:
            return None
        found = getattr(self, f"_{name}")(values)
        return None if found is None else RowEvent(name, to_steps(tick, self.ticks_per_quarter), self.track, found)

    def _note(self, values: list[int]) -> list[int] | None:
        length, channel, pitch, velocity = values
        if not 0 <= channel < NUM_CHANNELS:
            return None
        return [channel, pitch, velocity, max(1, to_steps(length, self.ticks_per_quarter))]

    def _patch_change(self, values: list[int]) -> list[int] | None:
        channel, program = values
        if self.programs.get(channel) == program:
            return None
        self.programs[channel] = program
        return values

    def _control_change(self, values: list[int]) -> list[int] | None:
        """Small changes are dropped, and since controllers are thought to begin at 0, small first values, too."""
        channel, controller, value = values
        if abs(self.controls.get((channel, controller), 0) - value) < _STEP:
            return None
        self.controls[channel, controller] = value
        return values

    def _set_tempo(self, values: list[int]) -> list[int] | None:
        """Cut off, not rounded: 66 quarters a minute are mostly read as 65."""
        if not values[0]:
            return None
        bpm = min(int(60 / (values[0] / 10**6)), self.layout.sizes["bpm"] - 1)
        if abs(self.bpm - bpm) < _STEP:
            return None
        self.bpm = bpm
        return [bpm]

    def _time_signature(self, values: list[int]) -> list[int] | None:
        return signature_values("time_signature", values)

    def _key_signature(self, values: list[int]) -> list[int] | None:
        return signature_values("key_signature", values)


def _place_in_table(event: RowEvent) -> tuple:
    """Of events at one place the last is kept: of a pedal that goes up and down within a sixteenth, only the down."""
    num_free = 2 if event.name in ("note", "time_signature", "key_signature") else 1
    return event.name, event.time, event.track, *event.values[:-num_free]


def _cut_earlier(
    kept: dict[tuple, RowEvent], struck: dict[tuple[int, ...], tuple[tuple, RowEvent]], event: RowEvent
) -> None:
    """End the note that was listed before of its key; where it begins no earlier, as when notes overlap, it is lost."""
    key = tuple(event.values[:2])
    if key not in struck:
        return
    place, earlier = struck[key]
    earlier.values[3] = max(0, min(earlier.values[3], event.time - earlier.time))
    if not earlier.values[3]:
        kept.pop(place)


def _same_sum(one: RowEvent, other: RowEvent) -> bool:
    return sum(divmod(one.time, STEPS_PER_BEAT)) == sum(divmod(other.time, STEPS_PER_BEAT))


__all__ = ["LegacyEventEncoder"]
