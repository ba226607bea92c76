"""`pianogen data build` and `stats`: what they write, what they keep, and what they refuse."""

import json
from pathlib import Path

import numpy as np
import pytest
from datasets import load_from_disk

import pianogen_hf as pg
from pianogen_hf.commands.data import main
from pianogen_hf.data import built
from pianogen_hf.data.manifest import read_manifest

LAZY_RECIPES = [
    path
    for path in sorted((Path(pg.__file__).parent.parent / "configs").glob("*.yaml"))
    if "lazy" in path.read_text(encoding="utf-8")
]


def write_pieces(folder, numbers):
    """A piece of 40 notes for each number."""
    for number in numbers:
        random = np.random.default_rng(number)
        notes = pg.Notes.from_columns(
            onset_tick=np.cumsum(random.integers(60, 240, 40)),
            duration_tick=random.integers(60, 400, 40),
            pitch=random.integers(50, 80, 40),
        )
        pg.write_midi(notes, folder / f"{number}.mid")
    return folder


@pytest.fixture
def music(tmp_path):
    return write_pieces(tmp_path / "music", range(12))


@pytest.fixture
def build(music, tmp_path):
    """Runs a build of the folder `music` into `built`; a test adds to the command line."""

    def run(*options, source=(f"folder={music}",)):
        cache = ["--cache_dir", str(tmp_path / "cache")]
        return main(["build", *options, "--source", *map(str, source), "--output", str(tmp_path / "built"), *cache])

    return run


def sides(folder):
    return {name: row[0] for name, row in read_manifest(folder / "split.json")["pieces"].items()}


def contents(folder):
    """Every file of a folder, by name."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def error_of(capsys):
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith("error: ")
    return lines[-1]


# Build ---------------------------------------------------------------------------------------------------------------


def test_a_data_set_holds_its_pieces_its_split_and_what_was_read(build, tmp_path):
    assert build() == 0
    folder = tmp_path / "built"
    assert {path.name for path in folder.iterdir()} == {"pieces", "split.json", "reading_report.json"}
    pieces = load_from_disk(str(folder / "pieces"))
    assert {name: side for side, rows in pieces.items() for name in rows["piece_id"]} == sides(folder)
    assert json.loads((folder / "reading_report.json").read_text())["usable"] == 12
    assert not list(tmp_path.glob("built.*"))


@pytest.mark.parametrize("asked_by", ["yaml", "option"])
def test_a_tokenizer_that_is_asked_for_brings_chunks(build, tmp_path, asked_by):
    config = tmp_path / "config.yaml"
    config.write_text("tokenizer: PerformanceTokenizer\nchunk_length: 33\n")
    asked = [str(config)] if asked_by == "yaml" else ["--tokenizer=PerformanceTokenizer", "--chunk_length=33"]
    assert build(*asked) == 0
    chunks = load_from_disk(str(tmp_path / "built" / "chunks"))
    assert set(chunks) == {"train", "validation", "test"} and max(map(len, chunks["train"]["input_ids"])) == 33
    assert (tmp_path / "built" / "tokenizer" / "tokenizer_config.json").exists()
    assert read_manifest(tmp_path / "built" / "split.json")["parameters"]["chunk_length"] == 33


@pytest.mark.parametrize("recipe", LAZY_RECIPES, ids=lambda path: path.stem)
def test_a_recipe_that_augments_lazily_builds_chunks_of_the_music_as_it_is(build, tmp_path, capsys, recipe):
    assert build(str(recipe), "--stage=1") == 0
    assert "augmentation lazy draws versions of it while training" in capsys.readouterr().out
    folder = tmp_path / "built"
    parameters = read_manifest(folder / "split.json")["parameters"]
    assert (parameters["transpose"], parameters["stretch"]) == ([0, 0], [1.0, 1.0])
    train = {name for name, side in sides(folder).items() if side == "train"}
    assert set(load_from_disk(str(folder / "chunks"))["train"]["piece_id"]) == train
    assert main(["check", str(folder)]) == 0


def test_a_data_set_grows_and_no_piece_changes_side(build, music, tmp_path):
    assert build() == 0
    before = sides(tmp_path / "built")
    write_pieces(music, range(100, 130))
    assert build("--validation_fraction", "0.4") == 0
    after = sides(tmp_path / "built")
    assert len(after) == 42 and {name: after[name] for name in before} == before
    assert len([side for side in after.values() if side == "validation"]) > 5


def test_a_data_set_grows_by_a_new_source_alone(build, tmp_path):
    assert build() == 0
    before = sides(tmp_path / "built")
    other = write_pieces(tmp_path / "other", range(50, 60))
    assert build(source=[f"dataset={tmp_path}/built", f"folder={other}"]) == 0
    after = sides(tmp_path / "built")
    assert len(after) == 22 and {name: after[name] for name in before} == before


def test_a_source_left_out_is_refused_and_nothing_is_lost(build, tmp_path, capsys):
    assert build() == 0
    before = contents(tmp_path / "built")
    other = write_pieces(tmp_path / "other", range(50, 60))
    assert build(source=[f"folder={other}"]) == 2
    assert "12 piece(s)" in error_of(capsys)
    assert contents(tmp_path / "built") == before


def test_a_broken_file_is_named_and_the_others_are_built(build, music, tmp_path, capsys):
    (music / "broken.mid").write_bytes(b"MThd nonsense")
    assert build() == 0
    assert "left out: music/broken.mid: " in capsys.readouterr().out
    assert list(json.loads((tmp_path / "built" / "reading_report.json").read_text())["unusable"]) == [
        "music/broken.mid"
    ]


def test_an_interrupted_build_leaves_the_old_one_whole(build, music, tmp_path, monkeypatch):
    assert build() == 0
    before = contents(tmp_path / "built")
    write_pieces(music, range(100, 110))

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(built, "write_manifest", interrupt)
        assert build() == 130
    assert contents(tmp_path / "built") == before and not list(tmp_path.glob("built.*"))


def test_an_exchange_that_fails_is_undone(build, tmp_path, monkeypatch, capsys):
    assert build() == 0
    before = contents(tmp_path / "built")
    rename = Path.rename

    def fail(self, target):
        if self.name == "built.partial":
            raise PermissionError("no")
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", fail)
        assert build("--tokenizer", "PerformanceTokenizer") == 2
    assert "can't be written" in error_of(capsys)
    assert contents(tmp_path / "built") == before and not list(tmp_path.glob("built.*"))


def test_an_exchange_that_was_killed_half_way_is_mended(build, music, tmp_path):
    assert build() == 0
    before = sides(tmp_path / "built")
    (tmp_path / "built").rename(tmp_path / "built.replaced")
    write_pieces(music, range(100, 130))
    assert build() == 0
    assert {name: sides(tmp_path / "built")[name] for name in before} == before
    assert not list(tmp_path.glob("built.*"))


def test_what_others_put_into_a_data_set_stays(build, tmp_path):
    assert build() == 0
    (tmp_path / "built" / "README.md").write_text("mine")
    assert build() == 0
    assert (tmp_path / "built" / "README.md").read_text() == "mine"


@pytest.mark.parametrize("name", ["thesis.txt", "split.json"])
def test_a_folder_that_is_no_data_set_is_left_alone(build, tmp_path, capsys, name):
    (tmp_path / "built").mkdir()
    (tmp_path / "built" / name).write_text("years of work")
    assert build() == 2
    assert "choose another --output" in error_of(capsys)
    assert contents(tmp_path / "built") == {name: b"years of work"}


@pytest.mark.parametrize(
    "argv",
    [
        ["build"],
        ["build", "--output", "x", "--source", "folder=/no/such/folder"],
        ["build", "--output", "x", "--surce", "bach"],
        ["check", "/no/such/folder"],
        ["check", "--model"],
        ["stats", "--output", "picture.svg"],
        ["stats", "--source", "folder=/no/such/folder"],
        ["unbuild"],
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(argv, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(argv) == 2
    error_of(capsys)
    assert not list(tmp_path.iterdir())


def test_help_names_the_three_commands(capsys):
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"pianogen data {name}" in shown for name in ("build", "check", "stats"))


# Stats ---------------------------------------------------------------------------------------------------------------


def stats(tmp_path, *options):
    picture = tmp_path / "stats.png"
    assert main(["stats", *map(str, options), "--output", str(picture), "--cache_dir", str(tmp_path / "cache")]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    return json.loads(picture.with_suffix(".json").read_text())


def test_check_names_files_that_can_not_be_used(build, music, tmp_path, capsys):
    (music / "broken.mid").write_text("no music")
    report = tmp_path / "report.json"
    for where in (["--source", f"folder={music}", "--cache_dir", str(tmp_path / "cache")], [str(tmp_path / "built")]):
        assert where[0] == "--source" or build() == 0
        capsys.readouterr()
        assert main(["check", *where, "--output", str(report)]) == 0
        assert "left out: music/broken.mid: not a MIDI file" in capsys.readouterr().out
        assert set(json.loads(report.read_text())["unusable"]) == {"music/broken.mid"}


def test_stats_tell_sources_apart_and_list_what_is_broken(music, tmp_path, capsys):
    other = write_pieces(tmp_path / "other", range(50, 53))
    (other / "broken.mid").write_bytes(b"MThd nonsense")
    figures = stats(tmp_path, "--source", f"folder={music}", f"folder={other}")
    assert {name: row["pieces"] for name, row in figures["sources"].items()} == {"music": 12, "other": 3}
    assert figures["sources"]["other"]["unusable_share"] == 0.25 and list(figures["unusable"]) == ["other/broken.mid"]
    assert sum(figures["sources"]["music"]["histograms"]["pitch"]) == figures["sources"]["music"]["notes"] == 12 * 40
    shown = capsys.readouterr().out
    assert "| music | 12 | 480 |" in shown and "left out: other/broken.mid" in shown


def test_a_source_of_which_nothing_can_be_used_has_a_row_too(music, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "broken.mid").write_bytes(b"MThd nonsense")
    figures = stats(tmp_path, "--source", f"folder={music}", f"folder={tmp_path}/other")
    assert figures["sources"]["other"]["pieces"] == 0 and figures["sources"]["other"]["unusable_share"] == 1


def test_stats_of_a_built_data_set_are_those_of_its_sources(build, music, tmp_path):
    (music / "broken.mid").write_bytes(b"MThd nonsense")
    assert build() == 0
    assert stats(tmp_path, tmp_path / "built") == stats(tmp_path, "--source", f"folder={music}")
