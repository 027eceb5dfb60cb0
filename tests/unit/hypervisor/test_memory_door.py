"""A fork's process has the frozen memory to read, and no way to change it. (A real jail; a program in QEMU's place.)"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cloison.drivers.hypervisor.base import Accelerator
from cloison.drivers.hypervisor.jail import JailedFile, check_jail
from cloison.drivers.hypervisor.launch import spawn_jailed
from cloison.drivers.hypervisor.memory_door import MemoryDoor, hold_place
from cloison.drivers.hypervisor.seccomp import GUEST_MEMORY_FD
from cloison.errors import BackendFailed

PAGE = 4096
PROGRAM = """
import ctypes, json, mmap, os, sys
libc = ctypes.CDLL(None, use_errno=True)
def outcome(call):
    try:
        result = call()
    except OSError as error:
        return error.strerror
    return result if isinstance(result, int) else "done"
def libc_open(path):
    fd = libc.open(path, os.O_RDWR)
    if fd < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return fd
def fallocate(mode):
    if libc.fallocate(fd, mode, ctypes.c_long(0), ctypes.c_long(4096)) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
fd = libc_open(b"/memory")
private = mmap.mmap(fd, 4096, flags=mmap.MAP_PRIVATE)
private[:4] = b"mine"
seen = {
    "fd": fd,
    "private": private[:6].decode(),
    "write": outcome(lambda: os.pwrite(fd, b"x", 0)),
    "shared mapping": outcome(lambda: mmap.mmap(fd, 4096)),
    "punch": outcome(lambda: fallocate(3)),
    "zero": outcome(lambda: fallocate(0x10)),
    "truncate": outcome(lambda: os.ftruncate(fd, 0)),
    "mode": outcome(lambda: os.fchmod(fd, 0o666)),
    "again": outcome(lambda: libc_open(b"/memory")),
    "by flags": outcome(lambda: os.open("/memory", os.O_RDWR)),
    "proc": os.path.exists("/proc/self"),
    "root": sorted(os.listdir("/")),
    "environment": dict(os.environ).get("HOME", ""),
}
print(json.dumps(seen))
"""


def is_jail_possible() -> bool:
    try:
        check_jail()
    except BackendFailed:
        return False
    return Path("/usr/bin/python3").exists() and shutil.which("bwrap") is not None


pytestmark = pytest.mark.skipif(not is_jail_possible(), reason="no jail on this host (`cloison doctor` says why)")


@pytest.fixture
def memory(tmp_path: Path) -> Path:
    path = tmp_path / "memory"
    path.write_bytes(b"frozen".ljust(PAGE, b"."))
    return path


def run_behind_door(memory: Path, program: str) -> str:
    fd = os.open(memory, os.O_RDONLY)
    try:
        with MemoryDoor(fd, b"/memory") as door:
            started = spawn_jailed(
                ["python3", "-I", "-S", "-c", program],
                Accelerator.EMULATION,
                files=(JailedFile("/memory", memory),),
                door=door,
                outlives_parent=False,
            )
        started.wrapper.wait(timeout=20)
        os.set_blocking(started.errors_fd, True)
        text = os.read(started.errors_fd, 1 << 16).decode()
        started.abandon()
        return text
    finally:
        os.close(fd)


def test_frozen_memory_can_be_mapped_and_not_changed(memory: Path) -> None:
    before = memory.read_bytes()
    seen = json.loads(run_behind_door(memory, PROGRAM))
    assert seen["private"] == "mineen"
    assert seen["write"] == "Bad file descriptor"
    assert seen["shared mapping"] == "Permission denied"
    assert seen["punch"] == "done", "pretended: QEMU then drops its own copy of the page"
    assert seen["zero"] == "Bad file descriptor"
    assert seen["truncate"] in ("Invalid argument", "Bad file descriptor")
    assert seen["mode"] == "Operation not permitted"
    assert seen["again"] == "Function not implemented", "the door opens once"
    assert seen["by flags"] == "Read-only file system"
    assert memory.read_bytes() == before


def test_the_jail_is_empty_but_for_programs_and_the_named_file(memory: Path) -> None:
    seen = json.loads(run_behind_door(memory, PROGRAM))
    assert seen["root"] == ["lib", "lib64", "memory", "usr"]
    assert not seen["proc"] and seen["environment"] == ""


DIES_EARLY = """
import os, sys
from cloison.drivers.hypervisor import launch
from cloison.drivers.hypervisor.base import Accelerator
launch._find_child_pid = lambda info: os._exit(9)  # killed before it hears of its child
launch.spawn_jailed(["sleep", sys.argv[1]], Accelerator.EMULATION)
"""


def test_nothing_waits_for_ever_when_who_starts_a_jail_is_killed_meanwhile() -> None:
    mark = f"0.{os.getpid():010d}"
    for _ in range(5):
        done = subprocess.run([sys.executable, "-c", DIES_EARLY, mark], timeout=30)
        assert done.returncode == 9
    deadline = time.monotonic() + 20
    while left := subprocess.run(["pgrep", "-f", f"sleep {mark}"], capture_output=True, text=True).stdout.split():
        if time.monotonic() > deadline:
            for pid in left:
                os.kill(int(pid), signal.SIGKILL)
            pytest.fail(f"{len(left)} processes wait for ever")
        time.sleep(0.1)


def test_a_process_that_ends_before_it_asks_is_noticed(memory: Path) -> None:
    assert run_behind_door(memory, "print('bye')") == "bye\n"


def test_a_program_that_does_not_exist_is_told(memory: Path) -> None:
    started = spawn_jailed(["no-such-program"], Accelerator.EMULATION, outlives_parent=False)
    assert started.wrapper.wait(timeout=20) != 0
    os.set_blocking(started.errors_fd, True)
    assert "no-such-program" in os.read(started.errors_fd, 4096).decode()
    started.abandon()


def test_the_number_that_the_memory_gets_is_taken_once_and_kept() -> None:
    assert hold_place() == hold_place() == GUEST_MEMORY_FD
    assert not os.get_inheritable(GUEST_MEMORY_FD), "only a fork's process inherits it"
