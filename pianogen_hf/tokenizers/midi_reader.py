"""From the chunks of a MIDI file to a note table."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np

from .midi_channels import (
    ALL_NOTES_OFF,
    CONTROL_CHANGE,
    PROGRAM_CHANGE,
    SUSTAIN,
    Messages,
    Strikes,
    merged,
    programs_at,
    releases_of,
    strikes,
)
from .midi_chunks import TEXTS, ChunkEvents, chunk_events, opening_events
from .midi_fast import PlainTrack, plain_file
from .midi_writer import MARK
from .notes import (
    DEFAULT_US_PER_QUARTER,
    DRUM_CHANNEL,
    MAX_CHANNEL,
    MAX_TICK,
    NOTE_DTYPE,
    OTHER_PEDAL_DTYPE,
    PEDAL_DTYPE,
    TEMPO_DTYPE,
    TIME_SIGNATURE_DTYPE,
    Notes,
    join_rows,
)

OTHER_PEDALS = (66, 67)  # sostenuto, soft
_NO_PEDALS = np.zeros(0, dtype=PEDAL_DTYPE), np.zeros(0, dtype=OTHER_PEDAL_DTYPE)
_NAME, _PORT, _TEMPO, _TIME_SIGNATURE, _SEQUENCER_SPECIFIC = 0x03, 0x21, 0x51, 0x58, 0x7F
_DEFAULTS = {_TEMPO: DEFAULT_US_PER_QUARTER.to_bytes(3, "big"), _TIME_SIGNATURE: bytes((4, 2, 24, 8))}
_IS_OTHER_PEDAL = np.isin(np.arange(256), OTHER_PEDALS)
_IS_PEDAL = _IS_OTHER_PEDAL | (np.arange(256) == SUSTAIN)


@dataclass
class _Found:
    """The notes and pedals that are kept, and what else the messages were."""

    table: np.ndarray
    pedals: np.ndarray
    other_pedals: np.ndarray
    track_names: tuple[str, ...]
    excluded: int  # notes
    counts: dict[str, int]


def file_notes(
    data: bytes,
    kind: int,
    division: int,
    bodies: list[bytes],
    programs: Collection[int] | None,
    drums: bool,
    fast: bool = True,
) -> Notes:
    """The notes of a file.

    Args:
        data: the file, from its header on.
        kind: 0, 1 or 2.
        division: as the header has it.
        bodies: the contents of the track chunks.
        programs: General MIDI programs to keep, None for all.
        drums: whether to keep the drum channel.
        fast: whether to take the fast way where that gives the same.

    Raises:
        ValueError: if the file holds what a note table can't.
    """
    ticks_per_quarter, us_per_quarter = time_base(division)
    openings = [opening_events(body) for body in bodies]
    plain = plain_file(data, bodies, openings) if fast and kind < 2 and us_per_quarter is None else None
    if plain is not None:
        tracks, chunks = plain
        found = _found_in_plain(tracks, chunks, programs, drums)
    else:
        chunks = [
            opening.events if opening is not None and opening.is_whole and opening.channel < 0 else chunk_events(body)
            for opening, body in zip(openings, bodies, strict=True)
        ]
        if kind == 2 and len(chunks) > 1:
            chunks = one_after_another(chunks)
        found = _found_in_chunks(chunks, programs, drums)
    tempos, signatures = _tempos(chunks), _time_signatures(chunks)
    if us_per_quarter is not None:  # time is counted in frames of a film: no tempo has a say in it
        tempos, signatures = np.array([(0, us_per_quarter)], dtype=TEMPO_DTYPE), signatures[:0]
    return Notes(
        found.table,
        ticks_per_quarter,
        tempos,
        signatures,
        found.pedals,
        found.track_names,
        found.excluded,
        found.other_pedals,
        _remarks(chunks, found.counts),
    )


def _found_in_plain(
    tracks: list[PlainTrack], chunks: list[ChunkEvents], programs: Collection[int] | None, drums: bool
) -> _Found:
    """What a plain file holds: all notes of a channel are kept, or none."""
    tables: list[np.ndarray] = []
    names: list[str] = []
    pedals, other_pedals = [_NO_PEDALS[0]], [_NO_PEDALS[1]]
    counts = dict.fromkeys(("notes of other instruments", "drum notes", "controllers", "pitch bends"), 0)
    excluded = {
        track.channel
        for track in tracks
        if len(track.table)
        and not (drums if track.channel == DRUM_CHANNEL else programs is None or track.program in programs)
    }
    for track in tracks:
        table, number = track.table, track.controls["number"]
        counts["pitch bends"] += track.num_bends
        if track.channel in excluded:
            counts["drum notes" if track.channel == DRUM_CHANNEL else "notes of other instruments"] += len(table)
            counts["controllers"] += len(number)
            continue
        own, others = _pedal_rows(track.controls["time"], track.controls["value"], track.channel, number)
        counts["controllers"] += len(number) - len(own) - len(others)
        pedals.append(own)
        other_pedals.append(others)
        if len(table):
            if names:
                table["track"] = len(names)
            tables.append(table)
            names.append(_name(chunks[track.chunk]))
    num_excluded = counts["notes of other instruments"] + counts["drum notes"]
    table = join_rows(tables) if tables else np.zeros(0, dtype=NOTE_DTYPE)
    return _Found(table, _joined(pedals), _joined(other_pedals), tuple(names), num_excluded, counts)


def _joined(tables: list[np.ndarray]) -> np.ndarray:
    """The rows of all tables, of which the first is empty."""
    return tables[1] if len(tables) == 2 else join_rows(tables)


def _found_in_chunks(chunks: list[ChunkEvents], programs: Collection[int] | None, drums: bool) -> _Found:
    """What the messages of the chunks say, merged as a player merges them."""
    end_tick = max((chunk.end_tick for chunk in chunks), default=0)
    if end_tick > MAX_TICK:
        raise ValueError(f"it lasts until tick {end_tick}, and what is beyond {MAX_TICK} can't be read")
    messages = merged(all_messages(chunks))
    struck = strikes(messages, end_tick)
    num_lost = sum(chunk.num_lost_bytes for chunk in chunks)
    if num_lost and not len(struck.row):
        raise ValueError(f"{num_lost} bytes can't be read, and nothing else is in it")
    program = programs_at(messages, struck.row)
    is_drum = messages.channel.take(struck.row) % 16 == DRUM_CHANNEL
    chosen = _chosen(program, is_drum, programs, drums)
    table, track_names = _table(messages, struck, program, is_drum, chosen, chunks)
    pedals = _pedals(messages, table, messages.channel.take(struck.row))
    kinds = np.bincount(messages.kind >> 4, minlength=16)
    counts = {
        "notes of other instruments": np.count_nonzero(~(chosen | is_drum)),
        "drum notes": np.count_nonzero(is_drum & ~chosen),
        "strikes never released": struck.num_endless,
        "controllers": kinds[CONTROL_CHANGE >> 4] - len(pedals) - len(releases_of(messages)),
        "pitch bends": kinds[0xE],
        "aftertouches": kinds[0xA] + kinds[0xD],
        "bytes over 127": sum(chunk.num_clipped for chunk in chunks),
        "unreadable bytes": num_lost,
    }
    homes = channel_homes(chunks, messages)
    if homes:
        pedals = pedals.compress(~np.isin(messages.channel.take(pedals), list(homes)))  # the others are copies
        table["channel"] = [homes.get(channel, channel) for channel in table["channel"].tolist()]
    rows = messages.take(pedals)
    sustain, others = _pedal_rows(rows.tick, rows.second, rows.channel, rows.first)
    return _Found(table, sustain, others, track_names, len(chosen) - len(table), counts)


def time_base(division: int) -> tuple[int, int | None]:
    """Ticks per quarter; for time in frames (SMPTE) the length of a quarter that makes it right, too.

    Raises:
        ValueError: for a number of frames that MIDI does not know.
    """
    if division < 0x8000:
        return division, None
    frames, ticks = 256 - (division >> 8), division & 0xFF
    if frames not in (24, 25, 29, 30) or not ticks:
        raise ValueError(f"neither ticks per quarter nor SMPTE frames are given (division {division:#06x})")
    if frames == 29:  # 30 frames, a thousandth slower: 29.97 in a second
        return 30 * ticks, 1_001_000
    return frames * ticks, 1_000_000


def one_after_another(chunks: list[ChunkEvents]) -> list[ChunkEvents]:
    """The independent sequences of a type 2 file as tracks; with each, what was changed begins anew."""
    shifted: list[ChunkEvents] = []
    begin = 0
    changed: dict[tuple[int, int], None] = {}  # status and first data byte of what is set back
    for chunk in chunks:
        metas = {kind: [(begin + tick, content) for tick, content in found] for kind, found in chunk.metas.items()}
        for kind, content in _DEFAULTS.items():
            if any(kind in each.metas for each in shifted):
                metas[kind] = [(begin, content), *metas.get(kind, [])]
        status, first = np.array(list(changed), dtype=np.uint8).reshape(-1, 2).T
        tick = np.append(np.zeros(len(changed), dtype=np.int64), chunk.tick) + begin
        columns = (np.append(status, chunk.status), np.append(first, chunk.first))
        second = np.append(np.zeros_like(status), chunk.second)
        end_tick = begin + chunk.end_tick
        shifted.append(ChunkEvents(tick, *columns, second, metas, end_tick, chunk.num_clipped, chunk.num_lost_bytes))
        begin = end_tick
        kind_of = chunk.status & 0xF0
        for channel in np.unique(chunk.status & 0x0F).tolist():
            changed[CONTROL_CHANGE | channel, ALL_NOTES_OFF] = None
            own = chunk.status & 0x0F == channel
            if (kind_of[own] == PROGRAM_CHANGE).any():
                changed[PROGRAM_CHANGE | channel, 0] = None
            for pedal in np.intersect1d(chunk.first[own & (kind_of == CONTROL_CHANGE)], (SUSTAIN, *OTHER_PEDALS)):
                changed[CONTROL_CHANGE | channel, int(pedal)] = None
    return shifted


def all_messages(chunks: list[ChunkEvents]) -> Messages:
    """The messages of all chunks, chunk by chunk."""
    full = [(index, chunk) for index, chunk in enumerate(chunks) if len(chunk.tick)]
    if len(full) == 1:
        index, chunk = full[0]
        tick, status, first, second = chunk.tick, chunk.status, chunk.first, chunk.second
        number = np.full(len(tick), index)
    else:
        parts = [chunk for _, chunk in full] or [ChunkEvents(*np.zeros((4, 0), dtype=np.int64))]
        tick, status, first, second = (
            np.concatenate([getattr(each, name) for each in parts]) for name in ("tick", "status", "first", "second")
        )
        number = np.repeat([index for index, _ in full], [len(chunk.tick) for _, chunk in full]).astype(np.int64)
    channel = (status & 0x0F).astype(np.int16)
    ports = [_port(chunk) for chunk in chunks]
    if any(ports):
        channel += 16 * np.array(ports, dtype=np.int16).take(number)
    return Messages(tick, status & 0xF0, channel, first, second, number)


def _port(chunk: ChunkEvents) -> int:
    """The port that a chunk's messages go to: channel 1 of another port is another channel."""
    return next((content[0] & 0x7F for _, content in chunk.metas.get(_PORT, ()) if content), 0)


def channel_homes(chunks: list[ChunkEvents], messages: Messages) -> dict[int, int]:
    """The channels that stand for others (see `midi_writer.MARK`), and for which."""
    homes: dict[int, int] = {}
    for index, chunk in enumerate(chunks):
        for _, content in chunk.metas.get(_SEQUENCER_SPECIFIC, ()):
            number = content.removeprefix(MARK)
            if content.startswith(MARK) and number.isdigit():
                own = np.unique(messages.channel[messages.chunk == index]).tolist()
                homes |= dict.fromkeys(own, min(int(number), MAX_CHANNEL))
    return homes


def _chosen(program: np.ndarray, is_drum: np.ndarray, programs: Collection[int] | None, drums: bool) -> np.ndarray:
    """Which notes are kept."""
    wanted = np.ones(128, dtype=bool)
    if programs is not None:
        wanted = np.isin(np.arange(128), list(programs))
    return np.where(is_drum, drums, wanted.take(program))


def _table(
    messages: Messages,
    found: Strikes,
    program: np.ndarray,
    is_drum: np.ndarray,
    chosen: np.ndarray,
    chunks: list[ChunkEvents],
) -> tuple[np.ndarray, tuple[str, ...]]:
    """The note table of the chosen strikes, and the names of its tracks."""
    row, release = found.row, found.release
    if not chosen.all():
        row, release, program, is_drum = (column.compress(chosen) for column in (row, release, program, is_drum))
    table = np.zeros(len(row), dtype=NOTE_DTYPE)
    onset, channel, chunk = messages.tick.take(row), messages.channel.take(row), messages.chunk.take(row)
    columns = {"onset_tick": onset, "duration_tick": release - onset, "channel": channel, "program": program}
    columns |= {"pitch": messages.first.take(row), "velocity": messages.second.take(row), "is_drum": is_drum}
    for name, values in columns.items():
        table[name] = values
    part = chunk << 18
    part |= channel.astype(np.int64) << 7
    part |= program
    if len(part) and (part == part[0]).all():
        parts = part[:1]
    else:
        parts, table["track"] = np.unique(part, return_inverse=True)
    return table, tuple(_name(chunks[each >> 18]) for each in parts.tolist())


def _name(chunk: ChunkEvents) -> str:
    names = chunk.metas.get(_NAME)
    try:
        return names[-1][1].decode() if names else ""
    except UnicodeDecodeError:  # names are bytes of no declared encoding; music is not lost for a name
        return ""


def _pedals(messages: Messages, table: np.ndarray, sounding: np.ndarray) -> np.ndarray:
    """Which messages are pedals, but for those of channels of which no note is kept."""
    rows = np.flatnonzero((messages.kind == CONTROL_CHANGE) & _IS_PEDAL.take(messages.first))
    if len(table) < len(sounding):
        channel = messages.channel.take(rows)
        rows = rows.compress(np.isin(channel, table["channel"]) | ~np.isin(channel, sounding))
    return rows


def _pedal_rows(tick: np.ndarray, value: np.ndarray, channel: Any, controller: np.ndarray) -> list[np.ndarray]:
    """Rows of `PEDAL_DTYPE` of the sustain pedal, and of `OTHER_PEDAL_DTYPE` of the others."""
    tables = []
    for dtype, chosen in ((PEDAL_DTYPE, controller == SUSTAIN), (OTHER_PEDAL_DTYPE, _IS_OTHER_PEDAL.take(controller))):
        every = bool(chosen.all())
        rows = np.zeros(len(chosen) if every else np.count_nonzero(chosen), dtype=dtype)
        columns = {"tick": tick, "value": value, "channel": channel, "controller": controller}
        for name in dtype.names or () if len(rows) else ():
            column = columns[name]
            rows[name] = column if every or np.ndim(column) == 0 else column.compress(chosen)
        tables.append(rows)
    return tables


def _tempos(chunks: list[ChunkEvents]) -> np.ndarray:
    """The tempo map; events that are not three bytes, or zero, say nothing."""
    found = [meta for chunk in chunks for meta in chunk.metas.get(_TEMPO, ()) if len(meta[1]) == 3 and any(meta[1])]
    return np.array([(tick, int.from_bytes(content, "big")) for tick, content in found], dtype=TEMPO_DTYPE)


def _time_signatures(chunks: list[ChunkEvents]) -> np.ndarray:
    found = [meta for chunk in chunks for meta in chunk.metas.get(_TIME_SIGNATURE, ()) if len(meta[1]) >= 2]
    rows = [(tick, content[0], 2 ** content[1]) for tick, content in found if content[0] and content[1] < 8]
    return np.array(rows, dtype=TIME_SIGNATURE_DTYPE)


def _remarks(chunks: list[ChunkEvents], counts: dict[str, int]) -> dict[str, int]:
    """Counts of what the table does not hold, or not as it stood in the file."""
    for kind, name in TEXTS.items():
        counts[name] = sum(len(chunk.metas.get(kind, ())) for chunk in chunks)
    return {name: int(count) for name, count in counts.items() if count}
