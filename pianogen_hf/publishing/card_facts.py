"""What a model folder tells about its model: read from its JSON files, and put into words and digits for the card."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from pianogen_hf.errors import PianogenError
from pianogen_hf.evaluation.report import audit_lines, evaluation_sections
from pianogen_hf.models.objectives import objective_of_classes
from pianogen_hf.publishing.usage import USAGES
from pianogen_hf.records import NOT_MEASURED, NOT_RECORDED, change_in_words, code, digits, fixed, number, read_map

# The sources that the package knows by name: what they are, and their terms. A folder is its owner's to describe.
_KNOWN = {
    "bach": (
        "Bach's chorales in music21's corpus, JSB split",
        "in the public domain; music21, which ships the files, asserts no rights over its corpus' contents",
    ),
    "maestro": ("MAESTRO", "CC BY-NC-SA 4.0, not for commercial use"),
    "lakh": ("Lakh MIDI", "CC BY 4.0 as a collection; most of the music in it is under copyright of its owners"),
}
_NON_COMMERCIAL = {"maestro"}
_MEASURES = ("Likelihood", "Music statistics", "Round trip of the encoding")  # of `pianogen evaluate`


class CardError(PianogenError):
    """No card can be made of this folder or text; the message is one line that says why."""


@dataclass(frozen=True)
class ModelFolder:
    """The JSON files of a model folder; one that is not there is empty."""

    config: dict[str, Any]
    tokenizer_config: dict[str, Any]
    preprocessor_config: dict[str, Any]
    metrics: dict[str, Any]
    split: dict[str, Any]
    provenance: dict[str, Any]

    @classmethod
    def read(cls, folder: Path) -> ModelFolder:
        """Read what is there.

        Raises:
            CardError: if there is no config.json.
            FileError: if one of the files can't be read.
        """
        names = ("config", "tokenizer_config", "preprocessor_config", "metrics", "split", "provenance")
        model = cls(*(read_map(folder / f"{name}.json") for name in names))
        if not model.config:
            raise CardError(f"{folder} holds no model (no config.json)")
        if model.split and model.split.get("columns") != ["side", "family", "content"]:
            raise CardError(f"{folder / 'split.json'} has another form than this version writes")
        return model

    @property
    def reads_rows(self) -> bool:
        """Whether a feature extractor makes rows of numbers of music, and not a tokenizer token ids."""
        return bool(self.preprocessor_config)

    @property
    def has_code(self) -> bool:
        """Whether code files lie beside it, for who has not this package."""
        return any("auto_map" in each for each in (self.config, self.tokenizer_config, self.preprocessor_config))

    @property
    def objective(self) -> str:
        """What it predicts; see `models/objectives.py`."""
        return objective_of_classes(self.config.get("architectures") or ())

    @property
    def runs(self) -> list[dict[str, Any]]:
        """All runs that its weights went through, the first one first."""
        return self.provenance.get("runs", [])

    @property
    def sources(self) -> list[str]:
        """Names of all sources it was ever trained on, those of earlier runs too."""
        return sorted({source for run in (self.split, *self.runs) for source in run.get("sources", ())})

    @property
    def hub_datasets(self) -> dict[str, str]:
        """Commit by name of the data sets on the Hub that its split was made of."""
        return hub_datasets(self.split)

    @property
    def unknown(self) -> list[str] | None:
        """Checkpoints without a record of their training that it comes from; None if all of its training is known."""
        return None if self.provenance.get("status") == "known" else self.provenance.get("unknown", [])

    @property
    def contaminated(self) -> list[dict[str, Any]]:
        """Evaluation pieces of any run that had been trained on, as provenance.json lists them."""
        return self.provenance.get("contaminated", [])

    @property
    def is_non_commercial(self) -> bool:
        """Whether a source that it was ever trained on forbids commercial use."""
        return not _NON_COMMERCIAL.isdisjoint(self.sources)


def describe(source: str) -> str:
    """What a source is called where no reader knows this package."""
    return _KNOWN[source][0] if source in _KNOWN else source


def card_facts(model: ModelFolder) -> dict[str, Any]:
    """All that the template tells of a model, under the names that the template uses."""
    metrics, split = model.metrics, model.split
    return {
        "summary": _summary(model),
        "has_code": model.has_code,
        "usage": USAGES[model.objective],
        "contaminated": [_overlap(each) for each in model.contaminated],
        "unknown": None if model.unknown is None else [code(name) for name in model.unknown],
        "scores": _score_rows(metrics),
        "context": _context(metrics.get("context"), _unit(model)),
        "evaluation": [_evaluation(*each) for each in sorted(metrics.get("evaluation", {}).items())],
        "audit": _audit(metrics["copy_audit"]) if "copy_audit" in metrics else None,
        "hub_datasets": [link_to_data(name, commit) for name, commit in model.hub_datasets.items()],
        "sources": [_source(name, split.get("sources", {}).get(name)) for name in model.sources],
        "non_commercial": model.is_non_commercial,
        "splits": _split_rows(split),
        "split_hash": split.get("hash", NOT_RECORDED),
        "leaks": _leaks(split),
        "runs": [_run(run) for run in model.runs],
        "training": _training(metrics),
    }


def _summary(model: ModelFolder) -> str:
    """What kind of model it is, by the sizes in its config."""
    model_type = str(model.config.get("model_type", NOT_RECORDED))
    names = CONFIG_MAPPING[model_type].attribute_map if model_type in CONFIG_MAPPING else {}

    def size(name: str) -> Any:
        return model.config.get(names.get(name, name), NOT_RECORDED)

    if model.reads_rows:
        encoder = f"Feature extractor: {code(model.preprocessor_config.get('feature_extractor_type', NOT_RECORDED))}."
    else:
        tokenizer = model.tokenizer_config.get("tokenizer_class", NOT_RECORDED)
        encoder = f"Tokenizer: {code(tokenizer)}, {size('vocab_size')} different tokens."
    return (
        f"Architecture: {code(model_type)}, {digits(model.metrics.get('num_parameters'))} parameters, "
        f"{size('num_hidden_layers')} layers of width {size('hidden_size')}, "
        f"made for {size('max_position_embeddings')} {_unit(model)} at a time. {encoder}"
    )


def _unit(model: ModelFolder) -> str:
    """What pieces are counted in."""
    return "rows" if model.reads_rows else "tokens"


def _overlap(overlap: dict[str, Any]) -> dict[str, str]:
    """A piece that was trained on although it is evaluated on."""
    how = f"shares {overlap['share']:.0%} with" if overlap["share"] else "is of one family with"
    return {
        "piece": code(overlap["piece"]),
        "side": overlap["side"],
        "why": f"{how} {code(overlap['trained_piece'])}, which it was trained on",
    }


def _score_rows(metrics: dict[str, Any]) -> list[tuple[str, ...]]:
    """Baselines first, then the model on both splits: a name, and a cell for each score."""
    rows = {f"{name}, validation": row for name, row in metrics.get("baselines", {}).items()}
    rows |= {f"**this model, {split_name}**": metrics.get(split_name, {}) for split_name in ("validation", "test")}
    return [
        (
            name,
            fixed(row.get("bits_per_note"), 3),
            fixed(row.get("nats_per_token", row.get("nats_per_cell")), 4),
            fixed(row.get("accuracy"), 4),
        )
        for name, row in rows.items()
    ]


def _context(context: dict[str, Any] | None, unit: str) -> str:
    if not context:
        return NOT_RECORDED
    memory = f", with a memory of the {context['memory']} before" if context.get("memory") else ""
    return f"windows of {context['window']} {unit} that slide by {context['stride']}{memory}"


def _evaluation(label: str, record: dict[str, Any]) -> dict[str, Any]:
    """What `pianogen evaluate` measured of one set of pieces; copying has a section of its own."""
    measured = record.get("measured", {})
    days = ", ".join(record.get("looked_at", ())) or "on a day that was not recorded"
    command = code(measured.get("command", "pianogen evaluate"))
    sections = {heading: lines for heading, lines in evaluation_sections(record).items() if heading != "Copying"}
    return {
        "label": label,
        "measured": f"measured {days} with {command}, {measured.get('device', '')}",
        "sections": {heading: "\n".join(lines) for heading, lines in sections.items()},
        "missing": [heading.lower() for heading in _MEASURES if heading not in sections],
    }


def _audit(audit: dict[str, Any]) -> dict[str, str]:
    """The report of `pianogen audit`."""
    made = "{num_samples} pieces of {notes} notes, seed {seed}"
    settings = made.format_map(audit["settings"]) if "settings" in audit else f"settings {NOT_RECORDED}"
    return {"settings": settings, "report": "\n".join(audit_lines(audit))}


def _source(name: str, size: dict[str, Any] | None) -> str:
    """One source: how much the split takes from it, and its terms."""
    amount = f"{digits(size['pieces'])} pieces, {digits(size['notes'])} notes" if size else "in an earlier run"
    what = describe(name) if name in _KNOWN else "MIDI files"
    return f"{code(name)}: {what}; {amount}; terms: {terms_of(name)}"


def _split_rows(split: dict[str, Any]) -> list[tuple[str, str, str]]:
    counts, notes = split.get("counts", {}), split.get("notes", {})
    split_names = [split_name for split_name in ("train", "validation", "test", "left_out") if split_name in counts]
    return [
        (split_name.replace("_", " "), digits(counts[split_name]), digits(notes.get(split_name)))
        for split_name in split_names
    ]


def _leaks(split: dict[str, Any]) -> list[str]:
    """Evaluation pieces with a train piece of the same family, which only official splits can cause."""
    rows = split.get("pieces", {})
    trained = {family for split_name, family, _ in rows.values() if split_name == "train"}
    return [
        code(name)
        for name, (split_name, family, _) in rows.items()
        if split_name not in ("", "train") and family in trained
    ]


def _run(run: dict[str, Any]) -> str:
    start = code(run["started_from"]) if run.get("started_from") else "nothing"
    sources = ", ".join(code(source) for source in run.get("sources", ())) or NOT_RECORDED
    return f"from {start}, {digits(run.get('pieces'))} train pieces of {sources}, split {code(run.get('split'))}"


def _training(metrics: dict[str, Any]) -> dict[str, str]:
    """How it was trained: a label and a value for each line."""
    seconds = number(metrics.get("train_seconds"))

    def recorded(name: str) -> str:
        return str(metrics.get(name, NOT_RECORDED))

    weights = metrics.get("source_weights", {})
    shares = {"Shares of the sources": ", ".join(f"{code(name)} {weight:g}" for name, weight in weights.items())}
    stages = {f"Stage {number}": _stage(each) for number, each in enumerate(metrics.get("stages", ()), 1)}
    changes = {f"From step {each['step']:,} on": change_in_words(each) for each in metrics.get("changes", ())}
    return {
        "Command": code(metrics["command"]) if "command" in metrics else NOT_RECORDED,
        **changes,
        "Seed": recorded("seed"),
        "Steps": f"{digits(metrics.get('steps'))}; sequences in each: {recorded('batch_size')}",
        "Hardware": "; ".join(
            [recorded("device"), f"processes: {recorded('world_size')}", f"threads in each: {recorded('threads')}"]
        ),
        "Precision": recorded("precision"),
        "Time": NOT_MEASURED if seconds is None else f"{seconds:,.0f} seconds",
        "Versions": ", ".join(f"{name} {recorded(name)}" for name in ("pianogen_hf", "transformers", "torch")),
        **(shares if weights else {}),
        **stages,
    }


def _stage(stage: dict[str, Any]) -> str:
    """One stage of a run that has several; the last one is the run that the other lines tell of."""
    bits = fixed(stage.get("validation", {}).get("bits_per_note"), 3)
    return (
        f"{digits(stage.get('steps'))} steps on {stage.get('source', NOT_RECORDED)}; validation: {bits} bits per note"
    )


def terms_of(source: str) -> str:
    """On what terms a source may be used, as far as this package knows."""
    return _KNOWN[source][1] if source in _KNOWN else NOT_RECORDED


def forbids_commerce(source: str) -> bool:
    """Whether a source that this package knows forbids commercial use."""
    return source in _NON_COMMERCIAL


def hub_datasets(split: Mapping[str, Any]) -> dict[str, str]:
    """Commit by name of the data sets on the Hub that a split was made of, as its parameters name them."""
    sources = split.get("parameters", {}).get("source", ())
    parts = [each.removeprefix("hub=").partition("@") for each in sources if each.startswith("hub=")]
    return {name: commit for name, _, commit in parts}


def link_to_data(name: str, commit: str) -> str:
    """A data set on the Hub, as a link."""
    return f"[{name}](https://huggingface.co/datasets/{name}) at commit {code(commit or NOT_RECORDED)}"
