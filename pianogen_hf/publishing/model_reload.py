"""Whether a model that was pushed is the model that lies here: loaded from the Hub, it must compute the same."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import torch
from safetensors.torch import load_file
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from pianogen_hf.hub.destination import Pushed
from pianogen_hf.hub.errors import HubError, last_line, reload_fault
from pianogen_hf.publishing import model_answer as reload_check
from pianogen_hf.publishing.model_answer import Question
from pianogen_hf.publishing.model_files import Selection
from pianogen_hf.records import read_map
from pianogen_hf.tokenizers.midi import notes_to_midi_bytes
from pianogen_hf.tokenizers.notes import Notes

_PACKAGE = Path(__file__).parents[1]
_TOLERANCE = 1e-4  # of a logit; the same code on the same machine gives the same numbers
_SECONDS = 1800.0
# What a launcher sets, which would make the process wait for others, and places where the files may lie already.
_NOT_INHERITED = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "HF_HUB_CACHE", "HF_MODULES_CACHE")


def check_pushed(
    folder: Path, selection: Selection, pushed: Pushed, token: str | None = None, trust_remote_code: bool = False
) -> str:
    """Load a pushed model in a process with an empty cache and hold what it computes against the folder's.

    A model that carries code of this package is loaded by that code, where the package can't be seen. Code of other
    origin is run only if the caller trusts it.

    Args:
        folder: what was pushed.
        selection: its files.
        pushed: where they are.
        token: instead of the one that `hf auth login` or HF_TOKEN has given.
        trust_remote_code: run code files that are not this package's.

    Returns:
        What was compared, in one line.

    Raises:
        HubError: if the model can't be loaded from there, or computes something else.
    """
    is_alone = _needs_no_package(folder, selection)
    encoder = {"tokenizer_config.json": "AutoTokenizer", "preprocessor_config.json": "AutoFeatureExtractor"}
    names = {each.path for each in selection.uploads}
    here = Question(
        str(folder),
        None,
        next((auto for name, auto in encoder.items() if name in names), None),
        base64.b64encode(notes_to_midi_bytes(_some_music())).decode(),
        trust_remote_code=trust_remote_code,
    )
    try:
        expected = reload_check.answer(here)
    except Exception as error:
        raise HubError(f"pushed, but not checked: {folder} itself can't be run: {last_line(str(error))}") from error
    there = replace(
        here,
        name=pushed.repo_id,
        revision=pushed.revision,
        hide_package=is_alone,
        trust_remote_code=trust_remote_code or is_alone,
    )
    found = _ask(there, token)
    how = "the package hidden, by the code it carries" if is_alone else "with the package"
    difference = _difference(expected, found)
    where = f"{pushed.repo_id} at {pushed.revision[:12]}"
    if difference > _TOLERANCE:
        raise HubError(f"pushed, but {where} computes something else than {folder}: off by {difference:g}")
    same = "the same numbers" if difference == 0 else f"the same but for {difference:.1g}"
    return f"checked: {where}, loaded anew (empty cache, {how}), computes {same} for {len(expected)} tensors"


def _ask(question: Question, token: str | None) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="pianogen-check-") as scratch:
        environment = {name: value for name, value in os.environ.items() if name not in _NOT_INHERITED}
        environment |= {"HF_HOME": scratch, "HF_HUB_DISABLE_PROGRESS_BARS": "1", "TRANSFORMERS_VERBOSITY": "error"}
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(_PACKAGE.parent), os.environ.get("PYTHONPATH")]))
        token = token or huggingface_hub.get_token()  # of the login, which lies in the HF_HOME that is left behind
        if token:
            environment["HF_TOKEN"] = token
        output = str(Path(scratch, "answer.safetensors"))
        # -P: the folder of the script holds modules whose names are not for the whole process.
        command = [sys.executable, "-P", reload_check.__file__]
        done = subprocess.run(
            command,
            input=replace(question, output=output).as_json,
            env=environment,
            capture_output=True,
            text=True,
            timeout=_SECONDS,
        )
        if done.returncode:
            raise HubError(reload_fault(question.name, question.revision, done.stderr))
        return load_file(output)


def _needs_no_package(folder: Path, selection: Selection) -> bool:
    """Whether its code files are this package's own, and all that it needs of the package."""
    own = {path.name: path for part in ("models", "tokenizers") for path in (_PACKAGE / part).glob("*.py")}
    code = selection.code
    if not code or any(name not in own or own[name].read_bytes() != (folder / name).read_bytes() for name in code):
        return False
    config = read_map(folder / "config.json")
    config_class = CONFIG_MAPPING[config["model_type"]] if config.get("model_type") in CONFIG_MAPPING else None
    is_stock = config_class is not None and config_class.__module__.startswith("transformers.")
    encoders = [read_map(folder / name) for name in ("tokenizer_config.json", "preprocessor_config.json")]
    return ("auto_map" in config or is_stock) and all("auto_map" in each for each in encoders if each)


def _difference(expected: dict[str, Any], found: dict[str, Any]) -> float:
    """The largest difference of any number; infinite where tensors or shapes are others."""
    if {name: each.shape for name, each in expected.items()} != {name: each.shape for name, each in found.items()}:
        return float("inf")
    differences = [
        (each.double() - found[name].double()).abs().nan_to_num(nan=torch.inf).max() for name, each in expected.items()
    ]
    return float(max(differences, default=0.0))


def _some_music() -> Notes:
    """Two octaves up and down in quarters over a held bass: something that any encoding can say."""
    pitch = np.array([60, 62, 64, 65, 67, 69, 71, 72, 71, 69, 67, 65, 64, 62, 60, 48])
    onset = 480 * np.arange(16)
    return Notes.from_columns(480, onset_tick=onset, duration_tick=[480] * 16, pitch=pitch, velocity=[72] * 16)
