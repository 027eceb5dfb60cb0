"""The record of every decision: one JSON object a line, written before anything is done.

In: records. Out: lines in a file that only grows. May import: errors.

A line survives the end of the daemon as soon as ``write`` returns (the kernel has it), and a loss of power a second
later at most: the disk is not waited for in the path of a call.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from cloison.qrexec.ports import AuditValue

log = logging.getLogger(__name__)

FLUSH_DELAY_S = 1.0


class JsonLines:
    """An AuditSink. ``clock``: seconds since the epoch."""

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.time) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._clock = clock
        self._flush: asyncio.TimerHandle | None = None

    def write(self, record: Mapping[str, AuditValue]) -> None:
        """Append; the time is added here. Raises OSError if the line could not be written whole."""
        now = self._clock()
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now % 1 * 1000):03}Z"
        line = json.dumps({"time": stamp, **record}, ensure_ascii=True).encode() + b"\n"
        written = os.write(self._fd, line)
        if written != len(line):
            # The disk is full. The torn line is ended, so that the next one can be read.
            os.write(self._fd, b"\n")
            raise OSError(f"only {written} of {len(line)} bytes of an audit line were written")
        self._plan_flush()

    def close(self) -> None:
        if self._flush is not None:
            self._flush.cancel()
        os.fdatasync(self._fd)
        os.close(self._fd)

    def _plan_flush(self) -> None:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            os.fdatasync(self._fd)
            return
        if self._flush is None:
            self._flush = loop.call_later(FLUSH_DELAY_S, self._start_flush, loop)

    def _start_flush(self, loop: asyncio.AbstractEventLoop) -> None:
        self._flush = None
        loop.run_in_executor(None, self._sync, os.dup(self._fd))

    @staticmethod
    def _sync(fd: int) -> None:
        try:
            os.fdatasync(fd)
        except OSError as error:
            log.error("the audit log could not be flushed to disk: %s", error)
        finally:
            os.close(fd)
