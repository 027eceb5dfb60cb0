"""Plain tables: aligned columns with a heading.

In: rows of cells. Out: lines. May import: cli.colours.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from cloison.cli.colours import Palette


@dataclass(frozen=True)
class Cell:
    """One value; ``style`` is an SGR code that is used where colours are wanted."""

    text: str
    style: str = ""
    right: bool = False


def cells_wide(text: str) -> int:
    """Columns that ``text`` takes on a terminal."""
    if text.isascii():
        return len(text)
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def render_table(headings: Sequence[str], rows: Sequence[Sequence[Cell]], palette: Palette, *,
                 width: int | None = None) -> list[str]:  # fmt: skip
    """Lines of the table; with ``width``, long last columns are cut so that no line wraps."""
    widths = [
        max([cells_wide(heading), *(cells_wide(row[i].text) for row in rows)]) for i, heading in enumerate(headings)
    ]
    lines = [
        _line([Cell(h, "1", bool(rows) and rows[0][i].right) for i, h in enumerate(headings)], widths, palette, width)
    ]
    lines += [_line(row, widths, palette, width) for row in rows]
    return lines


def _line(row: Sequence[Cell], widths: Sequence[int], palette: Palette, limit: int | None) -> str:
    parts: list[str] = []
    used = 0
    for index, (cell, width) in enumerate(zip(row, widths, strict=True)):
        is_last = index == len(row) - 1
        text = cell.text
        if limit is not None and used + cells_wide(text) > limit:
            room = max(0, limit - used - 1)
            text = text[:room] + "…" if room else ""
        padding = " " * (width - cells_wide(text))
        styled = palette.style(text, cell.style)
        if cell.right:
            parts.append(padding + styled)
        else:
            parts.append(styled if is_last else styled + padding)
        used += width + 2
    return "  ".join(parts).rstrip()


def human_bytes(count: int | None) -> str:
    """``1.5 GiB``; "-" for None."""
    if count is None:
        return "-"
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{size:.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def human_seconds(seconds: float) -> str:
    """``0.61 s``, ``42 s``, ``3 min 5 s``, ``2 h 10 min``, ``3 d 4 h``."""
    if seconds < 10:
        return f"{seconds:.2f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    for size, unit, small_size, small_unit in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // small_size} {small_unit}"
    return f"{whole} s"
