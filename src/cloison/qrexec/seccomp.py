"""A list of system calls, made into a kernel filter.

In: names of permitted calls. Out: a BPF program, installed for good. May import: nothing of ours (runs in the jail).

The filter answers EPERM for everything that is not listed, and kills the process when the call comes from another
architecture's table (the old way around such filters). Memory may never become executable.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Iterable, Mapping

PR_SET_DUMPABLE = 4
PR_SET_NAME = 15
PR_SET_SECCOMP = 22
PR_SET_NO_NEW_PRIVS = 38
SECCOMP_MODE_FILTER = 2

_RET_KILL_PROCESS = 0x80000000
_RET_ERRNO = 0x00050000
_RET_ALLOW = 0x7FFF0000

_LOAD_WORD = 0x20  # BPF_LD | BPF_W | BPF_ABS
_JUMP_EQUAL = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
_JUMP_AT_LEAST = 0x35  # BPF_JMP | BPF_JGE | BPF_K
_JUMP_BITS = 0x45  # BPF_JMP | BPF_JSET | BPF_K
_RETURN = 0x06  # BPF_RET | BPF_K

# Offsets in struct seccomp_data: number, architecture, instruction pointer (8 bytes), six 8-byte arguments.
_NUMBER, _ARCHITECTURE, _ARGUMENT_2_LOW = 0, 4, 32
_X32_BIT = 0x40000000
_PROT_EXEC = 4

_AUDIT_ARCHITECTURE = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}

_NUMBERS: Mapping[str, Mapping[str, int]] = {
    "x86_64": {
        "read": 0, "write": 1, "close": 3, "poll": 7, "mmap": 9, "mprotect": 10, "munmap": 11, "brk": 12,
        "rt_sigreturn": 15, "readv": 19, "writev": 20, "sched_yield": 24, "mremap": 25, "madvise": 28,
        "recvmsg": 47, "sendmsg": 46, "exit": 60, "futex": 202, "restart_syscall": 219, "clock_gettime": 228,
        "clock_nanosleep": 230, "exit_group": 231, "epoll_wait": 232, "epoll_ctl": 233, "epoll_pwait": 281,
        "getrandom": 318,
    },
    "aarch64": {
        "epoll_ctl": 21, "epoll_pwait": 22, "close": 57, "read": 63, "write": 64, "readv": 65, "writev": 66,
        "exit": 93, "exit_group": 94, "futex": 98, "clock_gettime": 113, "clock_nanosleep": 115, "sched_yield": 124,
        "restart_syscall": 128, "rt_sigreturn": 139, "sendmsg": 211, "recvmsg": 212, "brk": 214, "munmap": 215,
        "mremap": 216, "mmap": 222, "mprotect": 226, "madvise": 233, "getrandom": 278,
    },
}  # fmt: skip

RELAY_CALLS = (
    "readv", "writev", "epoll_wait", "epoll_pwait", "recvmsg", "sendmsg", "epoll_ctl", "futex", "clock_gettime",
    "mmap", "munmap", "brk", "mremap", "madvise", "mprotect", "read", "write", "close", "poll", "clock_nanosleep",
    "sched_yield", "getrandom", "rt_sigreturn", "restart_syscall", "exit", "exit_group",
)  # fmt: skip
"""What a relay needs once its descriptors are open. Absent on purpose: open, socket, connect, clone, execve, kill,
ptrace, ioctl, fcntl, prctl and everything that names a file or another process."""

_NO_EXECUTABLE_MEMORY = ("mmap", "mprotect")


def plan_filter(names: Iterable[str], machine: str) -> bytes:
    """The BPF program (an array of struct sock_filter) that permits ``names`` on ``machine``.

    Raises KeyError for a machine whose table is unknown. Names which a machine does not have (epoll_wait on arm64)
    are left out.
    """
    numbers = _NUMBERS[machine]
    permitted = [name for name in names if name in numbers]
    plain = [numbers[name] for name in permitted if name not in _NO_EXECUTABLE_MEMORY]
    guarded = [numbers[name] for name in permitted if name in _NO_EXECUTABLE_MEMORY]

    # After the comparisons come, in this order: deny, check of PROT_EXEC (load, test), deny, allow, kill.
    tests = len(plain) + len(guarded)
    program = [
        _instruction(_LOAD_WORD, _ARCHITECTURE),
        _instruction(_JUMP_EQUAL, _AUDIT_ARCHITECTURE[machine], jump_false=tests + 2 + 5),
        _instruction(_LOAD_WORD, _NUMBER),
        _instruction(_JUMP_AT_LEAST, _X32_BIT, jump_true=tests + 5),
    ]
    for position, number in enumerate(plain):
        program.append(_instruction(_JUMP_EQUAL, number, jump_true=(tests - position - 1) + 4))
    for position, number in enumerate(guarded):
        program.append(_instruction(_JUMP_EQUAL, number, jump_true=(len(guarded) - position - 1) + 1))
    program += [
        _instruction(_RETURN, _RET_ERRNO | errno.EPERM),
        _instruction(_LOAD_WORD, _ARGUMENT_2_LOW),
        _instruction(_JUMP_BITS, _PROT_EXEC, jump_false=1),
        _instruction(_RETURN, _RET_ERRNO | errno.EPERM),
        _instruction(_RETURN, _RET_ALLOW),
        _instruction(_RETURN, _RET_KILL_PROCESS),
    ]
    return b"".join(program)


def _instruction(code: int, operand: int, *, jump_true: int = 0, jump_false: int = 0) -> bytes:
    return struct.pack("<HBBI", code, jump_true, jump_false, operand)


class _FilterProgram(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p))


class Confinement:
    """The filter, prepared once in the fork server so that ``enter`` in a child is a few system calls."""

    def __init__(self, names: Iterable[str] = RELAY_CALLS, machine: str | None = None) -> None:
        self._bytes = ctypes.create_string_buffer(plan_filter(names, machine or os.uname().machine))
        self._program = _FilterProgram((len(self._bytes) - 1) // 8, ctypes.addressof(self._bytes))
        self._libc = ctypes.CDLL(None, use_errno=True)

    def enter(self) -> None:
        """Confine this process for good; raises OSError (and then it must not go on) if the kernel refuses."""
        self._prctl(PR_SET_NO_NEW_PRIVS, 1)
        self._prctl(PR_SET_DUMPABLE, 0)
        self._prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.addressof(self._program))

    def set_process_name(self, name: str) -> None:
        """What ``ps`` shows; the kernel keeps 15 bytes."""
        text = ctypes.create_string_buffer(name.encode("ascii", "replace"))
        self._prctl(PR_SET_NAME, ctypes.addressof(text))

    def _prctl(self, option: int, argument: int, pointer: int = 0) -> None:
        words = [ctypes.c_ulong(value) for value in (argument, pointer, 0, 0)]
        if self._libc.prctl(ctypes.c_int(option), *words) != 0:
            code = ctypes.get_errno()
            raise OSError(code, f"prctl({option}): {os.strerror(code)}")
