"""System calls that a machine's process is denied, or has answered by us: small filter programs.

In: nothing. Out: programs in the kernel's classic BPF. May import: nothing of ours.

QEMU filters itself too (``-sandbox``); these rules are the ones that only we can know.
"""

from __future__ import annotations

import errno
import os
import struct

GUEST_MEMORY_FD = 900
"""The number under which a fork's process gets the frozen memory: high, so that it is nobody else's."""

_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
_NUMBER, _ARCHITECTURE = 0, 4
_X86_64 = 0xC000003E
_X32_BIT = 0x40000000
_ALLOW, _ERRNO, _NOTIFY, _KILL = 0x7FFF0000, 0x00050000, 0x7FC00000, 0x80000000
_CALLS = {"chmod": 90, "fchmod": 91, "chown": 92, "fchown": 93, "openat": 257, "fchmodat": 268, "fallocate": 285}
_FORBIDDEN = ("chmod", "fchmod", "fchmodat", "chown", "fchown")
_PUNCH_HOLE_KEEP_SIZE = 3


def build_jail_filter() -> bytes:
    """For every machine: no other system call tables, no changing of a file's mode or owner.

    A process may change the mode of files that its user owns, even through a read-only descriptor: a way to spoil
    the images that qubes share.
    """
    program = [*_only_native_calls()]
    for call in _FORBIDDEN:
        program += [_jump(_EQUAL, _CALLS[call], 0, 1), _return(_ERRNO | errno.EPERM)]
    return b"".join([*program, _return(_ALLOW)])


def build_door_filter() -> bytes:
    """For forks. Opening a file for reading and writing asks us (see ``memory_door``). Punching a hole into the frozen
    memory, which QEMU does when a guest gives pages back, succeeds without doing anything: other forks need the
    file; QEMU then drops its own copies of the pages, which is all that is wanted."""
    return b"".join(
        [
            *_only_native_calls(),
            _jump(_EQUAL, _CALLS["openat"], 0, 4),
            _load_argument(2),
            _jump(_EQUAL, os.O_RDWR, 0, 1),
            _return(_NOTIFY),
            _return(_ALLOW),
            _jump(_EQUAL, _CALLS["fallocate"], 0, 5),
            _load_argument(0),
            _jump(_EQUAL, GUEST_MEMORY_FD, 0, 3),
            _load_argument(1),
            _jump(_EQUAL, _PUNCH_HOLE_KEEP_SIZE, 0, 1),
            _return(_ERRNO | 0),
            _return(_ALLOW),
        ]
    )


def _only_native_calls() -> list[bytes]:
    return [
        _instruction(_LOAD, 0, 0, _ARCHITECTURE),
        _jump(_EQUAL, _X86_64, 1, 0),
        _return(_KILL),
        _instruction(_LOAD, 0, 0, _NUMBER),
        _jump(_AT_LEAST, _X32_BIT, 0, 1),
        _return(_ERRNO | errno.ENOSYS),
    ]


def _load_argument(index: int) -> bytes:
    """The lower half of a system call's argument (all that int arguments have)."""
    return _instruction(_LOAD, 0, 0, 16 + 8 * index)


def _jump(test: int, value: int, if_true: int, if_false: int) -> bytes:
    return _instruction(test, if_true, if_false, value)


def _return(verdict: int) -> bytes:
    return _instruction(_RETURN, 0, 0, verdict)


def _instruction(code: int, if_true: int, if_false: int, value: int) -> bytes:
    return struct.pack("<HBBI", code, if_true, if_false, value)
