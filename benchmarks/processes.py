"""Processes of this host: families, and the memory that is really theirs."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

MIB = 1024.0
SETTLE_S = 1.0
CALM_SHARE = 0.10
"""Of one processor: an idle emulated guest takes 2 %."""


@dataclass(frozen=True)
class Process:
    pid: int
    started: str
    """Clock ticks since the host's boot: with it a recycled number is noticed."""
    parent: int
    program: str

    @property
    def is_qemu(self) -> bool:
        return self.program.startswith("qemu-system")


def find_process(pid: int) -> Process | None:
    """The live process of that number, or None."""
    try:
        head, _, tail = Path(f"/proc/{pid}/stat").read_text().rpartition(")")
    except OSError:
        return None
    fields = tail.split()
    return None if fields[0] in "ZX" else Process(pid, fields[19], int(fields[1]), head.partition("(")[2])


def find_family(root: int) -> list[Process]:
    """All live descendants of a process, itself left out."""
    children: dict[int, list[Process]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (process := find_process(int(entry.name))) is not None:
            children.setdefault(process.parent, []).append(process)
    family: list[Process] = []
    waiting = [root]
    while waiting:
        found = children.get(waiting.pop(), [])
        family += found
        waiting += [process.pid for process in found]
    return family


def pss_mib(processes: Iterable[Process]) -> float:
    """Proportional set size: pages that several processes map are counted once in all."""
    return sum(_read_kib(process.pid, "smaps_rollup", "Pss:") for process in processes) / MIB


def rss_mib(pid: int) -> float:
    return _read_kib(pid, "status", "VmRSS:") / MIB


def _read_kib(pid: int, file: str, field: str) -> int:
    try:
        lines = Path(f"/proc/{pid}/{file}").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(field)), 0)


def cpu_s(processes: Iterable[Process]) -> float:
    total = 0
    for process in processes:
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
            total += int(fields[11]) + int(fields[12])
    return total / os.sysconf("SC_CLK_TCK")


def wait_calm(processes: list[Process], timeout_s: float) -> bool:
    """Return once they take (almost) no processor time for two looks in a row; False after the time-out."""
    deadline = time.monotonic() + timeout_s
    calm, before, since = 0, cpu_s(processes), time.monotonic()
    while calm < 2 and time.monotonic() < deadline:
        time.sleep(SETTLE_S)
        now, moment = cpu_s(processes), time.monotonic()
        calm = calm + 1 if now - before < CALM_SHARE * (moment - since) * max(1, len(processes)) else 0
        before, since = now, moment
    return calm >= 2


def end_processes(processes: Iterable[Process]) -> None:
    """Kill exactly these, if they are still the same ones."""
    for process in processes:
        now = find_process(process.pid)
        if now is not None and now.started == process.started:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
