"""Provenance: what a model was trained on is found again under any name, is never lost, and never taken for granted."""

import json
import shlex
import threading
from dataclasses import astuple, replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import huggingface_hub.constants
import numpy as np
import pytest
from datasets import Dataset, Features, List, Value
from hypothesis import given, settings
from hypothesis import strategies as st

import pianogen_hf
from pianogen_hf.data import provenance as module
from pianogen_hf.data.families import fingerprint
from pianogen_hf.data.pieces import content_hash
from pianogen_hf.data.provenance import Overlap, Provenance, TrainedPiece, refusal
from pianogen_hf.errors import DataError
from pianogen_hf.tokenizers.midi import notes_to_midi_bytes, read_midi
from pianogen_hf.tokenizers.notes import Notes

JSON, ARRAYS = "provenance.json", "provenance.safetensors"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
NAME = "somebody/a-model"
FEATURES = Features(
    {
        **{name: Value("string") for name in ("piece_id", "source", "family_id", "content")},
        "fingerprint": List(Value("uint64")),
    }
)


def music(seed, num_notes=400):
    """A melody that wanders over a scale with a second voice below it."""
    rng = np.random.default_rng(seed)
    scale = np.array([0, 2, 4, 5, 7, 9, 11])
    degree = 35 + np.cumsum(rng.choice([-4, -2, -1, 0, 1, 2, 5], num_notes)) % 14
    degree[1::3] -= rng.integers(7, 20, len(degree[1::3]))
    duration = rng.choice([120, 240, 480], num_notes)
    return Notes.from_columns(
        480,
        onset_tick=np.cumsum(duration) - duration,
        duration_tick=duration,
        pitch=12 * (degree // 7) + scale[degree % 7],
        velocity=rng.integers(30, 100, num_notes),
    )


def stretched(notes, factor=1.3):
    tempos = notes.tempos.copy()
    tempos["us_per_quarter"] = np.rint(tempos["us_per_quarter"] * factor)
    return replace(notes, tempos=tempos)


def exported_anew(notes):
    """As another program writes it: other ticks, other velocities, through a MIDI file."""
    table = notes.table.copy()
    for name in ("onset_tick", "duration_tick"):
        table[name] = np.rint(table[name] * 384 / 480)
    table["velocity"] = 64
    return read_midi(notes_to_midi_bytes(replace(notes, table=table, ticks_per_quarter=384)), None)


def pieces(named, families=None, source="folder"):
    """Rows as the sources give them; each piece its own family where none is told."""
    rows = [
        {
            "piece_id": name,
            "source": source,
            "family_id": (families or {}).get(name, f"content/{content_hash(notes)}"),
            "content": content_hash(notes),
            "fingerprint": fingerprint(notes),
        }
        for name, notes in named.items()
    ]
    return Dataset.from_list(rows, features=FEATURES)


def run(train, before=None, split="s", **options):
    """Provenance after training on these pieces."""
    rows = pieces(train, **options)
    before = before or Provenance.new()
    started_from = "earlier" if before.runs else None
    return before.extended({"hash": split}, rows, ["train"] * len(rows), [], "train.py x.yaml", started_from)


def found(provenance, named, side="test", **options):
    """Which of the pieces are found to have been trained on, and as what."""
    overlaps = provenance.overlap(pieces(named, **options), [side] * len(named))
    return {each.piece: each.trained_piece for each in overlaps}


TRAINED = {f"old/{number}.mid": music(number) for number in range(4)}
MODEL = run(TRAINED)


@pytest.mark.parametrize(
    "change",
    [
        lambda notes: notes,
        lambda notes: notes.transposed(5),
        stretched,
        lambda notes: notes.where(slice(120, 240)),
        exported_anew,
        lambda notes: exported_anew(stretched(notes.transposed(-3)).where(slice(50, 300))),
    ],
    ids=["identical", "transposed", "stretched", "excerpt", "exported anew", "all of it"],
)
@pytest.mark.parametrize("side", ["validation", "test"])
def test_what_was_trained_on_is_found_under_any_name(change, side):
    named = {"new/other.mid": music(99), "new/copy.mid": change(music(2)), "new/train.mid": change(music(3))}
    overlaps = MODEL.overlap(pieces(named), [side, side, "train"])
    assert [(each.piece, each.side, each.trained_piece) for each in overlaps] == [("new/copy.mid", side, "old/2.mid")]
    assert 0.5 < overlaps[0].share <= 1
    assert overlaps[0].content == content_hash(named["new/copy.mid"])


def test_unrelated_music_is_not_found():
    assert found(MODEL, {f"old/{number}.mid": music(100 + number) for number in range(20)}) == {}


def test_only_what_is_evaluated_is_compared():
    rows = pieces({"a": music(0), "b": music(1), "c": music(9)})
    assert MODEL.overlap(rows, ["train", "", "test"]) == []
    assert MODEL.overlap(rows, ["train", "train", "train"]) == []
    assert Provenance.new().overlap(rows, ["test"] * 3) == []


def test_short_pieces_are_found_by_their_content():
    short = music(1, num_notes=6)
    assert found(run({"jingle": short}), {"copy": short, "other": music(2, num_notes=6)}) == {"copy": "jingle"}


def test_equal_content_is_found_where_fingerprints_differ():
    """Two notes a fraction of a millisecond apart, and the same from a program that counts in coarser ticks."""
    apart, together = (
        Notes.from_columns(10_000, onset_tick=[0, late], duration_tick=[5000, 5000], pitch=[60, 50], velocity=[64, 64])
        for late in (1, 0)
    )
    assert fingerprint(apart)[0] != fingerprint(together)[0]
    model, new = run({"a": apart}, families={"a": "x"}), pieces({"b": together}, families={"b": "y"})
    assert [(each.trained_piece, each.share) for each in model.overlap(new, ["test"])] == [("a", 1.0)]


def test_every_copy_is_found_however_many_there_are():
    named = {f"new/{number}.mid": music(1).transposed(number) for number in range(5)}
    assert found(run({"a": music(1), "b": music(1).transposed(-1)}), named).keys() == named.keys()


def test_a_family_is_found_without_common_notes():
    model = run({"old.mid": music(1)}, families={"old.mid": "work 7"})
    overlaps = model.overlap(pieces({"new.mid": music(2)}, families={"new.mid": "work 7"}), ["validation"])
    assert overlaps == [Overlap("new.mid", "validation", content_hash(music(2)), "old.mid", 0.0)]


def test_relatives_of_a_piece_that_was_found_are_found():
    families = {"copy": "work", "other movement": "work"}
    named = {"copy": music(1), "other movement": music(50), "stranger": music(51)}
    assert found(MODEL, named, families=families) == {"copy": "old/1.mid", "other movement": "old/1.mid"}


def test_relatives_that_the_split_itself_parts_are_no_news():
    """An official split may have relatives on two sides. A model trained on it may go on with it."""
    named = {"train": music(1), "test": music(1).transposed(2), "another": music(2)}
    families = {"train": "work", "test": "work"}
    rows, sides = pieces(named, families), ["train", "test", "test"]
    model = Provenance.new().extended({"hash": "s"}, rows, sides, [], "", None)
    assert model.overlap(rows, sides) == []
    # With anything else on the train side it is news.
    assert [each.piece for each in model.overlap(rows, ["", "test", "test"])] == ["test"]
    model = run({"excerpt": music(1).where(slice(0, 200))}, model)
    assert [(each.piece, each.trained_piece) for each in model.overlap(rows, sides)] == [("test", "excerpt")]


def test_comparing_in_blocks_finds_the_same(monkeypatch):
    named = {f"new/{number}": music(number).transposed(1) for number in (0, 1, 3, 70)}
    whole = MODEL.overlap(pieces(named), ["test"] * 4)
    assert len(whole) == 3
    monkeypatch.setattr(module, "_BLOCK", 1)
    one = {"new/3": named["new/3"]}
    assert MODEL.overlap(pieces(one), ["test"]) == [each for each in whole if each.piece == "new/3"]


def joined(a, b):
    """The first half of one piece and the second of another."""
    names = ("onset_tick", "duration_tick", "pitch", "velocity")
    return Notes.from_columns(480, **{name: np.concatenate([a[name][:200], b[name][200:]]) for name in names})


def test_the_piece_that_shares_most_is_named_and_those_that_share_most_come_first():
    model = run({"a/half": joined(music(1), music(6)), "b/whole": music(1), "c/half": joined(music(1), music(7))})
    named = {"half": joined(music(8), music(6)), "whole": stretched(music(1)), "other half": joined(music(7), music(1))}
    overlaps = model.overlap(pieces(named), ["test"] * 3)
    assert [each.piece for each in overlaps] == ["whole", "half", "other half"]
    assert [each.trained_piece for each in overlaps] == ["b/whole", "a/half", "b/whole"]
    assert overlaps[0].share == 1.0 > 0.6 > overlaps[1].share >= overlaps[2].share > 0.3


def test_a_run_is_recorded():
    rows = pieces({"a": music(1), "b": music(2), "c": music(3)}, source="maestro")
    model = Provenance.new().extended({"hash": "abc"}, rows, ["train", "test", ""], [], "train.py x", None)
    assert list(model.trained_on) == ["a"]
    expected = {"split": "abc", "sources": ["maestro"], "pieces": 1, "command": "train.py x", "started_from": None}
    assert model.runs == (expected,)
    assert model.status == "known" and model.contaminated == ()


def test_contamination_is_inherited_through_three_generations(tmp_path):
    first = run(TRAINED, split="one")
    rows = pieces({"new/copy.mid": music(2).transposed(1), "new/b.mid": music(20)})
    overlaps = first.overlap(rows, ["test", "train"])
    second = first.extended({"hash": "two"}, rows, ["test", "train"], overlaps, "train.py", "one")
    second.save(tmp_path / "second")
    third = run({"c.mid": music(30)}, Provenance.load(tmp_path / "second"), split="three")
    third.save(tmp_path / "third")
    fourth = run({"d.mid": music(40)}, Provenance.load(tmp_path / "third"), split="four")
    fourth.save(tmp_path / "fourth")
    last = Provenance.load(tmp_path / "fourth")
    (mark,) = last.contaminated
    assert (mark["run"], mark["piece"], mark["side"], mark["trained_piece"]) == (
        2,
        "new/copy.mid",
        "test",
        "old/2.mid",
    )
    assert [each["split"] for each in last.runs] == ["one", "two", "three", "four"]
    grandchildren = {"w": music(0), "x": music(20), "y": music(30), "z": music(40), "clean": music(50)}
    assert found(last, grandchildren) == {"w": "old/0.mid", "x": "new/b.mid", "y": "c.mid", "z": "d.mid"}


def test_one_name_for_different_music_gives_distinct_entries():
    work = {"a.mid": "work"}
    model = run({"a.mid": music(3)}, run({"a.mid": music(2)}, run({"a.mid": music(1)}, families=work), families=work))
    model = run({"a.mid": music(2), "b.mid": music(4)}, model, families=work)  # a.mid is known already
    assert list(model.trained_on) == ["a.mid", "a.mid (2)", "a.mid (3)", "b.mid"]
    assert found(model, {"x": music(1), "y": music(2), "z": music(3)}).keys() == {"x", "y", "z"}


def test_a_family_that_was_renamed_is_known_by_both_names():
    model = run({"a": music(1)}, run({"a": music(1)}, families={"a": "old name"}), families={"a": "new name"})
    families = {"x": "old name", "y": "new name"}
    assert found(model, {"x": music(8), "y": music(9)}, families=families).keys() == {"x", "y"}


# Files


def same(a, b):
    told = [
        [model.runs, model.unknown, model.contaminated]
        + [[name, *astuple(each)[:2], each.fingerprint.tolist()] for name, each in sorted(model.trained_on.items())]
        for model in (a, b)
    ]
    return told[0] == told[1]


def saved(model, folder):
    model.save(folder)
    return folder


any_text = st.text(st.characters(exclude_categories=()), max_size=8)  # lone surrogates, too: argv may have them
names = st.text(max_size=8)
fingerprints = st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=4)


@settings(max_examples=50)
@given(
    trained=st.dictionaries(names, st.tuples(names, names, fingerprints), max_size=5),
    runs=st.lists(
        st.fixed_dictionaries({"command": any_text, "pieces": st.integers(0), "started_from": names}), max_size=2
    ),
    unknown=st.lists(any_text, max_size=2),
    contaminated=st.lists(st.fixed_dictionaries({"piece": names, "share": st.floats(0, 1)}), max_size=2),
)
def test_what_is_saved_is_loaded(tmp_path_factory, trained, runs, unknown, contaminated):
    table = {
        name: TrainedPiece(family, content, np.array(values, dtype=np.uint64))
        for name, (family, content, values) in sorted(trained.items())
    }
    model = Provenance(table, tuple(runs), tuple(unknown), tuple(contaminated))
    folder = saved(model, tmp_path_factory.mktemp("model") / "new" / "folder")
    assert same(Provenance.load(folder), model)
    assert sorted(path.name for path in folder.iterdir()) == [JSON, ARRAYS]
    before = (folder / JSON).read_bytes()
    saved(Provenance.load(folder), folder)
    assert (folder / JSON).read_bytes() == before


def test_the_json_file_has_a_line_for_each_piece_in_its_own_words(tmp_path):
    saved(run({"Frédéric/Étude.mid": music(1), "b.mid": music(2)}), tmp_path)
    lines = (tmp_path / JSON).read_text("utf-8").splitlines()
    content = content_hash(music(1))
    assert f'  "Frédéric/Étude.mid": ["content/{content}", "{content}"],' in [line.rstrip(",") + "," for line in lines]
    assert ' "status": "known",' in lines


@settings(max_examples=60)
@given(data=st.data(), name=st.sampled_from([JSON, ARRAYS]), bit=st.integers(0, 7))
def test_any_bit_that_differs_is_refused(tmp_path_factory, data, name, bit):
    folder = saved(run({"a": music(1, 30), "b": music(2, 30)}), tmp_path_factory.mktemp("model"))
    content = bytearray((folder / name).read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << bit
    (folder / name).write_bytes(content)
    with pytest.raises(DataError, match=r"^[^\n]*$"):
        Provenance.load(folder)


@pytest.mark.parametrize("name", [JSON, ARRAYS])
@pytest.mark.parametrize("length", [0, 1, 200, -1])
def test_a_truncated_file_is_refused(tmp_path, name, length):
    path = saved(MODEL, tmp_path) / name
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(DataError):
        Provenance.load(tmp_path)


@pytest.mark.parametrize("name", [JSON, ARRAYS])
def test_one_file_without_the_other_or_with_that_of_another_model_is_refused(tmp_path, name):
    saved(MODEL, tmp_path / "a")
    saved(run({"x": music(9)}), tmp_path / "b")
    (tmp_path / "b" / name).replace(tmp_path / "a" / name)
    for folder in ("a", "b"):
        with pytest.raises(DataError):
            Provenance.load(tmp_path / folder)


def test_edits_are_refused(tmp_path):
    overlap = Overlap("a", "test", "0" * 16, "old/1.mid", 1.0)
    model = MODEL.extended({"hash": "x"}, pieces({"b": music(9)}), ["train"], [overlap], "", "other")
    text = (saved(model, tmp_path) / JSON).read_text()
    start = text.index(' "contaminated"')
    mark = text[start : text.index("]", start) + 1]
    for edited in (
        text.replace(mark, ' "contaminated": []'),
        text.replace('  "old/3.mid"', '  "new/3.mid"'),
        text.replace("{\n", '{\n "contaminated": [],\n', 1),  # said twice: JSON's last word would count
        "[]",
        "null",
        "[" * 100_000,
    ):
        assert edited != text
        (tmp_path / JSON).write_text(edited)
        with pytest.raises(DataError):
            Provenance.load(tmp_path)
    (tmp_path / JSON).write_bytes(text.replace("\n", "\r\n").encode())  # what git may do on Windows is no edit
    assert same(Provenance.load(tmp_path), model)


def test_a_later_form_is_named_as_such(tmp_path):
    path = saved(MODEL, tmp_path) / JSON
    path.write_text(path.read_text().replace('"format": 1', '"format": 2'))
    with pytest.raises(DataError, match="format 2"):
        Provenance.load(tmp_path)


# Checkpoints from elsewhere


def test_a_folder_without_provenance_is_unknown_for_ever_but_what_follows_is_known(tmp_path):
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "config.json").write_text("{}")
    model = Provenance.load(foreign)
    assert (model.status, model.unknown, model.trained_on) == ("unknown", (str(foreign),), {})
    model = Provenance.load(saved(run(TRAINED, model), tmp_path / "second"))
    assert json.loads((tmp_path / "second" / JSON).read_text())["status"] == "unknown"
    model = run({"b": music(30)}, model)
    assert (model.status, model.unknown) == ("unknown", (str(foreign),))
    assert found(model, {"x": music(1), "y": music(30), "z": music(50)}) == {"x": "old/1.mid", "y": "b"}


def hub_cache(folder, files=(), commit=COMMIT):
    """The Hub's cache as its client leaves it, with the main branch of one model at a commit."""
    repo = folder / f"models--{NAME.replace('/', '--')}"
    (repo / "refs").mkdir(parents=True, exist_ok=True)
    (repo / "refs" / "main").write_text(commit)
    snapshot = repo / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    for path in files:
        (snapshot / path.name).write_bytes(path.read_bytes())
    return repo


def test_a_cached_model_is_known_offline(tmp_path):
    files = list(saved(MODEL, tmp_path / "model").iterdir())
    hub_cache(tmp_path / "cache", files)
    for revision in (None, "main", COMMIT):
        assert same(Provenance.load(NAME, revision, cache_dir=tmp_path / "cache"), MODEL)
    with pytest.raises(DataError):
        Provenance.load(NAME, "another", cache_dir=tmp_path / "cache")


def test_a_commit_has_its_own_provenance(tmp_path):
    other = run({"other": music(9)})
    for commit, model in ((COMMIT, MODEL), (COMMIT[::-1], other)):
        hub_cache(tmp_path / "cache", list(saved(model, tmp_path / commit).iterdir()), commit)
    for revision, model in ((COMMIT, MODEL), (COMMIT[::-1], other), ("main", other)):
        assert same(Provenance.load(NAME, revision, cache_dir=tmp_path / "cache"), model)


def test_the_usual_cache_is_used(tmp_path, monkeypatch):
    hub_cache(tmp_path, list(saved(MODEL, tmp_path / "model").iterdir()))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    assert same(Provenance.load(NAME), MODEL)


def test_a_cached_model_that_is_remembered_to_have_none_is_unknown(tmp_path):
    repo = hub_cache(tmp_path)
    for name in (JSON, ARRAYS):
        (repo / ".no_exist" / COMMIT).mkdir(parents=True, exist_ok=True)
        (repo / ".no_exist" / COMMIT / name).touch()
    assert Provenance.load(NAME, cache_dir=tmp_path).unknown == (NAME,)


def test_a_cached_model_whose_listed_files_have_none_is_unknown(tmp_path):
    repo = hub_cache(tmp_path)
    (repo / "trees").mkdir()
    listed = {"format_version": 1, "files": {"config.json": {"size": 2, "blob_id": "0" * 40}}}
    (repo / "trees" / f"{COMMIT}.json").write_text(json.dumps(listed))
    assert Provenance.load(NAME, cache_dir=tmp_path).unknown == (NAME,)


def test_a_cached_model_whose_provenance_nobody_fetched_is_an_error_offline(tmp_path):
    repo = hub_cache(tmp_path)  # as loading the weights elsewhere leaves it
    with pytest.raises(DataError, match="can't be reached"):
        Provenance.load(NAME, cache_dir=tmp_path)
    (repo / "trees").mkdir()
    listed = {"format_version": 1, "files": {JSON: {"size": 2, "blob_id": "0" * 40}}}
    (repo / "trees" / f"{COMMIT}.json").write_text(json.dumps(listed))
    with pytest.raises(DataError, match="can't be reached"):
        Provenance.load(NAME, cache_dir=tmp_path)


def test_a_cached_model_with_one_of_the_files_is_an_error(tmp_path):
    hub_cache(tmp_path / "cache", [saved(MODEL, tmp_path / "model") / JSON])
    with pytest.raises(DataError):
        Provenance.load(NAME, cache_dir=tmp_path / "cache")


@pytest.mark.parametrize("name", [NAME, "./no/such/folder", "/no/such/folder", ""])
def test_a_model_that_is_not_to_be_reached_is_an_error(tmp_path, name):
    with pytest.raises(DataError, match=r"^[^\n]*$"):
        Provenance.load(name, cache_dir=tmp_path)


@pytest.fixture
def hub(monkeypatch):
    """A Hub of one model without provenance, on this machine."""

    class Answers(BaseHTTPRequestHandler):
        def do_HEAD(self):
            here = self.path.startswith(f"/{NAME}/")
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound" if here else "RepoNotFound")
            if here:
                self.send_header("X-Repo-Commit", COMMIT)
            self.end_headers()

        do_GET = do_HEAD

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
    monkeypatch.setattr(
        huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}"
    )
    yield server
    server.shutdown()
    server.server_close()


def test_a_model_that_the_hub_has_without_provenance_is_unknown_and_stays_so_offline(hub, tmp_path, monkeypatch):
    assert Provenance.load(NAME, cache_dir=tmp_path, token=False).unknown == (NAME,)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert Provenance.load(NAME, cache_dir=tmp_path).unknown == (NAME,)


def test_a_model_that_the_hub_does_not_have_is_an_error(hub, tmp_path):
    with pytest.raises(DataError, match="the Hub does not give"):
        Provenance.load("somebody/else", cache_dir=tmp_path, token=False)


# What is told


def test_a_refusal_says_what_to_do_and_names_at_most_twenty_pieces():
    overlaps = [Overlap(f"new/{number:02}.mid", "test", "0" * 16, f"old/{number}.mid", 0.25) for number in range(23)]
    first, *lines = refusal(overlaps, "me/model").splitlines()
    assert "23 piece" in first and "--split_from me/model " in first and "--allow_contamination " in first
    assert lines[0] == "  test new/00.mid shares 25% with old/0.mid"
    assert len(lines) == 21 and lines[-1] == "  and 3 more"
    assert len(refusal(overlaps[:20], "m").splitlines()) == 21
    assert "is of one family with old.mid" in refusal([Overlap("a", "test", "", "old.mid", 0.0)], "m")


def test_the_bundled_model_knows_what_it_was_trained_on():
    model = Provenance.load(pianogen_hf.BACH_MODEL)
    split = json.loads(Path(pianogen_hf.BACH_MODEL, "split.json").read_text(encoding="utf-8"))
    trained = {name: row[1:] for name, row in split["pieces"].items() if row[0] == "train"}
    assert {name: [each.family, each.content] for name, each in model.trained_on.items()} == trained
    assert (model.status, model.contaminated) == ("known", ())
    assert [(each["split"], each["pieces"]) for each in model.runs] == [(split["hash"], len(trained))]
    assert shlex.split(model.runs[0]["command"])[0] == "train.py"
