"""What tests of pages in a browser have in common."""

from __future__ import annotations

import time
from typing import Any


def wait_until(tab: Any, expression: str) -> None:
    """Playwright's own would evaluate text in the page, which the page's policy forbids."""
    end = time.monotonic() + 60
    while not tab.evaluate(expression):
        assert time.monotonic() < end, expression
        tab.wait_for_timeout(50)


def loudest(tab: Any, seconds: float) -> float:
    """The loudest moment of the audio graph's output."""
    most, end = 0.0, time.monotonic() + seconds
    while time.monotonic() < end:
        most = max(most, tab.evaluate("pianogen.piano.peak()"))
        tab.wait_for_timeout(30)
    return most
