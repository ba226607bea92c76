"""Folders of links for `configs/v8-piano.yaml`: `python benchmarks/piano_mixture.py ASAP PIJAMA POP909 OUT`.

OUT gets `asap_performances`, `asap_scores`, `pijama` (one transcription of each performance) and `pop909`. Nothing is
copied; MAESTRO and the chorales need no folder of their own.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterator
from pathlib import Path

_SCORE = "midi_score.mid"  # as ASAP names it


def asap(folder: Path) -> Iterator[tuple[Path, Path]]:
    """Files of ASAP, and where each goes."""
    for path in sorted(folder.rglob("*.mid")):
        yield path, Path("asap_scores" if path.name == _SCORE else "asap_performances", path.relative_to(folder))


def pijama(folder: Path) -> Iterator[tuple[Path, Path]]:
    """Of each performance the first transcription that is there."""
    (table,) = folder.glob("*.csv")
    with table.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            names = [name for name in (row["file_hawthorne"], row["file_kong"]) if name and (folder / name).exists()]
            if names:
                yield folder / names[0], Path("pijama", names[0])


def main() -> None:
    """Make the links."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("asap", "pijama", "pop909", "output"):
        parser.add_argument(name, type=Path)
    args = parser.parse_args()
    pop909 = ((path, Path("pop909", path.name)) for path in sorted(args.pop909.glob("*.mid")))
    for path, target in (*asap(args.asap), *pijama(args.pijama), *pop909):
        link = args.output / target
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.is_symlink():
            link.symlink_to(path.resolve())


if __name__ == "__main__":
    main()
