"""Listing: names, sides and works of the pieces of every kind of source, and what is refused."""

from __future__ import annotations

import importlib.util
import os
import unicodedata
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pianogen_hf.data.sources import listing
from pianogen_hf.data.sources.folder import PieceFile
from pianogen_hf.data.sources.listing import list_pieces, list_sources, passed_over
from pianogen_hf.data.sources.walking import passed_over_lines
from pianogen_hf.errors import DataError


def touch(folder: Path, *names: str) -> Path:
    """Listing never opens a MIDI file, so empty ones will do."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def table(folder: Path, text: str, encoding: str = "utf-8") -> Path:
    (folder / "metadata.csv").write_text(text, encoding=encoding)
    return folder


def sides(files: list[PieceFile]) -> dict[str, str]:
    return {file.piece_id.partition("/")[2]: file.official_split for file in files}


def works(files: list[PieceFile]) -> dict[str, str]:
    return {file.piece_id.partition("/")[2]: file.family_id for file in files}


def refused(source: str, path: Path | None = None) -> str:
    with pytest.raises(DataError) as caught:
        list_pieces(source, path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Sources -------------------------------------------------------------------------------------------------------------


def test_a_folder_lists_all_midi_files_below_it_in_order_under_its_own_name(tmp_path):
    names = ["a.mid", "b/copy of a.Mid", "b/ÄÖ/Für Elise – 夜曲.MIDI", "c.kar"]
    files = list_pieces("folder", touch(tmp_path / "my midi", *names, "notes.txt", "b/score.xml"))
    assert [file.piece_id for file in files] == [f"my midi/{name}" for name in names]
    assert all(Path(file.path).is_file() and file.source == "my midi" for file in files)
    assert all((file.family_id, file.official_split, file.row) == ("", "", -1) for file in files)


def test_the_path_stands_in_the_source_or_beside_it(tmp_path, monkeypatch):
    touch(tmp_path / "a=b", "x.mid")
    expected = list_pieces("folder", tmp_path / "a=b")
    assert list_pieces(f"folder={tmp_path}/a=b") == list_sources([f"folder={tmp_path}/a=b/"]) == expected
    assert list_sources(["folder"], tmp_path / "a=b") == expected
    monkeypatch.setenv("HOME", str(tmp_path))
    assert list_sources(["folder=~/a=b"]) == expected  # no shell opens the ~ there
    monkeypatch.chdir(tmp_path / "a=b")
    assert [file.piece_id for file in list_sources(["folder=."])] == ["a=b/x.mid"]


def test_several_sources_are_listed_one_after_the_other(tmp_path):
    one, two = touch(tmp_path / "one", "x.mid"), touch(tmp_path / "two", "x.mid", "y.mid")
    assert [file.piece_id for file in list_sources([f"folder={two}", f"folder={one}"])] == [
        "two/x.mid",
        "two/y.mid",
        "one/x.mid",
    ]


def test_two_sources_of_one_name_are_refused(tmp_path):
    one, two = touch(tmp_path / "a" / "midi", "x.mid"), touch(tmp_path / "b" / "midi", "y.mid")
    for sources in ([one, two], [one, one]):
        with pytest.raises(DataError, match="two sources are named 'midi': rename one"):
            list_sources([f"folder={path}" for path in sources])


@pytest.mark.parametrize(
    ("source", "path", "message"),
    [
        ("folder", "nothing", "no folder"),
        ("maestro", "nothing", "no folder"),
        ("dataset", "nothing", "no folder"),
        ("folder", None, "--data_path"),
        ("folder=", None, "write folder=PATH"),
        ("folder", "empty", "holds no MIDI files"),
        ("maestro", "empty", "maestro-v"),
        ("dataset", "empty", "no data set that `pianogen data build` wrote"),
        ("spotify", "empty", "unknown source 'spotify'"),
        ("elsewhere/midi", None, "unknown source"),
        ("folder", "file.mid", "no folder"),
        ("folder=elsewhere", "empty", "has its path already"),
        ("bach", "empty", "built in"),
        ("bach=empty", None, "built in"),
    ],
)
def test_what_is_no_source_is_refused_in_one_line_that_says_what_to_do(tmp_path, source, path, message):
    touch(tmp_path, "empty/readme.txt", "file.mid")
    assert message in refused(source, path and tmp_path / path)


def test_one_path_for_several_sources_and_no_source_at_all_are_refused(tmp_path):
    with pytest.raises(DataError, match="single source"):
        list_sources(["bach", "folder"], tmp_path)
    with pytest.raises(DataError, match="no source"):
        list_sources([])


def test_a_folder_that_cannot_be_read_is_refused_and_not_passed_over(tmp_path, monkeypatch):
    def walk(top, onerror=None, **kwargs):
        onerror(PermissionError(13, "Permission denied", str(tmp_path / "b")))

    monkeypatch.setattr(listing.os, "walk", walk)  # nothing is forbidden to the root user, who may run this
    assert "Permission denied" in refused("folder", tmp_path)


# Official sides and works of a folder --------------------------------------------------------------------------------


def test_subfolders_of_the_usual_names_are_official_sides(tmp_path):
    names = ["train/a.mid", "valid/b.mid", "val/c.mid", "dev/d.mid", "Validation/e.mid", "test/x/f.mid"]
    free = ["g.mid", "other/train/h.mid", "training notes/i.mid", "test.mid"]
    found = sides(list_pieces("folder", touch(tmp_path, *names, *free)))
    assert [found[name] for name in names] == ["train", *["validation"] * 4, "test"]
    assert not any(found[name] for name in free)


def test_metadata_names_works_and_sides(tmp_path):
    folder = touch(tmp_path / "m", "a.mid", "b.mid", "deep/c.mid", "d.mid", "a.wav")
    rows = [
        " File_Name ,composer,work,split",
        'a.mid,X,"Sonata, No. 1",TRAIN',
        './b.mid, Y, " sonata,  no. 1 ", Dev',
        "deep/c.mid,Z",
        "",
        "a.wav,Z,other,test",
    ]
    files = list_pieces("folder", table(folder, "\r\n".join(rows), "utf-8-sig"))
    assert sides(files) == {"a.mid": "train", "b.mid": "validation", "deep/c.mid": "", "d.mid": ""}
    sonata = "m/sonata, no. 1"
    assert works(files) == {"a.mid": sonata, "b.mid": sonata, "deep/c.mid": "", "d.mid": ""}


def test_each_side_may_have_its_own_table_and_the_nearest_decides(tmp_path):
    folder = table(touch(tmp_path / "m", "train/a.mid", "test/b.mid"), "file_name,work\ntrain/a.mid,one\n")
    table(folder / "train", "file_name,work\na.mid,two\n")
    table(folder / "test", "file_name,work\nb.mid,two\n")
    files = list_pieces("folder", folder)
    assert works(files) == {"train/a.mid": "m/two", "test/b.mid": "m/two"}
    assert sides(files) == {"train/a.mid": "train", "test/b.mid": "test"}


def test_a_table_without_file_name_is_somebody_elses(tmp_path):
    folder = touch(tmp_path, "Bach/a.mid")
    for text in ("composer,title,midi_score,split\nBach,A,gone.mid,fold 1\n", "", "\n", "file_names\ngone.mid\n"):
        assert sides(list_pieces("folder", table(folder, text))) == {"Bach/a.mid": ""}
    assert list_pieces("folder", table(folder, "título,split\nx,y\n", "latin-1"))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("metadata.csv", "filename,work,split\na.mid,Sonata,test\n"),
        ("Metadata.CSV", "File Name,Work,Split\na.mid,Sonata,Test\n"),
        ("metadata.csv", "\ufefffile-name,work,split\na.mid,sonata,test\n"),
        ("metadata.jsonl", '{"file_name": "a.mid", "work": "Sonata", "split": "test", "opus": 2}\n\n'),
        ("METADATA.jsonl", '{"fileName": "a.mid", "work": "Sonata", "split": "test", "year": null}'),
    ],
)
def test_a_table_is_honoured_however_its_name_and_columns_are_spelt(tmp_path, name, text):
    folder = touch(tmp_path / "m", "a.mid", "b.mid")
    (folder / name).write_text(text, encoding="utf-8")
    files = list_pieces("folder", folder)
    assert sides(files) == {"a.mid": "test", "b.mid": ""} and works(files)["a.mid"] == "m/sonata"
    assert passed_over(["folder"], folder) == {}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("metadata.csv", "filename,split\nelsewhere/gone.mid,fold 3\n"),
        ("metadata.csv", "title,split\nSonata,train\n"),
        ("metadata.tsv", "file_name\tsplit\na.mid\ttest\n"),
        ("metadata.json", "[]"),
    ],
)
def test_a_table_that_says_nothing_of_these_files_is_named_as_ignored(tmp_path, name, text):
    folder = touch(tmp_path / "m", "a.mid")
    (folder / name).write_text(text, encoding="utf-8")
    assert sides(list_pieces("folder", folder)) == {"a.mid": ""}
    assert list(passed_over([f"folder={folder}"])) == [f"m/{name}"]


@pytest.mark.parametrize("text", ["no json", "[1, 2]", '{"file_name": "gone.mid"}', "\0"])
def test_lines_of_json_that_are_wrong_are_refused_in_one_line(tmp_path, text):
    (touch(tmp_path / "m", "a.mid") / "metadata.jsonl").write_text(text)
    assert "metadata.jsonl" in refused("folder", tmp_path / "m")


@pytest.mark.parametrize("kind", ["folder", "lakh"])
def test_what_this_package_has_written_is_passed_over_and_named(tmp_path, kind):
    """A run, one that was moved aside, a comparison, a data set, an evaluation: none of it was made by a composer."""
    folder = touch(tmp_path / "m", "a.mid", "b/c.mid", "samples/d.mid", "theory.old/e.mid")
    touch(folder, "runs/x/split.json", "runs/x/samples/step-1.mid", "runs/x.old2/samples/step-1.mid")
    touch(folder, "stages/stage-1/provenance.json", "stages/stage-1/samples/s.mid", "data.partial/x.mid")
    touch(folder, "evaluated/metrics.json", "evaluated/evaluation/validation/generated/1/0.mid")
    assert list(sides(list_pieces(kind, folder))) == ["a.mid", "b/c.mid", "samples/d.mid", "theory.old/e.mid"]
    names = ["data.partial", "evaluated", "runs/x", "runs/x.old2", "stages/stage-1"]
    assert sorted(passed_over([kind], folder)) == [f"m/{name}" for name in names]


def test_a_run_that_is_asked_for_by_name_is_read_but_for_what_its_model_wrote(tmp_path):
    run = touch(tmp_path / "m", "split.json", "provenance.json", "a.mid", "samples/step-1.mid", "evaluation/v/0.mid")
    assert list(sides(list_pieces("folder", run))) == ["a.mid"]
    assert list(sides(list_pieces("folder", run / "samples"))) == ["step-1.mid"]


def test_files_of_other_kinds_are_counted(tmp_path):
    touch(tmp_path / "m", "a.mid", "b.mid.gz", "c.MID.GZ", "d.rmi", "e.mxl", "README")
    assert passed_over(["folder", "bach"], tmp_path / "m") == {
        "m/files with .gz": "2 not read",
        "m/files with .mxl": "1 not read",
        "m/files with no suffix": "1 not read",
    }
    assert passed_over_lines({str(number): "x" for number in range(9)})[-1] == (
        "... and 4 more, all in reading_report.json"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file_name,split\na.mid,train\ngone.mid,test\nlost.mid,test\n", "2 file(s) that are not there"),
        ("file_name,split\n../m/train/a.mid,test\n/a.mid,test\n", "not there, such as '../m/train/a.mid', '/a.mid'"),
        ("file_name,split\na,train\n", "not there, such as 'a'"),
        ('file_name,split\n"two\nlines.mid",train\n', "not there"),
        (f"file_name,split\n{'n' * 5000}.mid,train\n", "not there"),
        ("file_name,split\na.mid,fold 3\n", "the split 'fold 3'"),
        ("file_name,split\na.mid,train\n./a.mid,test\n", "two rows for './a.mid'"),
        ("file_name,split\ntrain/b.mid,test\n", "lies in train, but its table says test"),
        ("file_name;split\na.mid;test\n", "put commas"),
        ("file_name\tsplit\na.mid\ttest\n", "put commas"),
    ],
)
def test_a_table_that_is_wrong_is_refused_because_it_would_lose_sides_in_silence(tmp_path, text, message):
    folder = table(touch(tmp_path / "m", "a.mid", "train/b.mid"), text)
    assert message in refused("folder", folder)


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_a_table_in_another_encoding_is_refused(tmp_path, encoding):
    assert "not UTF-8" in refused("folder", table(touch(tmp_path, "é.mid"), "file_name,split\né.mid,test\n", encoding))


def test_names_that_look_the_same_are_the_same(tmp_path):
    """A Mac stores é as e and an accent; tables are written elsewhere."""
    composed, parted = (unicodedata.normalize(form, "Étude.mid") for form in ("NFC", "NFD"))
    assert composed != parted
    folder = table(touch(tmp_path, parted), f"file_name,split\n{composed},test\n")
    assert list(sides(list_pieces("folder", folder)).values()) == ["test"]


def test_a_name_that_is_no_utf8_is_listed_and_can_stand_in_a_table(tmp_path):
    try:
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/latin-\xe9.mid")).touch()
    except (OSError, UnicodeError) as error:
        pytest.skip(f"this file system takes no such names: {error}")
    folder = table(tmp_path, "file_name,split\nlatin-\\xe9.mid,test\n")
    assert sides(list_pieces("folder", folder)) == {"latin-\\xe9.mid": "test"}


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.one_of(
        st.binary(max_size=200),
        st.text(alphabet=',;"\n\r\t\0 /.amidtrnvlé-', max_size=80).map(
            lambda text: b"file_name,split,work\n" + text.encode()
        ),
    )
)
def test_whatever_a_table_holds_it_is_read_or_refused_in_one_line(tmp_path, data):
    (touch(tmp_path, "a.mid") / "metadata.csv").write_bytes(data)
    try:
        assert len(list_pieces("folder", tmp_path)) == 1
    except DataError as error:
        assert len(str(error).splitlines()) == 1


# MAESTRO and Bach ----------------------------------------------------------------------------------------------------

HEADER = "canonical_composer,canonical_title,split,year,midi_filename,audio_filename,duration\n"


def maestro(folder: Path, rows: str, header: str = HEADER) -> Path:
    touch(folder, "2004/one.midi", "2004/two.midi", "2004/drei ü.midi")
    (folder / "maestro-v3.0.0.csv").write_text(header + rows, encoding="utf-8")
    return folder


def test_maestro_keeps_the_official_split_and_lists_what_is_there(tmp_path):
    rows = '"Liszt, F.","Étude, 1",train,2004,2004/one.midi,x.wav,9.5\nB,T,test,2004,2004/two.midi,x.wav,1\n'
    rows += "C,T,validation,2004,2004/drei ü.midi,x.wav,1\nC,T,validation,2004,2004/not there.midi,x.wav,1\n"
    files = list_sources([f"maestro={maestro(tmp_path / 'm', rows)}"])
    assert [file.piece_id for file in files] == [f"maestro/2004/{name}.midi" for name in ("one", "two", "drei ü")]
    assert [file.official_split for file in files] == ["train", "test", "validation"]
    assert not any(file.family_id for file in files)  # one title may be several movements, on several sides


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
    assert message in refused("maestro", maestro(tmp_path / "m", rows, header))


def test_bach_has_families_and_official_sides():
    if importlib.util.find_spec("music21") is None:
        pytest.skip("the built-in corpus comes with music21")
    files = list_sources(["bach"])
    assert len(files) > 300 and {file.official_split for file in files} == {"train", "validation", "test"}
    assert all(file.family_id.startswith("bach/") and file.source == "bach" for file in files)


def test_without_music21_bach_says_what_to_install(monkeypatch):
    monkeypatch.setattr("pianogen_hf.data.sources.bach.find_spec", lambda name: None)
    assert "pip install music21" in refused("bach")


# Built data sets -----------------------------------------------------------------------------------------------------


def built(folder: Path, **pieces: list[str]) -> Path:
    columns = {
        side: Dataset.from_dict(
            {
                "piece_id": ids,
                "source": [name.partition("/")[0] for name in ids],
                "family_id": [f"family of {name}" for name in ids],
                "midi": [b""] * len(ids),
            }
        )
        for side, ids in pieces.items()
    }
    DatasetDict(columns).save_to_disk(str(folder / "pieces"))
    return folder


def test_a_built_data_set_keeps_names_families_and_sides(tmp_path):
    folder = built(tmp_path / "d", train=["bach/1", "midi/a.mid"], test=["midi/b.mid"])
    files = list_sources([f"dataset={folder}"])
    assert [(file.piece_id, file.source, file.official_split, file.row) for file in files] == [
        ("bach/1", "bach", "train", 0),
        ("midi/a.mid", "midi", "train", 1),
        ("midi/b.mid", "midi", "test", 0),
    ]
    assert [file.family_id for file in files] == [f"family of {file.piece_id}" for file in files]


def test_a_source_and_a_built_data_set_that_holds_it_are_two_of_one_name(tmp_path):
    folder = built(tmp_path / "d", train=["midi/a.mid", "other/a.mid"])
    with pytest.raises(DataError, match="two sources are named 'midi'"):
        list_sources([f"folder={touch(tmp_path / 'midi', 'b.mid')}", f"dataset={folder}"])


def test_a_data_set_that_was_not_built_or_is_damaged_is_refused(tmp_path):
    Dataset.from_dict({"text": ["x"]}).save_to_disk(str(tmp_path / "plain"))
    assert "no data set that `pianogen data build` wrote" in refused("dataset", tmp_path / "plain")
    DatasetDict(train=Dataset.from_dict({"text": ["x"]})).save_to_disk(str(tmp_path / "texts" / "pieces"))
    assert "can't be opened: " in refused("dataset", tmp_path / "texts")
    assert "the split 'all'" in refused("dataset", built(tmp_path / "all", all=["midi/a.mid"]))
    assert "holds no pieces" in refused("dataset", built(tmp_path / "none"))
    cut = built(tmp_path / "cut", train=["midi/a.mid"])
    (cut / "pieces/train/state.json").write_text("{")
    assert "can't be opened: " in refused("dataset", cut)
    for name in ("data-00000-of-00001.arrow", "dataset_info.json"):
        damaged = built(tmp_path / name, train=["midi/a.mid"])
        (damaged / "pieces/train" / name).write_bytes(b"no")
        assert "can't be opened: " in refused("dataset", damaged)
