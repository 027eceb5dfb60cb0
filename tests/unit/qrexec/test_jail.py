"""What a relay that was taken over could still do: nothing but talk on what it holds."""

# ruff: noqa: E501
from __future__ import annotations

import errno
import json
import os
import signal
import socket
import struct
import subprocess
from pathlib import Path

import pytest

from cloison.qrexec.jail import find_jail, plan_jail
from cloison.qrexec.seccomp import _NUMBERS, RELAY_CALLS, plan_filter

PROBE = r"""
import sys; sys.path.insert(0, "/app")
import ctypes, json, os, resource
from cloison.qrexec import zygote
from cloison.qrexec.seccomp import Confinement

libc = ctypes.CDLL(None, use_errno=True)
out = int(sys.argv[1])
seen = {"files": sorted(os.listdir("/")), "home": os.path.exists("/home"), "etc": os.path.exists("/etc/passwd"),
        "proc": os.path.exists("/proc/self"), "net": os.path.exists("/sys/class/net"), "pid": os.getpid()}
confinement = Confinement()
zygote._leave_files_behind()
seen["after"] = os.listdir("/")
for limit, value in zygote._LIMITS:
    resource.setrlimit(limit, (value, value))
confinement.enter()

def attempt(name, number, *arguments):
    ctypes.set_errno(0)
    result = libc.syscall(number, *arguments)
    seen[name] = ctypes.get_errno() if result == -1 else "worked"

path = ctypes.c_char_p(b"/")
for name, number, arguments in [
    ("open", 2, (path, 0)), ("openat", 257, (-100, path, 0)), ("stat", 4, (path, 0)), ("socket", 41, (1, 1, 0)),
    ("connect", 42, (out, 0, 0)), ("bind", 49, (out, 0, 0)), ("accept", 43, (out, 0, 0)), ("clone", 56, (17, 0, 0, 0, 0)),
    ("fork", 57, ()), ("clone3", 435, (0, 0)), ("execve", 59, (path, 0, 0)), ("kill", 62, (1, 0)), ("tkill", 200, (1, 0)),
    ("pidfd_send_signal", 424, (0, 0, 0, 0)), ("ptrace", 101, (16, 1, 0, 0)), ("process_vm_readv", 310, (1, 0, 0, 0, 0, 0)),
    ("ioctl", 16, (out, 0x5401, 0)), ("fcntl", 72, (out, 4, 0)), ("prctl", 157, (4, 1, 0, 0, 0)), ("chroot", 161, (path,)),
    ("mount", 165, (0, 0, 0, 0, 0)), ("unshare", 272, (0x10000000,)), ("setns", 308, (0, 0)), ("bpf", 321, (0, 0, 0)),
    ("io_uring_setup", 425, (1, 0)), ("userfaultfd", 323, (0,)), ("keyctl", 250, (0, 0, 0, 0, 0)),
    ("shmget", 29, (1, 4096, 0)), ("memfd_create", 319, (path, 0)), ("setrlimit", 160, (7, 0)), ("getpid", 39, ()),
    ("mmap executable", 9, (0, 4096, 7, 0x22, -1, 0)), ("mprotect executable", 10, (0, 4096, 7)),
]:
    attempt(name, number, *arguments)
seen["mmap plain"] = "worked" if libc.syscall(9, 0, 4096, 3, 0x22, -1, 0) != -1 else ctypes.get_errno()
os.write(out, json.dumps(seen).encode())
"""


def run_jailed(code: str) -> tuple[bytes, subprocess.Popen[bytes]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        command = find_jail(theirs.fileno())
        command[command.index("-c") + 1] = code
        process = subprocess.Popen(command, pass_fds=[theirs.fileno()])
        theirs.close()
        ours.settimeout(20)
        answer = ours.recv(65536)
        process.wait(20)
        return answer, process


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the probe's system call numbers are those of x86_64")
def test_forbidden_system_calls_fail_in_the_jail():
    seen = json.loads(run_jailed(PROBE)[0])
    assert seen.pop("files") == ["app", "bin", "empty", "lib", "lib64", "usr"]
    assert seen.pop("after") == []
    assert seen.pop("pid") < 5
    assert not any(seen.pop(name) for name in ("home", "etc", "proc", "net"))
    assert seen.pop("mmap plain") == "worked"
    assert set(seen.values()) == {errno.EPERM}, {name: value for name, value in seen.items() if value != errno.EPERM}


def test_a_call_through_another_architectures_table_kills():
    code = (
        PROBE.split("def attempt")[0] + "\nos.write(out, b'before'); libc.syscall(0x40000000 + 39); os.write(out, b'')"
    )
    answer, process = run_jailed(code)
    assert answer == b"before"
    # bubblewrap passes the signal of its child on as a shell does.
    assert process.returncode in (-signal.SIGSYS, 128 + signal.SIGSYS)


class Machine:
    """The kernel's BPF machine, as far as the filter uses it."""

    def __init__(self, program: bytes) -> None:
        self.program = list(struct.iter_unpack("<HBBI", program))

    def run(self, number: int, architecture: int, arguments: tuple[int, ...] = (0, 0, 0)) -> int:
        data = struct.pack("<IIQ", number, architecture, 0) + b"".join(struct.pack("<Q", a) for a in arguments)
        accumulator, position = 0, 0
        while True:
            code, jump_true, jump_false, operand = self.program[position]
            position += 1
            if code == 0x20:
                (accumulator,) = struct.unpack_from("<I", data, operand)
            elif code == 0x06:
                return operand
            else:
                matched = {
                    0x15: accumulator == operand,
                    0x35: accumulator >= operand,
                    0x45: bool(accumulator & operand),
                }
                position += jump_true if matched[code] else jump_false


ALLOW, DENY, KILL = 0x7FFF0000, 0x00050000 | errno.EPERM, 0x80000000


@pytest.mark.parametrize(
    ("machine", "architecture", "readv", "mmap", "execve"),
    [("x86_64", 0xC000003E, 19, 9, 59), ("aarch64", 0xC00000B7, 65, 222, 221)],
)
def test_the_filter_allows_what_is_listed_and_nothing_else(machine, architecture, readv, mmap, execve):
    filter_ = Machine(plan_filter(RELAY_CALLS, machine))
    assert filter_.run(readv, architecture) == ALLOW
    assert filter_.run(execve, architecture) == DENY
    assert filter_.run(mmap, architecture, (0, 4096, 3)) == ALLOW
    assert filter_.run(mmap, architecture, (0, 4096, 4)) == DENY
    assert filter_.run(readv, 0x40000003) == KILL
    assert filter_.run(readv | 0x40000000, architecture) == KILL
    allowed = [number for number in range(600) if filter_.run(number, architecture) == ALLOW]
    assert set(allowed) == {_NUMBERS[machine][name] for name in RELAY_CALLS if name in _NUMBERS[machine]}


def test_the_jail_shows_python_and_our_two_rooms_only():
    command = plan_jail(
        9, bwrap="/usr/bin/bwrap", python=Path("/opt/py/bin/python3"), python_prefix=Path("/opt/py"), package=Path("/c")
    )
    binds = {command[i + 1] for i, word in enumerate(command) if word == "--ro-bind"}
    assert binds == {"/usr", "/opt/py", "/c/__init__.py", "/c/wire", "/c/qrexec"}
    assert "--unshare-all" in command and "--die-with-parent" in command
    assert not {"--bind", "--dev-bind", "--share-net", "--proc", "--dev"} & set(command)


async def test_a_relay_costs_little(house):
    await house.qubes.start("work")
    await house.qubes.links["work"].run_service("test.Echo+", stdin=bytes(4 << 20), max_output_bytes=8 << 20,
                                                timeout_s=20)  # fmt: skip
    await house.qubes.start("vault")
    for name in ("work", "vault"):
        pid = house.qubes.links[name].pid
        rollup = Path(f"/proc/{pid}/smaps_rollup")
        try:
            private = sum(int(line.split()[1]) for line in rollup.read_text().splitlines() if "Private_" in line)
        except PermissionError:  # not dumpable: only root may look
            pytest.skip("smaps of a relay can be read by root only")
        assert private < 8 * 1024, f"{name}: {private} KiB"


def test_without_the_filter_the_same_probe_gets_through():
    code = PROBE.split("path = ")[0].replace("confinement.enter()", "pass")
    code += "attempt('getpid', 39); attempt('socket', 41, 1, 1, 0); os.write(out, json.dumps(seen).encode())"
    seen = json.loads(run_jailed(code)[0])
    assert seen["getpid"] == seen["socket"] == "worked"
