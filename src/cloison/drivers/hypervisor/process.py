"""One process of the host, known for certain: its id, the moment it started, and a handle that cannot be recycled.

In: a process id. Out: a watch on it. May import: errors.
"""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path


def read_boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def find_start_time(pid: int) -> int | None:
    """When the process started, in clock ticks since the host's boot; None if there is no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else int(fields[19])


def kill_process(pidfd: int) -> None:
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    except ProcessLookupError:
        pass


class ProcessWatch:
    """Tells when a process is gone, whoever started it. Needs a running event loop."""

    def __init__(self, pid: int, started: int, pidfd: int) -> None:
        """``pidfd`` is taken over."""
        self.pid = pid
        self.started = started
        self._pidfd = pidfd
        self._gone = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._pidfd, self._on_end)

    @classmethod
    def find(cls, pid: int, started: int) -> ProcessWatch | None:
        """A watch on the process that had this id at that time, or None if it is gone (its id may be another's)."""
        try:
            pidfd = os.pidfd_open(pid)
        except OSError:
            return None
        if find_start_time(pid) != started:
            os.close(pidfd)
            return None
        return cls(pid, started, pidfd)

    @property
    def is_gone(self) -> bool:
        return self._gone.is_set()

    async def wait_gone(self) -> None:
        await self._gone.wait()

    def kill(self) -> None:
        if self._pidfd >= 0:
            kill_process(self._pidfd)

    def cpu_time_ns(self) -> int:
        """User and system time of all its threads; 0 when the process is gone."""
        try:
            fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return 0
        return (int(fields[11]) + int(fields[12])) * 1_000_000_000 // os.sysconf("SC_CLK_TCK")

    def memory_kib(self) -> int:
        """Proportional set size; 0 when the process is gone."""
        try:
            lines = Path(f"/proc/{self.pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            return 0
        return next((int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)

    def close(self) -> None:
        """Stop watching; the process is left alone."""
        if self._pidfd >= 0:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1

    def _on_end(self) -> None:
        self._gone.set()
        self.close()
