"""Recipes: YAML files that hold the options of a run, and of its stages where it has several.

A stage is a map that overrides keys of the recipe. Each stage starts from the model of the one before, so that what
the model itself is made of stands outside of them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import yaml

from pianogen_hf.errors import ArgumentError, did_you_mean

# What all stages have in common: the model and its tokenizer, and what is said once for the whole run.
_SHARED = {
    "model_type",
    "model_config",
    "model_name_or_path",
    "tokenizer",
    "tokenizer_config",
    "bpe_vocab_size",
    "action_vocab_size",
    "chunk_length",
    "normalize_key",
    "split_from",
    "output_dir",
    "resume_from_checkpoint",
    "card_text",
    "cache_dir",
    "stages",
    "stage",
}


class _YamlLoader(yaml.SafeLoader):
    """Reads 2e-3 as a number, as YAML 1.2 and JSON do; YAML 1.1 wants 2.0e-3."""


_YamlLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), [*"-+0123456789"]
)


def read_yaml(path: str) -> dict[str, Any]:
    """A YAML file that holds a map.

    Raises:
        ArgumentError: if it can't be read or holds something else.
    """
    try:
        config = yaml.load(Path(path).read_text(encoding="utf-8"), _YamlLoader)
    except OSError as error:
        raise ArgumentError(f"{path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ArgumentError(f"{path} is no YAML file: {' '.join(str(error).split())}") from error
    if not isinstance(config, dict):
        raise ArgumentError(f"{path} must hold a map of option names to values")
    return config


def options_of_stages(config: dict[str, Any], argv: Sequence[str], known: Collection[str]) -> list[list[str]]:
    """The command line of every stage: the recipe, overridden by the stage, overridden by what was typed.

    Args:
        config: a YAML file's map; with or without `stages`, a list of maps.
        argv: options as they were typed.
        known: names of all options.

    Returns:
        One list of options per stage; a recipe without stages is one.

    Raises:
        ArgumentError: for an unknown key, and for stages that are none.
    """
    common = {name: value for name, value in config.items() if name != "stages"}
    _check_keys(common, {*known, "stages"}, "the YAML file")
    typed = {word[2:].split("=", 1)[0] for word in argv if word.startswith("--")}
    maps = _stage_maps(config["stages"], known) if "stages" in config else [{}]
    return [[*as_options(_merged(common, stage, typed)), *argv] for stage in maps]


def _stage_maps(stages: Any, known: Collection[str]) -> list[dict[str, Any]]:
    if not isinstance(stages, list) or not stages:
        raise ArgumentError("stages must be a list of maps, at least one: leave the key out of a recipe without stages")
    for number, stage in enumerate(stages, 1):
        if not isinstance(stage, dict):
            raise ArgumentError(f"stage {number} must be a map of option names to values, got {stage!r}")
        for name in stage:
            if name in _SHARED:
                raise ArgumentError(f"stage {number} sets {name!r}, which all stages share: write it above stages")
        _check_keys(stage, known, f"stage {number}")
    return stages


def _check_keys(config: dict[str, Any], known: Collection[str], where: str) -> None:
    for name in config:
        if name not in known:
            raise ArgumentError(f"unknown key {name!r} in {where}{suggestion(str(name), known)}")


def _merged(common: dict[str, Any], stage: dict[str, Any], typed: Collection[str]) -> dict[str, Any]:
    """Keys of the recipe and of a stage. Weights and kinds are those of certain sources: others come without them."""
    merged = {**common, **stage}
    for name in ("source_weights", "source_kinds"):
        if "source" in typed or ("source" in stage and name not in stage):
            merged.pop(name, None)
    return merged


def as_options(config: dict[str, Any]) -> list[str]:
    """The map of a YAML file as command-line options: one parser converts and checks both. Empty values are skipped."""
    options: list[str] = []
    for name, value in config.items():
        if isinstance(value, list):
            options += [f"--{name}", *map(str, value)]
        elif isinstance(value, dict):
            options.append(f"--{name}={json.dumps(value)}")
        elif value is False and name.endswith("_strategy"):  # the word no, which YAML takes for a boolean
            options.append(f"--{name}=no")
        elif value is not None:
            options.append(f"--{name}={value}")
    return options


def suggestion(name: str, known: Collection[str]) -> str:
    """What an unknown name may have meant."""
    return did_you_mean(name, known, "see train.py --help")
