"""JSON files that hold a hash of all that they say: what `split.json` and `provenance.json` have in common.

By the hash and the form an edited or broken file is known. It is no signature: who means to deceive can make another.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from typing import Any


def hash_of(content: Mapping[str, Any]) -> str:
    """SHA-256 of all fields but the hash itself, as JSON with sorted keys and no spaces; 64 hex digits."""
    said = {name: value for name, value in content.items() if name != "hash"}
    return hashlib.sha256(json.dumps(said, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def text_of(content: Mapping[str, Any], flat: Collection[str] = ()) -> bytes:
    """The file, with sorted keys and one line for each entry of a map or list, so that two can be compared by line.

    Args:
        content: what it says.
        flat: fields that stand on one line, whatever they hold.
    """
    fields = [
        f" {_json(name)}: {(_json if name in flat else _lines)(value)}" for name, value in sorted(content.items())
    ]
    # A command line may hold a path that is no UTF-8: Python has it as surrogates, JSON has escapes for them.
    return ("{\n" + ",\n".join(fields) + "\n}\n").encode("utf-8", "backslashreplace")


def _lines(value: Any) -> str:
    if isinstance(value, dict) and value:
        return "{\n" + ",\n".join(f"  {_json(name)}: {_json(each)}" for name, each in sorted(value.items())) + "\n }"
    if isinstance(value, list) and value:
        return "[\n" + ",\n".join(f"  {_json(each)}" for each in value) + "\n ]"
    return _json(value)


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False)
