"""The encoding of the Multitrack Music Transformer: rows of type, beat, position, pitch, duration and instrument.

Dong et al. 2023, "Multitrack Music Transformer" (arXiv 2207.06983), https://github.com/salu133445/mmt. Its tables of
durations, instruments and codes are facts of that system, by which its checkpoints can be read.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np

from .midi import MidiError, notes_to_midi_bytes, read_chunks, read_midi
from .midi_channels import NOTE_ON, PROGRAM_CHANGE
from .midi_chunks import ChunkEvents
from .notes import DRUM_CHANNEL, TEMPO_DTYPE, Notes
from .tokenization_notes import NoteTokenizer

STEPS_PER_BEAT = 12
NUM_BEATS = 1025
FIELDS = ("type", "beat", "position", "pitch", "duration", "instrument")
# Codes of types. 0 means "none" in every other field, whose values count from 1.
START_OF_SONG, INSTRUMENT, START_OF_NOTES, NOTE, END_OF_SONG = range(5)
DURATIONS = (
    *range(1, 13),
    15,
    16,
    18,
    20,
    21,
    24,
    30,
    36,
    40,
    42,
    48,
    60,
    72,
    84,
    96,
    120,
    144,
    168,
    192,
    384,
)  # steps
# Instruments by code, with their General MIDI programs; the first is the one that is written back.
INSTRUMENTS: dict[str, tuple[int, ...]] = {
    "piano": (0, 1, 2, 3), "electric-piano": (4, 5), "harpsichord": (6,), "clavinet": (7,), "celesta": (8,),
    "glockenspiel": (9,), "music-box": (10,), "vibraphone": (11,), "marimba": (12,), "xylophone": (13,),
    "tubular-bells": (14,), "dulcimer": (15,), "organ": (16, 17, 18, 20), "church-organ": (19,), "accordion": (21,),
    "harmonica": (22,), "bandoneon": (23,), "nylon-string-guitar": (24,), "steel-string-guitar": (25,),
    "electric-guitar": (26, 27, 28, 29, 30, 31), "bass": (32,), "electric-bass": (33, 34, 35), "slap-bass": (36, 37),
    "synth-bass": (38, 39), "violin": (40, 110), "viola": (41,), "cello": (42,), "contrabass": (43,), "harp": (46,),
    "timpani": (47,), "strings": (49, 44, 45, 48), "synth-strings": (50, 51), "voices": (52, 53, 54),
    "orchestra-hit": (55,), "trumpet": (56, 59), "trombone": (57,), "tuba": (58,), "horn": (60,), "brasses": (61,),
    "synth-brasses": (62, 63), "soprano-saxophone": (64,), "alto-saxophone": (65,), "tenor-saxophone": (66,),
    "baritone-saxophone": (67,), "oboe": (68,), "english-horn": (69,), "bassoon": (70,), "clarinet": (71,),
    "piccolo": (72,), "flute": (73,), "recorder": (74,), "pan-flute": (75,), "ocarina": (79,),
    "lead": tuple(range(80, 88)), "pad": tuple(range(88, 96)), "sitar": (104,), "banjo": (105,), "shamisen": (106,),
    "koto": (107,), "kalimba": (108,), "bag-pipe": (109,), "shehnai": (111,), "melodic-tom": (117,),
    "synth-drums": (118, 119),
}  # fmt: skip
_MAX_PAGES = 16  # turned in a row: silence of some two hours at 120 quarters a minute
_TICKS_PER_QUARTER = 480
_TICKS_PER_STEP = _TICKS_PER_QUARTER // STEPS_PER_BEAT
_DECODED_VELOCITY = 80  # mezzo-forte; the encoding has no velocities
_LEGACY_US_PER_QUARTER = 600_000  # 100 quarters a minute, which the system writes
_PROGRAM_OF = np.array([programs[0] for programs in INSTRUMENTS.values()])  # by code - 1
_INSTRUMENT_OF = np.zeros(128, dtype=np.int64)  # code by program, 0 for those without one
for _code, _programs in enumerate(INSTRUMENTS.values(), start=1):
    _INSTRUMENT_OF[list(_programs)] = _code
# Code of the nearest duration by steps; of two equally near ones the shorter.
_DURATION_OF = np.abs(np.arange(DURATIONS[-1] + 1)[:, None] - np.array(DURATIONS)).argmin(1) + 1


class MultitrackMusicTokenizer(NoteTokenizer):
    """Notes of up to 64 kinds of instruments on a grid of 12 steps a quarter, with absolute beats.

    In the system's rows of six codes a piece is a row that begins it, one for each instrument, one that begins the
    notes, the notes, and one that ends it. Here it is a line of ids: `<bos>`; `Type_Instrument` and the instrument, for
    each; `Type_Notes`; `Type_Note`, beat, position, pitch, duration and instrument, for each note; `<eos>`. Codes that
    mean "none" have no id. `ids_to_rows` and `rows_to_ids` lead from one to the other.

    Lost: velocities, the pedal, tempo and time signatures, tracks, time finer than a twelfth of a quarter; drums and
    the programs of no instrument (76-78, 96-103, 112-116, 120-127); which of its programs an instrument had; durations
    but for 32 of them, up to 384 steps; the shorter of two notes of one pitch and instrument at one step.

    Where the system itself loses music this tokenizer does not, unless `legacy` asks for its rows: what lies beyond the
    last beat goes to another page, on which beats begin anew after another `Type_Notes` (in all but one of
    `_MAX_PAGES`); silence before the first note is kept; a program counts for the notes that begin after it, not for
    those that end after it; pedals, strikes and releases belong to channels, whatever track they stand in.

    Args:
        num_beats: beats that have an id. 1025 are the system's encoding; its models have 256, those of a training run
            as many as its longest pieces, or pages, are to have.
        legacy: whether files are read and rows written as the system does it.
    """

    time_unit: ClassVar[str] = "beat"
    lost_fields: ClassVar[tuple[str, ...]] = ("velocity", "track", "pedal", "tempo")
    rest_prefixes: ClassVar[tuple[str, ...]] = ("Type_Notes",)
    time_step_sec: ClassVar[float] = 0.5 / STEPS_PER_BEAT  # at 120 quarters a minute

    def __init__(self, num_beats: int = NUM_BEATS, legacy: bool = False, **kwargs: Any) -> None:
        if num_beats < 1:
            raise ValueError(f"num_beats must be at least 1, got {num_beats}")
        self.num_beats, self.legacy = num_beats, bool(legacy)
        super().__init__(num_beats=num_beats, legacy=self.legacy, **kwargs)
        sizes = (self.num_special, 3, num_beats, STEPS_PER_BEAT, 128, len(DURATIONS), len(INSTRUMENTS))
        self._first = np.cumsum(sizes)[:-1]  # the first id of each field
        self._field = np.repeat(np.arange(-1, len(FIELDS)), sizes)  # of each id; -1 for special ones
        self._code = np.arange(len(self._field)) - np.append(0, self._first)[self._field + 1] + 1

    def config_settings(self) -> dict[str, Any]:
        """The parent's, and the number of beats, by which the model tells the ids of fields."""
        return {**super().config_settings(), "num_beats": self.num_beats}

    def _event_names(self) -> list[str]:
        return [
            *("Type_Instrument", "Type_Notes", "Type_Note"),
            *(f"Beat_{beat}" for beat in range(self.num_beats)),
            *(f"Position_{step}" for step in range(STEPS_PER_BEAT)),
            *(f"Pitch_{pitch}" for pitch in range(128)),
            *(f"Duration_{steps}" for steps in DURATIONS),
            *(f"Instrument_{name}" for name in INSTRUMENTS),
        ]

    @property
    def field_sizes(self) -> tuple[int, ...]:
        """Numbers of codes of the fields of a row."""
        return 5, self.num_beats + 1, STEPS_PER_BEAT + 1, 129, len(DURATIONS) + 1, len(INSTRUMENTS) + 1

    # Rows ------------------------------------------------------------------------------------------------------------

    def encode_midi(self, source: str | os.PathLike | bytes) -> list[list[int]]:
        """Rows of six codes of a MIDI file, with those of the beginning and the end, all instruments included.

        Args:
            source: a path, or the file's bytes.

        Raises:
            MidiError: if it can't be read.
        """
        if not self.legacy:
            return self.ids_to_rows(self.encode_piece(read_midi(source, programs=None))).tolist()
        return self._legacy_rows(source).tolist()

    def ids_to_rows(self, ids: Sequence[int] | np.ndarray) -> np.ndarray:
        """Rows of six codes, int64 (num_rows, 6); a row that is not whole has 0 for what it lacks."""
        array = np.asarray(ids, dtype=np.int64)
        array = array[array != self.pad_token_id]
        field = self._field[array]
        begins = field <= 0
        row = np.cumsum(begins) - (1 if len(array) and begins[0] else 0)
        rows = np.zeros((row[-1] + 1 if len(array) else 0, len(FIELDS)), dtype=np.int64)
        tells = field >= 0
        rows[row[tells], field[tells]] = self._code[array[tells]]
        rows[row[array == self.eos_token_id], 0] = END_OF_SONG
        return rows

    def rows_to_ids(self, rows: Sequence[Sequence[int]] | np.ndarray) -> list[int]:
        """Ids of rows of six codes, `<bos>` and `<eos>` included where there are rows for them.

        Raises:
            ValueError: if there are not six codes, or one has no id.
        """
        rows = np.asarray(rows, dtype=np.int64).reshape(-1, len(FIELDS))
        if rows.size and ((rows < 0) | (rows >= self.field_sizes)).any():
            raise ValueError(f"codes of a row must lie below {self.field_sizes}")
        ids = np.where(rows > 0, rows + self._first - 1, -1)
        kind = rows[:, 0]
        ids[kind == START_OF_SONG] = ids[kind == END_OF_SONG] = -1
        ids[kind == START_OF_SONG, 0] = self.bos_token_id
        ids[kind == END_OF_SONG, 0] = self.eos_token_id
        return ids[ids >= 0].tolist()

    def decode_rows(self, rows: Sequence[Sequence[int]] | np.ndarray) -> Notes:
        """Notes of rows of six codes, up to the row of the end."""
        rows = np.asarray(rows, dtype=np.int64).reshape(-1, len(FIELDS))
        end = np.flatnonzero(rows[:, 0] == END_OF_SONG)
        return self.decode_notes(self.rows_to_ids(rows[: end[0]] if len(end) else rows))

    def prompt_rows(self, rows: Sequence[Sequence[int]] | np.ndarray, beats: int | None = None) -> np.ndarray:
        """What of a piece's rows a model is to continue.

        Args:
            rows: of a piece, as `encode_midi` gives them.
            beats: so many beats; None for the instruments alone. (What is there without either is the first row.)

        Returns:
            Rows, int64 (num_rows, 6): all but the end, if no note reaches that beat.
        """
        rows = np.asarray(rows, dtype=np.int64).reshape(-1, len(FIELDS))
        page = np.maximum(np.cumsum(rows[:, 0] == START_OF_NOTES) - 1, 0) * self.num_beats
        is_later = rows[:, 0] == NOTE
        if beats is not None:
            is_later &= page + rows[:, 1] - 1 >= beats
        later = np.flatnonzero(is_later | (rows[:, 0] == END_OF_SONG))
        return rows[: later[0]] if len(later) else rows

    def _legacy_rows(self, source: str | os.PathLike | bytes) -> np.ndarray:
        notes = self.legacy_notes(source)
        code = _INSTRUMENT_OF[notes[:, 4]]
        kept = notes[:, 0] < self.num_beats
        columns = (
            np.full(len(notes), NOTE),
            *(notes[:, :3] + 1).T,
            _DURATION_OF[np.minimum(notes[:, 3], DURATIONS[-1])],
            code,
        )
        header = [[START_OF_SONG, 0, 0, 0, 0, 0], *([INSTRUMENT, 0, 0, 0, 0, each] for each in np.unique(code))]
        return np.concatenate(
            [header, [[START_OF_NOTES, 0, 0, 0, 0, 0]], np.stack(columns, axis=1)[kept], [[END_OF_SONG, 0, 0, 0, 0, 0]]]
        ).astype(np.int64)

    def legacy_notes(self, source: str | os.PathLike | bytes) -> np.ndarray:
        """The rows (beat, position, pitch, steps, program) that the system keeps of a file, int64 (num_notes, 5).

        Raises:
            MidiError: if it can't be read.
        """
        kind, division, chunks = read_chunks(source)
        if kind == 2 or not 0 < division < 0x8000:
            why = "type 2" if kind == 2 else "that count no ticks per quarter"
            raise MidiError(f"{'MIDI bytes' if isinstance(source, bytes) else source}: files {why} can't be encoded")
        table = np.array([row for chunk in chunks for row in _notes_by_track(chunk)], dtype=np.int64).reshape(-1, 4)
        onset, offset = np.rint(table[:, :2].T * (STEPS_PER_BEAT / division)).astype(np.int64)
        rows = np.stack([*np.divmod(onset, STEPS_PER_BEAT), table[:, 2], np.maximum(offset - onset, 1), table[:, 3]], 1)
        rows = np.unique(rows[_INSTRUMENT_OF[rows[:, 4]] > 0], axis=0)  # sorted by the first column, then the others
        rows[:, 0] -= rows[:1, 0].sum()
        return rows

    # Notes <-> ids ---------------------------------------------------------------------------------------------------

    def _encode(self, notes: Notes) -> np.ndarray:
        if self.legacy:
            rows = self._legacy_rows(notes_to_midi_bytes(notes))[1:-1]
            return np.array(self.rows_to_ids(rows) if len(rows) > 1 else [], dtype=np.int64)
        onset, pitch, duration, instrument = self._quantised(notes)
        if not len(onset):
            return np.zeros(0, dtype=np.int64)
        beat, position = np.divmod(onset, STEPS_PER_BEAT)
        page, beat = np.divmod(beat, self.num_beats)
        turns = np.minimum(np.diff(page, prepend=0), _MAX_PAGES - 1)
        turns[0] += 1  # the notes begin with a page, too
        last = np.cumsum(turns + 6)  # behind each note
        ids = np.full(last[-1], self._first[0] + START_OF_NOTES - 1)
        values = np.stack([np.full(len(beat), NOTE - 1), beat, position, pitch, duration - 1, instrument - 1], axis=1)
        ids[last[:, None] + np.arange(-6, 0)] = values + self._first
        announced = np.unique(instrument) - 1 + self._first[5]
        header = np.stack([np.full(len(announced), self._first[0] + INSTRUMENT - 1), announced], axis=1)
        return np.concatenate([header.ravel(), ids])

    def _quantised(self, notes: Notes) -> tuple[np.ndarray, ...]:
        """Onset in steps, pitch, code of the duration and of the instrument of what is written, in its order."""
        code = _INSTRUMENT_OF[notes["program"]]
        if (notes["is_drum"] | (code == 0)).any():
            notes = notes.where(~notes["is_drum"] & (code > 0))
            code = _INSTRUMENT_OF[notes["program"]]
        per_tick = STEPS_PER_BEAT / notes.ticks_per_quarter
        onset = np.rint(notes["onset_tick"] * per_tick).astype(np.int64)
        steps = np.rint(notes.offset_tick * per_tick).astype(np.int64) - onset
        pitch, duration = notes["pitch"].astype(np.int64), _DURATION_OF[np.minimum(steps, DURATIONS[-1])]
        order = np.lexsort((-duration, code, pitch, onset))
        onset, pitch, duration, code = (column[order] for column in (onset, pitch, duration, code))
        same = [np.diff(column, prepend=-1) == 0 for column in (onset, pitch, code)]
        first = ~(same[0] & same[1] & same[2])
        onset, pitch, duration, code = (column[first] for column in (onset, pitch, duration, code))
        order = np.lexsort((code, duration, pitch, onset))
        return onset[order], pitch[order], duration[order], code[order]

    def _decode_events(self, ids: np.ndarray) -> Notes:
        field = self._field[ids]
        is_page = ids == self._first[0] + START_OF_NOTES - 1
        page = np.maximum(np.cumsum(is_page) - 1, 0)
        starts = np.flatnonzero(ids == self._first[0] + NOTE - 1)
        starts = starts[starts + 5 < len(ids)]
        starts = starts[(field[starts[:, None] + np.arange(1, 6)] == np.arange(1, 6)).all(1)]
        beat, position, pitch, duration, instrument = (self._code[ids[starts + field]] - 1 for field in range(1, 6))
        onset = (page[starts] * self.num_beats + beat) * STEPS_PER_BEAT + position
        present = np.unique(instrument)
        track = np.searchsorted(present, instrument)
        port, place = np.divmod(track, 15)
        tempos = np.array([(0, _LEGACY_US_PER_QUARTER)], dtype=TEMPO_DTYPE) if self.legacy else None
        notes = Notes.from_columns(
            _TICKS_PER_QUARTER,
            tempos,
            onset_tick=onset * _TICKS_PER_STEP,
            duration_tick=np.array(DURATIONS)[duration] * _TICKS_PER_STEP,
            pitch=pitch,
            velocity=np.full(len(pitch), _DECODED_VELOCITY),
            program=_PROGRAM_OF[instrument],
            track=track,
            channel=16 * port + place + (place >= DRUM_CHANNEL),  # which is for drums
        )
        return replace(notes, track_names=tuple(np.array(list(INSTRUMENTS))[present].tolist()))

    # Grammar ---------------------------------------------------------------------------------------------------------

    def _allowed_events(self, ids: np.ndarray) -> np.ndarray:
        allowed = np.zeros(self.vocab_size, dtype=bool)
        kinds = {kind: int(self._first[0]) + kind - 1 for kind in (INSTRUMENT, START_OF_NOTES, NOTE)}
        last = int(ids[-1]) if len(ids) else None
        if last is None:
            allowed[[kinds[INSTRUMENT], self.eos_token_id]] = True
            return allowed
        pages = np.flatnonzero(ids == kinds[START_OF_NOTES])
        header = ids[: pages[0]] if len(pages) else ids
        announced = header[self._field[header] == 5]
        field = int(self._field[last])
        if last == kinds[START_OF_NOTES]:
            allowed[kinds[NOTE]] = True
            allowed[kinds[START_OF_NOTES]] = self._may_turn(ids, pages)
        elif last == kinds[INSTRUMENT]:
            allowed[int(announced.max(initial=self._first[5] - 1)) + 1 :] = True
        elif field == 5 and not len(pages):
            allowed[kinds[INSTRUMENT]] = int(announced.max()) < self.vocab_size - 1
            allowed[kinds[START_OF_NOTES]] = True
        elif field == 5:
            allowed[kinds[NOTE]] = bool(self._next_values(0, (), self._note_before(ids), announced).any())
            allowed[kinds[START_OF_NOTES]] = not self.legacy
            allowed[self.eos_token_id] = True
        else:
            begun = ids[int(np.flatnonzero(self._field[ids] == 0).max(initial=-1)) + 1 :]
            before = self._note_before(ids[: len(ids) - len(begun) - 1])
            values = self._next_values(field, tuple(begun.tolist()), before, announced)
            allowed[self._first[field + 1] : self._first[field + 1] + len(values)] = values
        return allowed

    def _may_turn(self, ids: np.ndarray, pages: np.ndarray) -> bool:
        """Whether a page may be left without a note; so may not be any number of them."""
        too_many = len(pages) >= _MAX_PAGES and pages[-_MAX_PAGES] == len(ids) - _MAX_PAGES
        return not self.legacy and not too_many

    def _note_before(self, ids: np.ndarray) -> list[int] | None:
        """The ids of beat to instrument of the last note, if it is on this page and nothing else follows it."""
        if len(ids) < 6 or (self._field[ids[-6:]] != np.arange(6)).any():
            return None
        return ids[-5:].tolist()

    def _next_values(
        self, field: int, begun: tuple[int, ...], before: list[int] | None, announced: np.ndarray
    ) -> np.ndarray:
        """Which ids of the field after `field` may follow in a note: notes rise, field by field.

        Args:
            field: of the last id.
            begun: ids of the note's fields so far.
            before: ids of the note before; None for the first of a page.
            announced: ids of the instruments that may play.

        Returns:
            bool, shape (number of the field's ids,).
        """
        sizes = (self.num_beats, STEPS_PER_BEAT, 128, len(DURATIONS), len(INSTRUMENTS))
        first = int(self._first[field + 1])
        values = np.ones(sizes[field], dtype=bool)
        if field == 4 and len(announced):
            values[:] = False
            values[announced - first] = True
        if before is not None and list(begun) == before[:field]:
            here = before[field] - first
            values[:here] = False
            # As high as the note before only if a later field can still be higher.
            highest = int(announced.max()) if len(announced) else self.vocab_size - 1
            last = [*(self._first[2:6] - 1).tolist(), highest]
            values[here] &= any(each < most for each, most in zip(before[field + 1 :], last[field + 1 :], strict=True))
        return values


def _notes_by_track(chunk: ChunkEvents) -> list[tuple[int, int, int, int]]:
    """Onset, offset (ticks), pitch and program of a chunk's notes, as muspy has them (Dong et al. 2020), without drums.

    Strikes are paired first in, first out; the program is that of the moment at which a note ends; what is never
    released ends with the chunk.
    """
    program = [0] * 16
    waiting: dict[int, list[int]] = defaultdict(list)
    found = []
    columns = (column.tolist() for column in (chunk.tick, chunk.status, chunk.first, chunk.second))
    for tick, status, first, second in zip(*columns, strict=True):
        kind, channel = status & 0xF0, status & 0x0F
        if kind == PROGRAM_CHANGE:
            program[channel] = first
        elif kind == NOTE_ON and second:
            waiting[channel << 7 | first].append(tick)
        elif kind <= NOTE_ON and waiting[channel << 7 | first]:
            found.append((waiting[channel << 7 | first].pop(0), tick, first, program[channel], channel))
    for key, onsets in waiting.items():
        found += [(onset, chunk.end_tick, key & 127, program[key >> 7], key >> 7) for onset in onsets]
    return [row[:4] for row in found if row[4] != DRUM_CHANNEL]


__all__ = ["DURATIONS", "FIELDS", "INSTRUMENTS", "NUM_BEATS", "MultitrackMusicTokenizer"]
