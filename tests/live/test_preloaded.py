"""Disposables that are kept ready: handed over at once, as fresh as any, replaced, and gone when they should be."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.live.conftest import LiveSystem

READY_LIMIT_S = 90
ASKED = "hostname; date +%s; cat /etc/machine-id; head -c 16 /dev/urandom | od -An -tx1"


def waiting(system: LiveSystem) -> list[str]:
    """Names of those that wait, paused."""
    rows = system.json("list", "--all")
    return [row["name"] for row in rows if row["preloaded"] and row["state"] == "Paused"]


def one_ready(system: LiveSystem, *, other_than: str = "") -> str:
    from tests.live.conftest import wait_until

    wait_until(lambda: [n for n in waiting(system) if n != other_than] != [], READY_LIMIT_S, "a ready disposable")
    return waiting(system)[0]


@pytest.fixture(scope="module")
def stocked(system: LiveSystem) -> Iterator[LiveSystem]:
    from tests.live.conftest import wait_until

    system.cloison("features", "default-dvm", "preload-dispvm-max", "1")
    yield system
    system.cloison("features", "default-dvm", "--unset", "preload-dispvm-max")
    system.cloison("prefs", "default-dvm", "label", "red")
    wait_until(lambda: not [q for q in system.json("list", "--all") if q["class"] == "DispVM"], 30, "none to be left")


def test_the_next_caller_gets_it_and_it_is_as_fresh_as_any(stocked: LiveSystem) -> None:
    answers = []
    for _ in range(2):
        name = one_ready(stocked)
        assert name not in [row["name"] for row in stocked.json("list")], "it is hidden from ordinary lists"
        refused = stocked.run(name, "true", expect=None)
        assert refused.returncode != 0, "nobody reaches it before its first use"
        time.sleep(2)  # its clock stands still while it waits
        hostname, clock, *rest = stocked.run("--dispvm", "sh", "-c", ASKED).stdout.decode().split("\n")
        assert hostname == name
        assert abs(int(clock) - time.time()) < 2
        answers.append(rest)
    assert all(one != other for one, other in zip(*(answer[:2] for answer in answers), strict=True))


def test_it_is_replaced_when_its_template_changes(stocked: LiveSystem) -> None:
    old = one_ready(stocked)
    stocked.cloison("prefs", "default-dvm", "label", "orange")
    new = one_ready(stocked, other_than=old)
    (row,) = stocked.json("list", new)
    assert row["label"] == "orange"


def test_a_killed_daemon_leaves_none_and_the_next_one_makes_another(stocked: LiveSystem) -> None:
    from tests.live.conftest import is_alive, wait_until
    from tests.live.test_hypervisor import qemu_pid

    old = one_ready(stocked)
    machine = qemu_pid(old)
    stocked.kill_daemon()
    stocked.cloison("list")
    wait_until(lambda: not is_alive(machine), 20, "its machine to be gone")
    assert one_ready(stocked, other_than=old) != old


def test_a_stopped_daemon_takes_them_along(stocked: LiveSystem) -> None:
    from tests.live.conftest import is_alive
    from tests.live.test_hypervisor import qemu_pid

    machine = qemu_pid(one_ready(stocked))
    stocked.cloison("daemon", "stop")
    assert not is_alive(machine)
    stocked.cloison("daemon", "start")
