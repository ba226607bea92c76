"""What generated steps add to a prompt: new notes on the prompt's time axis, of the wanted length."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from pianogen_hf.errors import PianogenError
from pianogen_hf.tokenizers.midi_writer import LONGEST_WAIT
from pianogen_hf.tokenizers.notes import Notes
from pianogen_hf.tokenizers.notes_encoder import NotesEncoder

# How far decoding may move the prompt's end, in the scheme's unit: the coarsest grids, 50 ms and a sixteenth.
_SLACK = {"second": 0.1, "beat": 0.25}


class GenerationError(PianogenError):
    """Music can't be generated as asked; the message is one line that says what to do."""


@dataclass(frozen=True)
class Length:
    """How much new music is wanted: exactly one of the three.

    Attributes:
        seconds: time after the prompt. notes: number of new notes. bars: bars after the prompt, by its last time
            signature (4/4 if it has none), in the tempo of its last bars.
    """

    seconds: float | None = None
    notes: int | None = None
    bars: float | None = None

    def __post_init__(self) -> None:
        given = [value for value in (self.seconds, self.notes, self.bars) if value is not None]
        if len(given) != 1 or not 0 < given[0] < np.inf:
            raise GenerationError("give exactly one of seconds, notes or bars, and more than 0 of it")

    def end_tick(self, prompt: Notes, start_tick: int) -> float:
        """The tick at which new music ends that begins at `start_tick` of the prompt; infinity where notes are counted.

        Raises:
            GenerationError: if no MIDI file can be that long.
        """
        end = float(start_tick)
        if self.seconds is not None:
            end_sec = prompt.tick_to_sec(np.array(start_tick)) + self.seconds
            end = float(prompt.sec_to_tick(np.minimum(end_sec, 1e9)))
        elif self.bars is not None:
            signatures = prompt.time_signatures
            numerator, denominator = signatures[-1].tolist()[1:] if len(signatures) else (4, 4)
            end += self.bars * numerator * 4 / denominator * prompt.ticks_per_quarter
        if end > LONGEST_WAIT:
            raise GenerationError("prompt and new music would be longer than a MIDI file can be: ask for less")
        return np.inf if self.notes is not None else max(round(end), start_tick + 1)

    def trimmed(self, new: Notes, end_tick: float) -> Notes:
        """The new notes within the wanted length; what rings on is cut at its end."""
        if self.notes is not None:
            return new.where(np.arange(len(new)) < self.notes)
        table = new.table[new["onset_tick"] < end_tick].copy()
        table["duration_tick"] = np.minimum(table["duration_tick"], int(end_tick) - table["onset_tick"])
        return replace(new, table=table)


@dataclass(frozen=True)
class Continuation:
    """One result.

    Attributes:
        notes: prompt and new music together.
        new: the new notes alone, on the same time axis.
        prompt_end_sec: where the prompt ends: its last note, with the pedal where the tokenizer hears it.
        gap_end_sec: where the prompt continues after a gap that was filled; infinity where there is none.
    """

    notes: Notes
    new: Notes
    prompt_end_sec: float
    gap_end_sec: float = math.inf

    @property
    def is_new(self) -> np.ndarray:
        """Which of the notes are new, bool, shape (num_notes,)."""
        left = Counter(self.new.table.tolist())
        is_new = np.zeros(len(self.notes), dtype=bool)
        for index, row in enumerate(self.notes.table.tolist()):
            is_new[index] = left[row] > 0
            left[row] -= 1
        return is_new

    @property
    def kept(self) -> Notes:
        """The notes that were there before."""
        return self.notes.where(~self.is_new)

    @property
    def marked(self) -> Notes:
        """The notes for a picture, on two tracks: those that were there before, and the new ones."""
        table = self.notes.table.copy()
        table["track"] = self.is_new
        return replace(self.notes, table=table, track_names=("as it was", "new"))


class NewNotes:
    """What steps (tokens, or rows of a feature extractor) add to a prompt: new notes on the prompt's time axis.

    Decoding gives the prompt's notes again, quantised, and may place them elsewhere in time: a scheme may drop leading
    silence, cap long notes or rests, or leave notes out. So the decoded prompt is laid over the real one at its end,
    unless it lies there already but for quantisation, and only what comes after that end is new.

    Args:
        encoder: the scheme.
        base: the prompt, or no notes.
        start_tick: the prompt's end, at which new music begins.
        prompt_steps: the prompt's steps, with which all steps given to the methods begin.
        length: how much is wanted.

    Attributes:
        end_tick: where the wanted length ends; infinity where notes are counted.
        num_heard: notes of the prompt that the scheme can write.
        prolongs: whether a prompt note that the steps make longer continues as a note of its own.
    """

    prolongs = True

    def __init__(
        self,
        encoder: NotesEncoder,
        base: Notes,
        start_tick: int,
        prompt_steps: Sequence[int] | np.ndarray,
        length: Length,
    ) -> None:
        self.encoder, self.base, self.start_tick = encoder, base, start_tick
        self.prompt_steps, self.length = np.asarray(prompt_steps), length
        self.end_tick = length.end_tick(base, start_tick)
        decoded = self._decoded(self.prompt_steps)
        self.num_heard = len(decoded)
        onset, offset = self._times(decoded)
        self._prompt_offsets = dict(zip(_keys(onset, decoded), offset.tolist(), strict=True))
        self._prompt_onsets, self._decoded_end = onset, float(offset.max(initial=0.0))
        self._shift = self._decoded_shift()
        self._writes_durations = encoder.writes_durations
        self._slack_ticks = int(np.diff(self._to_ticks(self._decoded_end + np.array([0, self._slack])))[0])

    @property
    def start_sec(self) -> float:
        """The second at which new music begins."""
        return float(self.base.tick_to_sec(np.array(self.start_tick)))

    @property
    def seconds(self) -> float:
        """The wanted length in seconds; infinity where notes are counted."""
        return float(self.base.tick_to_sec(np.array(self.end_tick))) - self.start_sec

    @property
    def _slack(self) -> float:
        return _SLACK[self.encoder.time_unit]

    @property
    def _counts_beats(self) -> bool:
        return self.encoder.time_unit == "beat"

    def _decoded(self, steps: np.ndarray) -> Notes:
        """The notes of steps, as long as they sound: schemes with a pedal write it on its own."""
        return self.encoder.decode_notes(steps).with_sustain()

    def _decoded_shift(self) -> float:
        """What to add to decoded times, in the scheme's unit; whole beats if it counts beats."""
        shift = self._start - self._decoded_end
        if abs(shift) <= self._slack:
            return 0.0
        return float(np.ceil(shift)) if self._counts_beats else shift

    @property
    def _start(self) -> float:
        """Where new music begins, in the scheme's unit."""
        return self._in_units(self.start_tick)

    def _in_units(self, tick: int) -> float:
        """A tick of the prompt in the scheme's unit."""
        if self._counts_beats:
            return tick / self.base.ticks_per_quarter
        return float(self.base.tick_to_sec(np.array(tick)))

    def _earliest(self) -> float:
        """The decoded time from which an onset is new music, in the scheme's unit."""
        return self._decoded_end - self._slack

    def _times(self, decoded: Notes) -> tuple[np.ndarray, np.ndarray]:
        """Onsets and offsets in the scheme's unit, counted from the first note if the scheme drops what is before."""
        if self._counts_beats:
            return decoded["onset_tick"] / decoded.ticks_per_quarter, decoded.offset_tick / decoded.ticks_per_quarter
        onset, offset = decoded.onset_sec, decoded.offset_sec
        origin = onset.min(initial=1e9) if len(onset) and "leading silence" in self.encoder.lost_fields else 0.0
        # Rounded, because a prompt's note is known again by its time, and the origin may change as tokens are added.
        return np.round(onset - origin, 6), np.round(offset - origin, 6)

    def _to_ticks(self, times: np.ndarray) -> np.ndarray:
        """Ticks of the prompt's axis (int64) of decoded times."""
        if self._counts_beats:
            return np.rint((times + self._shift) * self.base.ticks_per_quarter).astype(np.int64)
        return self.base.sec_to_tick(times + self._shift)

    def of(self, steps: np.ndarray) -> Notes:
        """All new notes of these steps, in whatever tracks the scheme decodes to.

        A prompt note that the steps prolong continues as a note of its own. What a scheme that orders notes by onset
        alone writes beside the prompt's last notes is left out, so that no new note sounds before the prompt has ended.
        """
        decoded = self._decoded(steps)
        onset_time, offset_time = self._times(decoded)
        known_until = np.array(
            [self._prompt_offsets.get(key, np.nan) for key in _keys(onset_time, decoded)], dtype=float
        )
        is_late = onset_time >= self._earliest()
        keep = np.where(np.isnan(known_until), is_late, self.prolongs & (offset_time > known_until))
        onset, offset = np.maximum(self._to_ticks(onset_time), self.start_tick), self._to_ticks(offset_time)
        keep &= offset > onset
        table = decoded.table[keep].copy()
        table["onset_tick"], table["duration_tick"] = onset[keep], (offset - onset)[keep]
        if len(table) and table["onset_tick"].min() >= self.end_tick:  # nothing but silence would be left of it
            table["onset_tick"] -= table["onset_tick"].min() - self.start_tick
        return replace(
            self.base,
            table=table,
            pedals=self.base.pedals[:0],
            other_pedals=self.base.other_pedals[:0],
            track_names=decoded.track_names,
        )

    def share(self, new: Notes) -> float:
        """How much of the wanted length is written for good with these new notes: 1 or more when it is all there.

        One note more than wanted shows that the wanted ones are complete; of time, all is there before the latest
        onset. Where nothing but passing time lengthens a note, one that is held shows how much has passed.
        """
        if self.length.notes is not None:
            return len(new) / (self.length.notes + 1)
        reached = int(new["onset_tick"].max(initial=self.start_tick))
        if not self._writes_durations:
            reached = max(reached, new.end_tick - self._slack_ticks)
        return (reached - self.start_tick) / (self.end_tick - self.start_tick)

    def result(self, steps: np.ndarray) -> Continuation:
        """The finished piece."""
        new = self.length.trimmed(self.of(steps), self.end_tick)
        if len(self.base):
            new = self._on_tracks_of_prompt(new)
        notes = replace(self.base, table=np.concatenate([self.base.table, new.table]), track_names=new.track_names)
        return Continuation(notes, new, self.start_sec)

    def _beside_prompt(self, new: Notes) -> Notes:
        """The new notes with the instruments that they have: on the prompt's tracks of these, or on further tracks."""
        table, names = new.table.copy(), list(self.base.track_names)
        fields = ["channel", "program", "is_drum"]
        tracks = {tuple(row[fields]): int(row["track"]) for row in self.base.table[::-1]}
        names += [""] * (max(tracks.values()) + 1 - len(names))
        for index, row in enumerate(new.table[fields].tolist()):
            if row not in tracks:
                tracks[row] = len(names)
                names.append("")
            table["track"][index] = tracks[row]
        return replace(new, table=table, track_names=tuple(names))

    def _on_tracks_of_prompt(self, new: Notes) -> Notes:
        """The new notes on the prompt's tracks: each on the one of its name (voices have names), else on the first."""
        if self.encoder.keeps_instruments:
            return self._beside_prompt(new)
        table, names = new.table.copy(), self.base.track_names
        first_rows = {int(row["track"]): row for row in self.base.table[::-1]}
        for track in np.unique(new["track"]):
            name = new.track_names[track] if track < len(new.track_names) else ""
            same = [each for each in sorted(first_rows) if each < len(names) and names[each] == name and name]
            row = first_rows[same[0] if same else min(first_rows)]
            chosen = new["track"] == track
            for field in ("track", "program", "channel"):
                table[field][chosen] = row[field]
        return replace(new, table=table, track_names=names)


def _keys(onset_times: np.ndarray, decoded: Notes) -> list[tuple[float, int]]:
    """What a decoded note is known again by: its onset and its pitch."""
    return list(zip(onset_times.tolist(), decoded["pitch"].tolist(), strict=True))
