"""Tables of figures, and reports made of them, as Markdown.

A table is plain data: `title`, `text` (what has to be known to read it), `columns` and `rows` of strings, so that it
can be written as Markdown here and drawn elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

NONE = "–"  # what was not measured
Table = dict[str, Any]


def number(value: float | None, digits: int) -> str:
    """A figure with so many digits behind the point; a dash where there is none."""
    return NONE if value is None or value != value else f"{value:,.{digits}f}"


def table_lines(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table in Markdown, line by line."""
    return [f"| {' | '.join(map(_cell, row))} |" for row in (header, ["---"] * len(header), *rows)]


def markdown(title: str, facts: Mapping[str, str], tables: Sequence[Table], pictures: Mapping[str, str]) -> str:
    """The report as Markdown.

    Args:
        title: its heading.
        facts: how it came about, by name.
        tables: see the top of this file.
        pictures: file name by what it shows.
    """
    lines = [f"# {title}", "", *(f"* **{name}**: {value}" for name, value in facts.items()), ""]
    for words, file in pictures.items():
        lines += [f"![{words}]({file})", ""]
    for table in tables:
        lines += [f"## {table['title']}", "", *(text + "\n" for text in table["text"])]
        lines += [*table_lines(table["columns"], table["rows"]), ""]
    return "\n".join(lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
