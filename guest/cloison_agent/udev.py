"""udev held still while a fork is told who it is.

A fork notices new devices at once: its generation id, its disks. What udev does about them (rules, workers, programs)
costs an emulated machine more than all that its user is waiting for, so it does it a moment later.
"""

from __future__ import annotations

import os
import signal
from contextlib import suppress

DAEMON = "systemd-udevd"
WORKERS_IDLE_S = 3.0
"""So long udev keeps workers that have nothing to do; a machine frozen earlier would end them in every fork."""


def hold() -> None:
    """Before the freeze."""
    _send(signal.SIGSTOP)


def let_go() -> None:
    """No harm if it was not held."""
    _send(signal.SIGCONT)


def _send(number: int) -> None:
    pid = _find_daemon()
    if pid:
        with suppress(OSError):
            os.kill(pid, number)


def _find_daemon() -> int:
    """The child of the first process with udev's name; 0 if there is none. (Workers have the same name.)"""
    for name in os.listdir("/proc"):
        if name.isdecimal():
            with suppress(OSError), open(f"/proc/{name}/stat") as file:
                inside, _, rest = file.read().partition("(")[2].rpartition(")")
                if inside == DAEMON[:15] and rest.split()[1] == "1":
                    return int(name)
    return 0
