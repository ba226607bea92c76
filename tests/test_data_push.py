"""`pianogen data push`, and back: a Hub on this machine, the real clients, another process that runs the commands."""

import json
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from datasets import Dataset
from hub_server import HubServer
from huggingface_hub import constants

import pianogen_hf as pg
from pianogen_hf.commands.data import main
from pianogen_hf.data.manifest import read_manifest
from pianogen_hf.data.pieces import content_hash, load_pieces
from pianogen_hf.data.sources.hub import list_hub, midi_column, official_splits
from pianogen_hf.data.sources.listing import list_sources
from pianogen_hf.errors import DataError
from pianogen_hf.publishing.data_digest import digest

ROOT = Path(pg.__file__).parents[1]
REPO = "pianogen/music"
# A process whose libraries see the Hub's address before they are imported. Command lines go in, answers come out.
_WORKER = """
import contextlib, io, json, sys
from pianogen_hf.commands import main
answers = sys.stdout
for line in sys.stdin:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(json.loads(line))
    print(json.dumps([code, out.getvalue(), err.getvalue()]), file=answers, flush=True)
"""


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


def build(folder, music, *options):
    command = ["build", *options, "--source", f"folder={music}", "--output", str(folder)]
    assert main([*command, "--cache_dir", f"{folder}-cache"]) == 0
    return folder


@contextmanager
def worker(environment):
    """Runs commands of pianogen in another process: (exit code, stdout, last line of stderr)."""
    command = [sys.executable, "-c", _WORKER]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, **pipes, text=True, env={**environment, "PYTHONPATH": str(ROOT)})

    def run(*argv):
        process.stdin.write(json.dumps([str(each) for each in argv]) + "\n")
        process.stdin.flush()
        code, out, err = json.loads(process.stdout.readline())
        return code, out, (err.strip().splitlines() or [""])[-1]

    try:
        yield run
    finally:
        process.stdin.close()
        process.wait(60)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("push")


@pytest.fixture(scope="module")
def music(place):
    return write_pieces(place / "music", range(12))


@pytest.fixture(scope="module")
def built(place, music):
    return build(place / "built", music, "--tokenizer=PerformanceTokenizer", "--chunk_length=33")


@pytest.fixture(scope="module")
def hub():
    with HubServer() as server:
        yield server


@pytest.fixture(scope="module")
def run(hub, place):
    with worker(hub.environment(place / "home")) as run:
        yield run


@pytest.fixture(scope="module")
def pushed(run, built):
    """What the first push said."""
    return run("data", "push", built, "--repo", REPO, "--license", "cc0-1.0")


def files(hub, repo=REPO, **where):
    return hub.files(repo, type="dataset", **where)


def table(content):
    return pq.read_table(pa.BufferReader(content))


# The way there -------------------------------------------------------------------------------------------------------


def test_a_push_is_one_commit_with_data_split_tokenizer_and_card_and_is_checked(hub, pushed, built):
    code, out, _ = pushed
    assert code == 0 and "checked: pianogen/music at " in out and "holds the same 12 pieces" in out
    shard = "-00000-of-00001.parquet"
    names = {f"{config}/{side}{shard}" for config in ("pieces", "chunks") for side in ("train", "validation", "test")}
    assert set(files(hub)) == names | {"README.md", "split.json", "tokenizer/tokenizer_config.json"}
    assert len(hub.commits(REPO, type="dataset")) == 1
    assert files(hub)["split.json"] == (built / "split.json").read_bytes()


def test_columns_are_plain_and_hold_the_music(hub, pushed, built):
    rows = table(files(hub)["pieces/train-00000-of-00001.parquet"])
    assert {name: str(kind) for name, kind in zip(rows.schema.names, rows.schema.types, strict=True)} == {
        **dict.fromkeys(("piece_id", "source", "family_id", "official_split", "content"), "string"),
        **{"midi": "binary", "num_notes": "int32", "seconds": "float", "excluded_notes": "int32"},
    }
    for row in rows.to_pylist():
        assert content_hash(pg.read_midi(row["midi"])) == row["content"]


def test_the_card_tells_the_hub_its_configurations_and_the_reader_its_figures(hub, pushed, built):
    card = files(hub)["README.md"].decode()
    front = yaml.safe_load(card.split("---")[1])
    assert front["license"] == "cc0-1.0" and front["size_categories"] == "n<1K"
    assert [each["config_name"] for each in front["configs"]] == ["pieces", "chunks"] and front["configs"][0]["default"]
    manifest = read_manifest(built / "split.json")
    assert manifest["hash"] in card and "| `music` | MIDI files | 12 | 480 |" in card
    assert f"| train | {manifest['counts']['train']} | {manifest['notes']['train']} |" in card
    assert "non-commercial" not in front["tags"]


def test_nothing_that_goes_up_tells_of_this_machine(hub, pushed, place):
    for path, content in files(hub).items():
        text = repr(table(content).to_pylist()) if path.endswith(".parquet") else content.decode()
        assert str(place) not in text and str(Path.home()) + "/" not in text, path


def test_a_second_push_changes_nothing(hub, run, pushed, built):
    code, out, _ = run("data", "push", built, "--repo", REPO, "--license", "cc0-1.0")
    assert code == 0 and out.startswith("nothing changed: pianogen/music")
    assert len(hub.commits(REPO, type="dataset")) == 1


def test_a_push_that_fails_is_one_line_and_leaves_the_repository_as_it_was(hub, run, pushed, place):
    other = build(place / "other", write_pieces(place / "more", range(20, 30)))
    before = files(hub)
    for step, status in (("lfs_upload", 403), ("commit", 500)):  # in this order: what was uploaded is not sent again
        made = hub.fault(step, status=status, times=9)
        code, _, last = run("data", "push", other, "--repo", REPO)
        made.times = 0
        assert code == 2 and last.startswith("error: not pushed to pianogen/music: ")
        assert files(hub) == before


def test_chunks_of_continuous_notes_are_rows_of_numbers(hub, run, place, music):
    built = build(place / "continuous", music, "--tokenizer=ContinuousNotesFeatureExtractor", "--chunk_length=33")
    code, out, error = run("data", "push", built, "--repo", "pianogen/rows", "--license", "cc0-1.0")
    assert code == 0 and "checked" in out, error
    pushed = files(hub, "pianogen/rows")
    assert "`input_values`" in pushed["README.md"].decode() and "`input_ids`" not in pushed["README.md"].decode()
    rows = table(pushed["chunks/train-00000-of-00001.parquet"])
    assert len(rows["input_values"][0].as_py()[0]) == 4


@pytest.mark.slow
def test_a_branch_gets_the_new_data_alone_and_main_keeps_the_old(hub, run, pushed, place):
    other = build(place / "branch", write_pieces(place / "few", range(40, 50)))
    code, out, _ = run("data", "push", other, "--repo", REPO, "--revision", "v2")
    assert code == 0 and "checked" in out
    assert not any(path.startswith(("chunks/", "tokenizer/")) for path in files(hub, revision="v2"))
    assert "chunks/train-00000-of-00001.parquet" in files(hub)


@pytest.mark.slow
def test_who_may_not_write_opens_a_pull_request(hub, run, pushed, place):
    other = build(place / "request", write_pieces(place / "pull", range(60, 70)))
    options = ("--repo", REPO, "--token", "hf_other")
    assert run("data", "push", other, *options)[0] == 2
    code, out, _ = run("data", "push", other, *options, "--create_pr")
    assert code == 0 and "checked" in out and len(hub.commits(REPO, type="dataset")) == 1


def test_what_can_not_be_pushed_is_refused_before_anybody_is_asked(built, place, capsys, tmp_path):
    def error(*argv):
        assert main(["push", *map(str, argv)]) == 2
        return capsys.readouterr().err.strip().splitlines()[-1]

    assert "no data set that `pianogen data build` wrote" in error(place / "music", "--repo", REPO)
    assert "--license 'CC BY' is no name" in error(built, "--repo", REPO, "--license", "CC BY")
    assert "leave out --revision" in error(built, "--repo", REPO, "--create_pr", "--revision", "v2")
    (tmp_path / "words.md").write_text(f"See {place}/notes.txt")
    for options in ([], ["--dry_run"]):
        told = error(built, "--repo", REPO, *options, "--card_text", tmp_path / "words.md")
        assert "README.md names a folder of this machine" in told
    (tmp_path / "words.md").write_text("hf_" + "a" * 34)
    assert "holds an access token" in error(built, "--repo", REPO, "--dry_run", "--card_text", tmp_path / "words.md")


def test_a_dry_run_shows_the_card_and_warns_of_terms_that_forbid_commerce(tmp_path, capsys):
    folder = build(tmp_path / "built", write_pieces(tmp_path / "maestro", range(9)))
    capsys.readouterr()
    assert main(["push", str(folder), "--repo", REPO, "--license", "mit", "--dry_run"]) == 0
    out, err = capsys.readouterr()
    assert "warning: MAESTRO (maestro) is under CC BY-NC-SA 4.0" in err and "mit allows what the terms" in err
    assert "- non-commercial" in out and "> **Not for commercial use.** MAESTRO" in out and "pieces/train-" in out


def test_a_tokenizer_that_nobody_else_has_is_refused(tmp_path, capsys):
    pg.PerformanceTokenizer().save_pretrained(tmp_path / "mine")
    chunks = ["--model_name_or_path", str(tmp_path / "mine"), "--chunk_length", "33"]
    folder = build(tmp_path / "built", write_pieces(tmp_path / "music", range(9)), *chunks)
    assert main(["push", str(folder), "--repo", REPO, "--dry_run"]) == 2
    assert "a folder that nobody else has" in capsys.readouterr().err


# The way back --------------------------------------------------------------------------------------------------------


_STRANGER = """
import io, sys
from datasets import load_dataset
import mido
pieces = load_dataset("pianogen/music")
chunks = load_dataset("pianogen/music", "chunks")
file = mido.MidiFile(file=io.BytesIO(pieces["train"][0]["midi"]))
played = sum(message.type == "note_on" and message.velocity > 0 for track in file.tracks for message in track)
assert not any(name.startswith("pianogen_hf") for name in sys.modules)
try:
    import pianogen_hf
except ImportError:
    print(sorted(pieces), played, pieces["train"][0]["num_notes"], len(chunks["train"]) > 0)
"""


def test_a_stranger_without_this_package_loads_the_data_and_reads_the_midi(hub, pushed, tmp_path):
    pytest.importorskip("mido", reason="mido reads MIDI without this package")
    command = [sys.executable, "-I", "-c", _STRANGER]  # -I: no folder but the installed packages is searched
    environment = hub.environment(tmp_path, token=None)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
    if not done.stdout and not done.returncode:
        pytest.skip("pianogen_hf is installed here")
    assert done.stdout.split("] ")[-1].split() == ["40", "40", "True"], done.stderr[-500:]


def test_training_by_name_keeps_the_split_and_records_the_commit(hub, run, pushed, built, place):
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    command = (
        f"--chunk_length 33 --max_steps 1 --cache_dir {place}/hub-cache --output_dir {place}/model --report_to none"
    )
    options = ["--source", f"hub={REPO}", "--model_config", json.dumps(sizes), *command.split()]
    code, out, last = run("train", *options)
    assert code == 0, last
    made, ours = (read_manifest(folder / "split.json") for folder in (place / "model", built))
    commit = hub.hub.repositories["dataset", REPO].find("main").id
    assert made["pieces"] == ours["pieces"] and made["parameters"]["source"] == [f"hub={REPO}@{commit}"]
    assert json.loads((place / "model" / "metrics.json").read_text())["hub_datasets"] == {REPO: commit}
    card = (place / "model" / "README.md").read_text()
    assert yaml.safe_load(card.split("---")[1])["datasets"] == [REPO] and f"at commit `{commit}`" in card


def test_a_data_set_on_the_hub_is_checked_like_one_here(run, pushed):
    code, out, _ = run("data", "check", f"hub={REPO}")
    assert code == 0 and "no leak found" in out and "train chunks" in out and "content hashes" in out


def test_what_can_not_be_had_is_one_line(hub, run, pushed):
    def error(source):
        code, _, last = run("data", "check", "--source", source)
        assert code == 2
        return last

    assert "the Hub has no data set pianogen/none" in error("hub=pianogen/none")
    assert f"the data set {REPO} has no revision v9" in error(f"hub={REPO}@v9")
    assert "hub=a b is no name on the Hub" in error("hub=a b")
    hub.add("pianogen/empty", {"README.md": b"# Nothing"}, type="dataset")
    assert "holds neither Parquet nor MIDI files" in error("hub=pianogen/empty")


def test_a_split_that_does_not_describe_the_pieces_is_refused(hub, run, pushed):
    whole = files(hub)
    kept = {path: content for path, content in whole.items() if "test-" not in path}
    hub.add("pianogen/torn", kept, type="dataset")
    code, _, last = run("data", "check", "--source", "hub=pianogen/torn")
    assert code == 2 and "its split.json does not describe its pieces" in last


def stranger_tables(column):
    """Parquet files of somebody who knows nothing of this package."""
    for side, numbers in {"train": range(8), "dev": range(8, 10), "test": range(10, 12)}.items():
        midi = [column(number) for number in numbers]
        rows = pa.table(
            {"title": [f"Piece {number}" for number in numbers], "composer": ["X"] * len(midi), "file": midi}
        )
        sink = pa.BufferOutputStream()
        pq.write_table(rows, sink)
        yield f"data/{side}-00000-of-00001.parquet", sink.getvalue().to_pybytes()


def test_tables_of_strangers_are_read_by_their_midi_bytes_and_keep_their_sides(hub, run, place, music, monkeypatch):
    midi = [(music / f"{number}.mid").read_bytes() for number in range(12)]
    hub.add("somebody/tunes", dict(stranger_tables(lambda n: {"bytes": midi[n], "path": f"{n}.mid"})), type="dataset")
    code, out, last = run("data", "check", "--source", "hub=somebody/tunes", "--cache_dir", place / "strangers")
    assert code == 0 and "(train 8, test 2, validation 2)" in out, last
    files = cached(place, monkeypatch, "hub=somebody/tunes")
    assert files[0].piece_id == "tunes/train/Piece 0" and files[0].source == "tunes"
    pieces = load_pieces(files, place / "again")
    found = {name.split()[-1]: content for name, content in zip(pieces["piece_id"], pieces["content"], strict=True)}
    assert found == {str(number): content_hash(pg.read_midi(each)) for number, each in enumerate(midi)}


def test_plain_midi_files_on_the_hub_are_listed_as_a_folder_is(hub, run, place, music, monkeypatch):
    midi = {f"train/{n}.mid": (music / f"{n}.mid").read_bytes() for n in range(3)}
    hub.add("somebody/files", {**midi, "test/3.mid": midi["train/0.mid"]}, type="dataset")
    run("data", "stats", "--source", "hub=somebody/files", "--output", place / "stats.png")
    files = cached(place, monkeypatch, "hub=somebody/files")
    assert [(each.piece_id, each.official_split) for each in files] == [
        ("files/test/3.mid", "test"),
        *((f"files/train/{n}.mid", "train") for n in range(3)),
    ]


def cached(place, monkeypatch, source):
    """What is listed here, where there is no network, from what the other process has fetched."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(place / "home" / "hub"))
    return list_sources([source])


def test_without_a_network_the_cache_is_enough_and_what_it_lacks_is_said(run, pushed, built, place, monkeypatch):
    assert run("data", "check", f"hub={REPO}")[0] == 0
    files = cached(place, monkeypatch, f"hub={REPO}")
    sides = {name: row[0] for name, row in read_manifest(built / "split.json")["pieces"].items()}
    assert {each.piece_id: each.official_split for each in files} == sides
    with pytest.raises(DataError, match="HF_HUB_OFFLINE is set, and the cache does not hold"):
        list_hub("hub=pianogen/unseen")


# Without a Hub -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("columns", "complaint"),
    [
        ({"text": ["a"]}, "no column holds MIDI bytes; the columns are text"),
        ({"image": [b"\x89PNG"]}, "no column holds MIDI bytes"),
        ({"a": [b"MThd"], "b": [b"MThd"]}, r"several columns hold MIDI bytes \(a, b\)"),
    ],
)
def test_tables_without_one_column_of_midi_are_refused(tmp_path, columns, complaint):
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    with pytest.raises(DataError, match=complaint):
        midi_column(tmp_path / "x.parquet")


@pytest.mark.parametrize(
    ("splits", "sides"),
    [
        (["train"], [""]),
        (["train", "test"], ["", "test"]),
        (["train", "dev", "test"], ["train", "validation", "test"]),
        (["classical", "jazz"], ["", ""]),
    ],
)
def test_train_prescribes_a_side_only_beside_validation(splits, sides):
    assert list(official_splits(splits).values()) == sides


def test_a_column_called_midi_wins(tmp_path):
    pq.write_table(pa.table({"raw": [b"MThd"], "midi": [b"MThd"]}), tmp_path / "x.parquet")
    assert midi_column(tmp_path / "x.parquet") == "midi"


def test_a_digest_sees_every_value_and_no_layout():
    rows = {"ids": [[1, 2], [3]], "name": ["a", "b"], "midi": [b"x", b""], "size": [1, 2]}
    whole = digest({"train": Dataset.from_dict(rows)})
    doubled = Dataset.from_dict({name: [values[0], *values] for name, values in rows.items()})
    assert digest({"train": doubled.select([1, 2])}) == whole
    for name, other in {"ids": [[1], [2, 3]], "name": ["ab", ""], "midi": [b"", b"x"], "size": [1, 3]}.items():
        assert digest({"train": Dataset.from_dict({**rows, name: other})}) != whole
