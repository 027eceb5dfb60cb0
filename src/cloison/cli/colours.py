"""Colours and widths of the terminal.

In: labels, words. Out: text with or without escape sequences. May import: nothing of ours.
"""

from __future__ import annotations

import os
import sys
from typing import TextIO

LABEL_STYLES = {
    "red": "31",
    "orange": "38;5;208",
    "yellow": "33",
    "green": "32",
    "gray": "38;5;245",
    "blue": "94",
    "purple": "35",
    "black": "1",
}
"""SGR codes of the standard labels; black is bold, because black on black is nothing."""
STATE_STYLES = {"Running": "32", "Paused": "33", "Transient": "36", "Halting": "36", "Crashed": "31", "Halted": "2"}


class Palette:
    """Styles text, or does not: for pipes, dumb terminals and with NO_COLOR set."""

    def __init__(self, enabled: bool) -> None:
        self.enabled = enabled

    @classmethod
    def for_stream(cls, stream: TextIO, wish: str = "auto") -> Palette:
        if wish != "auto":
            return cls(wish == "always")
        usable = os.environ.get("TERM", "") not in {"", "dumb"} and not os.environ.get("NO_COLOR")
        return cls(usable and stream.isatty())

    def style(self, text: str, code: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self.enabled and code and text else text

    def label(self, text: str, label: str) -> str:
        return self.style(text, LABEL_STYLES.get(label, ""))

    def state(self, text: str, state: str) -> str:
        return self.style(text, STATE_STYLES.get(state, ""))

    def bold(self, text: str) -> str:
        return self.style(text, "1")

    def dim(self, text: str) -> str:
        return self.style(text, "2")

    def error(self, text: str) -> str:
        return self.style(text, "31;1")


def terminal_width(stream: TextIO | None = None) -> int | None:
    """Columns of the terminal behind ``stream`` (standard output); None if it is none."""
    try:
        return os.get_terminal_size((stream or sys.stdout).fileno()).columns or None
    except (OSError, ValueError):
        return None
