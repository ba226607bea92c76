"""Importing the package is cheap, and the Auto classes know its parts whichever is imported first."""

import subprocess
import sys

from pianogen_hf.commands.pianogen import COMMANDS

HELP = [[], *([name] for name in COMMANDS if name != "train")]  # train's lists the Trainer's
LOADS = """
config = transformers.AutoConfig.from_pretrained(pianogen_hf.BACH_MODEL)
model = transformers.AutoModelForCausalLM.from_config(config)
tokenizer = transformers.AutoTokenizer.from_pretrained(pianogen_hf.BACH_MODEL)
assert type(model).__module__.startswith("pianogen_hf") and type(tokenizer).__module__.startswith("pianogen_hf")
"""


def run(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_package_loads_neither_torch_nor_transformers():
    loaded = run("import sys, pianogen_hf; dir(pianogen_hf); print(*sys.modules)").split()
    assert not {"torch", "transformers", "numpy", "symusic"} & set(loaded)


def test_help_does_not_wait_for_torch():
    """In one process: what one command brings in, all later ones show."""
    shown = run(f"""
import sys
from pianogen_hf.commands import main
for command in {HELP}:
    try:
        main([*command, "--help"])
    except SystemExit:
        pass
    print("brought in by", command, sorted({{"torch", "transformers", "datasets"}} & sys.modules.keys()))
""")
    for command in HELP:
        page, _, shown = shown.partition(f"brought in by {command} ")
        assert "usage:" in page and shown.startswith("[]"), command


def test_the_auto_classes_know_the_parts_in_any_order_of_imports():
    """Each order in a process of its own, which begins with torch alone."""
    orders = [
        "import pianogen_hf, transformers",
        "import transformers, pianogen_hf",
        "import transformers; transformers.AutoTokenizer; import pianogen_hf",
        "import pianogen_hf, transformers.modeling_layers",  # loads the Auto classes in the middle of its own import
    ]
    run(f"""
import os, torch
for code in {[order + LOADS for order in orders]}:
    if os.fork() == 0:
        exec(code)
        os._exit(0)
    assert os.wait()[1] == 0, code
""")


def test_a_part_that_is_not_there_is_an_attribute_error():
    run("import pianogen_hf; assert not hasattr(pianogen_hf, 'Nothing') and hasattr(pianogen_hf, 'Notes')")
