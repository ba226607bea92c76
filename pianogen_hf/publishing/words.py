"""Values as the card writes them: what was not measured is said to be so, and no name can break the page."""

from __future__ import annotations

import math
from typing import Any

NOT_MEASURED, NOT_RECORDED = "not measured", "not recorded"


def code(value: Any) -> str:
    """Any name as code on one line: file names may hold what Markdown or HTML takes for its own."""
    return f"`{' '.join(str(value).replace('`', chr(39)).split())}`"


def number(value: Any) -> float | None:
    """The value, if it is a number that can have been measured."""
    is_measured = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return value if is_measured else None


def fixed(value: Any, digits: int) -> str:
    """With so many digits after the point."""
    return NOT_MEASURED if number(value) is None else f"{value:.{digits}f}"


def digits(value: Any) -> str:
    """A whole number."""
    return NOT_MEASURED if number(value) is None else f"{value:,}"
