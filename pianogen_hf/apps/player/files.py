"""What the pages are made of, with a server or without one."""

from pathlib import Path

from pianogen_hf.rendering.comparison_page import PLAYER

STATIC = Path(__file__).parent / "static"
STATIC_FOLDERS = (STATIC, PLAYER)  # what the pages know as static/
TONE_PITCHES, TONE_SEC = tuple(range(24, 108, 4)), 4.0  # of the sound in the page
