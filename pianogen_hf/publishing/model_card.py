"""The model card: README.md of a model folder, told by the other files of that folder.

Mitchell et al. 2019 ("Model Cards for Model Reporting") say what belongs into one. Figures come from metrics.json
alone, what the model was trained on from split.json and provenance.json; what is missing is said to be missing. Words
that only people can find (purpose, terms of the data, limits) are a text with the template's headings, or some of them:

    ---
    license: apache-2.0
    ---
    # Title
    A sentence or two.
    ## Limits
    Four voices ...

Its front matter may set any field of the card's but the results. A text that was given once stays in the folder as
card_text.md, so that the card can be made anew when further figures arrive.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from pianogen_hf.models.objectives import NEXT_TOKEN
from pianogen_hf.publishing.card_facts import CardError, ModelFolder, card_facts, describe
from pianogen_hf.records import NOT_RECORDED, number
from pianogen_hf.tokenizers.files import write_whole

TEXT_FILE = "card_text.md"
_TAGS = ("music", "midi", "piano", "symbolic-music", "pianogen_hf")
_SHOWN = 20  # pieces that the card names; the files in the folder name all of them
_SCORES = {  # name in metrics.json: words, and digits after the point
    "bits_per_note": ("bits per note", 3),
    "nats_per_token": ("nats per token", 4),
    "accuracy": ("next-token accuracy", 4),
}


def write_card(folder: str | os.PathLike, text: str | None = None) -> None:
    """Write README.md into a model folder, whole or not at all.

    Args:
        folder: where config.json lies, and what else there is of tokenizer_config.json or preprocessor_config.json,
            metrics.json, split.json, provenance.json and pictures (.png, or samples/*.png).
        text: hand-written words (see above), kept beside the card; by default those that were kept before.

    Raises:
        CardError: if the folder holds no model, or a file in it or the text can't be read.
        FileError: if the folder can't be written to.
    """
    card = render_card(folder, text)
    if text is not None:
        write_whole(Path(folder, TEXT_FILE), text.encode())
    write_whole(Path(folder, "README.md"), card.encode())


def render_card(folder: str | os.PathLike, text: str | None = None, name: str | None = None) -> str:
    """The card as `write_card` writes it: front matter and Markdown.

    Args:
        folder: as for `write_card`.
        text: as for `write_card`.
        name: what the model is called, for example on the Hub; by default as its text says, or as its folder is.

    Raises:
        CardError: if the folder holds no model, or a file in it or the text can't be read.
    """
    folder = Path(folder)
    model, words = ModelFolder.read(folder), _Words.parse(_kept_text(folder) if text is None else text)
    name = name or str(words.data.get("model_name", folder.resolve().name))
    data = _front_matter(model, words, name)
    card = ModelCard.from_template(
        data,
        template_str=_template(),
        name=name,
        title=words.title or name,
        sections=words.sections,
        license=data.license,
        picture=_picture(folder),
        shown=_SHOWN,
        **card_facts(model),
    )
    card.text = re.sub(r"\n{3,}", "\n\n", card.text)  # what a template leaves where it has nothing to say
    return str(card).rstrip() + "\n"


@dataclass(frozen=True)
class _Words:
    """A hand-written text: front matter, title, and sections by heading; "" is what stands before the first one."""

    data: dict[str, Any]
    title: str = ""
    sections: dict[str, str] = field(default_factory=lambda: defaultdict(str))

    @classmethod
    def parse(cls, text: str) -> _Words:
        data, body = _split_front_matter(text)
        opening, *parts = re.split(r"^## +(.+?) *$", body, flags=re.MULTILINE)
        title = re.match(r"\s*# +(.+)", opening)
        words = cls(data, title[1].strip() if title else "")
        words.sections[""] = opening[title.end() if title else 0 :].strip()
        known = re.findall(r"^## (.+)$", _template(), flags=re.MULTILINE)
        for heading, section in zip(parts[::2], parts[1::2], strict=True):
            if heading not in known:
                raise CardError(f"the card has no section {heading!r}; it has {', '.join(known)}")
            words.sections[heading] = section.strip()
        return words


def _split_front_matter(text: str) -> tuple[dict[str, Any], str]:
    match = re.match(r"---[ \t]*\r?\n(.*?)^---[ \t]*$", text, flags=re.DOTALL | re.MULTILINE)
    if match is None:
        return {}, text
    try:
        data = yaml.safe_load(match[1]) or {}
    except yaml.YAMLError as error:
        raise CardError(f"the text's front matter is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(data, dict) or not isinstance(data.get("tags", []), list):
        raise CardError("the text's front matter must be a map, and its tags a list")
    if "model-index" in data or "eval_results" in data:
        raise CardError("the text's front matter holds results: they are taken from metrics.json alone")
    return data, text[match.end() :]


def _kept_text(folder: Path) -> str:
    path = folder / TEXT_FILE
    try:
        return path.read_text(encoding="utf-8") if path.exists() else ""
    except (OSError, UnicodeDecodeError) as error:
        raise CardError(f"{path} can't be read: {error}") from error


def _template() -> str:
    return resources.files(__package__).joinpath("card_template.md").read_text(encoding="utf-8")


def _front_matter(model: ModelFolder, words: _Words, name: str) -> ModelCardData:
    """What the Hub reads. The text's fields win; tags are joined, since those that warn must not be lost."""
    model_type = str(model.config.get("model_type", ""))
    is_causal = model_type in CONFIG_MAPPING and CONFIG_MAPPING[model_type] in MODEL_FOR_CAUSAL_LM_MAPPING
    is_causal = is_causal and model.objective == NEXT_TOKEN  # no pipeline of transformers serves the others
    warnings = {
        "contaminated": bool(model.contaminated),
        "unknown-training-data": model.unknown is not None,
        "non-commercial": model.is_non_commercial,
    }
    tags = [*_TAGS, model_type.replace("_", "-"), *words.data.get("tags", [])]
    fields: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation" if is_causal else None,
        "datasets": list(model.hub_datasets) or None,
        **words.data,
        "tags": [tag for tag in tags if tag] + [tag for tag, is_due in warnings.items() if is_due],
        "model_name": name,
    }
    return ModelCardData(eval_results=_results(model) or None, **fields)


def _results(model: ModelFolder) -> list[EvalResult]:
    """Every figure that was measured, with its data, their split and the context of the predictions."""
    common: dict[str, Any] = {
        "task_type": "text-generation",
        "task_name": "next-token prediction of symbolic music",
        "dataset_type": re.sub(r"[^\w.-]+", "-", "-".join(model.split.get("sources", ()))) or "unknown",
        "dataset_name": ", ".join(describe(source) for source in model.split.get("sources", ())) or NOT_RECORDED,
        "dataset_revision": model.split.get("hash"),
    }
    return [EvalResult(**common, **each) for each in (*_score_results(model), *_copy_results(model.metrics))]


def _score_results(model: ModelFolder) -> list[dict[str, Any]]:
    mark = " (contaminated)" if model.contaminated else ""
    return [
        {
            "dataset_split": split_name,
            "metric_type": name,
            "metric_name": words + mark,
            "metric_value": round(model.metrics[split_name][name], digits),
            "metric_args": model.metrics.get("context"),
        }
        for split_name in ("validation", "test")
        for name, (words, digits) in _SCORES.items()
        if number(model.metrics.get(split_name, {}).get(name)) is not None
    ]


def _copy_results(metrics: dict[str, Any]) -> list[dict[str, Any]]:
    """Measured against the train split, so they stand apart from the scores."""
    if "copy_audit" not in metrics:
        return []
    audit = metrics["copy_audit"]
    return [
        {
            "dataset_split": "train",
            "metric_type": f"copied_{length}",
            "metric_name": f"share of generated {audit['generated']['unit']} in exact train runs of {length} or more",
            "metric_value": round(row["generated"], 4),
            "metric_args": {"heldout": round(row["heldout"], 4), **audit.get("settings", {})},
        }
        for length, row in audit["comparison"]["coverage"].items()
    ]


def _picture(folder: Path) -> str | None:
    """A picture that lies in the folder, or else the last sample of the training."""
    found = sorted(folder.glob("*.png"))[:1] or sorted(folder.glob("samples/*.png"))[-1:]
    return found[0].relative_to(folder).as_posix().replace(" ", "%20") if found else None
