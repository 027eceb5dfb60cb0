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
from cloison.drivers.hypervisor.machine import end_leftover
from cloison.drivers.hypervisor.process import ProcessWatch, find_start_time
from cloison.errors import BadRequest


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(["sleep", "60"])
    yield process
    process.kill()
    process.wait()


def watch(process: subprocess.Popen[bytes], *, late_by: int = 0) -> ProcessWatch | None:
    started = find_start_time(process.pid)
    assert started is not None
    return ProcessWatch.find(process.pid, started + late_by)


async def test_the_end_of_a_process_is_noticed(sleeper: subprocess.Popen[bytes]) -> None:
    watched = watch(sleeper)
    assert watched is not None and not watched.is_gone and watched.memory_kib() > 0
    watched.kill()
    await asyncio.wait_for(watched.wait_gone(), 5)
    assert watched.is_gone
    watched.kill()


async def test_a_recycled_process_id_is_noticed(sleeper: subprocess.Popen[bytes]) -> None:
    assert watch(sleeper, late_by=1) is None


async def test_a_dead_process_is_not_found(sleeper: subprocess.Popen[bytes]) -> None:
    started = find_start_time(sleeper.pid)
    sleeper.kill()
    sleeper.wait()
    assert ProcessWatch.find(sleeper.pid, started or 0) is None


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


async def test_a_directory_where_nothing_runs_has_no_leftover(tmp_path: Path) -> None:
    await end_leftover(tmp_path)
    open_listener(tmp_path / "qmp.sock").close()
    await end_leftover(tmp_path)


async def test_a_leftover_is_told_to_quit(tmp_path: Path) -> None:
    said = bytearray()

    async def qemu(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b'{"QMP": {}}\r\n')
        while b"quit" not in said:
            said.extend(await reader.read(100))
        writer.close()

    async with await asyncio.start_unix_server(qemu, tmp_path / "qmp.sock"):
        await asyncio.wait_for(end_leftover(tmp_path), 5)
    assert b'"quit"' in said
