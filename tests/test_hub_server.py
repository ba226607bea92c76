"""The Hub that other tests use is held to the protocol by the real client, in a process of its own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hub_repositories import is_large
from hub_server import HubServer

STEPS = r"""
import json, os, sys
from huggingface_hub import CommitOperationAdd as Add, CommitOperationDelete as Delete
from huggingface_hub import HfApi, HfFileSystem, hf_hub_download, snapshot_download

api, seen = HfApi(), {}

def failure(call, *args, **kwargs):
    try:
        call(*args, **kwargs)
    except Exception as error:
        while getattr(error, "response", None) is None and error.__cause__ is not None:
            error = error.__cause__
        return [type(error).__name__, getattr(getattr(error, "response", None), "status_code", None)]

seen["whoami"] = api.whoami()["name"]
kinds = {"model": None, "dataset": None, "space": "static"}
seen["created"] = [api.create_repo("pianogen/v7", repo_type=kind, space_sdk=sdk).repo_id for kind, sdk in kinds.items()]
seen["exists"] = failure(api.create_repo, "pianogen/v7")
api.create_repo("pianogen/v7", exist_ok=True)
big = bytes(range(256)) * 1000
files = [Add("model.safetensors", big), Add("README.md", b"---\nlicense: mit\n---\n# x"), Add("a/b.json", b"{}")]
one = api.create_commit("pianogen/v7", files, commit_message="one")
again = api.create_commit("pianogen/v7", [Add("model.safetensors", big)], commit_message="again")
seen["unchanged"] = again.oid == one.oid
seen["listed"] = sorted(api.list_repo_files("pianogen/v7"))
seen["folder"] = [each.path for each in api.list_repo_tree("pianogen/v7", "a", expand=True)]
api.create_tag("pianogen/v7", tag="v1.0")
api.create_branch("pianogen/v7", branch="dev/x")
seen["branch twice"] = failure(api.create_branch, "pianogen/v7", branch="dev/x")
api.create_commit("pianogen/v7", [Delete("a/")], commit_message="two", parent_commit=one.oid)
seen["stale parent"] = failure(
    api.create_commit, "pianogen/v7", [Add("x", b"x")], commit_message="x", parent_commit=one.oid)
seen["delete nothing"] = failure(api.create_commit, "pianogen/v7", [Add("y", b"y"), Delete("no")], commit_message="x")
card = Add("README.md", b"---\na: [\n---\n")
seen["bad card"] = failure(api.create_commit, "pianogen/v7", [card], commit_message="x")
change = api.create_commit("pianogen/v7", [Add("x.txt", b"x")], commit_message="pr", create_pr=True)
seen["change"] = open(hf_hub_download("pianogen/v7", "x.txt", revision=change.pr_revision)).read()
refs = api.list_repo_refs("pianogen/v7", include_pull_requests=True)
seen["refs"] = [[each.name for each in group] for group in (refs.branches, refs.tags, refs.pull_requests)]
seen["commits"] = [each.title for each in api.list_repo_commits("pianogen/v7")]
info = api.model_info("pianogen/v7", files_metadata=True)
seen["info"] = [info.card_data.license, info.private, {s.rfilename: s.size for s in info.siblings}["model.safetensors"]]
seen["snapshot"] = sorted(os.listdir(snapshot_download("pianogen/v7")))
seen["tagged"] = open(hf_hub_download("pianogen/v7", "a/b.json", revision="v1.0")).read()
seen["weights"] = open(hf_hub_download("pianogen/v7", "model.safetensors", revision="dev/x"), "rb").read() == big
with HfFileSystem().open("pianogen/v7/model.safetensors", "rb") as file:
    file.seek(len(big) - 3)
    seen["range"] = list(file.read())
download = dict(repo_id="pianogen/v7", filename="README.md", force_download=True)
seen["no repository"] = failure(hf_hub_download, "pianogen/no", "README.md")
seen["no file"] = failure(hf_hub_download, "pianogen/v7", "no")
seen["no revision"] = failure(hf_hub_download, "pianogen/v7", "README.md", revision="no")
seen["expired"] = failure(hf_hub_download, **download, token="hf_expired")
seen["wrong"] = failure(hf_hub_download, **download, token="hf_nobody")
api.update_repo_settings("pianogen/v7", gated="manual")
seen["gated"] = [failure(hf_hub_download, **download, token=token) for token in (False, "hf_other", None)]
api.update_repo_settings("pianogen/v7", private=True)
seen["private"] = [failure(hf_hub_download, **download, token=token) for token in (False, "hf_other", None)]
seen["may not create"] = failure(api.create_repo, "pianogen/v8", token="hf_reader")
api.delete_tag("pianogen/v7", tag="v1.0")
api.delete_branch("pianogen/v7", branch="dev/x")
api.delete_repo("pianogen/v7", repo_type="space")
seen["gone"] = failure(api.repo_info, "pianogen/v7", repo_type="space")
print(json.dumps(seen))
"""


def run(hub: HubServer, home: Path, code: str, **settings: str) -> str:
    environment = hub.environment(home, **settings)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def hub():
    with HubServer() as server:
        yield server


@pytest.fixture(scope="module")
def seen(hub: HubServer, tmp_path_factory: pytest.TempPathFactory):
    return json.loads(run(hub, tmp_path_factory.mktemp("home"), STEPS))


def test_repositories_commits_and_revisions_are_as_the_client_expects(hub, seen):
    assert seen["whoami"] == "pianogen" and seen["created"] == ["pianogen/v7"] * 3
    assert seen["exists"] == ["HfHubHTTPError", 409] and seen["branch twice"] == ["HfHubHTTPError", 409]
    assert seen["unchanged"] and seen["listed"] == [".gitattributes", "README.md", "a/b.json", "model.safetensors"]
    assert seen["folder"] == ["a/b.json"] and seen["commits"] == ["two", "one", "initial commit"]
    assert seen["refs"] == [["main", "dev/x"], ["v1.0"], ["1"]] and seen["change"] == "x"
    assert seen["info"] == ["mit", False, 256_000]
    assert seen["gone"] == ["RepositoryNotFoundError", 404] and ("space", "pianogen/v7") not in hub.hub.repositories


def test_a_refused_commit_changes_nothing(hub, seen):
    assert seen["stale parent"] == ["HfHubHTTPError", 412]
    assert seen["delete nothing"] == ["RemoteEntryNotFoundError", 404]
    assert seen["bad card"][0] == "BadRequestError"
    assert list(hub.files("pianogen/v7")) == ["README.md", "model.safetensors"]


def test_files_come_whole_or_in_ranges_from_every_revision(seen):
    assert seen["snapshot"] == [".gitattributes", "README.md", "model.safetensors"]
    assert seen["tagged"] == "{}" and seen["weights"] and seen["range"] == [253, 254, 255]


def test_what_is_missing_or_closed_is_told_apart(seen):
    assert seen["no repository"] == ["RepositoryNotFoundError", 404]
    assert seen["no file"] == ["RemoteEntryNotFoundError", 404]
    assert seen["no revision"] == ["RevisionNotFoundError", 404]
    assert seen["expired"][1] == seen["wrong"][1] == 401
    assert seen["gated"] == [["GatedRepoError", 401], ["GatedRepoError", 403], None]
    assert seen["private"] == [["RepositoryNotFoundError", 401], ["RepositoryNotFoundError", 404], None]
    assert seen["may not create"] == ["HfHubHTTPError", 403]


def test_faults_come_when_asked_for_and_then_no_more(hub, tmp_path):
    hub.add("pianogen/faults", {"model.safetensors": bytes(500_000)})
    hub.fault("info", status=500)
    hub.fault("lfs_download", cut=200_000)
    hub.fault("commit", lost=True)
    code = """
from huggingface_hub import CommitOperationAdd, HfApi, hf_hub_download
api = HfApi()
for _ in range(2):
    try:
        print(api.model_info("pianogen/faults").id)
    except Exception as error:
        print(error.response.status_code)
print(len(open(hf_hub_download("pianogen/faults", "model.safetensors"), "rb").read()))
try:
    api.create_commit("pianogen/faults", [CommitOperationAdd("a.txt", b"a")], commit_message="a")
except Exception as error:
    print(type(error).__name__)
"""
    said = run(hub, tmp_path, code).split()
    assert said == ["500", "pianogen/faults", "500000", "RemoteProtocolError"]
    assert "a.txt" in hub.files("pianogen/faults")
    downloads = [each for each in hub.log if each["step"] == "lfs_download"][-2:]
    assert [each["status"] for each in downloads] == [200, 200], "the first was cut, the second was not"
    with pytest.raises(ValueError, match="no step"):
        hub.fault("comit", status=500)


def test_large_files_are_told_by_name_size_or_content():
    assert is_large("a.safetensors", 10, b"x") and is_large("a.txt", 2**24, b"x") and is_large("a", 9, b"a\0b")
    assert not is_large("a.json", 10, b"{}") and not is_large("a.md", 600, "ü".encode()[:1])
