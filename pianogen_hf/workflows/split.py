"""From arguments to pieces, their families and the split of each.

Shared by training, `pianogen data` and whatever measures a model, so that what is checked is what is trained on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import Dataset
from huggingface_hub import constants

from pianogen_hf.data.caching import fingerprint_of
from pianogen_hf.data.checks import manifest_faults
from pianogen_hf.data.chunks import notes_of
from pianogen_hf.data.families import join_families
from pianogen_hf.data.keys import normalized_keys
from pianogen_hf.data.manifest import read_manifest, split_manifest, split_of, splits_by_content, write_manifest
from pianogen_hf.data.pieces import load_pieces, reading_report, usable_pieces
from pianogen_hf.data.provenance import Provenance
from pianogen_hf.data.sources.hub import fetch, is_published, pinned, published_names, without_revision
from pianogen_hf.data.sources.listing import list_sources, passed_over
from pianogen_hf.data.splits import assign_splits, limited_splits
from pianogen_hf.errors import ArgumentError, DataError
from pianogen_hf.folders import CACHE_DIR
from pianogen_hf.hub.errors import limit_waiting
from pianogen_hf.hub.models import model_file, model_folder
from pianogen_hf.tokenizers.midi import PIANO_PROGRAMS
from pianogen_hf.tokenizers.notes import Notes
from pianogen_hf.training.arguments import WITH_DRUMS, DataArguments


@dataclass(frozen=True)
class Split:
    """Pieces, told apart.

    Attributes:
        pieces: one row each, of `PIECE_FEATURES`.
        split_names: train, validation or test for each; "" for one that the manifest does not know.
        manifest: what split.json holds.
        report: what was read and what was left out, as reading_report.json holds it.
    """

    pieces: Dataset
    split_names: list[str]
    manifest: dict[str, Any]
    report: dict[str, Any] = field(default_factory=dict)

    def rows(self, split_name: str) -> list[int]:
        """Where the pieces of one split stand."""
        return [row for row, each in enumerate(self.split_names) if each == split_name]

    def notes(self, split_name: str) -> Iterator[Notes]:
        """The music of one split."""
        return notes_of(self.pieces, self.split_names, split_name)


@dataclass(frozen=True)
class Places:
    """Where the pieces of a model lie.

    Attributes:
        source: as for train.py; None for the sources that it was trained on.
        data_path: the path, where there is only one source.
        cache_dir: where train.py keeps what it read.
    """

    source: list[str] | None = None
    data_path: str | None = None
    cache_dir: str = CACHE_DIR


def load_split(args: DataArguments) -> Split:
    """Read the sources, find families, and give every piece its split.

    Where a source prescribes no splits, those that its pieces got are kept in the cache, and the same source with
    further files keeps them: no piece changes its split because another arrived.

    Raises:
        DataError: if the sources or their split can't be used. ArgumentError: if `split_from` can't.
    """
    cache_dir = Path(args.cache_dir).expanduser()
    pin_sources(args)
    files = list_sources(args.source, args.data_path, cache_dir)
    read = load_pieces(files, cache_dir, num_proc=args.num_proc, **instruments_of(args.programs))
    pieces = join_families(usable_pieces(read), cache_dir)
    kept = cache_dir / "splits" / f"{_split_name(args)}.json"
    earlier = _earlier_splits(args.split_from, pieces) if args.split_from else _kept_splits(kept)
    split_names = assign_splits(pieces, args.validation_fraction, args.test_fraction, args.split_seed, earlier)
    report = reading_report(read)
    report["passed_over"] = passed_over(args.source, args.data_path)
    report["between_sides"] = [
        name for name, split_name in zip(pieces["piece_id"][:], split_names, strict=True) if not split_name
    ]
    pieces, split_names = _select(
        pieces, split_names, [row for row, split_name in enumerate(split_names) if split_name]
    )
    if not args.split_from and not all(pieces["official_split"][:]):
        write_manifest(kept, split_manifest(pieces, split_names, split_parameters(args)))
    if args.max_pieces is not None:
        rows, split_names = limited_splits(split_names, args.max_pieces)
        pieces = pieces.select(rows)
    for split_name in ("train", "validation"):
        if split_name not in split_names:
            raise DataError(
                f"no piece is left for {split_name}: change validation_fraction or test_fraction, or add files"
            )
    if args.normalize_key:
        pieces = normalized_keys(pieces, cache_dir, args.num_proc)
    return Split(pieces, split_names, split_manifest(pieces, split_names, split_parameters(args)), report)


def pin_sources(args: DataArguments) -> None:
    """Write the commit behind each source that lies on the Hub, where it is recorded with the split.

    Raises:
        DataError: if one can't be fetched, or its split.json does not describe what was fetched.
    """
    limit_waiting(constants.HF_HUB_DOWNLOAD_TIMEOUT)
    if args.source == ["hub"] and args.data_path:
        args.source, args.data_path = [f"hub={args.data_path}"], None
    args.source = [pinned(each) if each.startswith("hub=") else each for each in args.source]
    for each in args.source:
        folder = fetch(each) if each.startswith("hub=") else None
        if folder is not None and is_published(folder):
            faults = manifest_faults(read_manifest(folder / "split.json"), *published_names(folder))
            if faults:
                raise DataError(f"{each}: its split.json does not describe its pieces: {faults[0]}")


def split_of_model(folder: Path, places: Places) -> Split:
    """Pieces as the split.json in a model's folder tells them apart.

    Raises:
        ArgumentError: if the model has no split.json. DataError: if that is broken, or the sources can't be used.
    """
    path, cache = folder / "split.json", Path(places.cache_dir).expanduser()
    if not path.exists():
        raise ArgumentError(f"{folder} has no split.json: what it was trained on is unknown")
    manifest = read_manifest(path)
    parameters = manifest["parameters"]
    files = list_sources(places.source or parameters["source"], places.data_path, cache)
    read = load_pieces(files, cache, **instruments_of(parameters["programs"]))
    pieces = usable_pieces(read)
    if parameters["normalize_key"]:
        pieces = normalized_keys(pieces, cache)
    known = splits_by_content(manifest)
    # By name, or by content where the folder is called otherwise now.
    rows = zip(pieces["piece_id"][:], pieces["content"][:], strict=True)
    split_names = [split_of(manifest, name) or known.get(content, "") for name, content in rows]
    return Split(pieces, split_names, manifest, reading_report(read))


def instruments_of(name: str) -> dict[str, Any]:
    """What `load_pieces` keeps where "piano", "all" or "all+drums" is asked for."""
    return {"programs": tuple(PIANO_PROGRAMS) if name == "piano" else None, "drums": name == WITH_DRUMS}


def split_parameters(args: DataArguments) -> dict[str, Any]:
    """All that decided the split, without any path of this machine; a data set on the Hub with its commit."""
    names = ("validation_fraction", "test_fraction", "split_seed", "max_pieces", "programs", "normalize_key")
    weights = {} if args.source_weights is None else {"source_weights": args.source_weights}
    kinds = [kind_of(each) for each in args.source]
    return {"source": kinds, **weights, **{name: getattr(args, name) for name in names}}


def kind_of(source: str) -> str:
    """What stands before the path: folder, maestro, ...; all of a source on the Hub, which everybody can find."""
    return source if source.startswith("hub=") else source.split("=", 1)[0]


def _split_name(args: DataArguments) -> str:
    """Names a split in the cache: the sources, by full paths or names on the Hub, and what decides splits."""
    sources = [without_revision(each) if each.startswith("hub=") else each for each in args.source]
    local = [each.split("=", 1)[1] for each in sources if "=" in each and not each.startswith("hub=")]
    places = [str(Path(path).expanduser().resolve()) for path in ([args.data_path] if args.data_path else local)]
    fractions = (args.validation_fraction, args.test_fraction, args.split_seed)
    return fingerprint_of([[kind_of(each) for each in sources], places, fractions])


def _kept_splits(path: Path) -> dict[str, str]:
    return splits_by_content(read_manifest(path)) if path.exists() else {}


def _earlier_splits(origins: list[str], pieces: Dataset) -> dict[str, str]:
    """Sides by content in earlier manifests; the first that knows a piece decides."""
    split_names: dict[str, str] = {}
    for origin in origins:
        split_names = {**_splits_in(origin, pieces), **split_names}
    return split_names


def _splits_in(origin: str, pieces: Dataset) -> dict[str, str]:
    """Sides by content in an earlier manifest. What shares music with the train pieces of a model is train, too."""
    if Path(origin).is_file():
        return splits_by_content(read_manifest(origin))
    split_names = splits_by_content(read_manifest(_manifest_of(origin)))
    if Path(origin).is_dir() and not Path(origin, "provenance.json").exists():
        return split_names  # a data set, or a model without provenance: the manifest is all that is known
    new = [row for row, content in enumerate(pieces["content"][:]) if content not in split_names]
    overlaps = Provenance.load(origin).overlap(pieces.select(new), ["test"] * len(new))
    rows = zip(pieces["content"][:], pieces["family_id"][:], strict=True)
    family_of = {content: (family, split_names.get(content)) for content, family in rows}
    evaluated = {family for family, split_name in family_of.values() if split_name in ("validation", "test")}
    # A newcomer that resembles train pieces and evaluated ones alike follows its family, and training is then refused.
    trained = [each.content for each in overlaps if family_of[each.content][0] not in evaluated]
    return {**split_names, **dict.fromkeys(trained, "train")}


def provenance_of(name: str, revision: str | None = None) -> Provenance:
    """What a model was trained on, told by the commit that it is loaded from.

    Raises:
        ArgumentError: as for `model_folder`. DataError: as for `Provenance.load`.
    """
    folder = model_folder(name, revision)
    return Provenance.load(name, None if Path(name).is_dir() else folder.name)


def _manifest_of(origin: str) -> Path:
    """The split.json of a folder, or of a model on the Hub."""
    if Path(origin).exists():
        return Path(origin, "split.json")
    try:
        return model_file(origin, "split.json")
    except ArgumentError as error:
        raise ArgumentError(f"split_from: {error}") from error


def _select(pieces: Dataset, split_names: list[str], rows: list[int]) -> tuple[Dataset, list[str]]:
    return (
        (pieces, split_names)
        if len(rows) == len(split_names)
        else (pieces.select(rows), [split_names[row] for row in rows])
    )
