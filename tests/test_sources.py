"""Sources: what is listed, what is read, what is reported, and what the cache remembers."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Iterator
from pathlib import Path

import datasets
import numpy as np
import pytest

from pianogen_hf.data import sources
from pianogen_hf.data.sources import (
    DataError,
    PieceFile,
    cached_map,
    content_id,
    list_pieces,
    load_pieces,
    reading_report,
    usable_pieces,
)
from pianogen_hf.tokenizers.midi import read_midi, write_midi
from pianogen_hf.tokenizers.notes import Notes


@pytest.fixture(autouse=True, scope="module")
def quiet() -> Iterator[None]:
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


def tune(first_pitch: int = 60, count: int = 4, **columns) -> Notes:
    return Notes.from_columns(
        480,
        onset_tick=480 * np.arange(count),
        duration_tick=[480] * count,
        pitch=first_pitch + np.arange(count),
        **columns,
    )


def with_organ(piano_notes: int, organ_notes: int) -> Notes:
    total = piano_notes + organ_notes
    organ = np.arange(total) >= piano_notes
    return tune(50, total, program=np.where(organ, 19, 0), track=organ.astype(int))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four good files and five that can't be used, in nested folders, beside files that are no music."""
    music = tmp_path / "music"
    good = {
        "a.mid": tune(),
        "b/ÄÖ/Für Elise – 夜曲.MIDI": tune(62),
        "b/copy of a.Mid": tune(),
        "c.kar": with_organ(3, 2),
    }
    for name, notes in good.items():
        (music / name).parent.mkdir(parents=True, exist_ok=True)
        write_midi(notes, music / name)
    write_midi(with_organ(0, 5), music / "b/organ.mid")
    write_midi(Notes.from_columns(480, onset_tick=[], duration_tick=[], pitch=[]), music / "empty score.mid")
    (music / "no bytes.mid").write_bytes(b"")
    (music / "text.mid").write_text("this is no music")
    (music / "cut.mid").write_bytes((music / "a.mid").read_bytes()[:40])
    (music / "notes.txt").write_text("a readme")
    (music / "a folder.mid").mkdir()
    return music


def load(folder: Path, **options) -> datasets.Dataset:
    return load_pieces(list_pieces("folder", folder), folder.parent / "cache", **options)


# Listing -------------------------------------------------------------------------------------------------------------


def test_a_folder_lists_all_midi_files_below_it_in_order(folder):
    files = list_pieces("folder", folder)
    names = [file.piece_id for file in files]
    assert names == sorted(names) and len(names) == 9
    assert {"folder/a.mid", "folder/b/ÄÖ/Für Elise – 夜曲.MIDI", "folder/c.kar"} <= set(names)
    assert all(Path(file.path).is_file() and file.source == "folder" and not file.official_split for file in files)


@pytest.mark.parametrize(
    ("source", "path", "message"),
    [
        ("folder", "nothing", "no folder"),
        ("maestro", "nothing", "no folder"),
        ("folder", None, "needs --data_path"),
        ("folder", "empty", "holds no MIDI files"),
        ("maestro", "empty", "maestro-v"),
        ("spotify", "empty", "unknown source"),
        ("folder", "file.mid", "no folder"),
    ],
)
def test_what_is_no_source_is_refused_in_one_line_that_says_what_to_do(tmp_path, source, path, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.mid").write_bytes(b"")
    with pytest.raises(DataError, match=message) as caught:
        list_pieces(source, path and tmp_path / path)
    assert "\n" not in str(caught.value)


def test_a_folder_that_cannot_be_read_is_refused_and_not_passed_over(folder, monkeypatch):
    def walk(top, onerror=None, **kwargs):
        onerror(PermissionError(13, "Permission denied", str(folder / "b")))

    monkeypatch.setattr(sources.os, "walk", walk)  # nothing is forbidden to the root user, who may run this
    with pytest.raises(DataError, match="Permission denied"):
        list_pieces("folder", folder)


# Reading -------------------------------------------------------------------------------------------------------------


def test_nothing_disappears_bad_files_are_rows_with_their_reason(folder):
    pieces = load(folder)
    report = reading_report(pieces)
    assert (report["files"], report["usable"]) == (9, 4) and len(report["unusable"]) == 5
    reasons = {name.removeprefix("folder/"): reason for name, reason in report["unusable"].items()}
    assert reasons["empty score.mid"] == "no notes"
    assert reasons["no bytes.mid"] == "the file is empty"
    assert "not a MIDI file" in reasons["text.mid"]
    assert reasons["b/organ.mid"].startswith("no notes of the chosen programs (5 of other instruments)")
    assert reasons["cut.mid"] and all(str(folder) not in reason and "\n" not in reason for reason in reasons.values())
    assert len(usable_pieces(pieces)) == 4
    json.dumps(report)


def test_the_report_counts_notes_hours_and_notes_of_other_instruments(folder):
    report = reading_report(load(folder))
    assert report["notes"] == 4 + 4 + 4 + 3
    assert report["excluded_notes"] == 2 + 5
    assert report["hours"] == round((3 * 2.0 + 1.5) / 3600, 3)


def test_all_programs_can_be_kept(folder):
    pieces = load(folder, programs=None)
    report = reading_report(pieces)
    assert (report["usable"], report["notes"], report["excluded_notes"]) == (5, 4 + 4 + 4 + 5 + 5, 0)


def test_a_file_of_drums_alone_says_so(tmp_path):
    (tmp_path / "music").mkdir()
    write_midi(tune(is_drum=True), tmp_path / "music" / "drums.mid")
    assert load(tmp_path / "music", programs=None)["error"][:] == ["no notes but drums (4)"]


def test_rows_hold_the_music_itself(folder):
    rows = {row["piece_id"]: row for row in load(folder)}
    row = rows["folder/b/ÄÖ/Für Elise – 夜曲.MIDI"]
    assert read_midi(row["midi"]) == read_midi(folder / "b/ÄÖ/Für Elise – 夜曲.MIDI")
    assert (row["num_notes"], row["seconds"], row["error"], row["source"]) == (4, 2.0, "", "folder")
    assert "path" not in row  # nobody else has this machine's folders


def test_copies_under_two_names_are_one_family_and_other_music_is_not(folder):
    family = {row["piece_id"]: row["family_id"] for row in load(folder) if not row["error"]}
    assert family["folder/a.mid"] == family["folder/b/copy of a.Mid"]
    assert len(set(family.values())) == 3


def test_the_family_is_of_the_music_not_of_how_it_is_written():
    onset = 240 * np.arange(4)
    late = Notes.from_columns(240, onset_tick=onset + 77, duration_tick=onset // 9, pitch=60 + np.arange(4))
    assert content_id(tune()) == content_id(tune(velocity=30)) == content_id(late)
    assert len({content_id(notes) for notes in (tune(), tune(61), tune(count=5))}) == 3


def test_names_and_links_that_a_data_set_cannot_hold_or_follow_are_still_reported(folder):
    try:
        write_midi(tune(70), os.fsdecode(os.fsencode(folder) + b"/latin-\xe9.mid"))
        (folder / "gone.mid").symlink_to(folder / "nowhere.mid")
    except (OSError, UnicodeError) as error:
        pytest.skip(f"this file system takes no such names: {error}")
    report = reading_report(load(folder))
    assert (report["files"], report["usable"]) == (11, 5)
    assert "No such file" in report["unusable"]["folder/gone.mid"]
    assert "folder/latin-\\xe9.mid" in load(folder)["piece_id"]


def test_a_folder_without_a_usable_file_says_the_commonest_reason(tmp_path):
    (tmp_path / "music").mkdir()
    for number in range(3):
        (tmp_path / "music" / f"{number}.mid").write_text("text" if number else "")
    with pytest.raises(DataError, match="none of the 3 files could be used; 2 of them: not a MIDI file") as caught:
        usable_pieces(load(tmp_path / "music"))
    assert "\n" not in str(caught.value)


# The cache -----------------------------------------------------------------------------------------------------------


def swap_content(path: Path, notes: Notes) -> None:
    """Other music of equal size and time stamp: only who reads the file again can tell."""
    before = path.stat()
    write_midi(notes, path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size


def test_a_second_call_does_not_read_the_files_again(folder):
    first = load(folder)
    swap_content(folder / "a.mid", tune(80))
    second = load(folder)
    assert second["midi"][:] == first["midi"][:]
    assert second._fingerprint == first._fingerprint  # what is derived from the pieces is found again, too


def test_a_changed_a_new_and_a_removed_file_are_noticed(folder):
    first = load(folder)
    swap_content(folder / "a.mid", tune(80))
    os.utime(folder / "a.mid", (1, 1))
    second = load(folder)
    assert second["midi"][0] != first["midi"][0] and second._fingerprint != first._fingerprint
    write_midi(tune(30), folder / "new.mid")
    assert len(load(folder)) == 10
    (folder / "new.mid").unlink()
    assert load(folder)["midi"][:] == second["midi"][:]


def test_the_choice_of_programs_is_part_of_the_caches_name(folder):
    assert reading_report(load(folder))["usable"] == 4
    assert reading_report(load(folder, programs=None))["usable"] == 5
    assert reading_report(load(folder))["usable"] == 4


@pytest.mark.filterwarnings("ignore:.*fork.*")
def test_several_processes_read_the_same_as_one(tmp_path):
    music = tmp_path / "music"
    music.mkdir()
    for number in range(70):
        write_midi(tune(20 + number % 50, 3 + number // 50), music / f"{number:02}.mid")
    (music / "bad.mid").write_text("no music")
    one = load_pieces(list_pieces("folder", music), tmp_path / "one")
    two = load_pieces(list_pieces("folder", music), tmp_path / "two", num_proc=2)
    assert two.to_list() == one.to_list() and two._fingerprint == one._fingerprint
    swap_content(music / "00.mid", tune(90, 3))
    again = load_pieces(list_pieces("folder", music), tmp_path / "two", num_proc=2)
    assert again["midi"][:] == one["midi"][:]


def test_an_interrupted_map_leaves_nothing_that_is_taken_for_a_result(tmp_path):
    data = datasets.Dataset.from_dict({"x": list(range(40))})

    def double(row, stop_at=None):
        if row["x"] == stop_at:
            raise KeyboardInterrupt
        return {"x": 2 * row["x"]}

    with pytest.raises(KeyboardInterrupt):
        cached_map(data, double, tmp_path / "doubled", num_proc=1, fn_kwargs={"stop_at": 30}, writer_batch_size=4)
    assert cached_map(data, double, tmp_path / "doubled", num_proc=1)["x"][:] == list(range(0, 80, 2))
    never = cached_map(data, double, tmp_path / "doubled", num_proc=1, fn_kwargs={"stop_at": 0})
    assert never["x"][:] == list(range(0, 80, 2))


# MAESTRO and Bach ----------------------------------------------------------------------------------------------------

HEADER = "canonical_composer,canonical_title,split,year,midi_filename,audio_filename,duration\n"


def maestro(folder: Path, rows: str, header: str = HEADER) -> Path:
    (folder / "2004").mkdir(parents=True)
    for number, name in enumerate(("one.midi", "two.midi", "drei ü.midi")):
        write_midi(tune(50 + number), folder / "2004" / name)
    (folder / "maestro-v3.0.0.csv").write_text(header + rows, encoding="utf-8")
    return folder


def test_maestro_keeps_the_official_split_and_lists_what_is_there(tmp_path):
    rows = '"Liszt, F.","Étude, 1",train,2004,2004/one.midi,x.wav,9.5\nB,T,test,2004,2004/two.midi,x.wav,1\n'
    rows += "C,T,validation,2004,2004/drei ü.midi,x.wav,1\nC,T,validation,2004,2004/not there.midi,x.wav,1\n"
    files = list_pieces("maestro", maestro(tmp_path / "m", rows))
    assert [file.piece_id for file in files] == [f"maestro/2004/{name}.midi" for name in ("one", "two", "drei ü")]
    pieces = load_pieces(files, tmp_path / "cache")
    assert pieces["official_split"][:] == ["train", "test", "validation"]
    assert reading_report(pieces)["usable"] == 3 and all(name.startswith("content/") for name in pieces["family_id"])


@pytest.mark.parametrize(
    ("header", "rows", "message"),
    [
        (HEADER, "B,T,train,2004,2004/elsewhere.midi,x.wav,1\n", "none of the files named in maestro-v3.0.0.csv"),
        (HEADER, "", "none of the files"),
        (HEADER, "B,T,dev,2004,2004/one.midi,x.wav,1\n", "'dev'"),
        ("title,split\n", "T,train\n", "midi_filename"),
    ],
)
def test_a_maestro_table_that_is_none_is_refused(tmp_path, header, rows, message):
    with pytest.raises(DataError, match=message) as caught:
        list_pieces("maestro", maestro(tmp_path / "m", rows, header))
    assert "\n" not in str(caught.value)


def test_bach_has_families_official_sides_and_voices(tmp_path):
    if importlib.util.find_spec("music21") is None:
        pytest.skip("the built-in corpus comes with music21")
    files = list_pieces("bach")
    assert len(files) > 300 and {file.official_split for file in files} == {"train", "validation", "test"}
    pieces = load_pieces(files[:8], tmp_path / "cache")
    assert reading_report(pieces)["usable"] == 8
    assert read_midi(pieces[0]["midi"]).track_names == ("Soprano", "Alto", "Tenor", "Bass")
    assert pieces["family_id"][:] == [file.family_id for file in files[:8]]


def test_without_music21_bach_says_what_to_install(monkeypatch):
    monkeypatch.setattr("pianogen_hf.data.bach.find_spec", lambda name: None)
    with pytest.raises(DataError, match="pip install music21"):
        list_pieces("bach")


def test_a_file_that_goes_away_between_listing_and_reading_is_reported(folder):
    files = [*list_pieces("folder", folder), PieceFile("folder/ghost.mid", "folder", str(folder / "ghost.mid"))]
    report = reading_report(load_pieces(files, folder.parent / "cache"))
    assert report["files"] == 10 and "No such file" in report["unusable"]["folder/ghost.mid"]
