"""The terminal in raw mode, and back again whatever happens.

In: a terminal's descriptor. Out: bytes as typed. May import: nothing of ours.
"""

from __future__ import annotations

import contextlib
import os
import termios
import tty
from collections.abc import Iterator

ESCAPE_KEY = 0x1D
"""Ctrl-]: pressed three times in a row it lets go of a terminal whose other end does not answer."""
ESCAPE_PRESSES = 3


@contextlib.contextmanager
def raw_terminal(descriptor: int) -> Iterator[None]:
    """Raw while inside; restored afterwards, also after errors.

    What was typed, or answered by the terminal, and not read is thrown away: it was meant for the other end, not for
    the shell that comes next.
    """
    before = termios.tcgetattr(descriptor)
    try:
        tty.setraw(descriptor, termios.TCSADRAIN)
        yield
    finally:
        with contextlib.suppress(termios.error):
            termios.tcsetattr(descriptor, termios.TCSAFLUSH, before)


class EscapeWatcher:
    """Counts the escape key in what is typed."""

    def __init__(self) -> None:
        self._presses = 0

    def is_leaving(self, typed: bytes) -> bool:
        for byte in typed:
            self._presses = self._presses + 1 if byte == ESCAPE_KEY else 0
            if self._presses >= ESCAPE_PRESSES:
                return True
        return False


class LeftTerminal(Exception):
    """The person pressed the escape key three times."""


class TypedSource:
    """Standard input in raw mode; raises LeftTerminal on the escape."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._watcher = EscapeWatcher()

    def fileno(self) -> int:
        return self._descriptor

    def read(self, limit: int) -> bytes:
        try:
            typed = os.read(self._descriptor, limit)
        except OSError:
            return b""
        if self._watcher.is_leaving(typed):
            raise LeftTerminal
        return typed
