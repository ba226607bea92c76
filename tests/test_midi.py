import os

import mido
import pytest
from hypothesis import given
from hypothesis import strategies as st
from midi_files import bytes_of, note_tables, strike

from pianogen_hf.tokenizers.midi import MidiError, notes_to_midi_bytes, read_midi, write_midi
from pianogen_hf.tokenizers.notes import Notes

CONTENT = ["onset_tick", "duration_tick", "pitch", "velocity", "program", "is_drum", "channel"]


def content(notes):
    return sorted(notes.table[CONTENT].tolist())


@given(note_tables())
def test_writing_and_reading_keeps_every_note_velocity_pedal_and_tempo(notes):
    again = read_midi(notes_to_midi_bytes(notes), programs=None, drums=True)
    assert content(again) == content(notes)
    assert again.tempos.tolist() == notes.tempos.tolist()
    assert again.time_signatures.tolist() == notes.time_signatures.tolist()
    assert again.pedals.tolist() == notes.pedals.tolist()
    assert again.other_pedals.tolist() == notes.other_pedals.tolist()
    assert sorted(again.with_sustain().table[CONTENT].tolist()) == sorted(notes.with_sustain().table[CONTENT].tolist())
    assert again.ticks_per_quarter == notes.ticks_per_quarter


@given(note_tables())
def test_what_was_read_once_is_read_the_same_again(notes):
    first = read_midi(notes_to_midi_bytes(notes), programs=None, drums=True)
    assert read_midi(notes_to_midi_bytes(first), programs=None, drums=True) == first


@st.composite
def midi_messages(draw):
    """A one-track performance as a keyboard sends it: any order of strikes, releases and pedal."""
    wait, pitch, value = st.integers(0, 200), st.integers(60, 62), st.integers(0, 127)
    message = st.one_of(
        st.builds(mido.Message, st.just("note_on"), note=pitch, velocity=value, time=wait),
        st.builds(mido.Message, st.just("note_off"), note=pitch, time=wait),
        st.builds(mido.Message, st.just("control_change"), control=st.just(64), value=value, time=wait),
        st.builds(mido.MetaMessage, st.just("set_tempo"), tempo=st.integers(1, 2**24 - 1), time=wait),
    )
    return draw(st.lists(message, max_size=40))


@given(midi_messages())
def test_any_performance_survives_reading_and_writing(messages):
    first = read_midi(bytes_of(messages))
    again = read_midi(notes_to_midi_bytes(first))
    assert content(again) == content(first)
    assert again.tempos.tolist() == first.tempos.tolist()
    assert again.pedals[["tick", "value"]].tolist() == first.pedals[["tick", "value"]].tolist()


def test_overlapping_strikes_of_one_key_pair_first_in_first_out():
    messages = [
        mido.Message("note_on", note=60, velocity=10, time=0),
        mido.Message("note_on", note=60, velocity=20, time=50),
        mido.Message("note_off", note=60, time=50),
        mido.Message("note_off", note=60, time=100),
    ]
    notes = read_midi(bytes_of(messages))
    assert notes.table[["onset_tick", "duration_tick", "velocity"]].tolist() == [(0, 100, 10), (50, 150, 20)]


def test_other_instruments_and_drums_are_left_out_unless_wanted():
    flute = [mido.Message("program_change", program=73, channel=1), *strike(70, channel=1)]
    data = bytes_of(strike(60), flute, strike(36, channel=9))
    piano = read_midi(data)
    assert piano["pitch"].tolist() == [60] and piano.excluded_notes == 2
    assert read_midi(data, programs=None)["pitch"].tolist() == [60, 70]
    everything = read_midi(data, programs=None, drums=True)
    assert everything["pitch"].tolist() == [36, 60, 70] and everything["is_drum"].tolist() == [True, False, False]
    assert read_midi(data, programs=[73])["pitch"].tolist() == [70]


def test_pedal_in_a_chunk_without_notes_is_read_and_holds_the_notes():
    pedal = [
        mido.MetaMessage("track_name", name="Pedal"),
        mido.Message("control_change", control=7, value=100),
        mido.Message("control_change", control=64, value=127, time=50),
        mido.Message("program_change", program=0, time=10),
        mido.Message("control_change", control=64, value=0, time=140),
    ]
    notes = read_midi(bytes_of([mido.MetaMessage("set_tempo", tempo=0xB0B0B0)], strike(60), pedal))
    assert notes.pedals[["tick", "value"]].tolist() == [(50, 127), (200, 0)]
    assert notes.with_sustain()["duration_tick"].tolist() == [200]


@pytest.mark.parametrize("kind", [0, 1, 2])
def test_every_type_of_file_is_read(kind):
    tracks = [strike(60) + strike(62)] if kind == 0 else [strike(60), strike(62)]
    assert sorted(read_midi(bytes_of(*tracks, kind=kind))["pitch"].tolist()) == [60, 62]


@pytest.mark.parametrize(
    "data, reason",
    [
        (b"", "empty"),
        (b"hello", "not a MIDI file"),
        (b"MThd", "less than 14"),
        (bytes_of(strike(60))[:-6], "chunk length"),
        (b"MThd\x00\x00\x00\x06\x00\x01\x00\x01\xe0\x28", "ticks per quarter"),
    ],
)
def test_bytes_that_are_no_midi_raise_one_error_with_a_reason(data, reason):
    with pytest.raises(MidiError, match=reason):
        read_midi(data)


@given(st.binary(max_size=80), st.integers(0, 60))
def test_damaged_files_are_read_or_refused_never_worse(garbage, position):
    data = bytes_of(strike(60) + strike(62))
    try:
        read_midi(data[:position] + garbage + data[position + len(garbage) :])
    except MidiError as error:
        assert "\n" not in str(error)


def test_errors_name_the_file(tmp_path):
    missing, folder, text = tmp_path / "missing.mid", tmp_path, tmp_path / "text.mid"
    text.write_text("no music")
    for path in (missing, folder, text):
        with pytest.raises(MidiError, match=path.name):
            read_midi(path)


def test_writing_is_all_or_nothing_and_keeps_non_ascii_names(tmp_path):
    notes = Notes.from_columns(onset_tick=[0], duration_tick=[480], pitch=[60])
    path = tmp_path / "новая папка" / "ピアノ.mid"
    write_midi(notes, path)
    assert read_midi(str(path)) == read_midi(path.read_bytes())
    with pytest.raises(MidiError, match="file.mid"):
        write_midi(notes, path / "file.mid")
    assert [each.name for each in path.parent.iterdir()] == ["ピアノ.mid"]
    assert not (os.stat(path).st_mode & 0o111)


def test_ticks_that_midi_cannot_hold_are_refused(tmp_path):
    notes = Notes.from_columns(onset_tick=[2**28], duration_tick=[1], pitch=[60])
    with pytest.raises(MidiError, match="ticks"):
        write_midi(notes, tmp_path / "far.mid")
    assert not list(tmp_path.iterdir())
