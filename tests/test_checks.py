"""`pianogen data check`: everything that can leak is made to leak on purpose, one at a time, and must be found."""

import json
import shutil
from importlib.util import find_spec

import numpy as np
import pytest
from datasets import Dataset, DatasetDict, concatenate_datasets, load_from_disk
from transformers import AutoTokenizer

import pianogen_hf as pg
from pianogen_hf.commands.data import main
from pianogen_hf.data.augment import Augmentation
from pianogen_hf.data.built import read_pieces
from pianogen_hf.data.checks import Finding, pairs_across, shared_families, table
from pianogen_hf.data.chunks import build_chunks
from pianogen_hf.data.families import fingerprint
from pianogen_hf.data.manifest import read_manifest, split_manifest, write_manifest
from pianogen_hf.data.pieces import PIECE_FEATURES, content_hash
from pianogen_hf.data.provenance import Provenance
from pianogen_hf.tokenizers.midi import notes_to_midi_bytes, read_midi

NUM_PIECES = 16
CHUNK_LENGTH = 65


def music(seed, num_chords=70):
    """A melody that wanders over a major scale, with chords below it."""
    rng = np.random.default_rng(seed)
    scale, degree, rows = np.array([0, 2, 4, 5, 7, 9, 11]), 35, []
    for tick in np.cumsum(rng.choice([120, 240, 240, 480], num_chords)):
        degree = int(np.clip(degree + rng.choice([-4, -2, -1, -1, 0, 1, 1, 2, 5]), 28, 48))
        root = int(rng.integers(18, 24))
        rows += [(tick, each) for each in [degree, *(root + step for step in (0, 2, 4)[: rng.integers(1, 4)])]]
    tick, degrees = np.array(rows).T
    return pg.Notes.from_columns(
        480, onset_tick=tick, duration_tick=np.full(len(rows), 110), pitch=12 * (degrees // 7) + scale[degrees % 7]
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder of MIDI files: fourteen works of which two are there twice, in other keys."""
    folder = tmp_path_factory.mktemp("clean") / "music"
    for number in range(NUM_PIECES):
        copied = number - 2 if number in (4, 9) else number
        pg.write_midi(music(copied).transposed(number % 3), folder / f"{number}.mid")
    return folder.parent


def build(place, output, *options):
    cache = ["--cache_dir", str(place / "cache"), "--chunk_length", str(CHUNK_LENGTH)]
    return main(["build", "--source", f"folder={place}/music", "--output", str(output), *cache, *options])


@pytest.fixture(scope="module")
def clean(place):
    """A built data set with augmented chunks and byte pairs; nothing leaks."""
    options = ["--tokenizer", "RemiTokenizer", "--bpe_vocab_size", "420", "--transpose", "-2", "2"]
    options += ["--validation_fraction", "0.2", "--test_fraction", "0.2"]
    assert build(place, place / "clean", *options) == 0
    return place / "clean"


@pytest.fixture
def spoilt(clean, tmp_path):
    """A copy of it, for a test to make leak."""
    return shutil.copytree(clean, tmp_path / "spoilt")


def checked(folder, *options):
    """Exit code and findings of a check."""
    report = folder.parent / "report.json"
    code = main(["check", str(folder), "--output", str(report), *map(str, options)])
    return code, json.loads(report.read_text())["findings"]


def kinds(folder, *options):
    """The checks that fail; the exit code must say whether any does."""
    code, findings = checked(folder, *options)
    assert code == bool(findings)
    return {finding["check"] for finding in findings}


def rewrite(folder, rows, sides, with_chunks=False):
    """What somebody's own script would make of changed rows: pieces and a manifest that agree."""
    pieces = Dataset.from_list(rows, features=PIECE_FEATURES)
    parameters = read_manifest(folder / "split.json")["parameters"]
    splits = {
        side: pieces.select([row for row, each in enumerate(sides) if each == side]) for side in dict.fromkeys(sides)
    }
    shutil.rmtree(folder / "pieces")
    DatasetDict(splits).save_to_disk(str(folder / "pieces"))
    write_manifest(folder / "split.json", split_manifest(pieces, sides, parameters))
    if not with_chunks:
        shutil.rmtree(folder / "chunks")


def rewrite_chunks(folder, chunks):
    shutil.rmtree(folder / "chunks")
    DatasetDict(chunks).save_to_disk(str(folder / "chunks"))


def rows_of(folder):
    pieces, sides = read_pieces(folder)
    rows = pieces.to_list()
    return [{**row, "fingerprint": np.array(row["fingerprint"], dtype=np.uint64)} for row in rows], sides


def chunks_of(folder):
    """The chunks in memory, so that they can be written where they were read from."""
    return {
        side: Dataset.from_dict(rows[:], features=rows.features)
        for side, rows in load_from_disk(str(folder / "chunks")).items()
    }


def copy_of(row, notes, name, **columns):
    """A row for other notes under another name, as if nobody knew where they came from."""
    midi, content = notes_to_midi_bytes(notes), content_hash(notes)
    own = {"piece_id": name, "family_id": name, "midi": midi, "content": content, "fingerprint": fingerprint(notes)}
    return {**row, **own, **columns}


def first(sides, wanted):
    return sides.index(wanted)


# Nothing leaks -------------------------------------------------------------------------------------------------------


def test_a_built_data_set_is_clean(clean, capsys):
    assert checked(clean) == (0, [])
    assert "no leak found" in capsys.readouterr().out
    assert len(set(rows_of(clean)[1])) == 3


def test_the_split_that_training_would_make_is_clean(place):
    source = ["--source", f"folder={place}/music", "--cache_dir", str(place / "cache")]
    assert main(["check", *source]) == 0


@pytest.mark.parametrize("packing", ["true", "false"])
def test_packed_and_plain_chunks_are_clean(place, tmp_path, packing):
    assert build(place, tmp_path / "built", "--tokenizer", "PerformanceTokenizer", "--packing", packing) == 0
    assert checked(tmp_path / "built") == (0, [])


@pytest.mark.skipif(find_spec("music21") is None, reason="music21, which finds keys, is missing")
def test_keys_normalised_after_families_are_clean(place, tmp_path):
    assert build(place, tmp_path / "built", "--tokenizer", "PerformanceTokenizer", "--normalize_key", "true") == 0
    assert checked(tmp_path / "built") == (0, [])


# Everything leaks, one at a time -------------------------------------------------------------------------------------


def test_byte_pairs_fitted_on_all_pieces(spoilt):
    pieces, sides = read_pieces(spoilt)
    tokenizer = AutoTokenizer.from_pretrained(str(spoilt / "tokenizer"))
    tokenizer.train_bpe((read_midi(midi, None) for midi in pieces["midi"]), tokenizer.vocab_size)
    tokenizer.save_pretrained(str(spoilt / "tokenizer"))
    rewrite_chunks(spoilt, build_chunks(pieces, sides, tokenizer, CHUNK_LENGTH, spoilt.parent / "cache"))
    assert kinds(spoilt) == {"tokenizer"}


def at_tempo(notes, bpm):
    tempos = notes.tempos.copy()
    tempos["us_per_quarter"] = 60_000_000 // bpm
    return pg.Notes(notes.table, notes.ticks_per_quarter, tempos)


@pytest.mark.parametrize("augment", [lambda notes: notes.transposed(3), lambda notes: at_tempo(notes, 93)])
@pytest.mark.parametrize("side", ["validation", "test"])
def test_augmented_before_the_split(spoilt, augment, side):
    """Copies are pieces of their own, with names, families and hashes of their own, on an evaluation side."""
    rows, sides = rows_of(spoilt)
    original = rows[first(sides, "train")]
    copy = copy_of(original, augment(read_midi(original["midi"], None)), "copy")
    rewrite(spoilt, [*rows, copy], [*sides, side])
    code, findings = checked(spoilt)
    assert code == 1 and {finding["check"] for finding in findings} == {"content"}
    assert any({"copy", original["piece_id"]} == set(finding["pieces"]) for finding in findings)
    assert all(finding["share"] > 0.9 and finding["sides"] == ["train", side] for finding in findings)


def test_evaluation_augmented(spoilt):
    pieces, sides = read_pieces(spoilt)
    tokenizer = AutoTokenizer.from_pretrained(str(spoilt / "tokenizer"))
    swapped = ["train" if side == "validation" else "" for side in sides]
    augmented = build_chunks(
        pieces, swapped, tokenizer, CHUNK_LENGTH, spoilt.parent / "cache", augmentation=Augmentation((-1, 1))
    )
    rewrite_chunks(spoilt, {**chunks_of(spoilt), "validation": augmented["train"]})
    assert kinds(spoilt) == {"evaluation"}


def test_keys_normalised_before_families(spoilt):
    """One piece in two keys became one content under two names, after families were told apart by their hashes."""
    rows, sides = rows_of(spoilt)
    original = rows[first(sides, "train")]
    notes = read_midi(original["midi"], None)
    names = {"in D.mid": notes.transposed(2), "in F.mid": notes.transposed(5)}
    copies = [
        {**copy_of(original, notes, name), "content": content_hash(other), "fingerprint": fingerprint(other)[:1]}
        for name, other in names.items()
    ]
    manifest = read_manifest(spoilt / "split.json")
    manifest["parameters"]["normalize_key"] = True
    write_manifest(spoilt / "split.json", split_manifest(*read_pieces(spoilt), manifest["parameters"]))
    rewrite(spoilt, [*rows, *copies], [*sides, "train", "test"])
    code, findings = checked(spoilt)
    assert code == 1 and {finding["check"] for finding in findings} == {"content"}
    assert any(set(finding["pieces"]) == set(names) for finding in findings)


def test_a_family_divided_whose_pieces_share_music(spoilt):
    rows, sides = rows_of(spoilt)
    families = [row["family_id"] for row in rows]
    moved = next(row for row, family in enumerate(families) if families.count(family) > 1)
    sides[moved] = "test" if sides[moved] != "test" else "train"
    rewrite(spoilt, rows, sides)
    assert kinds(spoilt) == {"content"}


def test_a_family_divided_whose_pieces_share_none(spoilt):
    rows, sides = rows_of(spoilt)
    rows[first(sides, "train")]["family_id"] = rows[first(sides, "test")]["family_id"] = "Variations"
    rewrite(spoilt, rows, sides)
    code, findings = checked(spoilt)
    assert code == 1 and [finding["check"] for finding in findings] == ["family"]
    assert "Variations" in findings[0]["detail"] and findings[0]["sides"] == ["train", "test"]


def test_a_piece_that_joins_a_family_which_an_official_split_divides_is_no_part_of_that_split(spoilt):
    rows, sides = rows_of(spoilt)
    published = [copy_of(rows[0], music(77), f"published {side}", official_split=side) for side in ("train", "test")]
    newcomer = copy_of(rows[0], music(78), "newcomer")
    family = [{**row, "family_id": "Variations"} for row in (*published, newcomer)]
    rewrite(spoilt, [*rows, *family], [*sides, "train", "test", "train"])
    code, findings = checked(spoilt, "--accept_official")
    assert code == 1 and {(each["check"], each["official"]) for each in findings} == {
        ("content", True),
        ("family", False),
    }
    rewrite(spoilt, [*rows, *family[:2]], [*sides, "train", "test"], with_chunks=True)
    assert checked(spoilt, "--accept_official")[0] == 0


@pytest.mark.parametrize("is_mended", [False, True])
def test_a_piece_moved_by_hand_in_the_manifest(spoilt, is_mended):
    """Whether or not the hash is mended, too."""
    manifest = read_manifest(spoilt / "split.json")
    name = next(name for name, (side, *_) in manifest["pieces"].items() if side == "train")
    if is_mended:
        pieces, sides = read_pieces(spoilt)
        sides[list(pieces["piece_id"]).index(name)] = "test"
        write_manifest(spoilt / "split.json", split_manifest(pieces, sides, manifest["parameters"]))
    else:
        path = spoilt / "split.json"
        lines = [
            line.replace('"train"', '"test"') if f'"{name}"' in line else line for line in path.read_text().split("\n")
        ]
        path.write_text("\n".join(lines))
    code, findings = checked(spoilt)
    assert code == 1 and {finding["check"] for finding in findings} == {"manifest"}
    assert [name] in [finding["pieces"] for finding in findings] or not is_mended


def test_music_changed_under_its_name(spoilt):
    rows, sides = rows_of(spoilt)
    rows[0]["midi"] = notes_to_midi_bytes(music(99))
    rewrite(spoilt, rows, sides)
    assert kinds(spoilt) == {"manifest"}


def test_a_piece_that_only_the_manifest_has(spoilt):
    rows, sides = rows_of(spoilt)
    pieces, parameters = (
        Dataset.from_list(rows, features=PIECE_FEATURES),
        read_manifest(spoilt / "split.json")["parameters"],
    )
    rewrite(spoilt, rows[1:], sides[1:])
    write_manifest(spoilt / "split.json", split_manifest(pieces, sides, parameters))
    assert kinds(spoilt) == {"manifest"}


def test_an_evaluation_piece_among_the_train_chunks(spoilt):
    chunks = chunks_of(spoilt)
    rewrite_chunks(spoilt, {**chunks, "train": concatenate_datasets([chunks["train"], chunks["test"]])})
    assert kinds(spoilt) == {"train chunks"}


def test_an_evaluation_piece_among_the_train_chunks_under_the_name_of_a_train_piece(spoilt):
    chunks = chunks_of(spoilt)
    name = chunks["train"][0]["piece_id"]
    disguised = chunks["test"].map(lambda row: {"piece_id": name, "start": row["start"] + 10**6})
    rewrite_chunks(spoilt, {**chunks, "train": concatenate_datasets([chunks["train"], disguised])})
    code, findings = checked(spoilt)
    assert code == 1 and {finding["check"] for finding in findings} == {"train chunks"}
    assert {name} < {piece for finding in findings for piece in finding["pieces"]}


@pytest.mark.parametrize("fault", ["lost", "twice", "foreign"])
def test_evaluation_chunks_that_are_not_the_pieces(spoilt, fault):
    chunks = chunks_of(spoilt)
    test = chunks["test"]
    changed = {
        "lost": test.select(range(1, len(test))),
        "twice": concatenate_datasets([test, test.select([0])]),
        "foreign": concatenate_datasets([test, test.select([0]).map(lambda row: {"piece_id": "foreign"})]),
    }
    rewrite_chunks(spoilt, {**chunks, "test": changed[fault]})
    code, findings = checked(spoilt)
    assert code == 1 and [finding["check"] for finding in findings] == ["evaluation"]


# Chunks that somebody else has split ---------------------------------------------------------------------------------


def random_split(folder, path, **columns):
    """What most recipes do: cut everything, then `train_test_split`."""
    rows = concatenate_datasets(list(chunks_of(folder).values()))
    for name, values in columns.items():
        rows = rows.remove_columns(name) if values is None else rows.map(values)
    rows.train_test_split(0.2, seed=0).save_to_disk(str(path))
    return path


def test_chunks_split_at_random_are_found_by_name(clean, tmp_path):
    folder = random_split(clean, tmp_path / "chunks")
    code, findings = checked(folder, "--tokenizer", clean / "tokenizer")
    named = {finding["pieces"][0] for finding in findings if finding["check"] == "name"}
    assert code == 1 and len(named) == NUM_PIECES


def test_chunks_split_at_random_are_found_whatever_names_say(clean, tmp_path):
    """Augmented copies under names of their own, and no names at all."""
    versions = np.random.default_rng(0)
    renamed = random_split(
        clean, tmp_path / "renamed", piece_id=lambda row: {"piece_id": f"{row['piece_id']}#{versions.integers(10**9)}"}
    )
    nameless = random_split(clean, tmp_path / "nameless", piece_id=None, start=None)
    for folder in (renamed, nameless):
        assert kinds(folder, "--tokenizer", clean / "tokenizer") == {"content"}


def test_chunks_split_by_family_are_clean(clean):
    assert checked(clean / "chunks", "--tokenizer", clean / "tokenizer") == (0, [])


def test_chunks_of_another_tokenizer_are_refused_in_one_line(clean, tmp_path, capsys):
    pg.JSBTokenizer().save_pretrained(str(tmp_path / "tokenizer"))
    assert main(["check", str(clean / "chunks"), "--tokenizer", str(tmp_path / "tokenizer")]) == 2
    assert capsys.readouterr().err.strip().splitlines()[-1].startswith("error: ")


# Models --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trained_side, expected", [("train", set()), ("test", {"model"})])
def test_a_model_trained_on_evaluation_pieces(clean, tmp_path, trained_side, expected):
    pieces, sides = read_pieces(clean)
    trained = ["train" if side == trained_side else "validation" for side in sides]
    Provenance.new().extended({"hash": "0" * 64}, pieces, trained, [], "train.py", None).save(tmp_path)
    code, findings = checked(clean, "--model", tmp_path)
    assert {finding["check"] for finding in findings} == expected and code == bool(expected)
    assert len(findings) == (sides.count("test") if expected else 0)


def test_a_model_of_which_nobody_knows_what_it_was_trained_on(clean, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    assert kinds(clean, "--model", tmp_path / "model") == {"unknown"}


# Official splits, and how it is told ---------------------------------------------------------------------------------


def test_leaks_of_an_official_split_are_marked_and_can_be_accepted(tmp_path, capsys):
    for number, side in enumerate(["train"] * 4 + ["valid"] * 2 + ["test"] * 2):
        pg.write_midi(music(0 if number in (1, 6) else number), tmp_path / "music" / side / f"{number}.mid")
    options = ["check", "--source", f"folder={tmp_path}/music", "--cache_dir", str(tmp_path / "cache")]
    assert main(options) == 1
    assert "official" in capsys.readouterr().out
    assert main([*options, "--accept_official"]) == 0
    shown = capsys.readouterr().out
    assert "music/train/1.mid (train) and music/test/6.mid (test) share 100.0%" in shown


def test_every_copy_is_named_but_each_is_compared_once():
    same, other = fingerprint(music(0)), fingerprint(music(1))
    pairs = list(pairs_across([same, other, same, same, same], ["train", "train", "train", "test", "test"]))
    assert {index for pair in pairs for index in pair[:2]} == {0, 2, 3, 4}
    assert all(share == 1.0 for *_, share in pairs)


def test_a_report_fits_on_a_screen():
    findings = [
        Finding(check, "detail", ("a", "b"), ("train", "test"), number / 99, official)
        for check in ("content", "family", "manifest", "evaluation", "tokenizer", "name")
        for official in (False, True)
        for number in range(50)
    ]
    assert len(table(findings)) <= 20
    lines = table([each for each in findings if each.check == "content" and not each.official])
    assert "49.5%" in lines[1] and lines[-1] == "  ... and 32 more"


def test_families_of_several_sources_are_told_though_they_are_no_leak():
    pieces = Dataset.from_dict(
        {
            "piece_id": ["a/1", "a/2", "b/1", "b/2"],
            "source": ["a", "a", "b", "b"],
            "family_id": ["x", "y", "x", "z"],
        }
    )
    assert shared_families(pieces) == {"a and b": [["a/1", "b/1"]]}
    assert shared_families(pieces.select([0, 1])) == {}


def test_chunks_of_continuous_notes_are_checked_like_any_others(place, tmp_path):
    folder = tmp_path / "notes"
    assert build(place, folder, "--tokenizer", "ContinuousNotesFeatureExtractor", "--transpose", "-2", "2") == 0
    assert (folder / "tokenizer" / "preprocessor_config.json").exists()
    assert kinds(folder) == set()
    chunks = chunks_of(folder)
    rewrite_chunks(folder, {**chunks, "train": concatenate_datasets([chunks["train"], chunks["test"]])})
    assert kinds(folder) == {"train chunks"}
    slower = chunks["validation"].map(
        lambda row: {"input_values": [[2 * shift, *rest] for shift, *rest in row["input_values"]]}
    )
    rewrite_chunks(folder, {**chunks, "validation": slower})
    assert kinds(folder) == {"evaluation"}
