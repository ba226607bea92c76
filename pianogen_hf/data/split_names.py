"""The splits, and what they are called elsewhere."""

from __future__ import annotations

SPLITS = ("train", "validation", "test")
SPLIT_ALIASES = {
    **{split_name: split_name for split_name in SPLITS},
    **dict.fromkeys(("valid", "val", "dev"), "validation"),
}
