"""The rules of the house: who may import whom, what travels, what is exported."""

import ast
from pathlib import Path

import pytest

import pianogen_hf as pg

PACKAGE = Path(pg.__file__).parent
TRAVELLING = ("models", "tokenizers")
STAGES = ("data", "training", "generation", "evaluation", "rendering", "publishing")
MODULES = sorted(PACKAGE.rglob("*.py"))
# What a checkpoint's user has anyway; huggingface_hub comes with transformers. symusic is for midi.py alone.
ALLOWED_AWAY = {"numpy", "torch", "transformers", "huggingface_hub", "__future__"}


def imports(path):
    """(dots, module, guarded): every import of a file; guarded ones stand inside a try."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    guarded = {id(node) for each in ast.walk(tree) if isinstance(each, ast.Try) for node in ast.walk(each)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((0, alias.name, id(node) in guarded) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.level, node.module or "", id(node) in guarded


def files_in(folders):
    paths = [path for folder in folders for path in sorted((PACKAGE / folder).glob("*.py"))]
    return pytest.mark.parametrize("path", paths, ids=lambda path: f"{path.parent.name}/{path.name}")


@files_in(TRAVELLING)
def test_travelling_files_import_siblings_and_what_users_have(path):
    standard = set(__import__("sys").stdlib_module_names)
    for dots, module, guarded in imports(path):
        if dots:
            assert dots == 1 and module and "." not in module, f"from {'.' * dots}{module} fails in a checkpoint"
            assert (path.parent / f"{module}.py").exists()
            continue
        top = module.split(".")[0]
        allowed = ALLOWED_AWAY | standard | ({"symusic"} if path.name == "midi.py" else set())
        assert guarded or top in allowed, f"{path.name} imports {module}: every user of a checkpoint would need it"


@files_in(STAGES)
def test_stages_never_import_one_another(path):
    for dots, module, _ in imports(path):
        assert dots == 0, "stages name their imports in full"
        parts = module.split(".")
        if parts[0] == "pianogen_hf":
            assert parts[1:2] and parts[1] in (*TRAVELLING, path.parent.name), f"{path.parent.name} imports {module}"


def test_names_of_travelling_files_are_unique():
    names = [path.name for folder in TRAVELLING for path in (PACKAGE / folder).glob("*.py") if path.stem != "__init__"]
    assert len(names) == len(set(names))


def test_only_one_file_reads_and_writes_midi_files():
    users = {path.name for path in MODULES for _, module, _ in imports(path) if module.split(".")[0] == "symusic"}
    # RemiTokenizer hands MidiTok the objects it wants, which are symusic's; it opens no file.
    assert users == {"midi.py", "tokenization_remi.py"}


def test_docstrings_do_not_look_like_imports():
    """The code that copies files into checkpoints reads lines, not syntax."""
    for folder in TRAVELLING:
        for path in (PACKAGE / folder).glob("*.py"):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            for node in ast.walk(tree):
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
