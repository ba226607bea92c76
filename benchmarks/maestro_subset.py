"""A part of MAESTRO for comparisons on a CPU: `python benchmarks/maestro_subset.py MAESTRO_FOLDER OUT_FOLDER`.

Train: all train pieces of at most five minutes. Held out: validation pieces of that length, whole compositions at a
time (another performance of a piece is the same music), some of them to choose weights by and the others, which are
called test, to be reported. MAESTRO's own test pieces are not touched. OUT_FOLDER gets a table and links to the files,
and is read by `--source maestro=OUT_FOLDER`.
"""

from __future__ import annotations

import argparse
import csv
import random
from collections import defaultdict
from pathlib import Path

Row = dict[str, str]


def chosen_rows(rows: list[Row], most_seconds: float, num_validation: int, num_test: int, seed: int) -> list[Row]:
    """Rows of the table that are kept, those to be reported with the split "test"."""
    short = [row for row in rows if float(row["duration"]) <= most_seconds]
    works = defaultdict(list)
    for row in short:
        if row["split"] == "validation":
            works[row["canonical_composer"], row["canonical_title"]].append(row)
    order = sorted(works)
    random.Random(seed).shuffle(order)
    held_out: dict[str, list[Row]] = {"validation": [], "test": []}
    for work in order:
        side = "validation" if len(held_out["validation"]) < num_validation else "test"
        if side == "validation" or len(held_out["test"]) < num_test:
            held_out[side] += [{**row, "split": side} for row in works[work]]
    return [row for row in short if row["split"] == "train"] + held_out["validation"] + held_out["test"]


def main() -> None:
    """Write the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("maestro", type=Path, help="a release of MAESTRO")
    parser.add_argument("output", type=Path)
    parser.add_argument("--most_seconds", type=float, default=300, help="of a piece (default: 300)")
    parser.add_argument("--validation", type=int, default=12, help="pieces to choose weights by, about (default: 12)")
    parser.add_argument("--test", type=int, default=20, help="pieces to be reported, about (default: 20)")
    parser.add_argument("--seed", type=int, default=0, help="of the division of held-out works (default: 0)")
    args = parser.parse_args()
    (table,) = args.maestro.glob("maestro-v*.csv")
    with table.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    rows = chosen_rows(rows, args.most_seconds, args.validation, args.test, args.seed)
    args.output.mkdir(parents=True)
    with (args.output / table.name).open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    for row in rows:
        link = args.output / row["midi_filename"]
        link.parent.mkdir(exist_ok=True)
        link.symlink_to((args.maestro / row["midi_filename"]).resolve())
    for side in ("train", "validation", "test"):
        kept = [float(row["duration"]) for row in rows if row["split"] == side]
        print(f"{side}: {len(kept)} pieces, {sum(kept) / 3600:.2f} hours")


if __name__ == "__main__":
    main()
