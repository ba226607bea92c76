import io

import mido
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from midi_files import bytes_of, note_tables

from pianogen_hf.tokenizers import midi, midi_chunks, midi_fast, midi_reader
from pianogen_hf.tokenizers.midi import notes_to_midi_bytes
from pianogen_hf.tokenizers.midi_chunks import chunk_events, lenient_events, opening_events


def same_events(a, b):
    columns = all(np.array_equal(getattr(a, name), getattr(b, name)) for name in ("tick", "status", "first", "second"))
    return columns and (a.metas, a.end_tick) == (b.metas, b.end_tick)


WAIT = st.one_of(st.integers(0, 127), st.integers(0, 300), st.integers(0, 2**28 - 1))
BYTE, CHANNEL = st.integers(0, 127), st.integers(0, 15)


def message(kind, **fields):
    return st.builds(mido.Message, st.just(kind), channel=CHANNEL, time=WAIT, **fields)


MESSAGES = st.lists(
    st.one_of(
        message("note_on", note=BYTE, velocity=BYTE),
        message("note_off", note=BYTE, velocity=BYTE),
        message("control_change", control=BYTE, value=BYTE),
        message("polytouch", note=BYTE, value=BYTE),
        message("pitchwheel", pitch=st.integers(-8192, 8191)),
        message("program_change", program=BYTE),
        message("aftertouch", value=BYTE),
        st.builds(mido.Message, st.just("sysex"), data=st.lists(BYTE, max_size=5), time=WAIT),
        st.builds(mido.MetaMessage, st.just("set_tempo"), tempo=st.integers(0, 2**24 - 1), time=WAIT),
        st.builds(mido.MetaMessage, st.just("text"), text=st.text(max_size=4, alphabet="aÿ€"[:2]), time=WAIT),
    ),
    max_size=60,
)


def body_of(messages):
    """The bytes of the one track chunk, with running status as mido writes it."""
    return bytes_of(messages)[22:]


@given(MESSAGES)
def test_columns_are_what_one_event_after_another_gives(messages):
    body = body_of(messages)
    assert same_events(midi_chunks._regular_events(body), lenient_events(body))


@given(MESSAGES)
def test_events_are_those_that_another_library_reads(messages):
    data = bytes_of(messages)
    found = chunk_events(data[22:])
    track = mido.MidiFile(file=io.BytesIO(data)).tracks[0]
    ticks = np.cumsum([each.time for each in track])
    channel_messages = [
        (tick, each.bytes()) for tick, each in zip(ticks, track, strict=True) if hasattr(each, "channel")
    ]
    expected = [(tick, *(values + [0])[:3]) for tick, values in channel_messages]
    assert list(zip(found.tick, found.status, found.first, found.second, strict=True)) == expected
    assert found.end_tick == ticks[-1] and not found.num_clipped and not found.num_lost_bytes


@given(MESSAGES, st.integers(0, 10**6), st.binary(min_size=1, max_size=6))
def test_a_damaged_chunk_is_read_as_one_event_after_another_would(messages, place, garbage):
    body = body_of(messages)
    place %= len(body)
    body = body[:place] + garbage + body[place + len(garbage) :]
    assert same_events(chunk_events(body), lenient_events(body))


@given(note_tables(), st.booleans())
def test_the_fast_way_gives_what_the_other_gives(notes, with_drums):
    """Tables on one channel and one track are what it is for, so here are all of them."""
    notes.table["channel"] = notes.table["track"] = 0
    notes.table["program"] = 40
    notes.table["is_drum"] = with_drums
    notes.pedals["channel"] = notes.other_pedals["channel"] = 0
    data = notes_to_midi_bytes(notes)
    fast, slow = (midi_reader.file_notes(data, *opened(data), None, True, fast=fast) for fast in (True, False))
    assert fast == slow and fast.remarks == slow.remarks


CONTROLS = st.tuples(st.just("control_change"), st.sampled_from([7, 64, 67]), st.integers(0, 127))
STRIKES = st.lists(st.tuples(st.integers(0, 40), st.integers(60, 63), st.integers(0, 12)), max_size=8)


@settings(max_examples=300)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 1), st.sampled_from([None, 3, 4]), st.lists(CONTROLS, max_size=3), st.booleans(), STRIKES
        ),
        min_size=1,
        max_size=4,
    )
)
def test_the_fast_way_gives_what_the_other_gives_where_tracks_share_a_channel(tracks):
    """Two hands on one channel, pedals in a track of their own, keys that both hold, one program or two."""
    found = []
    for channel, program, controls, with_text, rows in tracks:
        messages = [mido.Message(kind, channel=channel, control=at, value=value) for kind, at, value in controls]
        if with_text:
            messages.append(mido.MetaMessage("text", text="a"))
        if program is not None:
            messages.append(mido.Message("program_change", channel=channel, program=program))
        events = [(onset, "note_on", pitch) for onset, pitch, _ in rows]
        events += [(onset + length, "note_off", pitch) for onset, pitch, length in rows]
        now = 0
        for tick, kind, pitch in sorted(events, key=lambda event: event[0]):
            messages.append(mido.Message(kind, channel=channel, note=pitch, velocity=60, time=tick - now))
            now = tick
        found.append(messages)
    data = bytes_of(*found)
    for programs in (None, [0, 3]):
        fast, slow = (midi_reader.file_notes(data, *opened(data), programs, True, fast=fast) for fast in (True, False))
        assert fast == slow and fast.remarks == slow.remarks and fast.excluded_notes == slow.excluded_notes


def test_two_hands_on_one_channel_take_the_fast_way():
    hands = [
        [mido.Message("note_on", note=pitch, velocity=50), mido.Message("note_off", note=pitch, time=90)]
        for pitch in (50, 70)
    ]
    pedal = [mido.Message("control_change", control=64, value=value, time=40) for value in (127, 0)]
    data = bytes_of([mido.MetaMessage("set_tempo", tempo=400_000, time=3)] * 5, *hands, pedal)
    plain = plain_file(data)
    assert plain is not None and len(plain[0]) == 3
    notes = midi.read_midi(data)
    assert notes.tempos["tick"].tolist() == [0, 3, 6, 9, 12, 15] and notes.pedals["tick"].tolist() == [40, 80]


def plain_file(data):
    bodies = opened(data)[2]
    return midi_fast.plain_file(data, bodies, [opening_events(body) for body in bodies])


def opened(data):
    return midi.opened(data)[1:]


@pytest.mark.parametrize("num_missing", [0, 1])
def test_the_fast_way_is_taken_where_nothing_is_amiss_and_only_there(num_missing):
    strikes = [each for pitch in range(60, 72) for each in (("note_on", pitch), ("note_off", pitch))]
    messages = [mido.Message(kind, note=pitch, time=150) for kind, pitch in strikes[: len(strikes) - num_missing]]
    data = bytes_of([mido.MetaMessage("set_tempo", tempo=400_000)], messages)
    assert (plain_file(data) is None) == bool(num_missing)


def test_events_are_read_as_the_library_packs_them():
    assert all(midi_fast.is_plain(record) for record in (midi_fast.NOTE_RECORD, midi_fast.CONTROL_RECORD))


@given(note_tables())
def test_another_layout_in_the_library_changes_nothing_but_speed(notes):
    notes.table["channel"] = notes.table["track"] = 0
    data = notes_to_midi_bytes(notes)
    found = midi_reader.file_notes(data, *opened(data), None, True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(midi_fast, "is_plain", lambda record: False)
        assert midi_reader.file_notes(data, *opened(data), None, True) == found


def test_a_layout_that_is_not_the_librarys_is_noticed(monkeypatch):
    swapped = np.dtype(
        {
            "names": ["time", "duration", "velocity", "pitch"],
            "formats": ["<i4", "<i4", "i1", "i1"],
            "offsets": [0, 4, 8, 10],
            "itemsize": 12,
        }
    )
    monkeypatch.setattr(midi_fast, "NOTE_RECORD", swapped)
    assert not midi_fast.is_plain(swapped)
