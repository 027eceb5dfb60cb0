"""Processes are known for certain, consoles are bounded, sockets are private."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloison.drivers.hypervisor.console import BoundedLog, ConsolePump
from cloison.drivers.hypervisor.launch import open_listener
from cloison.drivers.hypervisor.process import ProcessWatch, find_start_time
from cloison.errors import BadRequest


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(["sleep", "60"])
    yield process
    process.kill()
    process.wait()


async def test_the_end_of_a_process_is_noticed(sleeper: subprocess.Popen[bytes]) -> None:
    started = find_start_time(sleeper.pid)
    assert started is not None
    watch = ProcessWatch(sleeper.pid, started)
    assert not watch.is_gone and watch.memory_kib() > 0
    watch.kill()
    await asyncio.wait_for(watch.wait_gone(), 5)
    assert watch.is_gone
    watch.kill()


async def test_a_recycled_process_id_is_noticed(sleeper: subprocess.Popen[bytes]) -> None:
    started = find_start_time(sleeper.pid)
    assert started is not None
    with pytest.raises(ProcessLookupError):
        ProcessWatch(sleeper.pid, started + 1)


async def test_a_dead_process_cannot_be_watched(sleeper: subprocess.Popen[bytes]) -> None:
    started = find_start_time(sleeper.pid)
    sleeper.kill()
    sleeper.wait()
    with pytest.raises(ProcessLookupError):
        ProcessWatch(sleeper.pid, started or 0)


def test_a_zombie_counts_as_gone(sleeper: subprocess.Popen[bytes]) -> None:
    sleeper.kill()
    os.waitid(os.P_PID, sleeper.pid, os.WEXITED | os.WNOWAIT)
    assert find_start_time(sleeper.pid) is None


def test_a_log_keeps_its_end_and_its_bound(tmp_path: Path) -> None:
    log = BoundedLog(tmp_path / "log", limit_bytes=1000, kept_bytes=500)
    for number in range(1000):
        log.write(b"line %d\n" % number)
    log.write(b"x" * 5000 + b"end\n")
    log.close()
    text = (tmp_path / "log").read_bytes()
    assert len(text) <= 1000 and text.endswith(b"xend\n")


def test_a_log_goes_on_where_an_earlier_daemon_stopped(tmp_path: Path) -> None:
    first = BoundedLog(tmp_path / "log")
    first.write(b"one ")
    first.close()
    second = BoundedLog(tmp_path / "log")
    second.write(b"two")
    assert second.tail(100) == b"one two" and second.tail(3) == b"two"
    second.close()
    assert stat.S_IMODE((tmp_path / "log").stat().st_mode) == 0o600


async def test_a_console_is_logged_and_shared(tmp_path: Path) -> None:
    qemu = open_listener(tmp_path / "serial.sock")
    pump = ConsolePump(tmp_path / "serial.sock", tmp_path / "console.sock", tmp_path / "console.log")
    await pump.start()
    port, _ = qemu.accept()
    port.sendall(b"login: ")
    await asyncio.sleep(0.05)
    watchers = [await asyncio.open_unix_connection(tmp_path / "console.sock") for _ in range(2)]
    assert [await reader.readexactly(7) for reader, _ in watchers] == [b"login: "] * 2, "a newcomer sees the past"
    watchers[0][1].write(b"root\n")
    assert await asyncio.to_thread(port.recv, 100) == b"root\n"
    port.sendall(b"# ")
    assert [await reader.readexactly(2) for reader, _ in watchers] == [b"# "] * 2
    port.close()
    assert [await reader.read() for reader, _ in watchers] == [b""] * 2
    await pump.close()
    qemu.close()
    assert (tmp_path / "console.log").read_bytes() == b"login: # "


def test_sockets_are_private_and_replace_what_lies_there(tmp_path: Path) -> None:
    open_listener(tmp_path / "s").close()
    with open_listener(tmp_path / "s"):
        assert stat.S_IMODE((tmp_path / "s").stat().st_mode) == 0o600
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(tmp_path / "s"))


def test_a_path_that_no_socket_can_have_is_refused_with_a_hint(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="shorter"):
        open_listener(tmp_path / ("x" * 120))
