"""Settings of the whole suite: no network, one thread, no time limits that a busy machine would break."""

import os
import shutil

# Before anything imports them: a test that asks the Hub must fail at once, and tiny operators want one thread.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest  # noqa: E402
from hypothesis import settings  # noqa: E402

# Forty examples a run: each run draws others, and what once failed is kept and tried first.
settings.register_profile("suite", deadline=None, max_examples=40)
settings.load_profile("suite")


@pytest.fixture(scope="module")
def browser():
    """Chromium without a window."""
    driver = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no chromium: apt-get install chromium")
    flags = ["--no-sandbox", "--disable-gpu", "--autoplay-policy=no-user-gesture-required", "--disable-sync"]
    with driver.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=flags)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def blocks_for_short_sequences():
    """Tests are short; what they are about is the long."""
    from pianogen_hf.models import relative_attention_dispatch

    limit, relative_attention_dispatch.MAX_DENSE_KEYS = relative_attention_dispatch.MAX_DENSE_KEYS, 0
    yield
    relative_attention_dispatch.MAX_DENSE_KEYS = limit
