"""What a user sees when the Hub fails: `python benchmarks/hub_faults.py` prints the tables of hub.md.

Every fault is made by the Hub that the tests have (tests/hub_server.py) and met by the real client. The commands run in
one process per setting, because the client reads its settings when it is imported.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from hub_server import HubServer

import pianogen_hf

MODEL = Path(pianogen_hf.BACH_MODEL)
ALWAYS = 99
EXPIRED = {"status": 401, "message": 'User Access Token "mine" is expired'}
Case = tuple[str, list[dict[str, Any]], dict[str, Any]]
# What is told of it, faults, and what else is other: `token`, options, files of the repository.
PUSH: list[Case] = [
    ("nothing", [], {}),
    ("nothing, pushed again", [], {"repo": "pianogen/nothing"}),
    ("error 500 while asking how to upload, once", [{"step": "preupload", "status": 500}], {}),
    ("error 500 while asking how to upload, always", [{"step": "preupload", "status": 500, "times": ALWAYS}], {}),
    ("error 500 at the commit", [{"step": "commit", "status": 500}], {}),
    ("the commit is made, its answer lost", [{"step": "commit", "lost": True}], {}),
    ("no answer to the commit", [{"step": "commit", "hang": 20}], {"options": ["--timeout", "1"]}),
    ("no answer while creating", [{"step": "create", "hang": 20}], {"options": ["--timeout", "1"]}),
    ("connection cut half-way through the weights, once", [{"step": "lfs_upload", "cut": 2_000_000}], {}),
    ("the same, always", [{"step": "lfs_upload", "cut": 2_000_000, "times": ALWAYS}], {}),
    ("no token", [], {"token": None}),
    ("expired token", [], {"token": "hf_expired"}),
    ("token expires before the commit", [{"step": "commit", **EXPIRED}], {}),
    ("token may only read", [], {"token": "hf_reader", "files": True}),
    ("token of somebody else", [], {"token": "hf_other", "files": True}),
    ("repository deleted before the commit", [{"step": "commit", "gone": True}], {}),
    ("too many requests, once", [{"step": "lfs_batch", "status": 429, "message": "Too Many Requests"}], {}),
    (
        "too many requests, at the commit",
        [{"step": "commit", "status": 429, "message": "Too Many Requests"}],
        {},
    ),
    ("somebody else pushes in between", [{"step": "commit", "status": 412, "message": "A commit has happened"}], {}),
    ("the repository is public, --private asked for", [], {"options": ["--private"], "files": True}),
]
LOAD: list[Case] = [
    ("nothing", [], {"files": True}),
    ("no such model", [], {}),
    ("private, no token", [], {"files": True, "private": True, "token": None}),
    ("private, token of somebody else", [], {"files": True, "private": True, "token": "hf_other"}),
    ("private, own token", [], {"files": True, "private": True, "token": "hf_writer"}),
    ("gated, no token", [], {"files": True, "gated": "manual", "token": None}),
    ("gated, terms not accepted", [], {"files": True, "gated": "manual", "token": "hf_other"}),
    ("gated, terms accepted", [], {"files": True, "gated": "manual", "token": "hf_reader", "accepted": ["listener"]}),
    ("expired token", [], {"files": True, "token": "hf_expired"}),
    ("unknown revision", [], {"files": True, "options": ["--revision", "v9"]}),
    ("error 500, always", [{"step": "info", "status": 500, "times": ALWAYS}], {"files": True}),
    ("no answer", [{"step": "info", "hang": 20}], {"files": True}),
    (
        "connection cut half-way through the weights, once",
        [{"step": "lfs_download", "cut": 2_000_000}],
        {"files": True},
    ),
    ("the same, always", [{"step": "lfs_download", "cut": 0, "times": ALWAYS}], {"files": True}),
    ("repository deleted before the weights are fetched", [{"step": "head", "gone": True}], {"files": True}),
    ("too many requests, once", [{"step": "tree", "status": 429, "message": "Too Many Requests"}], {"files": True}),
    ("weights of pickle alone", [], {"files": True, "pickle": True}),
]
# Settings of the process, each with the repository that is asked for.
ELSEWHERE = [
    ("HF_HUB_OFFLINE is set", {"HF_HUB_OFFLINE": "1"}),
    ("no connection", {"HF_ENDPOINT": "http://127.0.0.1:9"}),
]


def client() -> None:
    """In a process of its own: run commands that standard input names, and tell what came of each."""
    from huggingface_hub import constants, utils

    from pianogen_hf.commands import main

    for line in sys.stdin:
        told = json.loads(line)
        for fault in told["faults"]:
            body = json.dumps(fault).encode()
            urllib.request.urlopen(urllib.request.Request(f"{constants.ENDPOINT}/-/fault", body, method="POST"))
        os.environ.pop("HF_TOKEN", None)
        if told["token"]:
            os.environ["HF_TOKEN"] = told["token"]
        utils.close_session()
        out, began = io.StringIO(), time.monotonic()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            code = main(told["argv"])
        lines = out.getvalue().splitlines()
        said = [each for each in lines if each.startswith(("error", "pushed", "checked", "nothing"))]
        said = said or [each.split(": ")[-1] for each in lines if "new notes" in each]
        print(json.dumps({"code": code, "said": said, "seconds": time.monotonic() - began}), flush=True)


class Client:
    """The other side of `client`."""

    def __init__(self, hub: HubServer, home: Path, **settings: str):
        environment = hub.environment(home, token=None, PYTHONPATH=str(MODEL.parents[2]), **settings)
        command = [sys.executable, __file__, "--client"]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(command, env=environment, text=True, **pipes)

    def run(self, argv: list[str], faults: list[dict[str, Any]], token: str | None) -> dict[str, Any]:
        """Run one command."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps({"argv": argv, "faults": faults, "token": token}) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(60)


def push_faults(hub: HubServer, home: Path, cases: list[Case] = PUSH) -> list[dict[str, Any]]:
    """Every case of pushing: what was seen, what the Hub held, and what a second try without the fault did."""
    rows = []
    with Client(hub, home) as process:
        for number, (name, faults, other) in enumerate(cases):
            repo = other.get("repo") or ("pianogen/nothing" if name == "nothing" else f"pianogen/push-{number}")
            if other.get("files"):
                hub.add(repo, {"README.md": b"# Mine\n"})
            if any(fault["step"] == "lfs_upload" for fault in faults):
                hub.hub.large_files.clear()  # or there would be nothing left to upload
            argv = ["push", "--model", str(MODEL), "--repo", repo, *other.get("options", [])]
            result = process.run(argv, faults, other.get("token", "hf_writer"))
            result["held"] = _held(hub, repo)
            hub.faults.clear()
            result["again"] = ""
            if result["code"] and "--private" not in argv:
                argv = ["push", "--model", str(MODEL), "--repo", repo]
                result["again"] = process.run(argv, [], "hf_writer")["said"][0].split(":")[0]
            rows.append({"fault": name, **_without(result, hub, repo)})
    for name, settings in ELSEWHERE:
        with Client(hub, home, **settings) as process:
            result = process.run(["push", "--model", str(MODEL), "--repo", "pianogen/far"], [], "hf_writer")
            rows.append({"fault": name, **_without({**result, "held": "-", "again": ""}, hub, "pianogen/far")})
    return rows


def load_faults(hub: HubServer, home: Path, cases: list[Case] = LOAD) -> list[dict[str, Any]]:
    """Every case of loading by name, and what the cache held afterwards."""
    rows, files = [], {path.name: path.read_bytes() for path in MODEL.iterdir()}
    settings = {"HF_HUB_ETAG_TIMEOUT": "2", "HF_HUB_DOWNLOAD_TIMEOUT": "2"}
    output = str(home / "out.mid")
    with Client(hub, home, **settings) as process:
        for number, (name, faults, other) in enumerate(cases):
            repo = f"pianogen/load-{number}"
            if other.get("files"):
                content = dict(files)
                if other.get("pickle"):
                    content["pytorch_model.bin"] = b"\x80" + content.pop("model.safetensors")
                about = {each: other[each] for each in ("private", "gated") if each in other}
                hub.add(repo, content, accepted=set(other.get("accepted", [])), **about)
            argv = ["generate", "--notes", "3", "--output", output, "--model", repo, *other.get("options", [])]
            result = process.run(argv, faults, other.get("token"))
            hub.faults.clear()
            rows.append({"fault": name, **_without({**result, "held": _cached(home, repo)}, hub, repo)})
    for name, elsewhere in ELSEWHERE:
        for repo, state in (("pianogen/load-0", "cache warm"), ("pianogen/far", "cache cold")):
            with Client(hub, home, **settings, **elsewhere) as process:
                result = process.run(["generate", "--notes", "3", "--output", output, "--model", repo], [], None)
                result["held"] = _cached(home, repo)
                rows.append({"fault": f"{name}, {state}", **_without(result, hub, repo)})
    return rows


def _held(hub: HubServer, repo: str) -> str:
    """What a repository on the Hub holds now."""
    if ("model", repo) not in hub.hub.repositories:
        return "no repository"
    names = set(hub.files(repo))
    if names >= {path.name for path in MODEL.iterdir()}:
        return f"{len(hub.commits(repo))} commit, whole"
    return "as before" if names == {"README.md"} else "PART OF IT" if names else "empty"


def _cached(home: Path, repo: str) -> str:
    """What the client's cache holds of a repository now."""
    folder = home / "hub" / f"models--{repo.replace('/', '--')}"
    names = {path.name for path in folder.glob("snapshots/*/*") if path.exists()}
    if "model.safetensors" in names:
        return "whole"
    partial = [path for path in folder.glob("blobs/*.incomplete") if path.stat().st_size]
    return f"{len(names)} files" + (", part of another" if partial else "") if names or partial else "nothing"


def _without(result: dict[str, Any], hub: HubServer, repo: str) -> dict[str, Any]:
    """The result as it would read with the real Hub and the user's names."""
    said = [each.replace(hub.url, "https://huggingface.co").replace(repo, "me/my-model") for each in result["said"]]
    said = [
        each.replace("http://127.0.0.1:9", "https://huggingface.co").replace(str(MODEL), "runs/mine") for each in said
    ]
    return {**result, "said": said}


def table(rows: list[dict[str, Any]], columns: dict[str, str]) -> str:
    """Rows as Markdown."""
    lines = ["| " + " | ".join(columns.values()) + " |", "|---" * len(columns) + "|"]
    for row in rows:
        shown = {**row, "said": "<br>".join(row["said"]).replace("|", "\\|"), "seconds": f"{row['seconds']:.0f}"}
        lines.append("| " + " | ".join(str(shown[name]) for name in columns) + " |")
    return "\n".join(lines)


def main() -> None:
    """Print both tables."""
    common = {"fault": "what goes wrong", "said": "what is said", "code": "exit code"}
    with HubServer() as hub, tempfile.TemporaryDirectory() as home:
        print(
            table(push_faults(hub, Path(home)), {**common, "held": "the Hub holds", "again": "the same command again"})
        )
        print("\n" + table(load_faults(hub, Path(home)), {**common, "held": "the cache holds"}))


if __name__ == "__main__":
    client() if "--client" in sys.argv else main()
