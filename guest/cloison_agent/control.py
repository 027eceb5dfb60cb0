"""The host's requests to the qube itself (CONTROL): one function each."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from typing import Any

from cloison_agent import disks, udev, users
from cloison_agent.agent import Agent, Answer, ControlVerb
from cloison_agent.identity import apply_identity, apply_services, papers, refresh_identity
from cloison_agent.launch import Task, start_task
from cloison_agent.logins import LOGIN_SHELL
from cloison_agent.network import network, rehearse
from cloison_agent.told import told

QUIET_CHECK_S = 1.0
QUIET_SHARE = 0.06
"""A guest that spends less of its time than this, for some checks in a row, is quiet."""
QUIET_CHECKS = 2 + round(udev.WORKERS_IDLE_S / QUIET_CHECK_S)
QUIET_DEADLINE_S = 60.0
CATCH_UP_S = 2.0
"""After a qube was told who it is: its user's first command is done by then, or long."""


def configure(agent: Agent, fields: Mapping[str, Any], answer: Answer) -> None:
    timings = apply_identity(fields)
    agent.name = str(fields.get("name", ""))
    agent.default_user = str(fields.get("default_user") or users.DEFAULT_USER)
    answer(**timings)
    agent.loop.later(CATCH_UP_S, lambda: _catch_up(bool(fields.get("private"))))


def _catch_up(has_disks: bool) -> None:
    """What need not be done before the first command."""
    if has_disks:
        disks.bind_disks()
    udev.let_go()


def refresh(agent: Agent, fields: Mapping[str, Any], answer: Answer) -> None:
    """A qube that waited for its first use knows who it is, but not what time it is."""
    refresh_identity(fields)
    answer()


def tell(agent: Agent, fields: Mapping[str, Any], answer: Answer) -> None:
    """Features that were changed while the qube runs: all of ``services`` and ``vm_config`` as they are now."""
    gone = dict.fromkeys(told.services(), False)
    told.remember(fields)
    apply_services({**gone, **(fields.get("services") or {})})
    answer()


def shutdown(agent: Agent, fields: Mapping[str, Any], answer: Answer) -> None:
    verb = "reboot" if fields.get("reboot") else "poweroff"
    subprocess.Popen(["systemctl", verb, "--no-block"], stdin=subprocess.DEVNULL)
    answer()


def grow_root(agent: Agent, fields: Mapping[str, Any], answer: Answer) -> None:
    """``resize``: the root disk has become larger."""
    subprocess.Popen(["/sbin/resize2fs", "/dev/vda"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    answer()


def prepare_freeze(agent: Agent, fields: Mapping[str, Any], answer: Answer) -> None:
    """Make the guest ready to be frozen: disks released, page cache warm, nothing going on."""
    os.sync()
    for serial in ("private", "volatile"):
        disks.release_disk(serial)
    papers.prepare()
    rehearse()
    _warm(agent)
    deadline_checks = round(float(fields.get("timeout_s", QUIET_DEADLINE_S)) / QUIET_CHECK_S)
    _when_quiet(agent, answer, _busy_and_total(), 0, deadline_checks)


def _warm(agent: Agent) -> None:
    """Run what a fork will run first, so that its files are in memory and the login environment is known."""
    user = users.find_user(agent.default_user)
    if user is None:
        return
    agent.logins.begin(user)
    with open(os.devnull, "r+b") as nothing:
        fd = nothing.fileno()
        for argv in (("/bin/bash", "-c", "true"), (*LOGIN_SHELL, "/bin/true")):
            pid = start_task(Task(user, users.bare_environment(user), argv=argv), fd, fd, fd)
            agent.loop.watch_exit(pid, lambda code: None)


def _busy_and_total() -> tuple[int, int]:
    with open("/proc/stat") as file:
        ticks = [int(value) for value in file.readline().split()[1:9]]
    return sum(ticks) - ticks[3] - ticks[4], sum(ticks)


def _when_quiet(agent: Agent, answer: Answer, before: tuple[int, int], calm: int, checks_left: int) -> None:
    def check() -> None:
        now = _busy_and_total()
        busy = (now[0] - before[0]) / max(1, now[1] - before[1])
        calm_checks = calm + 1 if busy < QUIET_SHARE else 0
        if calm_checks >= QUIET_CHECKS or checks_left <= 0:
            udev.hold()
            os.sync()
            answer(quiet=calm_checks >= QUIET_CHECKS)
        else:
            _when_quiet(agent, answer, now, calm_checks, checks_left - 1)

    agent.loop.later(QUIET_CHECK_S, check)


VERBS: dict[str, ControlVerb] = {
    "configure": configure,
    "counters": network.count,
    "downlinks": network.connect,
    "network": network.configure,
    "prepare-freeze": prepare_freeze,
    "refresh": refresh,
    "resize": grow_root,
    "rules": network.load_rules,
    "shutdown": shutdown,
    "tell": tell,
}
