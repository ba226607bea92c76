"""README, changelog and card say what is true of this checkout."""

import json
import re
from pathlib import Path

import pytest
from models_and_tokenizers import ROW_TOKENIZERS, TOKENIZERS, some_notes

import pianogen_hf as pg

ROOT = Path(pg.__file__).parent.parent
if not (ROOT / "README.md").exists():
    pytest.skip("installed without the source tree", allow_module_level=True)
README = (ROOT / "README.md").read_text(encoding="utf-8")
CHECKPOINT = Path(pg.BACH_MODEL)
METRICS = json.loads((CHECKPOINT / "metrics.json").read_text(encoding="utf-8"))


def test_the_python_examples_run_as_they_stand(tmp_path, monkeypatch):
    code = "\n".join(re.findall(r"```python\n(.*?)```", README, flags=re.S))
    monkeypatch.chdir(tmp_path)
    pg.write_midi(some_notes(), "my.mid")
    exec(compile(code.replace("max_new_tokens=200", "max_new_tokens=40"), "README.md", "exec"), {})
    assert len(pg.read_midi("out.mid")) > 0
    assert len(pg.read_midi("longer.mid")) > len(pg.read_midi("my.mid"))


def test_every_file_that_the_readme_names_exists():
    for name in re.findall(r"(?:configs|benchmarks|docs|pianogen_hf|tests)/[\w./-]*\w\.\w+", README):
        assert (ROOT / name).exists(), name


def test_every_tokenizer_that_the_readme_names_exists():
    assert set(re.findall(r"`(\w+Tokenizer)`", README)) <= {each.__name__ for each in TOKENIZERS + ROW_TOKENIZERS}


@pytest.mark.parametrize("document", ["README.md", "pianogen_hf/checkpoints/v7-bach/README.md"])
def test_scores_in_the_documents_are_those_that_were_measured(document):
    text = (ROOT / document).read_text(encoding="utf-8")
    scores = {**METRICS["baselines"], "validation": METRICS["validation"]}
    for values in scores.values():
        assert f"{values['bits_per_note']:.3f}" in text
    assert f"{METRICS['num_parameters']:,}" in text


def test_the_chorale_model_is_small_and_beats_the_n_gram_on_validation():
    weights = CHECKPOINT / "model.safetensors"
    assert sum(path.stat().st_size for path in CHECKPOINT.iterdir()) < 6_000_000 and weights.exists()
    assert METRICS["validation"]["bits_per_note"] < METRICS["baselines"]["backoff n-gram"]["bits_per_note"]


def test_the_changelog_knows_this_version():
    assert f"## {pg.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
