"""Whether a data set that was pushed is the one that lies here: loaded from the Hub, it must hold the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from typing import Any

import huggingface_hub
from datasets import Dataset

from pianogen_hf.hub.destination import Pushed
from pianogen_hf.hub.errors import HubError, reload_fault
from pianogen_hf.publishing import data_digest

_SECONDS = 6 * 3600.0
# Where files of the Hub would be found already, and where this package would be found.
_NOT_INHERITED = ("HF_HUB_CACHE", "HF_DATASETS_CACHE", "HF_XET_CACHE", "PYTHONPATH")


def check_pushed_data(
    configs: Mapping[str, Mapping[str, Dataset]], manifest_hash: str, pushed: Pushed, token: str | None = None
) -> str:
    """Load a pushed data set in a process with an empty cache and without this package, and compare every row.

    Args:
        configs: per configuration and split the rows that were pushed.
        manifest_hash: of the split.
        pushed: where they are.
        token: instead of the one that `hf auth login` or HF_TOKEN has given.

    Returns:
        What was compared, in one line.

    Raises:
        HubError: if it can't be loaded from there, or holds something else.
    """
    expected = {"manifest": manifest_hash, **{name: data_digest.digest(rows) for name, rows in configs.items()}}
    found = _ask(pushed, token)
    where = f"{pushed.repo_id} at {pushed.revision[:12]}"
    for name in expected.keys() | found.keys():
        if expected.get(name) != found.get(name):
            what = "split.json" if name == "manifest" else f"configuration {name}"
            raise HubError(f"pushed, but {where} holds another {what} than was sent: push again")
    counts = ", ".join(f"{sum(map(len, rows.values())):,} {name}" for name, rows in configs.items())
    return (
        f"checked: {where}, loaded anew with an empty cache by datasets alone, holds the same {counts} and split.json"
    )


def _ask(pushed: Pushed, token: str | None) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="pianogen-check-") as scratch:
        environment = {name: value for name, value in os.environ.items() if name not in _NOT_INHERITED}
        environment |= {
            "HF_HOME": scratch,
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        }
        token = token or huggingface_hub.get_token()  # of the login, which lies in the HF_HOME that is left behind
        if token:
            environment["HF_TOKEN"] = token
        # -I: neither the folder of the script nor the current one is searched for modules.
        command = [sys.executable, "-I", data_digest.__file__, pushed.repo_id, pushed.revision]
        try:
            done = subprocess.run(
                command, env=environment, capture_output=True, text=True, timeout=_SECONDS, cwd=scratch
            )
        except subprocess.TimeoutExpired as error:
            raise HubError(f"pushed, but not checked: {pushed.repo_id} was not loaded within six hours") from error
        if done.returncode:
            raise HubError(reload_fault(pushed.repo_id, pushed.revision, done.stderr))
        return json.loads(done.stdout.splitlines()[-1])
