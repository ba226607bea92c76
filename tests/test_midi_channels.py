"""What the messages of a file mean, however they are divided into tracks, and what is said of what is left out."""

import io

import mido
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from midi_files import bytes_of, strike

from pianogen_hf.tokenizers.midi import MidiError, notes_to_midi_bytes, read_midi
from pianogen_hf.tokenizers.notes import NOTE_DTYPE, PEDAL_DTYPE, Notes

NOTES = ["onset_tick", "duration_tick", "pitch", "velocity", "program", "is_drum", "channel"]


def music(data, **choice):
    """What is heard: all but the tracks that the notes stand in."""
    notes = read_midi(data, **{"programs": None, "drums": True} | choice)
    heard = [sorted(each.table[NOTES].tolist()) for each in (notes, notes.with_sustain())]
    return heard, notes.pedals.tolist(), notes.other_pedals.tolist(), notes.tempos.tolist(), notes.remarks


def control(number, value, time=0, channel=0):
    return mido.Message("control_change", control=number, value=value, time=time, channel=channel)


def pedal(value, time=0, channel=0):
    return control(64, value, time, channel)


def columns(data, *names):
    return read_midi(data).with_sustain().table[list(names)].tolist()


EVENTS = st.one_of(
    st.builds(
        mido.Message,
        st.sampled_from(["note_on", "note_off"]),
        note=st.integers(60, 61),
        velocity=st.integers(0, 2),
        channel=st.integers(0, 1),
    ),
    st.builds(
        mido.Message,
        st.just("control_change"),
        control=st.sampled_from([64, 64, 66, 67, 123, 120, 7]),
        value=st.sampled_from([0, 63, 64, 127]),
        channel=st.integers(0, 1),
    ),
    st.builds(mido.Message, st.just("program_change"), program=st.sampled_from([0, 40]), channel=st.integers(0, 1)),
    st.builds(mido.MetaMessage, st.just("set_tempo"), tempo=st.sampled_from([400_000, 600_000])),
)


@given(st.lists(st.tuples(st.integers(0, 60), EVENTS, st.integers(0, 3)), max_size=40))
def test_type_0_equals_type_1_for_any_division_into_tracks(rows):
    tracks = [[], [], [], []]
    for tick, event, number in sorted(rows, key=lambda row: row[0]):
        tracks[number].append((tick, event))
    data = bytes_of(*(with_waits(track) for track in tracks))
    file = mido.MidiFile(file=io.BytesIO(data))
    merged = mido.merge_tracks(file.tracks)
    assert music(data) == music(bytes_of(merged, kind=0))


def with_waits(rows):
    ticks = [0, *(tick for tick, _ in rows)]
    return [event.copy(time=tick - before) for (tick, event), before in zip(rows, ticks, strict=False)]


def test_a_pedal_in_one_hands_track_holds_the_other_hand():
    right = [pedal(127), *strike(72), pedal(0, time=800)]
    assert columns(bytes_of(right, strike(48)), "pitch", "duration_tick") == [(48, 900), (72, 900)]


def test_a_pedal_track_with_a_note_of_its_own_holds_the_others():
    assert columns(bytes_of(strike(72), [pedal(127), *strike(20), pedal(0, time=800)]), "pitch", "duration_tick") == [
        (20, 900),
        (72, 900),
    ]


def test_a_stray_pedal_in_a_text_track_comes_up_with_the_others():
    hands = [*strike(72), mido.Message("note_on", note=74, velocity=64, time=500), mido.Message("note_off", note=74)]
    ups = [pedal(127, time=90), pedal(0, time=60)]
    assert columns(bytes_of(hands, ups, [pedal(127, time=95)]), "pitch", "duration_tick")[0] == (72, 150)


def test_the_pedal_of_another_channel_holds_nothing():
    data = bytes_of(strike(72), [pedal(127, channel=1), *strike(48, channel=1), pedal(0, time=800, channel=1)])
    assert columns(data, "pitch", "duration_tick", "channel") == [(48, 900, 1), (72, 100, 0)]


def test_a_key_struck_again_in_another_track_of_its_channel_ends_what_the_pedal_holds():
    again = [mido.Message("note_on", note=72, velocity=64, time=300), mido.Message("note_off", note=72, time=100)]
    data = bytes_of([pedal(127), *strike(72), pedal(0, time=800)], again)
    assert columns(data, "onset_tick", "duration_tick") == [(0, 300), (300, 600)]
    elsewhere = [each.copy(channel=1) for each in again]
    data = bytes_of([pedal(127), *strike(72), pedal(0, time=800)], elsewhere)
    assert columns(data, "onset_tick", "duration_tick") == [(0, 900), (300, 100)]


def test_a_program_named_in_one_track_holds_for_its_channel_in_all():
    flute = [mido.Message("program_change", program=73)]
    assert read_midi(bytes_of(flute, strike(60))).excluded_notes == 1
    assert read_midi(bytes_of(flute, strike(60)), programs=[73])["program"].tolist() == [73]


def test_one_channel_on_two_ports_is_two_channels():
    ports = [[mido.MetaMessage("midi_port", port=port), pedal(127 * port), *strike(60 + port)] for port in (0, 1)]
    late = [mido.MetaMessage("midi_port", port=1), pedal(0, time=700)]
    assert columns(bytes_of(*ports, late), "duration_tick", "channel") == [(100, 0), (700, 16)]


# Strikes without an end ----------------------------------------------------------------------------------------------


def on(note, time=0, channel=0):
    return mido.Message("note_on", note=note, velocity=80, time=time, channel=channel)


def off(note, time=0, channel=0):
    return mido.Message("note_off", note=note, time=time, channel=channel)


@pytest.mark.parametrize(
    "messages, durations",
    [
        ([on(60), *[on(60, 480)] * 7, off(60, 480)], [480] * 8),
        ([on(60), control(123, 0, 400), on(61, 80), control(120, 0, 300), on(62), control(123, 0, 5)], [400, 300, 5]),
        ([on(60), on(64, 10), off(60, 90), mido.MetaMessage("end_of_track", time=50)], [100, 140]),
        ([on(60), on(60), off(60, 100), mido.MetaMessage("end_of_track", time=50)], [100, 100]),
        ([on(60), on(60, 50), control(123, 0, 50), off(60, 900)], [50, 50]),
        ([on(60), off(60, 100), off(60, 100), on(60, 100), off(60, 100)], [100, 100]),
        ([on(60), off(61, 50, channel=1), control(123, 0, 50, channel=1), off(60, 900)], [1000]),
    ],
    ids=["restruck", "all notes off", "end of track", "twice at once", "cut short", "released twice", "elsewhere"],
)
def test_a_strike_without_an_end_lasts_until_the_next_or_what_ends_all(messages, durations):
    notes = read_midi(bytes_of(messages), programs=None)
    assert notes["duration_tick"].tolist() == durations
    assert set(notes.remarks) <= {"strikes never released"}


def test_strikes_before_and_after_those_without_an_end_are_paired_as_ever():
    overlapping = [on(60), on(60, 10), off(60, 20), off(60, 30)]
    notes = read_midi(bytes_of([*overlapping, on(60, 40), on(60, 50), off(60, 5), *strike(62)]))
    lengths = notes.table[["pitch", "duration_tick"]].tolist()
    assert lengths == [(60, 30), (60, 50), (60, 50), (60, 5), (62, 100)]
    assert notes.remarks == {"strikes never released": 1}


# What is left out -----------------------------------------------------------------------------------------------------


def test_everything_that_is_left_out_is_counted():
    head = [mido.MetaMessage(kind, text="la") for kind in ("lyrics", "text", "marker")]
    piano = [control(7, 90), *strike(60), mido.Message("pitchwheel", pitch=5), mido.Message("aftertouch", value=3)]
    flute = [mido.Message("program_change", program=73, channel=1), pedal(127, channel=1), *strike(70, channel=1)]
    notes = read_midi(bytes_of(head, piano, flute, strike(36, channel=9), [pedal(127, channel=5)]))
    assert notes.excluded_notes == 2 and notes.pedals.tolist() == [(0, 127, 5)]
    assert notes.remarks == {
        "notes of other instruments": 1,
        "drum notes": 1,
        "controllers": 2,
        "pitch bends": 1,
        "aftertouches": 1,
        "lyrics": 1,
        "texts": 1,
        "markers": 1,
    }


def test_soft_and_sostenuto_pedals_are_kept_through_read_and_write():
    notes = read_midi(bytes_of([control(67, 127), control(66, 90, 5), *strike(60), control(67, 0, 20)]))
    assert notes.other_pedals.tolist() == [(0, 127, 0, 67), (5, 90, 0, 66), (125, 0, 0, 67)]
    assert read_midi(notes_to_midi_bytes(notes)) == notes and not notes.remarks


def test_what_stands_after_an_inner_end_of_track_is_read():
    data = bytes_of(strike(60))
    inner = data[:18] + (2 * len(data[22:])).to_bytes(4, "big") + data[22:] * 2
    assert inner.count(bytes((0xFF, 0x2F, 0))) == 2
    assert read_midi(inner)["onset_tick"].tolist() == [0, 100]


def test_bytes_that_fill_a_chunk_up_are_no_loss_and_others_are_counted():
    data = bytes_of(strike(60))
    for filling, lost in ((b"\0" * 9, {}), (b"\x05hello", {"unreadable bytes": 6})):
        filled = data[:18] + (len(data[22:]) + len(filling)).to_bytes(4, "big") + data[22:] + filling
        assert (len(read_midi(filled)), read_midi(filled).remarks) == (1, lost)


def test_tracks_beyond_the_headers_number_are_read():
    data = bytes_of(strike(60), strike(64))
    assert read_midi(data[:11] + b"\1" + data[12:])["pitch"].tolist() == [60, 64]


# Times beyond reason --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_notes", [True, False])
@pytest.mark.parametrize("event", [pedal(127, 2**28 - 1), mido.MetaMessage("set_tempo", tempo=9, time=2**28 - 1)])
def test_times_that_a_table_cannot_hold_are_refused_wherever_they_stand(with_notes, event):
    late = [event.copy() for _ in range(9)]
    data = bytes_of([*strike(60), *late]) if with_notes else bytes_of(strike(60), late)
    with pytest.raises(MidiError, match="beyond 2147483647"):
        read_midi(data)
    near = bytes_of([*strike(60), *late[:7]])
    assert len(read_midi(near)) == 1


# Files that other programs play ---------------------------------------------------------------------------------------


def test_a_file_in_a_container_is_read_as_it_is():
    data = bytes_of(strike(60))
    riff = b"RIFF" + (len(data) + 12).to_bytes(4, "little") + b"RMIDdata" + len(data).to_bytes(4, "little") + data
    assert read_midi(riff) == read_midi(data)
    assert read_midi(b"\0" * 128 + data) == read_midi(data)


def test_data_bytes_over_127_are_clipped_and_counted():
    data = bytes_of([control(7, 1), *strike(60)])
    notes = read_midi(data.replace(bytes((0xB0, 7, 1)), bytes((0xB0, 7, 255))))
    assert notes["pitch"].tolist() == [60] and notes.remarks == {"controllers": 1, "bytes over 127": 1}
    loud = read_midi(data.replace(bytes((0x90, 60, 64)), bytes((0x90, 60, 200))))
    assert loud["velocity"].tolist() == [127] and loud["duration_tick"].tolist() == [100]


def test_the_sequences_of_a_type_2_file_follow_one_another_and_begin_anew():
    tempo, metre = mido.MetaMessage("set_tempo", tempo=250_000), mido.MetaMessage("time_signature", numerator=3)
    first = [tempo, metre, mido.Message("program_change", program=4), pedal(127), *strike(60), on(62), off(63, 20)]
    notes = read_midi(bytes_of(first, [*strike(64), *strike(62)], kind=2))
    rows = notes.with_sustain().table[["onset_tick", "duration_tick", "pitch", "program"]].tolist()
    assert rows == [(0, 120, 60, 4), (100, 20, 62, 4), (120, 100, 64, 0), (220, 100, 62, 0)]
    assert notes.tempos.tolist() == [(0, 250_000), (120, 500_000)]
    assert notes.time_signatures.tolist() == [(0, 3, 4), (120, 4, 4)]
    assert notes.remarks == {"strikes never released": 1}


@pytest.mark.parametrize("frames, per_second", [(24, 24), (25, 25), (29, 30000 / 1001), (30, 30)])
def test_time_in_frames_is_read_in_seconds_whatever_the_tempo(frames, per_second):
    data = bytes_of([mido.MetaMessage("set_tempo", tempo=1000), *strike(60, ticks=100), *strike(62, ticks=41)])
    smpte = data[:12] + bytes((256 - frames, 40)) + data[14:]
    notes = read_midi(smpte)
    assert notes.offset_sec.tolist() == pytest.approx([100 / 40 / per_second, 141 / 40 / per_second])


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 9), st.integers(60, 61)), max_size=12), st.booleans())
def test_notes_that_sound_inside_others_keep_their_pedal_when_written(rows, is_drum):
    """Channel and pedal of each note are the same after writing, though no channel can hold such notes at once."""
    table = np.array([(on, length, pitch, 64, 0, is_drum, 0, 9 * is_drum) for on, length, pitch in rows], NOTE_DTYPE)
    notes = Notes(table, pedals=np.array([(3, 127, 9 * is_drum), (40, 0, 9 * is_drum)], dtype=PEDAL_DTYPE))
    again = read_midi(notes_to_midi_bytes(notes), drums=True)
    assert sorted(again.with_sustain().table[NOTES].tolist()) == sorted(notes.with_sustain().table[NOTES].tolist())
