"""The splits, and what they are called elsewhere."""

from __future__ import annotations

SIDES = ("train", "validation", "test")
SIDE_NAMES = {**{side: side for side in SIDES}, **dict.fromkeys(("valid", "val", "dev"), "validation")}
