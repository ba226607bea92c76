"""MidiEventTokenizer: the original's rows in legacy mode, and each of its flaws mended by default."""

import base64
import json
from pathlib import Path

import mido
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from midi_files import bytes_of, note_tables, strike

import pianogen_hf as pg
from pianogen_hf.tokenizers.midi_score import Score, read_score, read_score_by_track, score_to_midi

GOLDEN = json.loads((Path(__file__).parent / "golden/midi_event.json").read_text(encoding="utf-8"))
MODES = [(version, optimise) for version in ("v1", "v2") for optimise in (False, True)]
Meta, Message = mido.MetaMessage, mido.Message


def tokenizers(version="v2", optimise_midi=False):
    """The original's and ours."""
    return [pg.MidiEventTokenizer(version, optimise_midi, legacy=legacy) for legacy in (True, False)]


def events(tokenizer, source, name=None):
    """What the rows of a file say: type, sixteenth, then the row's other parameters."""
    beat, found = 0, []
    for row in tokenizer.encode_midi(source)[1:-1]:
        values, kind = tokenizer._values(row), tokenizer.convert_ids_to_tokens(row[0])
        beat += values["time1"]
        if name in (None, kind):
            others = {key: value for key, value in values.items() if not key.startswith("time")}
            found.append({"type": kind, "time": 16 * beat + values["time2"], **others})
    return found


def told(tokenizer, source, name, *keys):
    return [tuple(event[key] for key in keys) for event in events(tokenizer, source, name)]


# The original ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version, optimise", MODES)
@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: case["name"])
def test_legacy_rows_are_the_original_s(case, version, optimise, tmp_path):
    tokenizer = pg.MidiEventTokenizer(version=version, optimise_midi=optimise, legacy=True)
    data, expected = base64.b64decode(case["midi"]), case["rows"][version + "_optimise" * optimise]
    (tmp_path / "case.mid").write_bytes(data)
    assert tokenizer.encode_midi(data) == tokenizer.encode_midi(tmp_path / "case.mid") == expected


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: case["name"])
def test_legacy_scores_are_what_the_original_decodes(case, version):
    score = pg.MidiEventTokenizer(version, legacy=True).decode_score(case["rows"][version])
    ticks_per_quarter, *tracks = case["score"][version]
    ours = [[(*event, 24, 8) if event[0] == "time_signature" else event for event in track] for track in score.tracks]
    assert [[list(event) for event in track] for track in ours] == tracks
    assert score.ticks_per_quarter == ticks_per_quarter


def test_the_vocabularies_have_the_original_s_sizes():
    assert [len(pg.MidiEventTokenizer(version)) for version in ("v1", "v2")] == [3239, 3406]
    tokenizer = pg.MidiEventTokenizer("v2")
    assert tokenizer.convert_tokens_to_ids(["key_signature", "time1_0", "bpm_0", "mi_0"]) == [8, 9, 2985, 3404]
    with pytest.raises(ValueError, match="version"):
        pg.MidiEventTokenizer("v3")


# Its flaws, and what is done instead ----------------------------------------------------------------------------------


def test_music_after_a_long_gap_is_kept():
    data = bytes_of([*strike(60, 480), *strike(62, 480), Message("note_on", note=64, velocity=64, time=480 * 400)])
    legacy, mended = (told(each, data, "note", "time", "pitch") for each in tokenizers())
    assert legacy == [(0, 60), (16, 62)]
    assert mended == [(0, 60), (16, 62), (402 * 16, 64)]
    bridges = events(tokenizers()[1], data, "set_tempo")
    assert {event["bpm"] for event in bridges} == {120} and len(bridges) == 3


def test_a_bridge_repeats_the_tempo_that_is_in_force():
    data = bytes_of([Meta("set_tempo", tempo=1_000_000), *strike(60), Message("note_on", note=64, time=480 * 200)])
    assert told(tokenizers()[1], data, "set_tempo", "bpm") == [(60,), (60,)]


def test_long_notes_are_cut_not_lost():
    data = bytes_of(strike(60, 480 * 200))
    legacy, mended = (told(each, data, "note", "duration") for each in tokenizers())
    assert legacy == [] and mended == [(2047,)]


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_tempos_are_rounded(version):
    for bpm in range(20, 250, 7):
        data = bytes_of([Meta("set_tempo", tempo=mido.bpm2tempo(bpm)), *strike(60)])
        assert told(tokenizers(version)[1], data, "set_tempo", "bpm") == [(bpm,)]
    data = bytes_of([Meta("set_tempo", tempo=mido.bpm2tempo(66)), *strike(60)])
    assert told(tokenizers(version)[0], data, "set_tempo", "bpm") == [(65,)]


def test_slow_tempos_and_small_first_values_are_kept():
    data = bytes_of([Meta("set_tempo", tempo=2**24 - 1), Message("control_change", control=7, value=2), *strike(60)])
    legacy, mended = ([event["type"] for event in events(each, data)] for each in tokenizers("v1"))
    assert legacy == ["note"] and mended == ["set_tempo", "control_change", "note"]


def test_the_opening_ends_by_real_time():
    """To the original, sixteenth 16 (beat 1, sixteenth 0) is the time of sixteenth 1 (beat 0, sixteenth 1)."""
    control = Message("control_change", control=7, value=100, time=350)
    data = bytes_of([Message("note_on", note=60, velocity=64, time=30), *strike(62, 100), control, *strike(64)])
    legacy, mended = (told(each, data, "control_change", "time") for each in tokenizers("v1"))
    assert legacy == [(0,)] and mended == [(16,)]


def test_no_note_of_an_opening_chord_is_lost():
    chord = [Message("note_on", note=pitch, velocity=64) for pitch in (60, 64, 67, 72, 76)]
    ends = [Message("note_off", note=pitch, time=240 * (pitch == 60)) for pitch in (60, 64, 67, 72, 76)]
    data = bytes_of([*chord, *ends, *strike(50)])
    legacy, mended = (told(each, data, "note", "pitch") for each in tokenizers("v1"))
    assert len(legacy) == 3 and mended == [(60,), (64,), (67,), (72,), (76,), (50,)]


def test_time_signatures_and_tempos_before_the_first_note_are_kept():
    silence = [Meta("time_signature", numerator=3), Meta("time_signature", numerator=4, time=1440)]
    tempos = [Meta("set_tempo", tempo=1_000_000), Meta("set_tempo", tempo=500_000, time=1920)]
    data = bytes_of([*silence], [*tempos], [Message("note_on", note=60, velocity=64, time=3840), *strike(62)])
    legacy, mended = tokenizers()
    assert told(legacy, data, "time_signature", "time", "nn") == [(48, 3)]
    assert told(mended, data, "time_signature", "time", "nn") == [(0, 2), (48, 3)]
    assert told(legacy, data, "set_tempo", "time", "bpm") == [(0, 120)]
    assert told(mended, data, "set_tempo", "time", "bpm") == [(0, 60), (64, 120)]


def test_programs_and_controllers_before_the_first_note_move_to_the_beginning():
    setup = [Message("program_change", program=1), Message("program_change", program=40, time=480)]
    data = bytes_of([*setup, Message("control_change", control=7, value=90, time=480), *strike(60)])
    for tokenizer in tokenizers():
        assert told(tokenizer, data, "patch_change", "time", "patch") == [(0, 40)]
        assert told(tokenizer, data, "control_change", "time", "value") == [(0, 90)]


def test_overlapping_notes_of_one_key_both_stay():
    """A long note is listed after the short one that begins inside it, if it ends later."""
    score = Score(480, [[("note", 480, 120, 0, 60, 64), ("note", 0, 960, 0, 60, 90)]])
    legacy, mended = (each.encode_score(score) for each in tokenizers())
    assert len([row for row in legacy if row[0] == 3]) == 1
    assert len([row for row in mended if row[0] == 3]) == 2
    notes = [("note", 0, 480, 0, 60, 90), ("note", 480, 120, 0, 60, 64)]
    assert tokenizers()[1].decode_score(mended).tracks[0][-2:] == notes


def test_chords_stand_upwards():
    chord = [Message("note_on", note=pitch, velocity=64) for pitch in (67, 60, 64)]
    ends = [Message("note_off", note=pitch, time=100) for pitch in (64, 67, 60)]
    data = bytes_of([*strike(40), *chord, *ends])
    legacy, mended = (told(each, data, "note", "pitch") for each in tokenizers())
    assert legacy == [(40,), (64,), (67,), (60,)] and mended == [(40,), (60,), (64,), (67,)]


def test_a_pedal_that_is_lifted_for_a_moment_is_lifted():
    pedal = [Message("control_change", control=64, value=value, time=3) for value in (127, 0, 30, 100)]
    data = bytes_of([*strike(60, 480), *pedal, *strike(62)])
    legacy, mended = (told(each, data, "control_change", "time", "value") for each in tokenizers())
    assert legacy == [(16, 100)]
    assert mended == [(16, 127), (16, 30), (16, 100)]
    fades = [Message("control_change", control=7, value=value, time=3) for value in (127, 0, 30, 100)]
    data = bytes_of([*strike(60, 480), *fades, *strike(62)])
    assert told(tokenizers()[1], data, "control_change", "value") == [(100,)]


def test_a_pedal_is_lifted_however_little_it_moves():
    pedal = [Message("control_change", control=64, value=value, time=480) for value in (65, 62)]
    data = bytes_of([*strike(60, 480), *pedal, *strike(62)])
    assert told(tokenizers()[1], data, "control_change", "value") == [(65,), (62,)]


def test_two_default_keys_at_one_place_are_no_error():
    """Twelve pitch classes in equal shares have no key."""
    chromatic = [message for pitch in range(60, 72) for message in strike(pitch)]
    keys = [Meta("key_signature", key="C"), Meta("key_signature", key="C")]
    legacy, mended = tokenizers()
    with pytest.raises(pg.MidiError, match="original fails"):
        legacy.encode_midi(bytes_of([*keys, *chromatic]))
    assert told(mended, bytes_of([*keys, *chromatic]), "key_signature", "sf") == []
    minor = [Meta("key_signature", key="Am")]
    assert told(legacy, bytes_of([*minor, *chromatic]), "key_signature", "sf", "mi") == []
    assert told(mended, bytes_of([*minor, *chromatic]), "key_signature", "sf", "mi") == [(7, 1)]


def test_the_key_is_detected_where_none_is_given():
    d_major = [message for pitch in (62, 64, 66, 67, 69, 71, 73, 74) for message in strike(pitch)]
    for tokenizer in tokenizers():
        assert told(tokenizer, bytes_of(d_major), "key_signature", "sf", "mi") == [(9, 0)]
        assert told(tokenizer, bytes_of([Meta("key_signature", key="Eb"), *d_major]), "key_signature", "sf") == [(4,)]


def test_tracks_after_the_128th_are_not_lost():
    data = bytes_of(*([*strike(60 + number % 12, channel=number % 9)] for number in range(140)))
    legacy, mended = (told(each, data, "note", "track", "channel", "pitch") for each in tokenizers())
    assert len(set(legacy)) == 128 and max(mended)[0] == 127
    assert {each[1:] for each in mended} == {(number % 9, 60 + number % 12) for number in range(140)}


def test_a_channel_of_a_further_port_gets_a_number_of_its_own():
    port = [Meta("midi_port", port=1), *strike(62)]
    legacy, mended = (told(each, bytes_of(strike(60), port), "note", "channel", "pitch") for each in tokenizers())
    assert legacy == [(0, 60), (0, 62)] and mended == [(0, 60), (1, 62)]


# Multitrack -----------------------------------------------------------------------------------------------------------


def band():
    """Two instruments and drums, with what they need."""
    conductor = [Meta("set_tempo", tempo=400_000), Meta("time_signature", numerator=3), Meta("key_signature", key="D")]
    violin = [Message("program_change", program=40), Message("control_change", control=10, value=20)]
    violin += [*strike(74, 480), Message("control_change", control=11, value=70), *strike(76, 480)]
    bass = [Message("program_change", program=33, channel=1), *strike(38, 960, channel=1)]
    drums = [Message("program_change", program=25, channel=9), *strike(36, 60, channel=9), *strike(38, 60, channel=9)]
    return bytes_of(conductor, violin, bass, drums)


@pytest.mark.parametrize("version, optimise", MODES)
def test_programs_drums_tempo_and_controllers_come_back(version, optimise):
    tokenizer = pg.MidiEventTokenizer(version, optimise)
    back = tokenizer.to_midi(tokenizer.encode_midi(band()))
    notes = pg.read_midi(back, programs=None, drums=True)
    assert {(row["program"], bool(row["is_drum"])) for row in notes.table} == {(40, False), (33, False), (25, True)}
    assert sorted(notes["pitch"].tolist()) == [36, 38, 38, 74, 76]
    assert notes.tempos["us_per_quarter"].tolist() == [400_000]
    found = [event for track in read_score(back).tracks for event in track]
    assert sorted(event[3:] for event in found if event[0] == "control_change") == [(10, 20), (11, 70)]
    if version == "v2":
        assert notes.time_signatures.tolist() == [(0, 3, 4)]
        assert {event[2] for event in found if event[0] == "key_signature"} >= {2}
    assert tokenizer.decode_notes(tokenizer.encode_midi(band()))["program"].tolist() == notes["program"].tolist()


def test_optimised_rows_name_a_program_for_every_channel_and_number_them_anew():
    data = bytes_of([Message("program_change", program=5, channel=3)], strike(60, channel=7), strike(36, channel=9))
    for tokenizer in tokenizers(optimise_midi=True):
        assert told(tokenizer, data, "patch_change", "track", "channel", "patch") == [(1, 0, 0), (2, 9, 0)]
        assert told(tokenizer, data, "note", "track", "channel") == [(1, 0), (2, 9)]


@given(notes=note_tables(), mode=st.sampled_from(MODES))
@settings(max_examples=40)
def test_files_come_back_on_the_grid(notes, mode):
    """Every struck key at its sixteenth, with its velocity; of strikes of one key in one sixteenth, one."""
    tokenizer = pg.MidiEventTokenizer(*mode)
    data = pg.notes_to_midi_bytes(notes)
    original, decoded = read_score(data), tokenizer.decode_score(tokenizer.encode_midi(data))
    assert played(decoded) <= played(original)
    assert {each[:3] for each in played(decoded)} == {each[:3] for each in played(original)}
    again = tokenizer.decode_score(tokenizer.encode_midi(score_to_midi(decoded)))
    assert played(again) == played(decoded)


def played(score):
    """Sixteenth, pitch, whether it's a drum, and velocity of every note."""
    table = [event for track in score.tracks for event in track if event[0] == "note"]
    return {
        (round(16 * tick / score.ticks_per_quarter), pitch, channel == 9, velocity)
        for _, tick, _, channel, pitch, velocity in table
    }


@given(notes=note_tables())
@settings(max_examples=30)
def test_encoding_what_was_decoded_changes_no_row(notes):
    tokenizer = pg.MidiEventTokenizer()
    rows = tokenizer.encode_midi(pg.notes_to_midi_bytes(notes))
    assert tokenizer.encode_score(tokenizer.decode_score(rows)).tolist() == rows[1:-1]


@pytest.mark.parametrize("legacy", [True, False])
def test_odd_files_are_rows_or_one_line(legacy, tmp_path):
    tokenizer = pg.MidiEventTokenizer(legacy=legacy)
    assert len(tokenizer.encode_midi(bytes_of([]))) == 2
    assert len(tokenizer.encode_midi(bytes_of([Message("note_on", note=60)]))) == 3  # never released, no length
    header = b"MThd\0\0\0\6\0\1\0\1\0\0MTrk\0\0\0\4\0\xff\x2f\0"  # a quarter of 0 ticks
    for bad in (b"", b"nonsense", header, tmp_path / "missing.mid"):
        with pytest.raises(pg.MidiError) as error:
            tokenizer.encode_midi(bad)
        assert "\n" not in str(error.value)


def test_strikes_pair_with_releases_first_in_first_out_within_a_track():
    track = [Message("note_on", note=60, velocity=each, time=10) for each in (1, 2, 3)]
    track += [Message("note_off", note=60, time=100), Message("note_on", note=60, velocity=0, time=100)]
    (found,) = read_score_by_track(bytes_of(track)).tracks
    assert found == [("note", 10, 120, 0, 60, 1), ("note", 20, 210, 0, 60, 2), ("note", 30, 200, 0, 60, 3)]


def test_rows_that_are_no_event_are_skipped():
    tokenizer = pg.MidiEventTokenizer()
    rows = np.array(tokenizer.encode_midi(bytes_of(strike(60))))
    broken = rows[1:2].copy()
    broken[0, 5] = tokenizer.convert_tokens_to_ids("bpm_3")
    assert tokenizer.decode_notes(np.concatenate([rows, broken, np.zeros_like(broken)])) == tokenizer.decode_notes(rows)
    silent = rows[1:2].copy()
    silent[0, 7] = tokenizer.convert_tokens_to_ids("duration_0")
    assert len(tokenizer.decode_notes(silent)) == 0
    assert tokenizer.silent_ids == tokenizer.convert_tokens_to_ids(["velocity_0", "duration_0"])
