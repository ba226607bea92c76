"""MusicXML: small scores written by hand, with the answer worked out by hand."""

from __future__ import annotations

import contextlib
import io
import zipfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pianogen_hf.data.sources.musicxml import MusicXMLError, read_musicxml

CONTAINER = '<container><rootfiles><rootfile full-path="score.xml"/></rootfiles></container>'


def note(step: str, duration: int, extra: str = "", octave: int = 4) -> str:
    """A note element; `extra` goes before the pitch (`<chord/>`)."""
    pitch = f"<pitch><step>{step}</step><octave>{octave}</octave></pitch>"
    return f"<note>{extra}{pitch}<duration>{duration}</duration></note>"


def tied(step: str, duration: int, *types: str) -> str:
    ties = "".join(f'<tie type="{kind}"/>' for kind in types)
    return note(step, duration).replace("</note>", f"{ties}</note>")


def rest(duration: int) -> str:
    return f"<note><rest/><duration>{duration}</duration></note>"


def attributes(divisions: int = 2, beats: str = "4", extra: str = "") -> str:
    time = f"<time><beats>{beats}</beats><beat-type>4</beat-type></time>"
    return f"<attributes><divisions>{divisions}</divisions>{time}{extra}</attributes>"


def score(*parts: list[str], names: tuple[str, ...] = ()) -> bytes:
    """A score of parts, each a list of the contents of its measures."""
    names = names or tuple(f"Part {index}" for index in range(len(parts)))
    heads = [f'<score-part id="P{i}"><part-name>{name}</part-name></score-part>' for i, name in enumerate(names)]
    bodies = [
        f'<part id="P{i}">' + "".join(f'<measure number="{n}">{m}</measure>' for n, m in enumerate(part, 1)) + "</part>"
        for i, part in enumerate(parts)
    ]
    return f"<score-partwise><part-list>{''.join(heads)}</part-list>{''.join(bodies)}</score-partwise>".encode()


def compressed(data: bytes, container: str = CONTAINER) -> bytes:
    """An archive with the score, as .mxl files are."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("META-INF/container.xml", container)
        archive.writestr("score.xml", data)
    return buffer.getvalue()


def rows(data: bytes) -> list[tuple[float, float, int, int]]:
    """Onset and duration in quarters, pitch and track of every note."""
    notes = read_musicxml(data)
    quarter = notes.ticks_per_quarter
    columns = notes.table[["onset_tick", "duration_tick", "pitch", "track"]].tolist()
    return [(onset / quarter, duration / quarter, pitch, track) for onset, duration, pitch, track in columns]


def test_notes_follow_one_another_and_parts_sound_together():
    data = score([attributes() + note("C", 2) + rest(2) + note("E", 4)], [attributes(4) + note("A", 16, octave=2)])
    assert rows(data) == [(0, 4, 45, 1), (0, 1, 60, 0), (2, 2, 64, 0)]


def test_part_names_become_track_names_without_line_breaks():
    data = score([attributes() + rest(8)], [attributes() + rest(8)], names=("Soprano\n  Oboe", "Bass"))
    assert read_musicxml(data).track_names == ("Soprano Oboe", "Bass")


def test_alter_moves_the_pitch():
    sharp = note("F", 8).replace("</step>", "</step><alter>1</alter>")
    flat = note("C", 8).replace("</step>", "</step><alter>-1</alter>")
    assert [row[2] for row in rows(score([attributes() + sharp, flat]))] == [66, 59]


def test_chord_notes_begin_with_the_note_before_them():
    data = score([attributes() + note("C", 2) + note("E", 2, "<chord/>") + note("G", 2, "<chord/>") + note("D", 6)])
    assert rows(data) == [(0, 1, 60, 0), (0, 1, 64, 0), (0, 1, 67, 0), (1, 3, 62, 0)]


def test_backup_and_forward_move_the_cursor():
    data = score(
        [attributes() + note("C", 8) + "<backup><duration>6</duration></backup>" + note("E", 1)
         + "<forward><duration>3</duration></forward>" + note("G", 2), note("A", 8)]
    )  # fmt: skip
    assert rows(data) == [(0, 4, 60, 0), (1, 0.5, 64, 0), (3, 1, 67, 0), (4, 4, 69, 0)]


def test_tied_notes_merge_across_bar_lines():
    data = score([attributes() + rest(6) + tied("C", 2, "start"), tied("C", 8, "stop", "start"), tied("C", 2, "stop")])
    assert rows(data) == [(3, 6, 60, 0)]


def test_repeated_notes_without_a_tie_stay_apart():
    assert rows(score([attributes() + note("C", 4) + note("C", 4)])) == [(0, 2, 60, 0), (2, 2, 60, 0)]


def test_a_tie_is_continued_by_its_own_pitch_only():
    data = score([attributes() + tied("C", 4, "start") + tied("D", 4, "stop")])
    assert rows(data) == [(0, 2, 60, 0), (2, 2, 62, 0)]


def test_a_tie_that_stops_later_is_a_note_of_its_own():
    data = score([attributes() + tied("C", 2, "start") + rest(2) + tied("C", 4, "stop")])
    assert rows(data) == [(0, 1, 60, 0), (2, 2, 60, 0)]


def test_a_tie_may_go_on_in_a_voice_that_is_written_earlier():
    first_voice = rest(4) + tied("C", 4, "stop")
    second_voice = "<backup><duration>8</duration></backup>" + tied("C", 4, "start")
    assert rows(score([attributes() + first_voice + second_voice])) == [(0, 4, 60, 0)]


def test_transposing_instruments_are_read_at_sounding_pitch():
    clarinet = "<transpose><diatonic>-1</diatonic><chromatic>-2</chromatic></transpose>"
    bass = "<transpose><chromatic>0</chromatic><octave-change>-1</octave-change></transpose>"
    data = score([attributes(extra=clarinet) + note("D", 8)], [attributes(extra=bass) + note("D", 8)])
    assert [row[2:] for row in rows(data)] == [(50, 1), (60, 0)]


def test_grace_cue_and_unpitched_notes_are_left_out():
    grace = "<note><grace/><pitch><step>D</step><octave>5</octave></pitch></note>"
    drum = "<note><unpitched/><duration>2</duration></note>"
    data = score([attributes() + grace + note("C", 2) + drum + note("E", 2, "<cue/>") + note("G", 2)])
    assert rows(data) == [(0, 1, 60, 0), (3, 1, 67, 0)]


def test_repeats_are_read_once():
    repeat = '<barline location="right"><repeat direction="backward"/></barline>'
    assert len(rows(score([attributes() + note("C", 8) + repeat, note("D", 8)]))) == 2


def test_divisions_may_change_within_a_part():
    data = score([attributes(1) + note("C", 4), attributes(6) + note("D", 2) + note("E", 22)])
    assert rows(data) == [(0, 4, 60, 0), (4, 1 / 3, 62, 0), (4 + 1 / 3, 22 / 6, 64, 0)]


@given(st.integers(1, 3000))
def test_ticks_are_exact_whatever_the_divisions(divisions):
    notes = read_musicxml(score([attributes(divisions) + note("C", 1) + note("D", divisions)]))
    assert notes["duration_tick"][0] * divisions == notes.ticks_per_quarter == notes["duration_tick"][1]


def test_usual_scores_have_480_ticks_to_the_quarter():
    assert read_musicxml(score([attributes(10080) + note("C", 2520)])).ticks_per_quarter == 480


def test_times_too_fine_for_midi_are_refused_rather_than_rounded():
    with pytest.raises(MusicXMLError, match="40000 ticks per quarter"):
        read_musicxml(score([attributes(40000) + note("C", 1)]))


def test_a_pickup_is_as_long_as_it_is_written():
    data = score([attributes() + note("G", 2), note("C", 8), note("E", 8)])
    assert [row[0] for row in rows(data)] == [0, 1, 5]
    assert read_musicxml(data).time_signatures.tolist() == [(0, 1, 4), (480, 4, 4)]


def test_a_measure_divided_at_a_repeat_keeps_the_time_signature():
    data = score([attributes() + note("C", 8), note("C", 6), note("C", 2), note("C", 8)])
    assert read_musicxml(data).time_signatures.tolist() == [(0, 4, 4)]


def test_a_measure_cut_short_moves_the_bar_lines_that_follow():
    data = score([attributes() + note("C", 8), note("C", 3), note("C", 8)])
    assert read_musicxml(data).time_signatures.tolist() == [(0, 4, 4), (1920, 3, 8), (2640, 4, 4)]


def test_time_signatures_change_where_they_are_written():
    data = score([attributes() + note("C", 8), attributes(beats="1+2") + note("C", 6)])
    assert read_musicxml(data).time_signatures.tolist() == [(0, 4, 4), (1920, 3, 4)]


def test_a_part_that_fills_its_measure_less_waits_for_the_others():
    data = score([attributes() + note("C", 4), note("D", 8)], [attributes() + note("A", 8), rest(8)])
    assert rows(data) == [(0, 2, 60, 0), (0, 4, 69, 1), (4, 4, 62, 0)]


def test_a_silent_part_does_not_lengthen_a_measure():
    data = score([attributes() + note("C", 2), note("D", 8)], [attributes() + rest(8), rest(8)])
    assert [row[0] for row in rows(data)] == [0, 1]


def test_tempo_is_quarters_per_minute_from_where_it_stands():
    slow = '<direction><sound tempo="60"/></direction>'
    data = score(['<sound tempo="96"/>' + attributes() + note("C", 4) + slow + note("D", 4)])
    assert read_musicxml(data).tempos.tolist() == [(0, 625_000), (960, 1_000_000)]


def test_without_a_tempo_it_is_120_quarters_a_minute():
    assert read_musicxml(score([attributes() + note("C", 8)])).tempos.tolist() == [(0, 500_000)]


def test_compressed_and_plain_files_read_the_same(tmp_path):
    data = score([attributes() + note("C", 8)])
    archive = compressed(data)
    (tmp_path / "a.mxl").write_bytes(archive)
    (tmp_path / "a.musicxml").write_bytes(data)
    assert read_musicxml(tmp_path / "a.mxl") == read_musicxml(str(tmp_path / "a.musicxml")) == read_musicxml(archive)


GOOD = score([attributes() + note("C", 8)])


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "the file is empty"),
        (b"MThd", "not well-formed XML"),
        (GOOD[:-9], "not well-formed XML"),
        (b"PK\x03\x04 and no more", "broken archive"),
        (compressed(GOOD, "<container/>"), "names no score"),
        (compressed(GOOD, CONTAINER.replace("score.xml", "other.xml")), "has no other.xml"),
        (b"<score-timewise/>", "got score-timewise"),
        (GOOD.replace(b"<duration>8</duration>", b""), "a note has no duration"),
        (GOOD.replace(b"<duration>8", b"<duration>-8"), "duration must not be negative"),
        (GOOD.replace(b"<duration>8", b"<duration>1.5"), "1.5"),
        (GOOD.replace(b"<divisions>2", b"<divisions>0"), "divisions must be positive"),
        (GOOD.replace(b"<step>C", b"<step>H"), "step 'H'"),
        (GOOD.replace(b"<octave>4</octave>", b""), "octave None"),
        (GOOD.replace(b"<octave>4", b"<octave>40"), "pitch must lie in 0..127"),
        (GOOD.replace(b"</note>", b"</note><backup><duration>9</duration></backup>"), "a backup leaves measure 1"),
        (GOOD.replace(b"<beat-type>4</beat-type>", b""), "invalid literal"),
    ],
)
def test_malformed_scores_raise_one_error_that_names_file_and_reason(data, reason, tmp_path):
    path = tmp_path / "broken.mxl"
    path.write_bytes(data)
    with pytest.raises(MusicXMLError, match=reason) as caught:
        read_musicxml(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_raises_the_same_error(tmp_path):
    with pytest.raises(MusicXMLError, match="No such file"):
        read_musicxml(tmp_path / "absent.mxl")


@given(st.data())
def test_damaged_files_raise_nothing_else(data):
    source = bytearray(data.draw(st.sampled_from([GOOD, compressed(GOOD)])))
    for _ in range(data.draw(st.integers(1, 4))):
        source[data.draw(st.integers(0, len(source) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(MusicXMLError):
        read_musicxml(bytes(source))


def test_a_score_without_notes_is_an_empty_table():
    assert len(read_musicxml(score([attributes() + rest(8)]))) == 0
