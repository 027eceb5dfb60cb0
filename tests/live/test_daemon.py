"""The daemon comes when it is needed, goes without taking qubes along, and finds them again however it ended."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.live.conftest import LiveSystem

POWER_OFF_S = 8.0
MakeQube = Callable[..., str]


def state_of(system: LiveSystem, qube: str) -> str:
    (row,) = system.json("list", qube)
    return str(row["state"])


@pytest.fixture
def marked_qube(system: LiveSystem, new_qube: MakeQube) -> str:
    """A running qube with a mark in memory that only this very run has."""
    qube = new_qube()
    system.run(qube, "sh", "-c", "echo this run > /run/mark", user="root")
    return qube


def is_the_same_run(system: LiveSystem, qube: str) -> bool:
    return system.run(qube, "cat", "/run/mark").stdout == b"this run\n"


def test_a_stopped_daemon_leaves_qubes_running_and_the_next_command_starts_another(
    system: LiveSystem, marked_qube: str
) -> None:
    before = system.daemon_pid()
    system.cloison("daemon", "stop")
    assert system.cloison("daemon", "status", expect=1)
    assert state_of(system, marked_qube) == "Running"
    assert system.daemon_pid() != before
    assert is_the_same_run(system, marked_qube)


def test_a_qube_that_stopped_while_no_daemon_looked_is_halted(system: LiveSystem, marked_qube: str) -> None:
    power_off = "(sleep 3; echo o > /proc/sysrq-trigger) > /dev/null 2>&1 &"
    system.run(marked_qube, "sh", "-c", power_off, user="root")
    system.kill_daemon()
    time.sleep(POWER_OFF_S)
    assert state_of(system, marked_qube) == "Halted"
    system.cloison("start", marked_qube)
    assert system.run(marked_qube, "test", "-e", "/run/mark", expect=1)


def test_there_is_one_daemon_however_many_commands_start_it(system: LiveSystem) -> None:
    system.cloison("daemon", "stop")
    commands = [system.start("list", stdout=subprocess.DEVNULL) for _ in range(6)]
    assert [command.wait(60) for command in commands] == [0] * 6
    from tests.live.conftest import processes_of, wait_until

    def daemons() -> list[str]:
        return [line for line in processes_of(system.root).values() if "-m cloison.daemon" in line]

    wait_until(lambda: len(daemons()) == 1, 10, "those that came too late to be gone")
    assert system.cloison("list").returncode == 0


@pytest.mark.parametrize("lost", [("qubesd.sock",), ("qrexec.sock",), ("qubesd.sock", "qrexec.sock")])
def test_sockets_that_were_removed_are_put_back_by_the_daemon_that_lost_them(
    system: LiveSystem, lost: tuple[str, ...]
) -> None:
    daemon = system.json("daemon", "status")["pid"]
    for name in lost:
        (system.layout.runtime / name).unlink()
    assert system.cloison("run", "--service", "dom0", "qubes.GetDate").stdout.endswith(b"+00:00\n")
    system.cloison("list")
    assert system.json("daemon", "status")["pid"] == daemon


def test_the_search_for_leaks_sees_daemon_fork_server_relay_and_qemu(system: LiveSystem, marked_qube: str) -> None:
    from tests.live.conftest import processes_of

    found = "\n".join(processes_of(system.root).values())
    for part in ("cloison.daemon", "cloison.qrexec.zygote", f"qemu-system-x86_64 -name guest={marked_qube}"):
        assert part in found, f"{part} is not in:\n{found}"


def test_ctrl_c_of_a_client_ends_its_program_and_nothing_else(system: LiveSystem, marked_qube: str) -> None:
    call = system.start("run", marked_qube, "--", "sleep", "4711", stderr=subprocess.DEVNULL)
    with pytest.raises(subprocess.TimeoutExpired):
        call.wait(5)
    call.send_signal(signal.SIGINT)
    assert call.wait(30) in (130, 128 + signal.SIGINT, -signal.SIGINT)
    assert system.run(marked_qube, "pgrep", "-f", "sleep 4711", expect=1)
    assert is_the_same_run(system, marked_qube)
