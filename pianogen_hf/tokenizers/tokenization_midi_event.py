"""MidiEventTokenizer: whole MIDI files as rows of ids, the scheme of SkyTNT's midi-model, versions 1 and 2.

Source: https://github.com/SkyTNT/midi-model (`midi_tokenizer.py`), whose published checkpoints read these rows.
"""

from __future__ import annotations

import os
from typing import Any, ClassVar

import numpy as np

from .midi import naming
from .midi_event_legacy import LegacyEventEncoder
from .midi_event_rows import LAYOUTS, STEPS_PER_BEAT, EventEncoder
from .midi_score import (
    Event,
    Score,
    notes_of_score,
    read_score,
    read_score_by_track,
    score_of_notes,
    score_to_midi,
)
from .notes import Notes
from .tokenization_rows import RowTokenizer

_TICKS_PER_QUARTER = 480
_TICKS_PER_STEP = _TICKS_PER_QUARTER // STEPS_PER_BEAT
_SILENT = ("velocity_0", "duration_0")  # a note with one of these is none


class MidiEventTokenizer(RowTokenizer):
    """Notes, programs, controllers, tempos and (version 2) time and key signatures of up to 128 tracks, on sixteenths.

    A row is an event: its type, `time1` (beats since the row before), `time2` (sixteenth within the beat), `track` and
    what the type needs; version 1 tells a note's duration before its channel, version 2 last.

    `encode_midi` and `to_midi` keep everything that the rows can hold. `encode_notes` and `decode_notes` pass through
    the note table, which knows no controllers but pedals and no key signatures.

    Lost: time finer than a sixteenth of a quarter; durations of 2048 sixteenths or more, which are cut; tempos beyond
    255 (version 2: 383) quarters a minute; changes of tempo or of a controller by less than 4; all but the last value
    of a controller in a sixteenth; pitch bends, aftertouch, texts.

    With `legacy=True` rows are those of the original, id by id, for published checkpoints. What it does otherwise:

    * after a gap of more than 127 beats nothing is written (here rows that repeat the tempo bridge it);
    * a note of 2048 sixteenths or more is lost (here it is cut);
    * tempos are cut to whole numbers (here rounded);
    * times of the opening are compared by the sum of beats and sixteenths, tempos before the first note move to the
      beginning and earlier time signatures are lost (here real times; programs, controllers and keys alone move);
    * version 1 loses notes of an opening chord (here none is lost);
    * of overlapping notes of one key the wrong one may be lost, since notes are listed by their ends (here by onset);
    * notes of a chord stand in the order in which they end (here by channel and pitch);
    * a pedal that goes up and down within a sixteenth stays down (here both are written), and a controller's first
      value below 4 is lost (here kept);
    * two signatures of C major or A minor may end in an error, and A minor counts as no key (here as a key);
    * tracks are read one by one, as are ports (here as a player hears them, see `read_midi`), and those after the
      128th are lost (here joined).

    Args:
        version: "v1", 3239 ids, or "v2", 3406 ids.
        optimise_midi: whether to number channels and tracks anew in the order of their notes, leave out channels
            without notes, and name a program for every channel; checkpoints with an "o" in their name are trained so.
        legacy: whether to write and read rows exactly as the original does.
        **kwargs: as for every tokenizer.

    Raises:
        ValueError: for another version.
    """

    time_unit: ClassVar[str] = "beat"
    lost_fields: ClassVar[tuple[str, ...]] = ()
    ids_per_row: ClassVar[int] = LAYOUTS["v2"].row_length
    time_step_sec: ClassVar[float] = 0.5 / STEPS_PER_BEAT  # at 120 quarters a minute

    def __init__(self, version: str = "v2", optimise_midi: bool = False, legacy: bool = False, **kwargs: Any) -> None:
        if version not in LAYOUTS:
            raise ValueError(f"version must be one of {', '.join(LAYOUTS)}, got {version!r}")
        self.version, self.optimise_midi, self.legacy = version, optimise_midi, legacy
        self.layout = LAYOUTS[version]
        self._encoder = (LegacyEventEncoder if legacy else EventEncoder)(self.layout, optimise_midi)
        self._names_of_types = {index: name for name, index in self.layout.types.items()}
        super().__init__(version=version, optimise_midi=optimise_midi, legacy=legacy, **kwargs)

    def _event_names(self) -> list[str]:
        blocks = (f"{name}_{value}" for name, size in self.layout.sizes.items() for value in range(size))
        return [*self.layout.events, *blocks]

    # Files and notes to rows -----------------------------------------------------------------------------------------

    def encode_midi(self, source: str | os.PathLike | bytes) -> list[list[int]]:
        """Rows of a MIDI file, with those of beginning and end.

        Args:
            source: a path, or the file's bytes.

        Returns:
            Lists of 8 ids.

        Raises:
            MidiError: if it can't be read; with `legacy`, also where the original fails.
        """
        with naming(source):
            score = (read_score_by_track if self.legacy else read_score)(source)
            return [*self.beginning.tolist(), *self._encoder.rows(score), *self.ending.tolist()]

    def encode_score(self, score: Score) -> np.ndarray:
        """Rows of a score, without beginning and end, int64 of shape (num_rows, 8)."""
        return np.array(self._encoder.rows(score), dtype=np.int64).reshape(-1, self.ids_per_row)

    def _encode(self, notes: Notes) -> np.ndarray:
        return self.encode_score(score_of_notes(notes))

    # Rows to files and notes -----------------------------------------------------------------------------------------

    def decode_score(self, rows: Any) -> Score:
        """The score of rows; what is no event is skipped, and notes of one key are cut where the next one begins.

        Args:
            rows: list, array or tensor of shape (num_rows, 8).

        Raises:
            ValueError: as for `decode_notes`.
        """
        tracks: dict[int, list[Event]] = {}
        beat = 0
        for row in self.as_rows(rows).tolist():
            values = self._values(row)
            if values is None:
                continue
            beat += values["time1"]
            tick = (beat * STEPS_PER_BEAT + values["time2"]) * _TICKS_PER_STEP
            event = self._event(self._names_of_types[row[0]], tick, values)
            tracks.setdefault(values["track"], []).append(event)
        return Score(_TICKS_PER_QUARTER, [_not_overlapping(tracks[number]) for number in sorted(tracks)])

    def _values(self, row: list[int]) -> dict[str, int] | None:
        """What a row says, by parameter; None if it is no event."""
        name = self._names_of_types.get(row[0])
        if name is None:
            return None
        parameters = self.layout.events[name]
        values = {each: index - self.layout.starts[each] for each, index in zip(parameters, row[1:], strict=False)}
        return values if all(0 <= values[each] < self.layout.sizes[each] for each in parameters) else None

    def _event(self, name: str, tick: int, values: dict[str, int]) -> Event:
        if name == "note":
            length = values["duration"] * _TICKS_PER_STEP
            return name, tick, length, values["channel"], values["pitch"], values["velocity"]
        if name == "set_tempo":
            bpm = max(values["bpm"], 1)
            return name, tick, int(60 / bpm * 10**6) if self.legacy else round(60e6 / bpm)
        if name == "time_signature":
            return name, tick, values["nn"] + 1, values["dd"] + 1
        if name == "key_signature":
            return name, tick, values["sf"] - 7, values["mi"]
        return name, tick, *(values[each] for each in self.layout.events[name][3:])

    def _decode_rows(self, rows: np.ndarray) -> Notes:
        return notes_of_score(self.decode_score(rows))

    def to_midi(self, music: Any) -> bytes:
        """A MIDI file with all that the rows tell, as `pathlib.Path("out.mid").write_bytes` wants it.

        Args:
            music: rows (list, array or tensor), event text, a `Score` or `Notes`.

        Raises:
            ValueError: for ids outside the vocabulary, or text with unknown events.
        """
        if isinstance(music, Notes):
            return super().to_midi(music)
        if isinstance(music, str):
            music = self.text_to_rows(music)
        return score_to_midi(music if isinstance(music, Score) else self.decode_score(music))

    # Grammar ---------------------------------------------------------------------------------------------------------

    @property
    def event_blocks(self) -> list[list[int]]:
        """The grammar: the id of each type, then first id and size of the block of each of its parameters."""
        starts, sizes = self.layout.starts, self.layout.sizes
        return [
            [index, *(number for each in self.layout.events[name] for number in (starts[each], sizes[each]))]
            for name, index in self.layout.types.items()
        ]

    @property
    def silent_ids(self) -> list[int]:
        """Ids that make a note inaudible, which generation does without."""
        return [self.convert_tokens_to_ids(each) for each in _SILENT]  # type: ignore[misc]

    def allowed_next(self, ids: Any) -> np.ndarray:
        """Which ids may stand next.

        Args:
            ids: rows one after the other, the last of which may be incomplete: list, array or tensor of one dimension.

        Returns:
            bool array of shape (len(tokenizer),). After the row of `<eos>` only `<pad>` may follow.
        """
        ids = np.asarray(ids.detach().cpu() if hasattr(ids, "detach") else ids, dtype=np.int64)
        allowed = np.zeros(len(self), dtype=bool)
        place = len(ids) % self.ids_per_row
        begin = len(ids) - place
        if place:
            block = self._block(int(ids[begin]), place)
            allowed[block] = True
        elif begin and ids[begin - self.ids_per_row] == self.eos_token_id:
            allowed[self.pad_token_id] = True
        else:
            allowed[[*self._names_of_types, self.eos_token_id]] = True
        return allowed

    def _block(self, first: int, place: int) -> slice:
        """The ids that may stand at a place of a row that begins so."""
        parameters = self.layout.events[self._names_of_types[first]] if first in self._names_of_types else ()
        if place > len(parameters):
            return slice(self.pad_token_id, self.pad_token_id + 1)
        name = parameters[place - 1]
        return slice(self.layout.starts[name], self.layout.starts[name] + self.layout.sizes[name])

    def _begins_row(self, ids: np.ndarray) -> np.ndarray:
        return np.isin(ids, [*self._names_of_types, self.bos_token_id, self.eos_token_id])

    def config_settings(self) -> dict[str, Any]:
        """The parent's, and the grammar."""
        return {**super().config_settings(), "event_blocks": self.event_blocks}


def _not_overlapping(track: list[Event]) -> list[Event]:
    """The events of a track by time; a note ends where the next one of its key begins, or is none at all."""
    next_onset: dict[tuple[int, int], int] = {}
    kept = []
    for event in reversed(sorted(track, key=lambda each: each[1])):
        if event[0] == "note":
            name, tick, length, channel, pitch, velocity = event
            length = min(length, next_onset.get((channel, pitch), tick + length) - tick)
            next_onset[channel, pitch] = tick
            if not length:
                continue
            event = name, tick, length, channel, pitch, velocity
        kept.append(event)
    return kept[::-1]


__all__ = ["MidiEventTokenizer"]
