"""A comparison as one HTML page that needs nothing but a browser: tables, curves, and music to look at and to hear.

Notes stand in the page as JSON; the player of `pianogen play` and `pianogen show` (`static/`) draws and plays them.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment

from pianogen_hf.tokenizers.notes import Notes

_TEMPLATE = "comparison_page.html"
PLAYER = Path(str(files(__package__).joinpath("static")))  # its JavaScript
_MODULES = ("roll.js", "sound.js", "player.js")  # each after those that it imports


def comparison_page(
    title: str,
    facts: Mapping[str, str],
    ranking: Sequence[Mapping[str, Any]],
    tables: Sequence[Mapping[str, Any]],
    curves_png: bytes | None,
    groups: Sequence[Mapping[str, Any]],
) -> str:
    """The page.

    Args:
        title: its heading.
        facts: how the comparison came about, by name.
        ranking: the models, best first: `name`, `bits` per note, `error` of it (may be None), `words`.
        tables: each with `title`, `text`, `columns` and `rows`.
        curves_png: the picture of the loss curves.
        groups: of music, each with `name`, `text` and `pieces`; a piece has `title`, `notes` (`Notes`) and `faults`,
            what is wrong with it.
    """
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
    template = environment.from_string(files(__package__).joinpath(_TEMPLATE).read_text(encoding="utf-8"))
    pieces = [piece for group in groups for piece in group["pieces"]]
    numbers = iter(range(len(pieces)))
    longest = max((each["bits"] + (each["error"] or 0) for each in ranking), default=1.0)
    return template.render(
        title=title,
        facts=facts,
        ranking=[{**each, "percent": 100 * each["bits"] / longest} for each in ranking],
        tables=[{**table, "anchor": f"table-{number}"} for number, table in enumerate(tables)],
        curves=None if curves_png is None else base64.b64encode(curves_png).decode(),
        groups=[
            {**group, "pieces": [_facts_of(piece, next(numbers)) for piece in group["pieces"]]} for group in groups
        ],
        player="\n".join(_in_one_script(PLAYER / name) for name in _MODULES),
        # Inside <script> only a closing tag could end the text; an escaped < is the same JSON.
        data=json.dumps([note_rows(piece["notes"]) for piece in pieces], separators=(",", ":")).replace("<", "\\u003c"),
    )


def note_rows(notes: Notes) -> list[list[int]]:
    """Onset and duration in milliseconds, pitch and velocity of every note, without what comes before the first one."""
    if not len(notes):
        return []
    onset, offset = notes.onset_sec - notes.onset_sec.min(), notes.offset_sec - notes.onset_sec.min()
    columns = (1000 * onset, 1000 * (offset - onset), notes["pitch"], notes["velocity"])
    return np.stack([np.rint(column).astype(int) for column in columns], axis=1).tolist()


def _in_one_script(module: Path) -> str:
    """A module without what joins it to others, for a page of one file."""
    return re.sub(r"^(?:import .*\n|export )", "", module.read_text(encoding="utf-8"), flags=re.M)


def _facts_of(piece: Mapping[str, Any], number: int) -> dict[str, Any]:
    """What the template says of a piece."""
    notes: Notes = piece["notes"]
    seconds = notes.end_sec - float(notes.onset_sec.min()) if len(notes) else 0.0
    clock = f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
    return {**piece, "number": number, "num_notes": len(notes), "seconds": seconds, "clock": clock}
