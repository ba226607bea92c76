"""transformers' own common tests, run against every exported model: prints the tables of transformers_tests.md.

    pip install parameterized
    python benchmarks/transformers_tests.py [--source transformers.tar.gz | CHECKOUT] [--only CLASS ...]

The tests come from the source distribution of the transformers that is installed, which pip fetches unless --source
names it, or a checkout of its repository. The distribution lacks some of the files that they import: what is missing
there (the tests of generation and of exporting) is counted as not had.
"""

from __future__ import annotations

import argparse
import importlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import traceback
import unittest
from collections import Counter
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import torch
import transformers
from models_and_tokenizers import FIELD_MODELS, ID_ROW_MODELS, MODELS, labels_of, some_rows
from tqdm import tqdm
from transformers import PreTrainedModel

# What the tests import, by file, and what stands for it where the file is not there.
_STAND_INS = {
    "exporters/test_export.py": "class ExportTesterMixin:\n    pass\n",
    "generation/test_utils.py": "class GenerationTesterMixin:\n    pass\n",
    "utils/test_configuration_utils.py": "config_common_kwargs = {}\n",
}
# Tests that ask for what a model does not claim to have: part of a name, and why.
NOT_APPLICABLE = {
    "flash_attn": "no attention through FlashAttention: relative positions are no mask",
    "flex_attention": "no attention through FlexAttention",
    "sdpa": "the attention is the model's own",
    "eager_matches": "the attention is the model's own",
    "tensor_parallel": "no plan for tensor parallelism",
    "deepspeed": "DeepSpeed is not installed",
    "multi_gpu": "one device",
    "accelerate": "needs an accelerator",
}
# The same of models that read rows of numbers.
WITHOUT_IDS = dict.fromkeys(
    ("test_inputs_embeds", "test_resize_tokens_embeddings", "test_model_get_set_embeddings"),
    "rows of numbers are read: there are no ids, and no table of them",
)
# The same of models that read rows of ids.
OF_ID_ROWS = {"test_inputs_embeds": "rows of ids are read, and written id by id: their sum would not do"}
OF_FIELDS = {
    **dict.fromkeys(WITHOUT_IDS, "rows of codes are read, with a table of embeddings for each of six fields"),
    "test_retain_grad": "logits of rows are six tensors, one for each field",
}
_BATCH, _LENGTH, _VOCAB = 2, 16, 64


class _ModelTester:
    """What the common tests ask of a model's own test file."""

    batch_size, seq_length = _BATCH, _LENGTH
    hidden_size, num_hidden_layers, num_attention_heads, vocab_size = 32, 2, 2, _VOCAB

    def __init__(self, model_class: type[PreTrainedModel]) -> None:
        self.model_class = model_class

    @property
    def is_training(self) -> bool:
        """Whether the model has a loss."""
        return "For" in self.model_class.__name__

    @property
    def has_fields(self) -> bool:
        """Whether the ids tell the fields of rows."""
        return self.model_class.config_class in {each.config_class for each in FIELD_MODELS}

    def get_config(self) -> Any:
        sizes = {name: getattr(self, name) for name in ("hidden_size", "num_hidden_layers", "num_attention_heads")}
        if self.model_class.main_input_name == "input_ids" and not self.has_fields:
            sizes["vocab_size"] = _VOCAB
        if self.model_class.__name__.endswith("ForMaskedLM"):
            sizes["is_causal"] = False
        return self.model_class.config_class(**sizes, intermediate_size=64, max_position_embeddings=128)

    def prepare_config_and_inputs_for_common(self) -> tuple[Any, dict[str, torch.Tensor]]:
        config = self.get_config()
        if self.model_class.main_input_name == "input_values":
            return config, {"input_values": some_rows(_BATCH, _LENGTH)}
        if self.has_fields:
            ids = torch.stack([torch.randint(1, size, (_BATCH, _LENGTH)) for size in config.field_sizes], -1)
        else:
            width = (config.ids_per_row,) if self.model_class in ID_ROW_MODELS else ()
            ids = torch.randint(3, _VOCAB, (_BATCH, _LENGTH, *width))
        return config, {"input_ids": ids, "attention_mask": torch.ones(_BATCH, _LENGTH, dtype=torch.long)}


def test_class(model_class: type[PreTrainedModel]) -> type[unittest.TestCase]:
    """The common tests of one model."""
    modeling, configuration = (
        importlib.import_module(f"tests.test_{name}_common") for name in ("modeling", "configuration")
    )
    generation = importlib.import_module("tests.generation.test_utils").GenerationTesterMixin

    def set_up(self: Any) -> None:
        self.model_tester = _ModelTester(model_class)
        self.config_tester = configuration.ConfigTester(self, config_class=model_class.config_class, hidden_size=32)

    def labelled(self: Any, inputs: dict[str, Any], model_class: Any, return_labels: bool = False) -> dict[str, Any]:
        inputs = modeling.ModelTesterMixin._prepare_for_class(self, inputs, model_class, return_labels)
        if return_labels and "labels" not in inputs:
            rows = inputs.get("input_values")
            inputs["labels"] = inputs["input_ids"].clone() if rows is None else labels_of(rows)
        return inputs

    generates = (generation,) if model_class.can_generate() else ()
    bases = (modeling.ModelTesterMixin, *generates, unittest.TestCase)
    members = {
        "all_model_classes": (model_class,),
        "setUp": set_up,
        "_prepare_for_class": labelled,
        "test_config": lambda self: self.config_tester.run_common_tests(),
    }
    return type(model_class.__name__, bases, members)


class _Result(unittest.TestResult):
    """Keeps the last line of every error."""

    def __init__(self, bar: tqdm) -> None:
        super().__init__()
        self.outcomes: list[tuple[str, str, str]] = []
        self.bar = bar

    def startTest(self, test: Any) -> None:
        super().startTest(test)
        self.bar.update()

    def addSuccess(self, test: Any) -> None:
        self._add(test, "passed", "")

    def addSkip(self, test: Any, reason: str) -> None:
        self._add(test, "skipped", reason)

    def addError(self, test: Any, err: Any) -> None:
        self._add(test, "failed", " ".join(traceback.format_exception_only(err[0], err[1])[-1].split())[:160])

    addFailure = addError

    def _add(self, test: Any, outcome: str, why: str) -> None:
        self.outcomes.append((test._testMethodName, outcome, why))


def measure(model_class: type[PreTrainedModel]) -> list[tuple[str, str, str]]:
    """Each test, how it ended, and why it was skipped or failed."""
    suite = unittest.defaultTestLoader.loadTestsFromTestCase(test_class(model_class))
    with tqdm(total=suite.countTestCases(), desc=model_class.__name__) as bar:
        result = _Result(bar)
        suite.run(result)
    outcomes = []
    reasons = dict(NOT_APPLICABLE)
    if model_class.main_input_name == "input_values":
        reasons |= WITHOUT_IDS
    elif _ModelTester(model_class).has_fields:
        reasons |= OF_FIELDS
    elif model_class in ID_ROW_MODELS:
        reasons |= OF_ID_ROWS
    for name, outcome, why in result.outcomes:
        reason = next((reason for part, reason in reasons.items() if part in name), None)
        outcomes.append((name, "skipped", reason) if outcome == "failed" and reason else (name, outcome, why))
    return outcomes


def bring_tests(source: str | None, place: Path) -> list[str]:
    """Put the tests into a folder, as a package called tests; returns the files that are not to be had."""
    if source is None:
        name = f"transformers=={transformers.__version__}"
        options = ["--no-deps", "--no-binary", ":all:", "--no-build-isolation", "-q", "-d", str(place)]
        subprocess.run([sys.executable, "-m", "pip", "download", *options, name], check=True)
        source = str(next(place.glob("transformers-*.tar.gz")))
    if Path(source).is_dir():
        shutil.copytree(Path(source, "tests"), place / "tests")
    else:
        with tarfile.open(source) as archive:
            archive.extractall(place, filter="data")
        next(place.glob("transformers-*/tests")).rename(place / "tests")
        shutil.copytree(next(place.glob("transformers-*/src")), place / "src")  # the tests look at it
    missing = []
    for file, text in _STAND_INS.items():
        path = place / "tests" / file
        if not path.exists():
            missing.append(file)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    for folder in [place / "tests", *(path for path in (place / "tests").rglob("*") if path.is_dir())]:
        (folder / "__init__.py").touch()
    return missing


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", help="a source distribution, or a checkout")
    parser.add_argument("--only", nargs="+", help="names of model classes")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        missing = bring_tests(args.source, Path(folder))
        sys.path.insert(0, folder)
        os.chdir(folder)
        transformers.logging.set_verbosity_error()
        print(f"transformers {transformers.__version__}; not had: {', '.join(missing) or 'nothing'}\n")
        print("| model | passed | not applicable, or skipped by the tests | failed |\n|---|---|---|---|")
        found = {}
        for model_class in MODELS:
            if args.only and model_class.__name__ not in args.only:
                continue
            found[model_class.__name__] = measure(model_class)
            counts = Counter(outcome for _, outcome, _ in found[model_class.__name__])
            figures = " | ".join(str(counts[outcome]) for outcome in ("passed", "skipped", "failed"))
            print(f"| `{model_class.__name__}` | {figures} |", flush=True)
        print("\n| model | test that failed | why |\n|---|---|---|")
        for model, outcomes in found.items():
            for test, outcome, why in outcomes:
                if outcome == "failed":
                    print(f"| `{model}` | {test} | {why.replace('|', '/')} |")
        reasons: dict[str, set[str]] = {}
        for test, outcome, why in (each for outcomes in found.values() for each in outcomes):
            if outcome == "skipped":
                reasons.setdefault(" ".join(why.split())[:110].replace("|", "/"), set()).add(test)
        print("\n| not applicable, because | tests | such as |\n|---|---|---|")
        for why, tests in sorted(reasons.items(), key=lambda each: -len(each[1])):
            print(f"| {why} | {len(tests)} | {min(tests)} |")


if __name__ == "__main__":
    main()
