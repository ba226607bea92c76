"""What the pages are made of, with a server or without one."""

from pathlib import Path

STATIC = Path(__file__).parent / "static"
TONE_PITCHES, TONE_SEC = tuple(range(24, 108, 4)), 4.0  # of the sound in the page
