"""The JSB grid: four voices, one token per voice per sixteenth.

The form of Boulanger-Lewandowski et al. 2012 (arXiv 1206.6392) on sixteenths, with the voices kept apart as in Huang et
al. 2017, "Counterpoint by Convolution" (arXiv 1903.07227): 46 pitches and a rest, shared by the voices.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from .notes import NOTE_DTYPE, Notes, take_rows
from .tokenization_notes import NoteTokenizer

VOICES = ("Soprano", "Alto", "Tenor", "Bass")
LOWEST_PITCH, HIGHEST_PITCH = 36, 81
REST = -1  # in grids, as in the benchmark's JSON files
STEPS_PER_QUARTER = 4
STEPS_PER_BAR = 16  # of four quarters; the grid knows no metre, and counts from the beginning of a piece
MAX_STEPS = 2**17  # 4.5 hours at 120 quarters a minute: keeps a hostile tick from filling the memory
_NUM_PITCHES = HIGHEST_PITCH - LOWEST_PITCH + 1
_CHORD_BITS = 64  # enough for all pitches, and whole bytes
_MANTISSA_BITS, _EXPONENT_OF_ONE = 52, 1023  # of a float64: a whole number's exponent names its highest bit
_TICKS_PER_QUARTER = 480
_TICKS_PER_STEP = _TICKS_PER_QUARTER // STEPS_PER_QUARTER
_DECODED_VELOCITY = 80  # mezzo-forte; the grid has no velocities


class JSBTokenizer(NoteTokenizer):
    """Soprano, alto, tenor and bass of each sixteenth, in this order.

    A grid is an int array of shape (num_steps, 4): MIDI pitches, -1 for a rest.

    Lost: velocities, programs, drums, tempo and time signatures, the pedal, time finer than a sixteenth, pitches
    outside 36..81, what begins after `MAX_STEPS`, a fifth voice, and whether a pitch is held or struck again (the
    benchmark's own convention). Decoded notes go to four tracks at 120 quarters a minute; all have velocity 80.

    Notes find their voices by the first of these that fits:

    1. Every track with notes is named after a voice, each after another.
    2. Exactly four tracks have notes: the higher a track's mean pitch (weighted by duration), the higher the voice.
       (So stand the voices in all 382 pieces of the benchmark.) The highest pitch of a track wins a step.
    3. Anything else: at each step the highest pitch is the soprano and the lowest the bass, a single one the soprano.
       Inner pitches stay in the voice, alto or tenor, that sang them a step before; the others take what voice is
       free, the higher pitch first and the alto first. What finds no voice is dropped.
    """

    time_unit: ClassVar[str] = "beat"
    lost_fields: ClassVar[tuple[str, ...]] = ("velocity", "program", "track", "pedal", "tempo", "repeated notes")
    tokens_per_step: ClassVar[int] = len(VOICES)
    tokens_per_bar: ClassVar[int] = len(VOICES) * STEPS_PER_BAR
    rest_prefixes: ClassVar[tuple[str, ...]] = ("REST",)
    time_step_sec: ClassVar[float] = 0.5 / STEPS_PER_QUARTER  # at 120 quarters a minute
    pitch_range = (LOWEST_PITCH, HIGHEST_PITCH)

    def _event_names(self) -> list[str]:
        return [*(f"P{pitch}" for pitch in range(LOWEST_PITCH, HIGHEST_PITCH + 1)), "REST"]

    @property
    def rest_id(self) -> int:
        """The id of a voice that is silent."""
        return self.num_special + _NUM_PITCHES

    # Grid <-> ids, grid <-> notes ------------------------------------------------------------------------------------

    def grid_to_ids(self, grid: np.ndarray | Sequence[Sequence[int]]) -> list[int]:
        """Event ids of a grid, row after row.

        Raises:
            ValueError: if it has not four columns, or a pitch outside 36..81 that is no -1.
        """
        grid = np.asarray(grid, dtype=np.int64)
        if grid.size and (grid.ndim != 2 or grid.shape[1] != len(VOICES)):
            raise ValueError(f"a grid has shape (num_steps, {len(VOICES)}), got {grid.shape}")
        is_pitch = (grid >= LOWEST_PITCH) & (grid <= HIGHEST_PITCH)
        if not (is_pitch | (grid == REST)).all():
            raise ValueError(f"a grid holds pitches {LOWEST_PITCH}..{HIGHEST_PITCH} and {REST} for rests")
        return self._ids_of_grid(grid).tolist()

    def _ids_of_grid(self, grid: np.ndarray) -> np.ndarray:
        ids = (grid + (self.num_special - LOWEST_PITCH)).ravel()
        return np.where(ids < self.num_special, self.rest_id, ids)

    def ids_to_grid(self, ids: Sequence[int] | np.ndarray) -> np.ndarray:
        """Grid of ids, int64 (num_steps, 4); special tokens are skipped, a cut last step is filled up with rests."""
        ids = np.asarray(ids, dtype=np.int64)
        ids = ids[ids >= self.num_special]
        grid = np.full(-len(ids) % len(VOICES) + len(ids), REST)
        grid[: len(ids)] = np.where(ids == self.rest_id, REST, ids - self.num_special + LOWEST_PITCH)
        return grid.reshape(-1, len(VOICES))

    def notes_to_grid(self, notes: Notes) -> np.ndarray:
        """Grid of notes, int64 (num_steps, 4), from tick 0 to the end of the last note that is kept."""
        voice_of_track = _voice_of_track(notes)
        pitch = notes["pitch"]
        rows = take_rows(notes.table, ~notes["is_drum"] & (pitch >= LOWEST_PITCH) & (pitch <= HIGHEST_PITCH))
        onset, offset = _steps(rows, notes.ticks_per_quarter)
        if onset.max(initial=0) >= MAX_STEPS:
            in_time = onset < MAX_STEPS
            rows, onset, offset = take_rows(rows, in_time), onset[in_time], offset[in_time]
        if voice_of_track is None:
            return _by_height(onset, offset, rows["pitch"])
        # Of assignments to one cell the last remains: the highest pitch.
        rising = np.argsort(rows["pitch"], kind="stable")
        onset, offset, pitch = onset[rising], offset[rising], rows["pitch"][rising]
        grid = np.full((offset.max(initial=0), len(VOICES)), REST, dtype=np.int64)
        length = offset - onset
        grid[_run_cells(onset, length), np.repeat(voice_of_track[rows["track"][rising]], length)] = np.repeat(
            pitch, length
        )
        return grid

    def grid_to_notes(self, grid: np.ndarray | Sequence[Sequence[int]]) -> Notes:
        """Notes of a grid: each run of one pitch in a voice is one note, each voice a track, named."""
        grid = np.asarray(grid, dtype=np.int64).reshape(-1, len(VOICES))
        # Voices one after the other, with a rest behind each, so that no run continues into the next voice.
        line = np.concatenate([grid, np.full((1, len(VOICES)), REST)]).T.ravel()
        begins = np.flatnonzero(np.diff(line, prepend=REST) != 0)
        length = np.diff(begins, append=len(line))
        sounds = line[begins] != REST
        begins, length = begins[sounds], length[sounds]
        table = np.zeros(len(begins), dtype=NOTE_DTYPE)
        table["track"], onset = np.divmod(begins, len(grid) + 1)
        table["channel"] = table["track"]  # a key of one voice is not a key of another
        table["onset_tick"], table["duration_tick"] = onset * _TICKS_PER_STEP, length * _TICKS_PER_STEP
        table["pitch"], table["velocity"] = line[begins], _DECODED_VELOCITY
        return Notes(table, _TICKS_PER_QUARTER, track_names=VOICES)

    # NoteTokenizer ---------------------------------------------------------------------------------------------------

    def _encode(self, notes: Notes) -> np.ndarray:
        return self._ids_of_grid(self.notes_to_grid(notes))

    def _decode_events(self, ids: np.ndarray) -> Notes:
        return self.grid_to_notes(self.ids_to_grid(ids))

    def _allowed_events(self, ids: np.ndarray) -> np.ndarray:
        allowed = np.ones(self.vocab_size, dtype=bool)
        allowed[: self.num_special] = False
        # A piece without notes is empty; it has no steps of rests.
        allowed[self.eos_token_id] = len(ids) % len(VOICES) == 0 and (
            len(ids) == 0 or bool((ids != self.rest_id).any())
        )
        return allowed

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Event text, a line per step: only for the eye, any white space separates."""
        text, written = [], 0
        for token in tokens:
            is_cell = token in self._ids and self._ids[token] >= self.num_special
            written += is_cell
            text += [token, " " if written % len(VOICES) or not is_cell else "\n"]
        return "".join(text[:-1])


def _steps(rows: np.ndarray, ticks_per_quarter: int) -> tuple[np.ndarray, np.ndarray]:
    """Onsets and offsets in the nearest sixteenths (of two the later), each note one step long at least."""
    onset = rows["onset_tick"].astype(np.int64)
    ticks = np.stack([onset, onset + rows["duration_tick"]])
    first, end = (2 * STEPS_PER_QUARTER * ticks + ticks_per_quarter) // (2 * ticks_per_quarter)
    return first, np.minimum(np.maximum(end, first + 1), MAX_STEPS)


def _run_cells(onset: np.ndarray, length: np.ndarray, stride: int = 1) -> np.ndarray:
    """The steps of all runs, one run after the other, shape (length.sum(),); `stride` apart, as `onset` counts them."""
    cells = np.arange(length.sum())
    return cells * stride + np.repeat(onset - (np.cumsum(length) - length) * stride, length)


def _voice_of_track(notes: Notes) -> np.ndarray | None:
    """The voice (0..3) of each track index, or None where tracks are no voices."""
    pitched = take_rows(notes.table, ~notes["is_drum"])
    tracks = np.flatnonzero(np.bincount(pitched["track"]))
    voice_of_track = np.zeros(tracks.max(initial=-1) + 1, dtype=np.int64)
    names = [notes.track_names[track].strip().capitalize() for track in tracks if track < len(notes.track_names)]
    if len(set(names)) == len(tracks) and set(names) <= set(VOICES):
        voice_of_track[tracks] = [VOICES.index(name) for name in names]
        return voice_of_track
    if len(tracks) != len(VOICES):
        return None
    weight = np.maximum(pitched["duration_tick"], 1)  # a voice of zero-length notes has a mean as well
    summed = np.bincount(pitched["track"], pitched["pitch"] * weight.astype(np.float64))
    mean_pitch = summed[tracks] / np.bincount(pitched["track"], weight)[tracks]
    voice_of_track[tracks[np.argsort(-mean_pitch, kind="stable")]] = np.arange(len(VOICES))
    return voice_of_track


def _by_height(onset: np.ndarray, offset: np.ndarray, pitch: np.ndarray) -> np.ndarray:
    """Grid of notes without voices: rule 3 of `JSBTokenizer`."""
    length = offset - onset
    # A row of 64 bits per step: bit 0 is the lowest pitch. The chord of a step is then one number.
    sounding = np.zeros((offset.max(initial=0), _CHORD_BITS), dtype=bool)
    cells = _run_cells(onset * _CHORD_BITS, length, _CHORD_BITS)
    sounding.ravel()[cells + np.repeat(pitch - LOWEST_PITCH, length)] = True
    chords = np.packbits(sounding, axis=1, bitorder="little").view("<i8").ravel()
    changes = np.ones(len(chords), dtype=bool)
    np.not_equal(chords[1:], chords[:-1], out=changes[1:])
    starts = np.flatnonzero(changes)
    grid = _voices_of_chords(chords[starts])
    return np.repeat(grid, np.diff(starts, append=len(chords)), axis=0)


def _voices_of_chords(chords: np.ndarray) -> np.ndarray:
    """The four voices of each chord, int64 (num_chords, 4), with the inner ones after those of the chord before.

    Args:
        chords: a set bit for each pitch, int64 (num_chords,).
    """
    soprano = _highest_bit(chords)
    bass = (chords ^ soprano) & -(chords ^ soprano)
    inner = chords ^ soprano ^ bass
    alto = _highest_bit(inner)
    tenor = _highest_bit(inner ^ alto)
    goes_on = np.flatnonzero(inner[1:] & inner[:-1]) + 1  # elsewhere nobody keeps a pitch, and the above is all
    alto[goes_on], tenor[goes_on] = _kept_voices(inner, alto, tenor, goes_on)
    bits = np.stack([soprano, alto, tenor, bass], axis=1)
    exponent = bits.astype(np.float64).view(np.int64) >> _MANTISSA_BITS  # 0 of a rest
    return np.maximum(exponent + (LOWEST_PITCH - _EXPONENT_OF_ONE), REST)


def _kept_voices(
    inner: np.ndarray, alto: np.ndarray, tenor: np.ndarray, goes_on: np.ndarray
) -> tuple[list[int], list[int]]:
    """Alto and tenor of those chords that share inner pitches with the one before: who sang one of them stays on it."""
    all_inner, fresh_alto, fresh_tenor = inner.tolist(), alto.tolist(), tenor.tolist()
    altos: list[int] = []
    tenors: list[int] = []
    last = -1
    for chord in goes_on.tolist():
        if last != chord - 1:
            high, low = fresh_alto[chord - 1], fresh_tenor[chord - 1]
        pitches = all_inner[chord]
        high &= pitches
        low &= pitches
        free = pitches ^ high ^ low
        if free:
            if not high:
                high = 1 << free.bit_length() - 1
                free ^= high
            if free and not low:
                low = 1 << free.bit_length() - 1
        altos.append(high)
        tenors.append(low)
        last = chord
    return altos, tenors


def _highest_bit(numbers: np.ndarray) -> np.ndarray:
    """The highest bit of each number below 2 ** 53, alone; 0 of 0."""
    as_float = numbers.astype(np.float64).view(np.int64)
    return (as_float >> _MANTISSA_BITS << _MANTISSA_BITS).view(np.float64).astype(np.int64)
