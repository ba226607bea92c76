"""What tests of pages in a browser have in common."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pianogen_hf as pg


def watched_tab(browser: Any, timeout_ms: int) -> tuple[Any, list[str]]:
    """A tab, and what it complains of."""
    tab = browser.new_page(viewport={"width": 1280, "height": 800})
    tab.set_default_timeout(timeout_ms)
    faults: list[str] = []
    tab.on("pageerror", lambda error: faults.append(str(error)))
    tab.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
    return tab, faults


def saved_session(tab: Any, folder: Path) -> pg.Notes:
    """What the page of `pianogen play` saves."""
    with tab.expect_download() as download:
        tab.click("#save")
    download.value.save_as(folder / "session.mid")
    return pg.read_midi(folder / "session.mid")


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
