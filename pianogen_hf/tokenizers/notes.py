"""The note table: the one representation in which every part of the package meets.

Times are kept in MIDI ticks, exactly as a file has them, and turned into seconds through the tempo map only where
seconds are asked for; so a file that is read and written again keeps every note, velocity, pedal and tempo.
Units stand in the field names, a habit taken from the note arrays of partitura (Cancino-Chacon et al. 2022).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

NOTE_DTYPE = np.dtype(
    [
        ("onset_tick", "<i4"),
        ("duration_tick", "<i4"),
        ("pitch", "<i2"),
        ("velocity", "<i2"),
        ("program", "<i2"),
        ("is_drum", "?"),
        ("track", "<i2"),
        ("channel", "<i2"),
    ]
)
TEMPO_DTYPE = np.dtype([("tick", "<i4"), ("us_per_quarter", "<i4")])
TIME_SIGNATURE_DTYPE = np.dtype([("tick", "<i4"), ("numerator", "<i2"), ("denominator", "<i2")])
PEDAL_DTYPE = np.dtype([("tick", "<i4"), ("value", "<i2"), ("channel", "<i2")])
OTHER_PEDAL_DTYPE = np.dtype([*PEDAL_DTYPE.descr, ("controller", "<i2")])  # 66: sostenuto, 67: soft

DEFAULT_US_PER_QUARTER = 500_000  # the MIDI default: 120 quarters a minute
PEDAL_DOWN = 64  # a sustain controller value from here on means "down" (MIDI 1.0, controller 64)
DRUM_CHANNEL = 9
MAX_CHANNEL = 16 * 128 - 1  # 16 channels on each of 128 ports
MAX_TICK = 2**31 - 1  # of every onset, length and event: the table's numbers, and 24 days at a tick a millisecond
# Nothing begins or ends for longer than this in music; schemes that count seconds write no more. A pedal that was never
# lifted, or one event at the end of time in a broken file, would be most of a corpus otherwise.
MAX_WAIT_SEC = 900
# By which notes are sorted; what stands last counts most.
_NOTE_ORDER = ("channel", "is_drum", "program", "track", "velocity", "duration_tick", "pitch", "onset_tick")


def take_rows(table: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """`table[rows]` for a mask or indices; numpy moves rows as bytes 20 times as fast as field by field."""
    return _as_bytes(table)[rows].view(table.dtype)


def copy_rows(table: np.ndarray) -> np.ndarray:
    """`table.copy()`, fast for the same reason."""
    return _as_bytes(table).copy().view(table.dtype)


def join_rows(tables: list[np.ndarray]) -> np.ndarray:
    """`np.concatenate(tables)` of tables of one dtype, fast for the same reason; a single one is not copied."""
    if len(tables) == 1:
        return tables[0]
    return np.concatenate([_as_bytes(table) for table in tables]).view(tables[0].dtype)


def stable_order(values: np.ndarray) -> np.ndarray:
    """`np.argsort(values, kind="stable")` of whole numbers from 0 on, 16 bits at a time, which numpy counts (radix)."""
    order = np.argsort(values.astype(np.uint16), kind="stable")  # the conversion keeps the lowest bits
    rest = values >> 16
    while rest.any():
        order = order.take(np.argsort(rest.take(order).astype(np.uint16), kind="stable"))
        rest = rest >> 16
    return order


def _as_bytes(table: np.ndarray) -> np.ndarray:
    return table.view((np.void, table.dtype.itemsize))


def _sorted_pedals(rows: np.ndarray) -> np.ndarray:
    """The rows by tick, those of one tick by channel; without copying where they already stand so."""
    if len(rows) < 2:
        return rows
    tick = rows["tick"]
    if bool((tick[1:] > tick[:-1]).all()):
        return rows
    key = tick.astype(np.int64)
    key <<= 16
    key += rows["channel"]
    if bool((key[1:] >= key[:-1]).all()):
        return rows
    return take_rows(rows, np.argsort(key, kind="stable"))


def _sorted_unique_by_tick(rows: np.ndarray) -> np.ndarray:
    """Sort rows by tick; where several share a tick the last one wins, as it does for a player."""
    if len(rows) < 2:
        return rows
    tick = rows["tick"]
    if not bool((tick[1:] >= tick[:-1]).all()):
        rows = take_rows(rows, np.argsort(tick, kind="stable"))
    keep = np.ones(len(rows), dtype=bool)
    keep[:-1] = rows["tick"][1:] != rows["tick"][:-1]
    return take_rows(rows, keep)


def _sorted_notes(table: np.ndarray) -> np.ndarray:
    """The rows by onset, then pitch, then the other fields; without copying where they already stand so."""
    key = (table["onset_tick"].astype(np.int64) << 16) + table["pitch"]
    if bool((key[1:] > key[:-1]).all()):
        return table
    order = np.argsort(key, kind="stable")
    key = key[order]
    equal = np.zeros(len(key) + 1, dtype=bool)  # to the one before
    np.equal(key[1:], key[:-1], out=equal[1:-1])
    open_places = np.flatnonzero(equal[1:] | equal[:-1])
    if len(open_places):  # the other fields count only where onset and pitch leave it open
        rows = take_rows(table, order[open_places])
        order[open_places] = order[open_places][np.lexsort([rows[name] for name in _NOTE_ORDER])]
    return take_rows(table, order)


def default_tempos() -> np.ndarray:
    """The tempo map of a file that names no tempo: 120 quarters a minute."""
    return np.array([(0, DEFAULT_US_PER_QUARTER)], dtype=TEMPO_DTYPE)


def _within_midi(table: np.ndarray) -> bool:
    """Whether all values are MIDI's, in one pass per column; `table` is sorted by onset and not empty."""
    # Bits above the seventh tell of numbers too high as well as of negative ones.
    seven_bits = all(0 <= np.bitwise_or.reduce(table[name]) < 128 for name in ("pitch", "velocity", "program"))
    seven_bits = seven_bits and 0 <= np.bitwise_or.reduce(table["channel"]) <= MAX_CHANNEL
    others = table["onset_tick"][0], *(np.minimum.reduce(table[name]) for name in ("duration_tick", "track"))
    return seven_bits and min(others) >= 0 and bool(np.minimum.reduce(table["velocity"]) > 0)


def _refuse_outside(name: str, values: np.ndarray, low: int, high: int) -> None:
    """Refuse numbers out of range, and what is no number.

    Raises:
        ValueError: if there is one.
    """
    if np.size(values) and not (np.min(values) >= low and np.max(values) <= high):
        raise ValueError(f"{name} must lie in {low}..{high}, got {np.min(values)}..{np.max(values)}")


def _fill(table: np.ndarray, name: str, values: np.ndarray) -> None:
    """Fill a column with numbers that fit into it.

    Raises:
        ValueError: if one does not.
    """
    kind, values = table.dtype[name], np.asarray(values)
    if kind.kind == "i" and values.dtype != kind:
        _refuse_outside(name, values, np.iinfo(kind).min, np.iinfo(kind).max)
    table[name] = values


def _as_rows(rows: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Rows as a table of `dtype`.

    Raises:
        ValueError: if a number does not fit into it.
    """
    kind = getattr(rows, "dtype", None)
    if kind == dtype:
        return rows
    if kind is not None and kind.names == dtype.names:
        table = np.zeros(len(rows), dtype=dtype)
        for name in dtype.names or ():
            _fill(table, name, rows[name])
        return table
    try:
        return np.asarray(rows, dtype=dtype)
    except OverflowError as error:
        raise ValueError(str(error)) from error


@dataclass(eq=False)
class Notes:
    """Notes of one piece with all that is needed to place them in time.

    Attributes:
        table: structured array of `NOTE_DTYPE`, shape (num_notes,), kept sorted by onset, then pitch. `pitch` and
            `velocity` are MIDI numbers (0..127, 1..127); `program` is the General MIDI program (0..127); `track`
            indexes `track_names`. `channel` says whose pedal holds a note: a MIDI channel, plus 16 for each port.
        ticks_per_quarter: ticks in one quarter note.
        tempos: `TEMPO_DTYPE`, microseconds per quarter from a tick on; the first row stands at tick 0.
        time_signatures: `TIME_SIGNATURE_DTYPE`; empty where the file has none (then 4/4 is understood).
        pedals: `PEDAL_DTYPE`, every value (0..127) of the sustain controller of a channel, in file order.
        track_names: one name per track index.
        excluded_notes: notes that the reader left out by its choice of programs; no part of equality.
        other_pedals: `OTHER_PEDAL_DTYPE`, the same of the sostenuto and the soft pedal, which no tokenizer reads.
        remarks: counts of what the reader left out, or could not take as it stood; no part of equality.
    """

    table: np.ndarray
    ticks_per_quarter: int = 480
    tempos: np.ndarray = field(default_factory=default_tempos)
    time_signatures: np.ndarray = field(default_factory=lambda: np.zeros(0, TIME_SIGNATURE_DTYPE))
    pedals: np.ndarray = field(default_factory=lambda: np.zeros(0, PEDAL_DTYPE))
    track_names: tuple[str, ...] = ()
    excluded_notes: int = 0
    other_pedals: np.ndarray = field(default_factory=lambda: np.zeros(0, OTHER_PEDAL_DTYPE))
    remarks: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.table = _sorted_notes(_as_rows(self.table, NOTE_DTYPE))
        tempos = _as_rows(self.tempos, TEMPO_DTYPE)
        if len(tempos) == 0 or np.minimum.reduce(tempos["tick"]) > 0:
            tempos = np.concatenate([default_tempos(), tempos])
        self.tempos = _sorted_unique_by_tick(tempos)
        self.time_signatures = _sorted_unique_by_tick(_as_rows(self.time_signatures, TIME_SIGNATURE_DTYPE))
        self.pedals = _sorted_pedals(_as_rows(self.pedals, PEDAL_DTYPE))
        self.other_pedals = _sorted_pedals(_as_rows(self.other_pedals, OTHER_PEDAL_DTYPE))
        self._check()

    def _check(self) -> None:
        """Refuse tables that no MIDI file can hold."""
        if len(self.table) and not _within_midi(self.table):
            self._refuse_values()
        if not 1 <= self.ticks_per_quarter <= 32767:
            raise ValueError(f"ticks_per_quarter must lie in 1..32767, got {self.ticks_per_quarter}")
        tempos = self.tempos["us_per_quarter"]
        if np.minimum.reduce(tempos) < 1 or np.maximum.reduce(tempos) >= 2**24:
            raise ValueError("us_per_quarter must lie in 1..16777215")

    def _refuse_values(self) -> None:
        """Name the field that holds what it must not.

        Raises:
            ValueError: if there is one.
        """
        limits = {"pitch": (0, 127), "velocity": (1, 127), "program": (0, 127), "track": (0, 32767)}
        limits |= {"onset_tick": (0, MAX_TICK), "duration_tick": (0, MAX_TICK), "channel": (0, MAX_CHANNEL)}
        for name, (low, high) in limits.items():
            _refuse_outside(name, self.table[name], low, high)

    @classmethod
    def from_columns(cls, ticks_per_quarter: int = 480, tempos: np.ndarray | None = None, **columns) -> Notes:
        """Build notes from columns of equal length; absent ones are velocity 64, piano, track 0.

        Args:
            ticks_per_quarter: ticks in one quarter note.
            tempos: tempo map (`TEMPO_DTYPE`); 120 quarters a minute when None.
            **columns: `onset_tick`, `duration_tick`, `pitch` and, if wanted, the other fields of `NOTE_DTYPE`.

        Raises:
            KeyError: if onset_tick is missing. ValueError: if a value is out of MIDI's range.
        """
        table = np.zeros(len(columns["onset_tick"]), dtype=NOTE_DTYPE)
        table["velocity"] = 64
        for name, values in columns.items():
            _fill(table, name, values)
        return cls(table, ticks_per_quarter, default_tempos() if tempos is None else tempos)

    @classmethod
    def from_seconds(cls, onset_sec, duration_sec, pitch, velocity=64) -> Notes:
        """Build notes from seconds, on a grid of 1 ms (500 ticks per quarter at 120 quarters a minute)."""
        onset_sec, duration_sec = (np.asarray(each, dtype=np.float64) for each in (onset_sec, duration_sec))
        for name, seconds in (("onset_sec", onset_sec), ("duration_sec", duration_sec)):
            _refuse_outside(name, seconds, 0, MAX_TICK // 1000)
        onset = np.rint(onset_sec * 1000).astype(np.int64)
        offset = np.rint((onset_sec + duration_sec) * 1000).astype(np.int64)
        return cls.from_columns(500, onset_tick=onset, duration_tick=offset - onset, pitch=pitch, velocity=velocity)

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, name: str) -> np.ndarray:
        """One column of the table, shape (num_notes,)."""
        return self.table[name]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Notes):
            return NotImplemented
        arrays = ("table", "tempos", "time_signatures", "pedals", "other_pedals")
        same = all(np.array_equal(getattr(self, name), getattr(other, name)) for name in arrays)
        return same and self.ticks_per_quarter == other.ticks_per_quarter and self.track_names == other.track_names

    def __repr__(self) -> str:
        return f"Notes({len(self)} notes, {self.end_sec:.1f} s, {self.ticks_per_quarter} ticks per quarter)"

    @property
    def onset_sec(self) -> np.ndarray:
        """Onsets in seconds, shape (num_notes,)."""
        return self.tick_to_sec(self.table["onset_tick"])

    @property
    def offset_tick(self) -> np.ndarray:
        """First tick after each note, shape (num_notes,)."""
        return self.table["onset_tick"].astype(np.int64) + self.table["duration_tick"]

    @property
    def offset_sec(self) -> np.ndarray:
        """Ends of the notes in seconds, shape (num_notes,)."""
        return self.tick_to_sec(self.offset_tick)

    @property
    def duration_sec(self) -> np.ndarray:
        """Durations in seconds, shape (num_notes,)."""
        return self.offset_sec - self.onset_sec

    @property
    def end_tick(self) -> int:
        """The tick at which the last note ends; 0 without notes."""
        return int(self.offset_tick.max()) if len(self) else 0

    @property
    def end_sec(self) -> float:
        """The second at which the last note ends; 0.0 without notes."""
        return float(self.tick_to_sec(np.array([self.end_tick]))[0])

    def _tempo_starts_sec(self) -> np.ndarray:
        """Seconds at which each row of the tempo map takes effect."""
        sec_per_tick = self.tempos["us_per_quarter"] * 1e-6 / self.ticks_per_quarter
        spans = np.diff(self.tempos["tick"].astype(np.int64)) * sec_per_tick[:-1]
        return np.concatenate([[0.0], np.cumsum(spans)])

    def tick_to_sec(self, ticks: np.ndarray) -> np.ndarray:
        """Seconds (float64) of ticks, any shape, through the tempo map."""
        ticks = np.asarray(ticks, dtype=np.float64)
        row = np.searchsorted(self.tempos["tick"], ticks, side="right") - 1 if len(self.tempos) > 1 else 0
        seconds = ticks - self.tempos["tick"][row]
        seconds *= self.tempos["us_per_quarter"][row]
        seconds *= 1e-6
        seconds /= self.ticks_per_quarter
        seconds += self._tempo_starts_sec()[row]
        return seconds

    def sec_to_tick(self, seconds: np.ndarray) -> np.ndarray:
        """Nearest ticks (int64) of seconds, any shape, through the tempo map."""
        seconds = np.asarray(seconds, dtype=np.float64)
        starts = self._tempo_starts_sec()
        row = np.maximum(np.searchsorted(starts, seconds, side="right") - 1, 0)
        ticks = (seconds - starts[row]) * 1e6 * self.ticks_per_quarter / self.tempos["us_per_quarter"][row]
        return np.rint(self.tempos["tick"][row] + ticks).astype(np.int64)

    def where(self, mask: np.ndarray) -> Notes:
        """The notes that a boolean mask or an index array picks; tempo map, signatures and pedal stay."""
        return replace(self, table=take_rows(self.table, mask))

    def transposed(self, semitones: int) -> Notes:
        """All notes moved by semitones, but drums, whose pitches are instruments.

        Raises:
            ValueError: if a pitch would leave 0..127.
        """
        table = copy_rows(self.table)
        table["pitch"] += np.where(table["is_drum"], 0, min(max(semitones, -128), 128)).astype(table["pitch"].dtype)
        return replace(self, table=table)

    def with_sustain(self) -> Notes:
        """Lengthen notes by the sustain pedal, until it comes up or the same key is struck again.

        A pedal that is still down at the end is taken to come up with the last event, so the notes it holds are not
        lost. The pedal of a channel holds the notes of that channel, in whatever tracks they are, as it does for a
        MIDI instrument. The result has no sustain pedal left.
        """
        table = copy_rows(self.table)
        table["duration_tick"] = self.sustained_duration_tick()
        return replace(self, table=table, pedals=np.zeros(0, PEDAL_DTYPE))

    def sustained_duration_tick(self) -> np.ndarray:
        """How long each note sounds with the pedal, shape (num_notes,), as `with_sustain` has it."""
        table = self.table
        if not len(self.pedals) or not len(table):
            return table["duration_tick"]
        last, channel = self._last_event_tick(), table["channel"]
        if np.minimum.reduce(channel) == np.maximum.reduce(channel):
            return _sustained_durations(table, self._pedals_of(channel[0]), last)
        durations = np.empty(len(table), dtype=np.int64)
        for each in np.unique(channel):
            rows = np.flatnonzero(channel == each)
            durations[rows] = _sustained_durations(take_rows(table, rows), self._pedals_of(each), last)
        return durations

    def _pedals_of(self, channel: int) -> np.ndarray:
        own = self.pedals["channel"] == channel
        return self.pedals if own.all() else take_rows(self.pedals, own)

    @property
    def remarks_line(self) -> str:
        """What the reader left out or mended, in words: "12 drum notes, 1 lyrics"; empty if nothing."""
        return ", ".join(f"{count} {name}" for name, count in self.remarks.items())

    def long_waits_sec(self) -> np.ndarray:
        """How long nothing begins or ends, wherever that is more than `MAX_WAIT_SEC`, shape (num_waits,)."""
        onset = self.table["onset_tick"].astype(np.int64)
        ticks = np.sort(np.concatenate([[0], onset, onset + self.sustained_duration_tick()]))
        waits = np.diff(self.tick_to_sec(ticks))
        return waits[waits > MAX_WAIT_SEC]

    def _last_event_tick(self) -> int:
        return max(self.end_tick, int(self.pedals["tick"].max()) if len(self.pedals) else 0)


def _pedal_spans(pedals: np.ndarray, last_tick: int) -> tuple[np.ndarray, np.ndarray]:
    """Ticks at which the pedal goes down and at which it comes up again, two arrays of one length."""
    down = np.zeros(len(pedals) + 1, dtype=bool)  # it begins up
    np.greater_equal(pedals["value"], PEDAL_DOWN, out=down[1:])
    ticks = pedals["tick"].take(np.flatnonzero(down[1:] != down[:-1])).astype(np.int64)
    if len(ticks) % 2:
        ticks = np.append(ticks, last_tick)
    return ticks[0::2], ticks[1::2]


def next_onset_of_same_pitch(onset: np.ndarray, pitch: np.ndarray, default: int) -> np.ndarray:
    """For each note the next later onset of its pitch, or `default`; all arrays have shape (num_notes,).

    Notes of one pitch that begin together see the same next onset.
    """
    if len(onset) < 2:
        return np.full(len(onset), default, dtype=np.int64)
    # Notes come by onset, as a rule: then a stable sort by pitch alone does, which is ten times as fast.
    rising = bool((onset[1:] >= onset[:-1]).all())
    order = np.argsort(pitch, kind="stable") if rising else np.lexsort((onset, pitch))
    sorted_onset, sorted_pitch = onset.take(order).astype(np.int64, copy=False), pitch.take(order)
    same_key = sorted_pitch[1:] == sorted_pitch[:-1]
    later = np.full(len(onset), default, dtype=np.int64)
    np.copyto(later[:-1], sorted_onset[1:], where=same_key)
    together = same_key & (sorted_onset[1:] == sorted_onset[:-1])
    if together.any():  # all of them look beyond the last of them
        last = np.flatnonzero(np.append(~together, True))
        later = np.repeat(later[last], np.diff(last, prepend=-1))
    upcoming = np.empty_like(later)
    upcoming[order] = later
    return upcoming


def _sustained_durations(table: np.ndarray, pedals: np.ndarray, last_tick: int) -> np.ndarray:
    """Durations of one channel's notes with the pedal spans of that channel applied."""
    down, up = _pedal_spans(pedals, last_tick)
    if len(down) == 0:
        return table["duration_tick"]
    onset = table["onset_tick"].astype(np.int64)
    offset = onset + table["duration_tick"]
    # Where the latest pedal before a note's end comes up; -1 before the first.
    comes_up = np.append(-1, up).take(np.searchsorted(down, offset, side="right"))
    next_strike = next_onset_of_same_pitch(onset, table["pitch"], default=2**31 - 1)
    # A key that was still held by a finger keeps its own length: only the pedal's share is cut by the next strike.
    return np.maximum(np.minimum(comes_up, next_strike), offset) - onset
