"""Maps over data sets whose results are kept on disk and found again."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from datasets import Dataset


def fingerprint_of(value: Any) -> str:
    """16 hex digits that name a JSON-able value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def cached_map(dataset: Dataset, function: Any, folder: Path, *, num_proc: int | None, **kwargs: Any) -> Dataset:
    """`dataset.map` whose result lies in `folder` and is found there the next time.

    `folder` must name everything that the result depends on. The mapped rows go straight to disk, whatever their
    number, and an interrupted map leaves nothing that a later one would take for a result.
    """
    folder.mkdir(parents=True, exist_ok=True)
    num_proc = max(1, min(num_proc or 1, len(dataset) // 32))
    return dataset.map(
        function,
        cache_file_name=str(folder / "data.arrow"),
        new_fingerprint=folder.name,
        num_proc=num_proc if num_proc > 1 else None,
        **kwargs,
    )
