"""The page of a comparison: what stands in it, and that a browser plays it."""

import html
import json
import re

import numpy as np
import pytest
from models_and_tokenizers import some_notes
from pages import loudest, wait_until

import pianogen_hf
from pianogen_hf.rendering.comparison_page import comparison_page, note_rows
from pianogen_hf.rendering.loss_curves import save_loss_curves

NASTY = '</script><b onclick="x">&'
CURVE = {"notes": [10.0, 1000.0, 20000.0], "seconds": [0.5, 30.0, 61.0], "bits": [24.0, 12.0, 9.5]}
EMPTY = {"notes": [], "seconds": [], "bits": []}


@pytest.fixture(scope="module")
def page():
    groups = [
        {"name": "Real", "text": "", "pieces": [{"title": NASTY, "notes": some_notes(), "faults": []}]},
        {"name": "v1", "text": "x", "pieces": [{"title": "seed 0", "notes": some_notes(1), "faults": ["3 notes"]}]},
    ]
    ranking = [{"name": "v1", "bits": 9.5, "error": 0.1, "words": "9.500 ± 0.100"}]
    tables = [{"title": NASTY, "text": ["words"], "columns": ["model", "bits"], "rows": [["v1", "9.5"]]}]
    return comparison_page("A title", {"command": "pianogen compare"}, ranking, tables, b"png", groups)


def test_the_page_needs_nothing_from_anywhere(page):
    assert not re.search(r"https?://|//cdn|@import|url\(", page)
    assert re.findall(r'(?:src|href)="([^#"][^"]{0,20})', page) == ["data:image/png;base64,"[:21]]
    assert "<link" not in page and page.count("<script") == 2


def test_names_are_text_and_never_markup(page):
    assert NASTY not in page and html.escape("</script><b onclick=") in page


def test_the_notes_in_the_page_are_those_of_the_pieces(page):
    (data,) = re.findall(r'<script type="application/json" id="notes">(.*?)</script>', page, flags=re.S)
    first, second = json.loads(data)
    assert first == note_rows(some_notes()) and len(second) == len(some_notes(1))
    notes = some_notes()
    onset, duration, pitch, velocity = np.array(first).T
    assert onset.min() == 0 and np.allclose(np.diff(onset), np.diff(notes.onset_sec) * 1000, atol=1)
    assert pitch.tolist() == notes["pitch"].tolist() and velocity.tolist() == notes["velocity"].tolist()
    assert (duration > 0).all()


def test_everything_that_can_be_operated_has_a_name(page):
    for tag in re.findall(r"<(?:button|input|canvas)[^>]*>", page):
        assert "aria-label=" in tag
    assert '<html lang="en">' in page and 'name="viewport"' in page and "prefers-color-scheme: dark" in page
    assert "Fault: 3 notes" in page and "no fault found" in page


def test_a_piece_without_notes_makes_a_page(tmp_path):
    silent = pianogen_hf.Notes(np.zeros(0, some_notes().table.dtype))
    page = comparison_page("t", {}, [], [], None, [{"name": "a", "text": "", "pieces": [
        {"title": "b", "notes": silent, "faults": ["0 notes"]}]}])  # fmt: skip
    assert "0 notes in 0 seconds" in page and "NaN" not in page


def test_a_page_without_real_music_does_not_speak_of_any(page):
    """Its own group does that, where it is there."""
    assert "side by side" in page and "real music" not in page and "trained on" not in page


@pytest.mark.slow
def test_a_browser_plays_one_piece_at_a_time_and_moves_the_cursor(page, browser, tmp_path):
    path = tmp_path / "page.html"
    path.write_text(page, encoding="utf-8")
    tab = browser.new_page()
    faults: list[str] = []
    tab.on("pageerror", lambda error: faults.append(str(error)))
    tab.goto(path.as_uri())
    first, second = (tab.locator(".piece").nth(number) for number in range(2))
    assert first.locator("output").inner_text().startswith("0:00 / 0:0")
    second.locator("button").click()
    wait_until(tab, "Number(document.querySelectorAll('.piece input')[1].value) > 0.2")
    assert loudest(tab, 0.5) > 0.01
    assert [each.locator("button").inner_text() for each in (first, second)] == ["Play", "Stop"]
    first.locator("button").click()
    wait_until(tab, "document.querySelectorAll('.piece button')[1].textContent === 'Play'")
    assert tab.evaluate("pianogen.players.map((each) => each.isPlaying)") == [True, False]
    first.locator("button").click()
    wait_until(tab, "pianogen.players.every((each) => !each.isPlaying)")
    box = second.locator("canvas").bounding_box()
    tab.mouse.click(box["x"] + box["width"] / 2, box["y"] + 20)
    wait_until(tab, "Math.abs(pianogen.players[1].position / pianogen.players[1].seconds - 0.5) < 0.05")
    colours = tab.evaluate("""() => {
      const canvas = document.querySelectorAll("canvas")[1];
      const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
      const colourAt = (pixel) => data.slice(4 * pixel, 4 * pixel + 4).join();
      return new Set(Array.from({ length: data.length / 4 }, (_, pixel) => colourAt(pixel))).size;
    }""")
    assert colours > 5 and not faults
    tab.screenshot(path=tmp_path / "comparison.png")
    tab.close()


# Curves ---------------------------------------------------------------------------------------------------------------


def test_curves_are_drawn_alike_from_equal_input_with_many_models_and_with_one_point(tmp_path):
    curves = {f"model_{number}$": {"train": CURVE, "validation": EMPTY} for number in range(9)}
    curves["one"] = {"train": {key: values[:1] for key, values in CURVE.items()}, "validation": CURVE}
    first = save_loss_curves(curves, tmp_path / "a.png").read_bytes()
    assert first.startswith(b"\x89PNG") and first == save_loss_curves(curves, tmp_path / "b.png").read_bytes()
    other = {**curves, "one": {"train": CURVE, "validation": CURVE}}
    assert first != save_loss_curves(other, tmp_path / "c.png").read_bytes()
