"""Pushing to the Hub and loading from it by name, with the real client against the Hub of the tests."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hub_server import HubServer

import pianogen_hf as pg

ROOT = Path(pg.__file__).parent.parent
BUNDLED = Path(pg.BACH_MODEL)
FILES = {path.name: path.read_bytes() for path in BUNDLED.iterdir() if path.is_file()}
STEPS = r"""
import json, os, shutil, sys, urllib.request
from pathlib import Path
from huggingface_hub import constants
from pianogen_hf.hub.models import model_file, model_folder, refuse_pickle
from pianogen_hf.workflows.split import provenance_of
from pianogen_hf.workflows.loading import load_encoder
from pianogen_hf.hub.destination import Destination
from pianogen_hf.hub.errors import limit_waiting
from pianogen_hf.publishing.model_files import is_part, select_files

limit_waiting(1)
seen = {}

def fault(step, **what):
    body = json.dumps({"step": step, **what}).encode()
    urllib.request.urlopen(urllib.request.Request(f"{constants.ENDPOINT}/-/fault", body, method="POST"))

def push(repo, folder=sys.argv[1], message="one", **options):
    try:
        pushed = Destination(repo, **options).push(select_files(folder, repo).uploads, message, is_part)
        return [pushed.summary, len(pushed.changed), list(pushed.removed), pushed.revision]
    except ValueError as error:
        return str(error)

def load(name, revision=None, token=None):
    os.environ.pop("HF_TOKEN", None)
    if token:
        os.environ["HF_TOKEN"] = token
    try:
        folder = model_folder(name, revision)
        refuse_pickle(folder, name)
        return sorted(os.listdir(folder))
    except ValueError as error:
        return str(error)

seen["first"], seen["again"] = push("pianogen/v7"), push("pianogen/v7")
other = Path(shutil.copytree(sys.argv[1], sys.argv[2]))
(other / "metrics.json").unlink()
(other / "samples").mkdir()
(other / "samples" / "a.mid").write_bytes(b"MThd")
seen["other"] = push("pianogen/v7", other, "two")
seen["back"] = push("pianogen/v7", message="three")
seen["private"], seen["public"] = push("pianogen/hidden", private=True), push("pianogen/v7", private=True)
seen["branch"], seen["change"] = push("pianogen/b", revision="dev"), push("pianogen/c", create_pr=True)
seen["bare"] = push("bare")
for name, step, what in (
    ("lost", "commit", {"lost": True}), ("raced", "commit", {"status": 412}), ("broken", "commit", {"status": 500}),
    ("silent", "create", {"hang": 20}), ("gone", "commit", {"gone": True}), ("limited", "commit", {"status": 429}),
    ("expired", "commit", {"status": 401, "message": "User Access Token is expired"}),
):
    fault(step, **what)
    seen[name] = push(f"pianogen/{name}")
seen["retried"] = push("pianogen/broken")
seen["reader"], seen["no such name"] = push("pianogen/unheard", token="hf_reader"), push("a/b/c")

seen["loaded"], seen["at tag"] = load("somebody/v7"), load("somebody/v7", "v1")
seen["tokenizer"] = type(load_encoder("somebody/v7", "v1")).__name__
seen["revision"], seen["nothing"], seen["path"] = load("somebody/v7", "v9"), load("somebody/none"), load("../nowhere")
seen["gated"] = [load("somebody/gated", token=token) for token in (None, "hf_writer", "hf_reader")]
seen["closed"] = [load("somebody/private", token=token) for token in (None, "hf_reader", "hf_other")]
seen["bad token"] = load("somebody/cold", token="hf_expired")
seen["pickle"] = load("somebody/pickle")
seen["folder"] = load(sys.argv[1], "main")
seen["unknown"] = list(provenance_of("somebody/pickle").unknown)
seen["known"] = provenance_of("somebody/v7").status
seen["file"] = model_file("somebody/v7", "split.json").name
try:
    model_file("somebody/pickle", "split.json")
except ValueError as error:
    seen["no file"] = str(error)
print(json.dumps(seen))
"""


def client(hub: HubServer, home: Path, *command: str, token: str | None = "hf_writer", **settings: str):
    environment = hub.environment(home, token=token, PYTHONPATH=str(ROOT), **settings)
    return subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, timeout=300)


COMMAND = ("-c", "import sys; from pianogen_hf.commands import main; sys.exit(main(sys.argv[1:]))")


@pytest.fixture(scope="module")
def hub():
    with HubServer() as server:
        server.add("somebody/v7", FILES)
        repo = server.hub.repositories["model", "somebody/v7"]
        repo.tags["v1"] = repo.branches["main"]
        server.add("somebody/v7", {"samples/a.mid": b"MThd", "checkpoint-9/optimizer.pt": b"\x80"})
        server.add("somebody/cold", FILES)
        server.add("somebody/gated", FILES, gated="manual", accepted={"listener"})
        server.add("somebody/private", FILES, private=True)
        server.add("somebody/pickle", {"config.json": FILES["config.json"], "pytorch_model.bin": b"\x80\x04."})
        yield server


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def seen(hub, home):
    done = client(hub, home, "-c", STEPS, str(BUNDLED), str(home / "other"))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_push_is_one_commit_and_a_second_one_none(hub, seen):
    summary, changed, removed, revision = seen["first"]
    assert (changed, removed) == (len(FILES), []) and summary.startswith("pushed: ") and revision[:12] in summary
    assert seen["again"][0].startswith("nothing changed") and seen["again"][1:] == [0, [], revision]
    assert hub.commits("pianogen/v7") == ["three", "two", "one"]
    held = hub.files("pianogen/v7")
    assert {name: held[name] for name in FILES if name != "README.md"} == {
        name: content for name, content in FILES.items() if name != "README.md"
    }
    assert 'name = "pianogen/v7"' in held["README.md"].decode()


def test_what_belongs_to_another_model_is_removed_and_what_people_look_at_stays(hub, seen):
    assert seen["other"][1:3] == [2, ["metrics.json"]], "a sample and the card are new"
    assert seen["back"][1:3] == [2, []] and "samples/a.mid" in hub.files("pianogen/v7")


def test_private_repositories_branches_and_pull_requests(hub, seen):
    repositories = hub.hub.repositories
    assert repositories["model", "pianogen/hidden"].private
    assert "public" in seen["public"] and "--private" in seen["public"]
    assert hub.commits("pianogen/b") == [] and hub.commits("pianogen/b", "dev") == ["one"]
    assert hub.commits("pianogen/c") == [] and hub.commits("pianogen/c", "refs/pr/1") == ["one"]
    assert seen["change"][3] == "refs/pr/1" and "discussions/1" in seen["change"][0]
    assert hub.commits("pianogen/bare") == ["one"], "a name alone is one of the user's own"


def test_a_commit_whose_answer_was_lost_is_found(hub, seen):
    assert seen["lost"][0].startswith("pushed: ") and hub.commits("pianogen/lost") == ["one"]


FAILURES = {
    "raced": "somebody else has changed it meanwhile: repeat",
    "broken": "fault of its own (500): try again later",
    "silent": "does not answer",
    "gone": "not there any more",
    "limited": "too many requests",
    "expired": "expired or wrong",
    "reader": "may not write there",
    "no such name": "USER/NAME",
}


@pytest.mark.parametrize("what", FAILURES)
def test_a_push_that_fails_says_why_in_one_line_and_changes_nothing(hub, seen, what):
    assert FAILURES[what] in seen[what] and "\n" not in seen[what]
    repo = hub.hub.repositories.get(("model", f"pianogen/{what}"))
    assert repo is None or hub.commits(repo.id) == (["one"] if what == "broken" else [])


def test_a_push_that_failed_can_be_repeated(hub, seen):
    assert seen["retried"][0].startswith("pushed: ") and hub.commits("pianogen/broken") == ["one"]


def test_a_model_by_name_is_the_files_of_one_commit_without_anything_else(seen):
    assert seen["loaded"] == seen["at tag"] == sorted(set(FILES) - {"README.md", "card_text.md"})
    assert seen["tokenizer"] == "JSBTokenizer" and seen["file"] == "split.json"


def test_each_reason_why_a_model_can_t_be_had_is_told_apart(seen):
    assert "has no revision 'v9'" in seen["revision"]
    assert "Hub has none of that name" in seen["nothing"] and "no name that a model can have" in seen["path"]
    anonymous, refused, accepted = seen["gated"]
    assert "is gated" in anonymous and "hf auth login" in anonymous and "account of your token" in refused
    assert accepted == seen["loaded"]
    anonymous, refused, own = seen["closed"]
    assert "needs a token" in anonymous and "does not let you see" in refused and own == seen["loaded"]
    assert "expired or wrong" in seen["bad token"] and "is a folder" in seen["folder"]
    assert seen["no file"] == "model 'somebody/pickle' has no split.json"


def test_pickle_is_neither_opened_nor_fetched(hub, seen):
    assert "pytorch_model.bin" in seen["pickle"] and "save_pretrained('converted')" in seen["pickle"]
    assert not any(each["path"].endswith((".bin", ".pt")) for each in hub.log if each["step"] in ("head", "resolve"))


def test_what_a_model_was_trained_on_is_known_by_its_name_on_the_hub(seen):
    assert seen["unknown"] == ["somebody/pickle"] and seen["known"] == "known"


@pytest.mark.parametrize(
    "setting", ["HF_HUB_OFFLINE=1", pytest.param("HF_ENDPOINT=http://127.0.0.1:9", marks=pytest.mark.slow)]
)
def test_offline_the_cache_serves_and_what_it_lacks_is_told(hub, home, seen, setting):
    code = r"""
from pianogen_hf.hub.models import model_folder
for name, revision in (("somebody/v7", None), ("somebody/v7", "v1"), ("somebody/v7", "v9"), ("somebody/none", None)):
    try:
        print(model_folder(name, revision).name)
    except ValueError as error:
        print(error)
"""
    commit = hub.hub.repositories["model", "somebody/v7"].branches["main"]
    name, value = setting.split("=")
    done = client(hub, home, "-c", code, token=None, **{name: value})
    warm, tagged, revision, cold = done.stdout.splitlines()
    assert warm == commit and tagged == hub.hub.repositories["model", "somebody/v7"].tags["v1"]
    reason = "HF_HUB_OFFLINE is set" if name == "HF_HUB_OFFLINE" else "no connection"
    assert reason in cold and reason in revision and "'v9'" in revision


@pytest.mark.slow
def test_the_command_pushes_and_checks_what_arrived(hub, home):
    done = client(hub, home, *COMMAND, "push", "--model", str(BUNDLED), "--repo", "pianogen/checked")
    assert done.returncode == 0, done.stderr
    pushed, checked = done.stdout.splitlines()[-2:]
    assert pushed.startswith("pushed: ") and "computes the same numbers" in checked and "with the package" in checked


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["music transformer", "masked", "continuous", "stock"])
def test_every_kind_of_model_comes_back_as_it_went(hub, home, tmp_path, kind):
    folder = saved_model(tmp_path / "model", kind)
    done = client(hub, home, *COMMAND, "push", "--model", str(folder), "--repo", f"pianogen/{kind.replace(' ', '-')}")
    assert done.returncode == 0, done.stderr + done.stdout
    how = "the package hidden" if list(folder.glob("*.py")) else "with the package"
    assert "computes the same numbers" in done.stdout and how in done.stdout


def saved_model(folder: Path, kind: str) -> Path:
    from models_and_tokenizers import tiny_model
    from transformers import GPT2Config, GPT2LMHeadModel

    encoder = pg.ContinuousNotesFeatureExtractor() if kind == "continuous" else pg.PerformanceTokenizer()
    size = 0 if kind == "continuous" else len(encoder)
    if kind == "stock":
        model = GPT2LMHeadModel(GPT2Config(vocab_size=size, n_embd=16, n_layer=1, n_head=2, n_positions=64))
    elif kind == "continuous":
        sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
        model = pg.ContinuousNotesForCausalLM(pg.ContinuousNotesConfig(**sizes, max_position_embeddings=64))
    elif kind == "masked":
        model = tiny_model(pg.PianoEncoderForMaskedLM, size, is_causal=False)
    else:
        model = tiny_model(pg.MusicTransformerForCausalLM, size)
    model.save_pretrained(folder)
    encoder.save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_a_model_that_is_another_on_the_hub_is_found_out(hub, home, tmp_path):
    code = r"""
import sys
from pathlib import Path
from pianogen_hf.publishing.model_reload import check_pushed
from pianogen_hf.hub.destination import Pushed
from pianogen_hf.publishing.model_files import is_part, select_files
folder = Path(sys.argv[1])
try:
    print(check_pushed(folder, select_files(folder), Pushed("somebody/v7", "v1", "", "")))
except ValueError as error:
    print(error)
"""
    import shutil

    from safetensors.numpy import load_file, save_file

    folder = Path(shutil.copytree(BUNDLED, tmp_path / "other"))
    weights = load_file(folder / "model.safetensors")
    name = min(weights)
    save_file({**weights, name: weights[name] + 0.01}, folder / "model.safetensors", {"format": "pt"})
    done = client(hub, home, "-c", code, str(folder))
    assert "computes something else" in done.stdout, done.stderr


@pytest.mark.slow
def test_an_interrupt_says_that_nothing_has_changed(hub, home):
    fault = hub.fault("commit", hang=60)
    environment = hub.environment(home, PYTHONPATH=str(ROOT))
    command = [sys.executable, *COMMAND, "push", "--model", str(BUNDLED), "--repo", "pianogen/interrupted"]
    process = subprocess.Popen(
        command,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background job's children would ignore it
    )
    for _ in range(1200):
        if fault.times == 0 or process.poll() is not None:
            break
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and err.splitlines()[-1].startswith("interrupted: no file on the Hub has changed")
    assert hub.commits("pianogen/interrupted") == []


@pytest.mark.slow
def test_training_pushes_what_may_go_up_and_never_loses_the_model(hub, home, tmp_path):
    from models_and_tokenizers import some_notes

    for number in range(6):
        pg.write_midi(some_notes(number, 60), tmp_path / "midi" / f"{number}.mid")
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    options = {
        "source": f"folder={tmp_path / 'midi'}",
        "cache_dir": tmp_path / "cache",
        "model_config": json.dumps(sizes),
        "chunk_length": 65,
        "max_steps": 2,
        "save_steps": 1,
        "sample_steps": 2,
        "sample_notes": 3,
        "push_to_hub": "true",
        "hub_token": "hf_writer",
    }
    train = [*COMMAND, "train", *(f"--{name}={value}" for name, value in options.items())]
    whole = [*train, f"--output_dir={tmp_path / 'one'}", "--hub_model_id=pianogen/trained"]
    done = client(hub, home, *whole, token=None)
    assert done.returncode == 0, done.stderr
    held, titles = hub.files("pianogen/trained"), hub.commits("pianogen/trained")
    assert titles[0] == "End of training" and titles[-1] == "Training in progress, step 1"
    assert {"model.safetensors", "split.json", "provenance.json", "metrics.json", "samples/step-000002.mid"} <= set(
        held
    )
    allowed = (".json", ".safetensors", ".md", ".py", ".mid", ".png")
    assert all(name.endswith(allowed) for name in held) and not any(name.startswith("checkpoint") for name in held)
    assert "- name: pianogen/trained" in held["README.md"].decode()
    assert not any(b"hf_writer" in content for content in held.values())
    assert not list((tmp_path / "one").glob(".push-*"))

    hub.fault("commit", status=500, times=99)
    done = client(hub, home, *train, f"--output_dir={tmp_path / 'two'}", "--hub_model_id=pianogen/failed", token=None)
    hub.faults.clear()
    assert done.returncode == 2 and "training continues" in done.stderr
    assert f"pianogen push --model {tmp_path / 'two'} --repo pianogen/failed" in done.stderr.splitlines()[-1]
    assert (tmp_path / "two" / "model.safetensors").exists() and hub.commits("pianogen/failed") == []

    refused = [*train, f"--output_dir={tmp_path / 'three'}", "--hub_model_id=somebody/else"]
    done = client(hub, home, *refused, token=None)
    assert done.returncode == 2 and "may not write there" in done.stderr and not (tmp_path / "three").exists()
