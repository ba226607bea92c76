"""Leakage checks: what stands in two splits, found by looking at the music again and believing no name.

Each check takes data as they lie on disk and gives a `Finding` for every fault. None of them uses what the code that
built the data has noted down, except to compare it: fingerprints are computed anew, byte pairs are fitted anew, and the
tokens of an evaluation piece are encoded anew. `chunk_checks.py` holds those for tokenized data.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from datasets import Dataset
from datasets.utils import tqdm  # silent where the bars of datasets are

from pianogen_hf.data.families import fingerprint, related_pairs
from pianogen_hf.data.pieces import content_hash, stored_notes
from pianogen_hf.data.split_names import SPLITS
from pianogen_hf.tokenizers.notes import Notes
from pianogen_hf.tokenizers.notes_encoder import NotesEncoder
from pianogen_hf.tokenizers.tokenization_remi import RemiTokenizer

# What the checks look for, in the order in which a report names it.
MEANINGS = {
    "manifest": "split.json does not describe these data",
    "name": "pieces stand in two splits under one name",
    "content": "music of one split is on another, too",
    "family": "versions of one work stand in two splits",
    "evaluation": "evaluation chunks are not the pieces as they are, each token predicted once",
    "train chunks": "train chunks hold what is no train piece",
    "tokenizer": "byte pairs were not learnt from the train pieces alone",
    "model": "the model was trained on pieces that it is to be evaluated on",
    "unknown": "nobody knows what the model was trained on",
}
_SHOWN = 20  # findings that fit on a screen


@dataclass(frozen=True)
class Finding:
    """One fault.

    Attributes:
        check: which check found it, a key of `MEANINGS`.
        detail: what is wrong, as a clause; what `pieces`, `sides` and `share` say already is left out.
        pieces: the names of the pieces concerned, in the order of `sides`.
        sides: the split of each of them; reports in JSON have always called it so.
        share: how much of the smaller piece they have in common, 0 to 1; None where nothing was compared.
        official: whether the split is published like this. It is a leak all the same.
    """

    check: str
    detail: str = ""
    pieces: tuple[str, ...] = ()
    sides: tuple[str, ...] = ()
    share: float | None = None
    official: bool = False

    def __str__(self) -> str:
        """The finding as one line, without what `MEANINGS` says of all of its kind."""
        places = " and ".join(
            f"{piece} ({split_name})" for piece, split_name in zip(self.pieces, self.sides, strict=True)
        )
        share = "" if self.share is None else f" share {self.share:.1%} of the smaller one"
        return "; ".join(part for part in (places + share, self.detail) if part)

    def report(self) -> dict[str, Any]:
        """The finding as JSON-able data, with what it means."""
        return {**asdict(self), "meaning": MEANINGS[self.check]}


def table(findings: Sequence[Finding]) -> list[str]:
    """At most 20 lines for the screen: each kind of finding has its share of them, the gravest of a kind come first."""
    kinds: dict[tuple[bool, str], list[Finding]] = defaultdict(list)
    for finding in sorted(findings, key=lambda each: -(each.share or 0)):
        kinds[finding.official, finding.check].append(finding)
    order = [(official, check) for official in (False, True) for check in MEANINGS if (official, check) in kinds]
    room = max(1, (_SHOWN - 2 * len(order)) // max(len(order), 1))
    lines = []
    for official, check in order:
        found = kinds[official, check]
        mark = ", in the official split" if official else ""
        lines.append(f"LEAK: {MEANINGS[check]} ({len(found)}{mark})")
        lines += [f"  {finding}" for finding in found[:room]]
        lines += [f"  ... and {len(found) - room} more"] if len(found) > room else []
    return lines[:_SHOWN]


# Pieces --------------------------------------------------------------------------------------------------------------


def fingerprints_of(pieces: Dataset) -> list[np.ndarray]:
    """`families.fingerprint` of each piece, from its music."""
    rows = tqdm(range(len(pieces)), desc="Comparing pieces", unit="piece")
    return [fingerprint(_notes(pieces, row)) for row in rows]


def _notes(pieces: Dataset, row: int) -> Notes:
    return stored_notes(pieces[row]["midi"])


def changed_music(pieces: Dataset, split_names: Sequence[str]) -> list[Finding]:
    """Pieces whose music is not what their `content` says; not to be asked of pieces moved to another key."""
    return [
        Finding("manifest", "its music is not what its content hash names", (piece_id,), (split_names[row],))
        for row, (piece_id, content) in enumerate(zip(pieces["piece_id"], pieces["content"], strict=True))
        if content_hash(_notes(pieces, row)) != content
    ]


def content_leaks(pieces: Dataset, split_names: Sequence[str], fingerprints: Sequence[np.ndarray]) -> list[Finding]:
    """Every piece that shares music with one in another split, whatever the two are called.

    Args:
        pieces: with `piece_id` and `official_split`.
        split_names: where each stands.
        fingerprints: what `fingerprints_of` gave.
    """
    names, official = list(pieces["piece_id"]), official_rows(pieces, split_names)
    findings = []
    for a, b, share in pairs_across(fingerprints, split_names):
        first, second = sorted((a, b), key=lambda row: SPLITS.index(split_names[row]))
        found = (names[first], names[second]), (split_names[first], split_names[second]), share
        findings.append(Finding("content", "", *found, official[a] and official[b]))
    return findings


def official_rows(pieces: Dataset, split_names: Sequence[str]) -> list[bool]:
    """Which pieces stand where a published split has them."""
    return [own == split_name for own, split_name in zip(pieces["official_split"], split_names, strict=True)]


def pairs_across(fingerprints: Sequence[np.ndarray], split_names: Sequence[str]) -> Iterator[tuple[int, int, float]]:
    """Related pieces in different splits, as (index, index, share); every piece that has one in another split is named.

    Of pieces that are note for note the same in one split, which augmentation makes by the thousand, one is compared.
    """
    same: dict[tuple[int, str], list[int]] = defaultdict(list)
    for index, (each, split_name) in enumerate(zip(fingerprints, split_names, strict=True)):
        same[int(each[0]), split_name].append(index)
    groups = list(same.values())
    for a, b, share in related_pairs([fingerprints[group[0]] for group in groups]):
        first, second = groups[a], groups[b]
        if split_names[first[0]] != split_names[second[0]]:
            yield from ((index, second[0], share) for index in first)
            yield from ((first[0], index, share) for index in second[1:])


def family_leaks(pieces: Dataset, split_names: Sequence[str], known: Iterable[Finding] = ()) -> list[Finding]:
    """Families in several splits, one finding each; those that a finding in `known` names a pair of are left out.

    A pair of an official split leaves out no family that stands in several splits without it, too.
    """
    names, families = list(pieces["piece_id"]), list(pieces["family_id"])
    family_of = dict(zip(names, families, strict=True))
    named = {(family_of[piece], finding.official) for finding in known for piece in finding.pieces}
    rows: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for row, (family, split_name) in enumerate(zip(families, split_names, strict=True)):
        rows[family][split_name].append(row)
    official = official_rows(pieces, split_names)
    findings = []
    for family, places in rows.items():
        is_official = all(official[row] for members in places.values() for row in members)
        if len(places) > 1 and not named & {(family, False), (family, is_official)}:
            counts = ", ".join(f"{len(members)} in {split_name}" for split_name, members in places.items())
            examples = tuple(names[members[0]] for members in places.values())
            detail = f"family {family} has {counts}"
            findings.append(Finding("family", detail, examples, tuple(places), official=is_official))
    return findings


def manifest_faults(manifest: Mapping[str, Any], pieces: Dataset, split_names: Sequence[str]) -> list[Finding]:
    """Where `split.json` and the rows of a data set disagree, piece by piece.

    Args:
        manifest: what `manifest.read_manifest` gave, whose hash is right.
        pieces: with `piece_id`, `family_id` and `content`.
        split_names: in which split each row lies.
    """
    names = list(pieces["piece_id"])
    rows = zip(names, split_names, pieces["family_id"], pieces["content"], strict=True)
    present = {name: [split_name, family, content] for name, split_name, family, content in rows}
    written = {name: entry for name, entry in manifest["pieces"].items() if entry[0]}
    findings = [
        Finding("manifest", f"{count} rows have this name", (name,), (present[name][0],))
        for name, count in Counter(names).items()
        if count > 1
    ]
    for name in sorted(present.keys() | written.keys()):
        row, entry = present.get(name), written.get(name)
        if row is None or entry is None:
            detail = "is not in split.json" if row else "is in split.json only"
            findings.append(Finding("manifest", detail, (name,), ((row or entry or [""])[0],)))
        for column, here, there in zip(manifest["columns"], row or (), entry or (), strict=False):
            if here != there:
                detail = f"{column} is {here} in the data, {there} in split.json"
                findings.append(Finding("manifest", detail, (name,), ((row or [""])[0],)))
    return findings


def name_leaks(names: Mapping[str, Iterable[str]]) -> list[Finding]:
    """Names that stand in several splits.

    Args:
        names: per split those of its rows; a packed chunk's are joined by "|".
    """
    places: dict[str, Counter[str]] = defaultdict(Counter)
    for split_name, each in names.items():
        for name in each:
            for piece in name.split("|"):
                places[piece][split_name] += 1
    return [
        Finding("name", f"rows: {' and '.join(map(str, counts.values()))}", (piece,) * len(counts), tuple(counts))
        for piece, counts in places.items()
        if len(counts) > 1
    ]


# Tokenizers and models -----------------------------------------------------------------------------------------------


def tokenizer_faults(tokenizer: NotesEncoder, train: Iterable[Notes]) -> list[Finding]:
    """Whether byte pairs are those that the train pieces alone teach; tokenizers that learn nothing pass.

    They are learnt again. That is deterministic: neither the order of the pieces nor the process matters.
    """
    if not isinstance(tokenizer, RemiTokenizer):
        return []
    fresh = RemiTokenizer(tokenizer.scheme, tokenizer.config)
    if tokenizer.get_vocab() == fresh.get_vocab():
        return []
    num_base = fresh.vocab_size
    fresh.train_bpe(train, tokenizer.vocab_size)
    learnt, expected = (
        {name: index for name, index in each.get_vocab().items() if index >= num_base} for each in (tokenizer, fresh)
    )
    strange = sum(expected.get(name) != index for name, index in learnt.items())
    if not strange and len(learnt) == len(expected):
        return []
    return [Finding("tokenizer", f"{strange} of {len(learnt)} learnt tokens are others than the train pieces give")]


def model_leaks(overlaps: Iterable[Any], model: str) -> list[Finding]:
    """Evaluation pieces that a model has been trained on, from what `Provenance.overlap` found.

    Args:
        overlaps: with `piece`, `side`, `trained_piece` and `share`, 0 where only the family tells.
        model: its name.
    """
    found = [((each.trained_piece, each.piece), ("trained on", each.side), each.share or None) for each in overlaps]
    return [Finding("model", f"for {model}", *row) for row in found]


def shared_families(pieces: Dataset) -> dict[str, list[list[str]]]:
    """Families with pieces of several sources, as lists of piece_ids, by the names of the sources.

    They are no leaks: they are what would leak if one of the sources were trained on and another evaluated.
    """
    members: dict[str, list[str]] = defaultdict(list)
    sources: dict[str, set[str]] = defaultdict(set)
    columns = (pieces[name][:] for name in ("family_id", "piece_id", "source"))
    for family, piece, source in zip(*columns, strict=True):
        members[family].append(piece)
        sources[family].add(source)
    shared: dict[str, list[list[str]]] = defaultdict(list)
    for family, names in members.items():
        if len(sources[family]) > 1:
            shared[" and ".join(sorted(sources[family]))].append(sorted(names))
    return dict(sorted(shared.items()))
