"""What a data set on the Hub holds, in a few hashes, as it is seen with `datasets` and nothing of this package.

Run as a script, with a repository and a revision, it loads every configuration and prints JSON. It must import nothing
but what such a reader has.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
from datasets import Dataset, get_dataset_config_names, load_dataset
from huggingface_hub import hf_hub_download


def digest(splits: Mapping[str, Dataset]) -> dict[str, list]:
    """Per split the number of rows, and a hash of all that stands in them, 64 hex digits."""
    return {str(split_name): [len(rows), _hash(rows)] for split_name, rows in splits.items()}


def _hash(rows: Dataset) -> str:
    found = hashlib.sha256()
    for batch in rows.with_format("arrow").iter(256):
        for name in sorted(batch.column_names):
            found.update(name.encode())
            _add(found, batch[name].combine_chunks())
    return found.hexdigest()


def _add(found: Any, column: pa.Array) -> None:
    """Take the values of a column into a hash, whatever the layout in which Arrow keeps them."""
    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        found.update(column.value_lengths().cast(pa.int64()).to_numpy(zero_copy_only=False).tobytes())
        return _add(found, column.flatten())
    if pa.types.is_fixed_size_list(column.type):  # rows of a feature extractor
        return _add(found, column.flatten())
    if pa.types.is_integer(column.type) or pa.types.is_floating(column.type):
        return found.update(column.to_numpy(zero_copy_only=False).tobytes())
    for value in column.to_pylist():
        data = value.encode() if isinstance(value, str) else value
        found.update(len(data).to_bytes(8, "big") + data)
    return None


def digests_on_hub(name: str, revision: str) -> dict[str, Any]:
    """All that the Hub has: the hash of the split, and per configuration its `digest`."""
    path = hf_hub_download(name, "split.json", repo_type="dataset", revision=revision)
    with open(path, encoding="utf-8") as file:
        manifest = json.load(file)["hash"]
    configs = get_dataset_config_names(name, revision=revision)
    # The first and default one is loaded as everybody does it, without its name.
    loaded = {config: load_dataset(name, config, revision=revision) for config in configs}
    loaded["pieces"] = load_dataset(name, revision=revision)
    return {"manifest": manifest, **{config: digest(splits) for config, splits in loaded.items()}}


if __name__ == "__main__":
    print(json.dumps(digests_on_hub(*sys.argv[1:3])))
