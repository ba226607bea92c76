"""Sources: what is read, what is reported, and what the cache remembers."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import datasets
import numpy as np
import pytest

from pianogen_hf.data.caching import cached_map
from pianogen_hf.data.families import fingerprint
from pianogen_hf.data.pieces import PIECE_FEATURES, content_hash, load_pieces, reading_report, usable_pieces
from pianogen_hf.data.sources.folder import PieceFile
from pianogen_hf.data.sources.listing import list_pieces, list_sources
from pianogen_hf.errors import DataError
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


# Reading -------------------------------------------------------------------------------------------------------------


def test_nothing_disappears_bad_files_are_rows_with_their_reason(folder):
    pieces = load(folder)
    report = reading_report(pieces)
    assert (report["files"], report["usable"]) == (9, 4) and len(report["unusable"]) == 5
    reasons = {name.removeprefix("music/"): reason for name, reason in report["unusable"].items()}
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
    for programs in (None, (0,)):  # --programs all would be no help
        assert load(tmp_path / "music", programs=programs)["error"][:] == ["no notes but drums (4)"]


def test_what_is_left_out_or_mended_is_counted_with_the_files_it_is_in(folder):
    late = Notes.from_columns(96, onset_tick=[0, 9], duration_tick=[1, 1], pitch=[60, 62])
    late.tempos["us_per_quarter"] = 2**24 - 1
    late.table["onset_tick"][1] = 96 * 100
    write_midi(late, folder / "late.mid")
    remarks = reading_report(load(folder))["remarks"]
    assert remarks["notes of other instruments"] == {"count": 2 + 5, "files": 2}
    assert remarks["waits of over 900 s, which are shortened"] == {"count": 1, "files": 1}


def test_rows_hold_the_music_itself(folder):
    rows = {row["piece_id"]: row for row in load(folder)}
    row = rows["music/b/ÄÖ/Für Elise – 夜曲.MIDI"]
    assert read_midi(row["midi"]) == read_midi(folder / "b/ÄÖ/Für Elise – 夜曲.MIDI")
    assert (row["num_notes"], row["seconds"], row["error"], row["source"]) == (4, 2.0, "", "music")
    assert "path" not in row  # nobody else has this machine's folders


def test_rows_hold_what_tells_copies_and_relations(folder):
    rows = {row["piece_id"]: row for row in load(folder)}
    content = {name.removeprefix("music/"): row["content"] for name, row in rows.items()}
    assert content["a.mid"] == content["b/copy of a.Mid"] != content["c.kar"] and len(content["a.mid"]) == 16
    assert content["text.mid"] == content["b/organ.mid"] == "" and rows["music/text.mid"]["fingerprint"] == []
    assert rows["music/a.mid"]["fingerprint"] == fingerprint(read_midi(folder / "a.mid")).tolist()
    assert not any(row["family_id"] for row in rows.values())  # finding families is another step


def test_fingerprints_of_long_pieces_survive_beside_pieces_without_one(tmp_path):
    (tmp_path / "music").mkdir()
    (tmp_path / "music" / "a.mid").write_bytes(b"")
    random = np.random.default_rng(0).integers(30, 90, 3000)
    long = Notes.from_columns(480, onset_tick=100 * np.arange(3000), duration_tick=[90] * 3000, pitch=random)
    write_midi(long, tmp_path / "music" / "b.mid")
    column = load(tmp_path / "music")["fingerprint"][:]
    expected = fingerprint(long)
    assert len(expected) > 100 and expected.max() > 2**63  # more than a signed or a floating number could hold
    assert column == [[], expected.tolist()]


def test_the_content_is_of_the_music_not_of_how_it_is_written():
    onset = 240 * np.arange(4)
    late = Notes.from_columns(240, onset_tick=onset + 77, duration_tick=onset // 9, pitch=60 + np.arange(4))
    assert content_hash(tune()) == content_hash(tune(velocity=30)) == content_hash(late)
    assert len({content_hash(notes) for notes in (tune(), tune(61), tune(count=5))}) == 3


def test_works_and_sides_come_along(tmp_path):
    music = tmp_path / "music"
    for number, name in enumerate(("train/a.mid", "test/b.mid", "c.mid")):
        (music / name).parent.mkdir(parents=True, exist_ok=True)
        write_midi(tune(50 + number), music / name)
    (music / "metadata.csv").write_text("file_name,work\nc.mid,Song\n")
    first = load(music)
    assert first["official_split"][:] == ["", "test", "train"] and first["family_id"][:] == ["music/song", "", ""]
    (music / "metadata.csv").write_text("file_name,work,split\nc.mid,Song,val\n")
    assert load(music)["official_split"][:] == ["validation", "test", "train"]  # the cache must not hide it


def test_names_and_links_that_a_data_set_cannot_hold_or_follow_are_still_reported(folder):
    try:
        write_midi(tune(70), os.fsdecode(os.fsencode(folder) + b"/latin-\xe9.mid"))
        (folder / "gone.mid").symlink_to(folder / "nowhere.mid")
    except (OSError, UnicodeError) as error:
        pytest.skip(f"this file system takes no such names: {error}")
    report = reading_report(load(folder))
    assert (report["files"], report["usable"]) == (11, 5)
    assert "No such file" in report["unusable"]["music/gone.mid"]
    assert "music/latin-\\xe9.mid" in load(folder)["piece_id"]


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


# Several sources -----------------------------------------------------------------------------------------------------


def test_the_report_has_figures_for_each_source(folder, tmp_path):
    (tmp_path / "more").mkdir()
    write_midi(tune(40, 7), tmp_path / "more" / "a.mid")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.mid").write_bytes(b"")
    entries = [f"folder={tmp_path / name}" for name in ("more", "music", "broken")]
    report = reading_report(load_pieces(list_sources(entries), tmp_path / "cache"))
    assert report["sources"] == {
        "more": {"pieces": 1, "notes": 7, "hours": round(3.5 / 3600, 3)},
        "music": {"pieces": 4, "notes": 15, "hours": round(7.5 / 3600, 3)},
        "broken": {"pieces": 0, "notes": 0, "hours": 0.0},
    }
    assert (report["files"], report["usable"], report["notes"]) == (11, 5, 22)
    json.dumps(report)


def test_bach_has_families_and_voices_whatever_the_kind_of_its_files(tmp_path):
    if importlib.util.find_spec("music21") is None:
        pytest.skip("the built-in corpus comes with music21")
    files = list_sources(["bach"])
    files = [*files[:4], next(file for file in files if not file.path.endswith(".mxl"))]
    pieces = load_pieces(files, tmp_path / "cache")
    assert reading_report(pieces)["usable"] == 5
    assert read_midi(pieces[0]["midi"]).track_names == ("Soprano", "Alto", "Tenor", "Bass")
    assert pieces["family_id"][:] == [file.family_id for file in files]


def test_a_file_that_goes_away_between_listing_and_reading_is_reported(folder):
    files = [*list_pieces("folder", folder), PieceFile("music/ghost.mid", "music", str(folder / "ghost.mid"))]
    report = reading_report(load_pieces(files, folder.parent / "cache"))
    assert report["files"] == 10 and "No such file" in report["unusable"]["music/ghost.mid"]


# Built data sets -----------------------------------------------------------------------------------------------------


def build(pieces: datasets.Dataset, folder: Path, **rows: list[int]) -> str:
    """What `pianogen data build` writes: a folder whose `pieces` hold rows of `PIECE_FEATURES` by side."""
    sides = {side: pieces.select(chosen) for side, chosen in rows.items()}
    datasets.DatasetDict(sides).save_to_disk(str(folder / "pieces"))
    return f"dataset={folder}"


def without_sides(pieces: datasets.Dataset) -> list[dict]:
    return pieces.remove_columns("official_split").to_list()


@pytest.fixture
def usable(folder) -> datasets.Dataset:
    """The four good files: a.mid, b/copy of a.Mid, b/ÄÖ/Für Elise – 夜曲.MIDI, c.kar."""
    pieces = usable_pieces(load(folder)).remove_columns("family_id")
    column = [f"family {row}" for row in range(4)]
    return pieces.add_column("family_id", column).cast(PIECE_FEATURES)


def test_a_built_data_set_comes_back_as_it_was_with_its_split(usable, tmp_path):
    source = build(usable, tmp_path / "d", train=[2, 0], test=[1, 3])
    again = load_pieces(list_sources([source]), tmp_path / "cache")
    assert again.features == PIECE_FEATURES
    assert again["official_split"][:] == ["train", "train", "test", "test"]
    excluded = {**usable[3], "excluded_notes": 0, "remarks": "{}"}  # they were left out when it was built
    rows = [usable[2], usable[0], usable[1], excluded]
    assert without_sides(again) == [{k: v for k, v in row.items() if k != "official_split"} for row in rows]


def test_files_and_built_rows_mix_in_the_order_of_the_list(usable, tmp_path):
    (tmp_path / "more").mkdir()
    write_midi(tune(40, 7), tmp_path / "more" / "x.mid")
    built = list_sources([build(usable, tmp_path / "d", train=[0, 1], validation=[2, 3])])
    files = [built[3], *list_pieces("folder", tmp_path / "more"), built[0]]
    pieces = load_pieces(files, tmp_path / "cache")
    assert pieces["piece_id"][:] == ["music/c.kar", "more/x.mid", "music/a.mid"]
    assert pieces["official_split"][:] == ["validation", "", "train"]
    assert pieces["midi"][:] == [usable[3]["midi"], pieces[1]["midi"], usable[0]["midi"]]
    assert pieces["num_notes"][:] == [3, 7, 4]


def test_the_choice_of_programs_holds_for_built_rows(folder, tmp_path):
    source = build(usable_pieces(load(folder, programs=None)), tmp_path / "d", train=[0, 1, 2, 3, 4])
    both = [load_pieces(list_sources([source]), tmp_path / "cache", programs=each) for each in (None, (19,))]
    assert [reading_report(each)["notes"] for each in both] == [22, 7]
    assert reading_report(both[1])["usable"] == 2  # the organ's notes of c.kar, and organ.mid


def test_a_data_set_that_was_built_anew_in_its_place_is_noticed(usable, tmp_path):
    source = build(usable, tmp_path / "d", train=[0, 1])
    first = load_pieces(list_sources([source]), tmp_path / "cache")
    same = usable.remove_columns("midi").add_column("midi", [usable[3]["midi"]] * 4).cast(PIECE_FEATURES)
    shutil.rmtree(tmp_path / "d")
    second = load_pieces(list_sources([build(same, tmp_path / "d", train=[0, 1])]), tmp_path / "cache")
    assert first["piece_id"][:] == second["piece_id"][:] and second["num_notes"][:] == [3, 3]


@pytest.mark.filterwarnings("ignore:.*fork.*")
def test_several_processes_read_built_rows_too(tmp_path):
    (tmp_path / "music").mkdir()
    for number in range(70):
        write_midi(tune(20 + number, 3), tmp_path / "music" / f"{number:02}.mid")
    pieces = load(tmp_path / "music")
    files = list_sources([build(pieces, tmp_path / "d", train=list(range(69, -1, -1)))])
    again = load_pieces(files, tmp_path / "two", num_proc=2)
    assert without_sides(again) == without_sides(pieces)[::-1]
