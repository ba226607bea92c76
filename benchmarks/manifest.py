"""Size and speed of the manifest of a large data set: `python benchmarks/manifest.py [PIECES]` prints a Markdown table.

The pieces are made up: named as in the Lakh MIDI data set; one in ten shares its family with another.
"""

from __future__ import annotations

import gzip
import hashlib
import platform
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset

from pianogen_hf.data.manifest import read_manifest, split_manifest, splits_by_content, write_manifest
from pianogen_hf.data.splits import assign_splits


def pieces(count: int) -> Dataset:
    """Rows with what a split needs, such as lmd_full/0/00000ec8a66b6bd2ef809b0443eeae41.mid."""
    names = sorted(hashlib.md5(str(number).encode()).hexdigest() for number in range(count))
    hashes = [hashlib.sha256(name.encode()).hexdigest() for name in names]
    family_of = [row - row % 20 if row % 20 < 2 else row for row in range(count)]
    return Dataset.from_dict(
        {
            "piece_id": [f"lmd_full/{name[0]}/{name}.mid" for name in names],
            "source": ["lmd_full"] * count,
            "family_id": [f"content/{hashes[row][:16]}" for row in family_of],
            "official_split": [""] * count,
            "content": [each[16:32] for each in hashes],
            "num_notes": [4000] * count,
        }
    )


def timed(function: Callable[[], Any]) -> tuple[Any, float]:
    """What a function returns, and the seconds it took."""
    begin = time.perf_counter()
    result = function()
    return result, time.perf_counter() - begin


def main() -> None:
    """Print the table."""
    data = pieces(int(sys.argv[1]) if len(sys.argv) > 1 else 178_000)
    print(f"Python {platform.python_version()}, datasets {datasets.__version__}, {len(data):,} pieces\n")
    print("| | |\n|---|---|")
    sides, seconds = timed(lambda: assign_splits(data))
    print(f"| assign sides, first time | {seconds:.1f} s |")
    manifest, seconds = timed(lambda: split_manifest(data, sides, {"source": ["folder"], "split_seed": 0}))
    print(f"| make the manifest | {seconds:.1f} s |")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "split.json")
        _, seconds = timed(lambda: write_manifest(path, manifest))
        print(f"| write it | {seconds:.1f} s |")
        read, seconds = timed(lambda: read_manifest(path))
        print(f"| read and check it | {seconds:.1f} s |")
        text = path.read_bytes()
    print(f"| size | {len(text) / 1e6:.1f} MB, {len(text) / len(data):.0f} bytes a piece |")
    print(f"| size with gzip -6 | {len(gzip.compress(text, 6)) / 1e6:.1f} MB |")
    again, seconds = timed(lambda: assign_splits(data, earlier=splits_by_content(read)))
    print(f"| assign sides again, from it | {seconds:.1f} s |")
    print(f"| memory at most, with the data set | {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.1f} GB |")
    assert read == manifest and again == sides


if __name__ == "__main__":
    main()
