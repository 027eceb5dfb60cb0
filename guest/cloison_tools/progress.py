"""How far a copy is: PROGRESS_TYPE=console|gui|none; without it, a line on the terminal if standard error is one."""

import posix
import time

from cloison_tools.client import write_all

SHOW_EVERY_S = 0.2
BAR_WIDTH = 24


class Progress:
    """``numbers``: a descriptor that gets the bytes sent so far, one number a line; -1: a bar on standard error."""

    def __init__(self, numbers: int = -1, total_bytes: int = 0) -> None:
        self._numbers = numbers
        self._total = total_bytes
        self._next = time.monotonic() + SHOW_EVERY_S
        self._width = 0

    def show(self, sent_bytes: int, total_bytes: int) -> None:
        now = time.monotonic()
        total = self._total or total_bytes
        if now < self._next and sent_bytes < total:
            return
        self._next = now + SHOW_EVERY_S
        self._write(f"{sent_bytes}\n" if self._numbers >= 0 else self._bar(sent_bytes, total))

    def _bar(self, sent: int, total: int) -> str:
        share = min(1.0, sent / total) if total else 1.0
        filled = "#" * round(share * BAR_WIDTH)
        line = f"[{filled:<{BAR_WIDTH}}] {share:4.0%}  {sent / 1048576:.1f} of {max(total, sent) / 1048576:.1f} MiB"
        padding = " " * max(0, self._width - len(line))
        self._width = len(line)
        return f"\r{line}{padding}"

    def _write(self, text: str) -> None:
        try:
            write_all(self._numbers if self._numbers >= 0 else 2, text.encode())
        except OSError:
            self._next = float("inf")  # nobody watches any more

    def end(self) -> None:
        """Leave the terminal's line free for what is said next."""
        if self._width:
            self._write("\r" + " " * self._width + "\r")


def open_progress(wish: str = "") -> "Progress | None":
    """What the environment (or ``wish``) asks for."""
    kind = wish or posix.environ.get(b"PROGRESS_TYPE", b"").decode("ascii", "replace")
    total = posix.environ.get(b"FILECOPY_TOTAL_BYTES", b"")
    total_bytes = int(total) if total.isdigit() and len(total) < 20 else 0
    if kind == "gui":
        saved = posix.environ.get(b"SAVED_FD_1", b"")
        return Progress(int(saved) if saved.isdigit() and len(saved) < 6 else 1, total_bytes)
    if kind == "console" or (kind == "" and posix.isatty(2)):
        return Progress(-1, total_bytes)
    return None
