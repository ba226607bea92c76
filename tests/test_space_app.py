"""The page of a Space: its functions, and the page itself in a browser."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from models_and_tokenizers import some_notes

import pianogen_hf as pg
from pianogen_hf.apps.space import folder as space_folder
from pianogen_hf.apps.space.folder import GRADIO_VERSION

gradio = pytest.importorskip("gradio", reason='gradio is not installed: pip install "pianogen_hf[space]"')
if any(importlib.util.find_spec(name) is None for name in ("midirenderer", "pretty_midi")):
    pytest.skip('no sound: pip install "pianogen_hf[audio]"', allow_module_level=True)

write_space = partial(space_folder.write_space, version=pg.__version__)
KNOBS = {
    "amount": 4,
    "unit": "seconds",
    "ideas": 1,
    "temperature": 1.0,
    "top_p": 0.95,
    "new_seed": False,
    "seed": 5,
    "verb": "Continue",
    "first_bar": 2,
    "last_bar": 3,
    "strength": 0.5,
    "side": "below",
    "density": 0,
    "register": 0,
    "loudness": 0,
    "key": "any",
    "kind": "any",
    "chords": None,
    "creativity": 0,
    "guidance_scale": 2.0,
}


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_space(tmp_path_factory.mktemp("space") / "page", pg.PIANO_MODEL)


@pytest.fixture(scope="module")
def app(space: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("space_app", space / "app.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def prompt(tmp_path: Path) -> Path:
    pg.write_midi(some_notes(), tmp_path / "my prompt.mid")
    return tmp_path / "my prompt.mid"


def generate(app: ModuleType, history: list | None = None, file: object = None, **knobs: Any) -> dict:
    """What Generate shows."""
    settings = {**KNOBS, **knobs}.values()
    return app.on_generate(history or [], file and str(file), lambda share, desc: None, *settings)


def extend(app: ModuleType, history: list, **knobs: Any) -> dict:
    """What Extend shows."""
    return app.on_extend(history, lambda share, desc: None, *{**KNOBS, **knobs}.values())


def midi(app: ModuleType, page: dict) -> pg.Notes:
    return pg.read_midi(page[app.download]["value"])


def assert_begins_with(notes: pg.Notes, prompt: pg.Notes) -> None:
    """The prompt's own notes are untouched, and there are others after them."""
    old = notes.where(notes["onset_tick"] < prompt.end_tick)
    assert old.table.tolist() == prompt.table.tolist() and len(notes) > len(prompt)


def test_the_version_of_gradio_is_the_one_that_is_tested():
    assert gradio.__version__.split(".")[0] == GRADIO_VERSION.split(".")[0]


def test_the_page_lets_one_visitor_in_at_a_time_and_the_others_wait(app):
    heavy = [each for each in app.demo.fns.values() if each.concurrency_id == "model"]
    assert len(heavy) == 2 and all(each.concurrency_limit == 1 for each in heavy)


def test_a_prompt_goes_on_and_is_seen_heard_and_downloaded(app, prompt):
    shares: list[float] = []
    page = app.on_generate([], str(prompt), lambda share, desc: shares.append(share), *KNOBS.values())
    notes, given = midi(app, page), pg.read_midi(prompt)
    assert_begins_with(notes, given)
    assert notes.end_sec <= given.end_sec + 4 + 1e-3
    assert Path(page[app.roll]).read_bytes().startswith(b"\x89PNG")
    assert Path(page[app.audio]).read_bytes().startswith(b"RIFF")
    assert page[app.extend]["interactive"] and not page[app.undo]["interactive"]
    assert f"{len(notes) - len(given)} new notes in 4.0 s" in page[app.message] and "seed was 5" in page[app.message]
    assert shares == sorted(shares) and shares[-1] == 1


def test_from_nothing_by_bars_with_several_ideas(app):
    page = generate(app, unit="bars", amount=2, ideas=3)
    (ideas, chosen, _) = page[app.rounds][-1]
    assert chosen == 0 and len({str(each.notes.table.tolist()) for each in ideas}) == 3
    assert page[app.idea]["visible"] and len(page[app.idea]["choices"]) == 3
    other = app.on_choose(page[app.rounds], 2)
    assert midi(app, other).table.tolist() == ideas[2].notes.table.tolist()


def test_extend_goes_on_from_the_idea_that_is_shown_and_undo_goes_back_to_it(app):
    page = app.on_choose(generate(app, ideas=2, amount=2)[app.rounds], 1)
    longer = extend(app, page[app.rounds], amount=2)
    assert_begins_with(midi(app, longer), midi(app, page))
    assert longer[app.undo]["interactive"]
    back = app.on_undo(longer[app.rounds])
    assert midi(app, back).table.tolist() == midi(app, page).table.tolist() and back[app.idea]["value"] == 1
    empty = app.on_start_over()
    assert empty[app.rounds] == [] and empty[app.roll] is None and empty[app.prompt_file] is None


@pytest.mark.parametrize("verb", ["Fill", "Vary", "Accompany", "Harmonise", "End"])
def test_each_verb_keeps_the_prompt_and_shows_what_is_new(app, prompt, verb):
    page = generate(app, file=prompt, verb=verb, amount=3, density=3, creativity=0.1)
    notes, given = midi(app, page), pg.read_midi(prompt)
    (ideas, _, shown) = page[app.rounds][-1]
    assert shown == verb and len(ideas[0].new) > 0
    kept = given.where((given.onset_sec < 2) | (given.onset_sec >= 6)) if verb in ("Fill", "Vary") else given
    rows = list(zip(notes["onset_tick"].tolist(), notes["pitch"].tolist(), strict=True))
    assert all(row in rows for row in zip(kept["onset_tick"].tolist(), kept["pitch"].tolist(), strict=True))
    assert ("as they were" in page[app.message]) == (verb != "End")
    longer = extend(app, page[app.rounds], verb=verb, amount=2)
    assert midi(app, longer).end_sec > notes.end_sec and longer[app.rounds][-1].verb == "Continue"


def test_a_verb_shows_its_own_knobs(app):
    for verb, shown in (("Continue", "new_music"), ("Fill", "passage"), ("Harmonise", None), ("End", "new_music")):
        page = app.on_verb(verb)
        assert [name for name in ("new_music", "passage") if page[getattr(app, name)]["visible"]] == [shown] * bool(
            shown
        )
    assert app.on_verb("Vary")[app.strength]["visible"] and app.on_verb("Accompany")[app.side]["visible"]


@pytest.mark.parametrize(
    ("knobs", "words"),
    [
        ({"verb": "Vary", "first_bar": 90, "last_bar": 99}, "not within the piece"),
        ({"verb": "Fill", "first_bar": 3, "last_bar": 2}, "not within the piece"),
        ({"chords": "Cm7 | H"}, "'H' is no chord"),
    ],
)
def test_knobs_that_mean_nothing_are_one_line(app, prompt, knobs, words):
    page = generate(app, file=prompt, **knobs)
    assert list(page) == [app.message] and words in page[app.message]


def test_a_verb_without_music_asks_for_some(app):
    assert "nothing to vary: upload a MIDI file" in generate(app, verb="Vary")[app.message]


def test_the_seed_decides_and_a_new_one_is_shown(app):
    first, again, other = (midi(app, generate(app, seed=seed, amount=2)).table.tolist() for seed in (7, 7, 8))
    assert first == again != other
    page = generate(app, new_seed=True, amount=2)
    assert midi(app, generate(app, seed=page[app.seed_box], amount=2)).table.tolist() == midi(app, page).table.tolist()


def test_prompts_to_try_can_be_continued(app):
    for (path,) in app.example_prompts():
        assert_begins_with(midi(app, generate(app, file=path, amount=2)), pg.read_midi(path))


def a_text(path: Path) -> None:
    path.write_text("not music")


def silence(path: Path) -> None:
    pg.write_midi(pg.Notes.from_columns(480, onset_tick=[], duration_tick=[], pitch=[]), path)


def a_violin(path: Path) -> None:
    pg.write_midi(pg.Notes.from_columns(480, onset_tick=[0], duration_tick=[9], pitch=[60], program=40), path)


def five_minutes(path: Path) -> None:
    pg.write_midi(pg.Notes.from_columns(480, onset_tick=[0], duration_tick=[960 * 300], pitch=[60]), path)


def too_many_notes(path: Path) -> None:
    count = 10_001
    columns = {"onset_tick": [i // 40 for i in range(count)], "pitch": [40 + i % 40 for i in range(count)]}
    pg.write_midi(pg.Notes.from_columns(480, duration_tick=[1] * count, **columns), path)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (a_text, "my file.mid: not a MIDI file"),
        (silence, "my file.mid has no notes"),
        (a_violin, "only instruments other than a piano"),
        (five_minutes, "lasts 300 s, and up to 240 s"),
        (too_many_notes, "has 10,001 notes"),
    ],
)
def test_a_prompt_that_can_t_be_continued_is_one_line_and_changes_nothing_else(app, tmp_path, make, words):
    make(tmp_path / "my file.mid")
    page = generate(app, file=tmp_path / "my file.mid")
    assert list(page) == [app.message], "all else stays as it was"
    assert page[app.message].startswith("**Error:** ") and words in page[app.message]
    assert str(tmp_path) not in page[app.message]


def test_what_takes_too_long_ends(app, monkeypatch):
    monkeypatch.setattr(app, "MAX_WAIT_SEC", -1)
    page = generate(app)
    assert list(page) == [app.message] and "ask for less music" in page[app.message]


def test_a_visit_that_was_forgotten_is_told(app):
    assert "press Generate" in extend(app, [])[app.message]
    assert app.on_choose([], 1)[app.rounds] == app.on_undo([])[app.rounds] == []


# In a browser --------------------------------------------------------------------------------------------------------

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]


@pytest.fixture
def address(space: Path, tmp_path: Path) -> Iterator[str]:
    """The page as the folder's own `python app.py` serves it, with the copy of the package that lies in it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = {"GRADIO_SERVER_PORT": str(port), "GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1"}
    settings["GRADIO_TEMP_DIR"] = str(tmp_path / "gradio")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | settings
    log = tmp_path / "log.txt"
    with log.open("w") as out:
        process = subprocess.Popen([sys.executable, "app.py"], cwd=space, env=environment, stdout=out, stderr=out)
    try:
        while not answers(port):
            assert process.poll() is None, log.read_text()
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
        assert "Traceback" not in log.read_text(), log.read_text()
    finally:
        process.terminate()
        process.wait()


def answers(port: int) -> bool:
    try:
        return urllib.request.urlopen(f"http://127.0.0.1:{port}").status == 200
    except OSError:
        return False


@pytest.fixture
def browser_page(address: str) -> Iterator[Any]:
    """The open page, in a browser that reaches nothing but it."""
    driver = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
    if CHROMIUM is None:
        pytest.skip("no chromium: apt-get install chromium")
    with driver.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=[*FLAGS, "--disable-sync", "--no-first-run"]
        )
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.set_default_timeout(120_000)
        page.route(re.compile(rf"^https?://(?!{re.escape(address[7:])})"), lambda route: route.abort())
        page.goto(address)
        yield page
        browser.close()


@pytest.mark.slow
def test_a_visit(browser_page, prompt, tmp_path):
    page = browser_page
    message, button = page.locator("#message"), lambda name: page.get_by_role("button", name=name, exact=True)

    def download(name: str) -> pg.Notes:
        with page.expect_download() as caught:
            button("Download").click()
        caught.value.save_as(tmp_path / name)
        return pg.read_midi(tmp_path / name)

    page.locator("input[type=file]").first.set_input_files(prompt)
    page.get_by_text("my prompt").first.wait_for()
    page.get_by_label("number input for New music").fill("5")
    page.get_by_label("number input for Ideas").fill("2")
    page.get_by_text("More", exact=True).click()
    page.get_by_label("number input for Temperature").fill("0.9")
    page.get_by_label("A new seed every time").uncheck()
    page.get_by_label("Seed", exact=True).fill("11")
    button("Generate").click()
    message.filter(has_text=re.compile(r"new notes in (4\.[5-9]|5\.0) s")).wait_for()  # the last may end early
    assert "seed was 11" in message.inner_text()
    page.locator("#roll img").wait_for()
    assert page.locator("#roll img").evaluate("image => image.decode().then(() => image.naturalWidth)") > 300
    page.locator("#audio").get_by_text(re.compile(r"^0:(0[1-9]|1\d)$")).wait_for()  # the player knows its length
    first, given = download("first.mid"), pg.read_midi(prompt)
    assert_begins_with(first, given)
    assert first.end_sec <= given.end_sec + 5 + 1e-3

    old = page.locator("#roll img").get_attribute("src")
    page.get_by_label("Idea 2").check()
    page.wait_for_function("old => document.querySelector('#roll img').getAttribute('src') != old", arg=old)
    second = download("second.mid")
    assert_begins_with(second, given)
    assert second.table.tolist() != first.table.tolist()

    button("Extend").click()
    page.locator("button:not([disabled])", has_text="Undo").wait_for()
    assert_begins_with(download("longer.mid"), second)

    page.get_by_label("What to do").click()
    page.get_by_role("option", name="Vary").click()
    page.get_by_label("From bar").fill("2")
    page.get_by_label("To bar").fill("3")
    page.get_by_label("number input for Strength").fill("0.75")
    page.get_by_label("number input for Ideas").fill("1")
    page.get_by_text("Ask for", exact=True).click()
    page.get_by_label("number input for Density").fill("4")
    page.get_by_label("Key", exact=True).click()
    page.get_by_role("option", name="C minor", exact=True).click()
    button("Generate").click()
    message.filter(has_text="as they were").wait_for()
    varied = download("varied.mid")
    is_passage = (given.onset_sec >= 2) & (given.onset_sec < 6)
    rows = varied.table.tolist()
    assert all(row in rows for row in given.table[~is_passage].tolist()) and varied != given
    assert not all(row in rows for row in given.table[is_passage].tolist())
    page.get_by_label("What to do").click()
    page.get_by_role("option", name="Continue").click()
    page.get_by_label("number input for New music").wait_for()

    (tmp_path / "text.mid").write_text("not music")
    button("Clear").click()
    page.locator("input[type=file]").first.set_input_files(tmp_path / "text.mid")
    page.get_by_text("text", exact=True).wait_for()
    button("Generate").click()
    message.filter(has_text="text.mid: not a MIDI file").wait_for()
    assert download("still.mid").table.tolist() == varied.table.tolist()
