"""The rules of the house: who may import whom, what travels, what is exported."""

import ast
import functools
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import pianogen_hf as pg
from pianogen_hf.errors import PianogenError

PACKAGE = Path(pg.__file__).parent
TRAVELLING = ("models", "tokenizers")
MODULES = sorted(PACKAGE.rglob("*.py"))
# What each room may import besides itself, whatever its sub-folders; "" is the package as its users see it.
_BASE = {*TRAVELLING, "errors", "folders", "records"}
_STAGES = {*_BASE, "hub", "data", "training", "generation", "evaluation", "rendering", "publishing"}
_WORKFLOWS = {*_STAGES, "registration", ""}
MAY_IMPORT = {
    "__init__": {"registration"},
    "models": set(),
    "tokenizers": set(),
    "errors": {"tokenizers"},
    "folders": {"errors"},
    "records": {*TRAVELLING, "errors"},
    "registration": {*TRAVELLING, ""},
    "hub": _BASE,
    "training": _BASE,
    "generation": _BASE,
    "evaluation": _BASE,
    "rendering": _BASE,
    "data": {*_BASE, "hub"},
    "publishing": {*_BASE, "hub", "evaluation"},
    "workflows": _WORKFLOWS,
    "apps": {*_WORKFLOWS, "workflows"},
    "commands": {*_WORKFLOWS, "workflows", "apps"},
}
# What a checkpoint's user has anyway; huggingface_hub comes with transformers. symusic is for midi_fast.py alone.
ALLOWED_AWAY = {"numpy", "torch", "transformers", "huggingface_hub", "__future__"}


@functools.cache
def parsed(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(path):
    """(dots, module, guarded): every import of a file; guarded ones stand inside a try."""
    tree = parsed(path)
    guarded = {id(node) for each in ast.walk(tree) if isinstance(each, ast.Try) for node in ast.walk(each)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((0, alias.name, id(node) in guarded) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.level, node.module or "", id(node) in guarded


def test_travelling_files_import_siblings_and_what_users_have():
    """Elsewhere in the package a checkpoint's code could not follow; every other import its user would have to have."""
    standard, wrong = set(sys.stdlib_module_names), []
    for path in (path for folder in TRAVELLING for path in sorted((PACKAGE / folder).glob("*.py"))):
        allowed = ALLOWED_AWAY | standard | ({"symusic"} if path.name == "midi_fast.py" else set())
        for dots, module, guarded in imports(path):
            if dots:
                is_sibling = dots == 1 and module and "." not in module and (path.parent / f"{module}.py").exists()
                wrong += [] if is_sibling else [f"{path.name}: from {'.' * dots}{module}"]
            elif not guarded and module.split(".")[0] not in allowed:
                wrong.append(f"{path.name}: import {module}")
    assert not wrong, "; ".join(wrong)


def room_of(path):
    """The folder or file below the package that a module stands in."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def test_every_room_imports_only_what_lies_below_it():
    wrong = []
    for path in MODULES:
        room = room_of(path)
        for dots, module, _ in imports(path):
            parts = module.split(".")
            if dots and room not in TRAVELLING:
                wrong.append(f"{path.relative_to(PACKAGE)} does not name its imports in full")
            if not dots and parts[0] == "pianogen_hf":
                imported = parts[1] if len(parts) > 1 else ""
                if imported not in MAY_IMPORT[room] | {room}:
                    wrong.append(f"{path.relative_to(PACKAGE)} imports {module}")
    assert not wrong, "; ".join(wrong)


def test_loading_a_model_brings_in_neither_training_nor_publishing():
    code = "import sys, pianogen_hf.workflows.loading; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    rooms = {name.split(".")[1] for name in loaded if name.startswith("pianogen_hf.")}
    assert not rooms & {"training", "publishing", "data", "commands", "apps"}


def test_every_error_class_derives_from_the_one_that_commands_print_as_a_line():
    for path in MODULES:
        for node in parsed(path).body:
            if isinstance(node, ast.ClassDef) and node.name.endswith("Error"):
                name = ".".join(["pianogen_hf", *path.relative_to(PACKAGE).with_suffix("").parts])
                assert issubclass(getattr(importlib.import_module(name), node.name), PianogenError), node.name


def test_names_of_travelling_files_are_unique():
    names = [path.name for folder in TRAVELLING for path in (PACKAGE / folder).glob("*.py") if path.stem != "__init__"]
    assert len(names) == len(set(names))


def test_only_one_file_knows_the_midi_library():
    users = {path.name for path in MODULES for _, module, _ in imports(path) if module.split(".")[0] == "symusic"}
    # RemiTokenizer hands MidiTok the objects it wants, which are symusic's; it opens no file.
    assert users == {"midi_fast.py", "tokenization_remi.py"}


def test_docstrings_do_not_look_like_imports():
    """The code that copies files into checkpoints reads lines, not syntax."""
    for folder in TRAVELLING:
        for path in (PACKAGE / folder).glob("*.py"):
            for node in ast.walk(parsed(path)):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    lines = [line.strip() for line in node.value.splitlines()]
                    assert not any(line.startswith(("from .", "import .")) for line in lines), path.name


def test_exported_members_are_sorted_and_exist():
    assert pg.__all__ == sorted(pg.__all__)
    for name in pg.__all__:
        assert getattr(pg, name).__doc__, f"{name} has no docstring"


def test_the_version_is_the_project_s():
    import tomllib

    project = PACKAGE.parent / "pyproject.toml"
    if not project.exists():
        pytest.skip("installed without the source tree")
    assert tomllib.loads(project.read_text())["project"]["version"] == pg.__version__
