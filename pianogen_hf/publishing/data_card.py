"""The card of a data set, README.md of its repository, after the Hub's template for data sets.

All figures are counted from the tables and read from split.json. What people alone can say, the licence and whatever
words they add, is given by them; what is not known is said to be not recorded.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from importlib import resources
from typing import Any

import numpy as np
from datasets import Dataset
from huggingface_hub import DatasetCard, DatasetCardData

from pianogen_hf.publishing.card_facts import (
    NOT_RECORDED,
    code,
    describe,
    forbids_commerce,
    hub_datasets,
    link_to_data,
    terms_of,
)
from pianogen_hf.records import digits

_TAGS = ("music", "midi", "piano", "symbolic-music", "pianogen_hf")
_SHOWN = 20  # pieces that the card names; split.json names all of them
_SIZES = {1_000: "n<1K", 10_000: "1K<n<10K", 100_000: "10K<n<100K", 1_000_000: "100K<n<1M"}
UNKNOWN = "unknown"
_STEPS = {  # columns that hold what a model reads: type and words
    "input_ids": "list of int32, or of lists of them where an event is a row | token ids",
    "input_values": (
        "list of lists of 4 float32 | rows (time shift in seconds since the previous onset; pitch, where 128 begins "
        "a piece and 129 ends it; velocity; duration in seconds)"
    ),
}


def render_data_card(
    name: str,
    pieces: Mapping[str, Dataset],
    chunks: Mapping[str, Dataset],
    manifest: Mapping[str, Any],
    report: Mapping[str, Any],
    license: str = UNKNOWN,
    text: str = "",
) -> str:
    """The card: front matter and Markdown.

    Args:
        name: of the repository, USER/NAME.
        pieces: per split the rows as they are published.
        chunks: per split the rows of `chunks`; empty where there are none.
        manifest: what split.json says.
        report: what was read when it was built: files, unusable, between_sides.
        license: as the Hub calls it; "unknown" if nobody has said.
        text: words of the publisher's, Markdown without front matter, which stand below the title.
    """
    title = name.rpartition("/")[2]
    card = DatasetCard.from_template(
        _front_matter(title, pieces, chunks, manifest, license),
        template_str=resources.files(__package__).joinpath("data_card_template.md").read_text(encoding="utf-8"),
        name=name,
        title=title,
        text=text.strip(),
        shown=_SHOWN,
        licence=_licence(license),
        non_commercial=_warning(manifest, license),
        **_sizes(pieces),
        **_chunk_facts(chunks, manifest["parameters"]),
        **_split_facts(manifest),
        sources=_source_rows(pieces),
        files=_files(report),
        splits=_split_rows(pieces),
    )
    card.text = re.sub(r"\n{3,}", "\n\n", card.text)  # what a template leaves where it has nothing to say
    return str(card).rstrip() + "\n"


def is_non_commercial(manifest: Mapping[str, Any], license: str) -> bool:
    """Whether the licence, or the terms of a source that is known by name, forbid commercial use."""
    return "-nc-" in f"{license.lower()}-" or any(map(forbids_commerce, manifest["sources"]))


def _front_matter(
    title: str,
    pieces: Mapping[str, Dataset],
    chunks: Mapping[str, Dataset],
    manifest: Mapping[str, Any],
    license: str,
) -> DatasetCardData:
    """What the Hub reads: above all, which files are which split of which configuration."""
    total = sum(map(len, pieces.values()))
    configs = [{"config_name": "pieces", "default": True, "data_files": _data_files("pieces", pieces)}]
    if chunks:
        configs.append({"config_name": "chunks", "data_files": _data_files("chunks", chunks)})
    return DatasetCardData(
        license=license,
        pretty_name=title,
        task_categories=["other"],  # the Hub has none of symbolic music
        size_categories=next((size for limit, size in _SIZES.items() if total < limit), "1M<n<10M"),
        tags=[*_TAGS, *["non-commercial"] * is_non_commercial(manifest, license)],
        configs=configs,
    )


def _data_files(config: str, splits: Mapping[str, Dataset]) -> list[dict[str, str]]:
    return [{"split": split_name, "path": f"{config}/{split_name}-*.parquet"} for split_name in splits]


def _warning(manifest: Mapping[str, Any], license: str) -> str:
    if not is_non_commercial(manifest, license):
        return ""
    sources = [f"{describe(name)} is under {terms_of(name)}" for name in manifest["sources"] if forbids_commerce(name)]
    return "; ".join(sources or [f"The licence {code(license)} forbids it"]) + "."


def _licence(license: str) -> str:
    if license == UNKNOWN:
        return "Nobody has stated one for this data set: ask its owner before you use it. The known terms stand above."
    return f"Of this data set: {code(license)}. The terms of what it was made from stand with the sources."


def _hours(rows: Dataset) -> float:
    return float(np.sum(rows["seconds"][:], dtype=np.float64)) / 3600


def _sizes(pieces: Mapping[str, Dataset]) -> dict[str, str]:
    return {
        "pieces": digits(sum(map(len, pieces.values()))),
        "notes": digits(sum(sum(rows["num_notes"][:]) for rows in pieces.values())),
        "hours": f"{sum(map(_hours, pieces.values())):,.2f}",
    }


def _split_rows(pieces: Mapping[str, Dataset]) -> list[tuple[str, ...]]:
    return [
        (
            split_name,
            digits(len(rows)),
            digits(sum(rows["num_notes"][:])),
            f"{_hours(rows):,.2f}",
            digits(len(set(rows["family_id"][:]))),
        )
        for split_name, rows in pieces.items()
    ]


def _source_rows(pieces: Mapping[str, Dataset]) -> list[tuple[str, ...]]:
    """Per source what it is, how much there is of it, and on what terms."""
    totals: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(3))
    for rows in pieces.values():
        columns = (rows[name][:] for name in ("source", "num_notes", "seconds"))
        for source, notes, seconds in zip(*columns, strict=True):
            totals[source] += (1, notes, seconds)
    return [
        (
            code(source),
            describe(source) if terms_of(source) != NOT_RECORDED else "MIDI files",
            digits(int(count)),
            digits(int(notes)),
            f"{seconds / 3600:,.2f}",
            terms_of(source),
        )
        for source, (count, notes, seconds) in sorted(totals.items())
    ]


def _files(report: Mapping[str, Any]) -> str:
    """What was read and what was left out."""
    if "files" not in report:
        return f"How many files were read, and how many of them could not be used: {NOT_RECORDED}."
    unusable, between = len(report["unusable"]), len(report["between_sides"])
    read = f"{report['files']:,} files were read, and {unusable:,} could not be used"
    return f"{read}; {between:,} were left out, as they share music with pieces of different splits."


def _chunk_facts(chunks: Mapping[str, Dataset], parameters: Mapping[str, Any]) -> dict[str, Any]:
    names = ("transpose", "velocity", "stretch")
    said = [f"{name} {' to '.join(map(str, parameters[name]))}" for name in names if name in parameters]
    return {
        "chunks": [
            (split_name, digits(len(rows)), digits(_number_of_steps(rows))) for split_name, rows in chunks.items()
        ],
        "step_columns": sorted({name for rows in chunks.values() for name in rows.column_names} & set(_STEPS)),
        "step_words": _STEPS,
        "chunk_length": parameters.get("chunk_length", NOT_RECORDED),
        "augmentation": ", ".join(said) or NOT_RECORDED,
    }


def _number_of_steps(rows: Dataset) -> int:
    """Ids, or rows of continuous notes, in all chunks."""
    (column,) = set(rows.column_names) & set(_STEPS)
    batches = rows.select_columns(column).with_format("arrow").iter(1000)
    return sum(sum(batch[column].combine_chunks().value_lengths().to_pylist()) for batch in batches)


def _split_facts(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Families, leaks of official splits, and what decided the split."""
    rows, parameters = manifest["pieces"], manifest["parameters"]
    members = Counter(family for split_name, family, _ in rows.values() if split_name)
    trained = {family for split_name, family, _ in rows.values() if split_name == "train"}
    decided = ("validation_fraction", "test_fraction", "split_seed", "max_pieces", "programs", "normalize_key")
    return {
        "families": digits(len(members)),
        "shared_families": digits(sum(count > 1 for count in members.values())),
        "leaks": [
            code(name)
            for name, (split_name, family, _) in rows.items()
            if split_name not in ("", "train") and family in trained
        ],
        "split_hash": manifest["hash"],
        "hub_datasets": [link_to_data(name, commit) for name, commit in hub_datasets(manifest).items()],
        "parameters": ", ".join(f"{name} {parameters[name]}" for name in decided if name in parameters) or NOT_RECORDED,
        "key_words": "; moved to C major or A minor" if parameters.get("normalize_key") else "",
    }
