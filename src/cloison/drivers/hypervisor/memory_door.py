"""Gives a fork the frozen memory for reading only, although QEMU insists on opening it for writing.

In: a starting process, a read-only descriptor. Out: the process has that descriptor. May import: seccomp, errors.

QEMU maps a fork's memory privately: its writes never reach the file. But it opens the file for reading and writing,
and it punches holes into it when a guest's balloon gives pages back, which would put zeros into the memory
of every other fork; and a QEMU that a guest has broken could write the file outright. So the file cannot be written
inside the jail (a read-only mount), and the one open that QEMU makes is answered from outside with a read-only
descriptor (seccomp's user notification, Linux 5.14). After that answer the door is closed for good.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import select
import socket
import struct
from collections.abc import Callable
from functools import cache

from cloison.drivers.hypervisor.seccomp import GUEST_MEMORY_FD, build_door_filter
from cloison.errors import BackendFailed

OPEN_TIMEOUT_S = 30.0
"""QEMU opens its memory some 30 ms after its start; a host that swaps takes longer."""
MAX_PATH = 256
FD_HINT = f"a process needs more than {GUEST_MEMORY_FD} descriptors (`ulimit -n`)"

_SYS_SECCOMP, _SET_MODE_FILTER, _NEW_LISTENER, _WAIT_KILLABLE = 317, 1, 1 << 3, 1 << 5
_PR_SET_NO_NEW_PRIVS = 38
_RECEIVE, _SEND, _ADD_FD = 0xC0502100, 0xC0182101, 0x40182103
_REQUEST = struct.Struct("<QIIiIQ6Q")
_ANSWER = struct.Struct("<QqiI")
_ADDITION = struct.Struct("<QIIII")
_CONTINUE = 1
_SET_NUMBER, _AND_ANSWER = 1, 2


class MemoryDoor:
    """Made before the process starts; ``install`` runs in the new process, ``serve`` in ours."""

    def __init__(self, memory_fd: int, path: bytes) -> None:
        """``path``: under which name QEMU opens the memory."""
        self._memory_fd = memory_fd
        self._path = path
        self._ours, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        program = build_door_filter()
        self._program = ctypes.create_string_buffer(program, len(program))
        self._header = ctypes.create_string_buffer(
            struct.pack("<HxxxxxxQ", len(program) // 8, ctypes.addressof(self._program)), 16
        )
        self._libc = ctypes.CDLL(None, use_errno=True)

    def __enter__(self) -> MemoryDoor:
        return self

    def __exit__(self, *_: object) -> None:
        self._ours.close()
        self._theirs.close()

    @property
    def install(self) -> Callable[[], None]:
        """To be called between fork and exec: system calls only."""
        return self._install

    def _install(self) -> None:
        if self._libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "no_new_privs")
        for flags in (_NEW_LISTENER | _WAIT_KILLABLE, _NEW_LISTENER):  # the former since Linux 5.19
            listener = self._libc.syscall(_SYS_SECCOMP, _SET_MODE_FILTER, flags, ctypes.byref(self._header))
            if listener >= 0:
                break
        if listener < 0:
            raise OSError(ctypes.get_errno(), "seccomp")
        socket.send_fds(self._theirs, [b"door"], [listener])

    def serve(self, process: int) -> None:
        """Answer QEMU's open; returns when it has its memory, or when ``process`` (a pidfd) is gone.

        Raises BackendFailed if the memory was not asked for in time.
        """
        _, fds, _, _ = socket.recv_fds(self._ours, 16, 1)
        listener = fds[0]
        try:
            poll = select.poll()
            poll.register(listener, select.POLLIN)
            poll.register(process, select.POLLIN)
            while ready := poll.poll(OPEN_TIMEOUT_S * 1000):
                if any(fd == process for fd, _ in ready):
                    return
                if self._answer(listener):
                    return
            raise BackendFailed(f"QEMU did not open its memory within {OPEN_TIMEOUT_S:.0f} s")
        finally:
            os.close(listener)

    def _answer(self, listener: int) -> bool:
        """Answer one open; True if it was the memory's."""
        request = bytearray(_REQUEST.size)
        with contextlib.suppress(FileNotFoundError):  # the asker is gone, or was interrupted and will ask again
            fcntl.ioctl(listener, _RECEIVE, request)
            identity, pid, _, _, _, _, _, path_address, *_ = _REQUEST.unpack(request)
            if _read_path(pid, path_address) == self._path:
                flags = _SET_NUMBER | _AND_ANSWER
                addition = _ADDITION.pack(identity, flags, self._memory_fd, GUEST_MEMORY_FD, os.O_CLOEXEC)
                try:
                    fcntl.ioctl(listener, _ADD_FD, addition)
                except FileNotFoundError:
                    raise
                except OSError as error:
                    raise BackendFailed(f"cannot give QEMU its memory: {error.strerror}", hint=FD_HINT) from error
                return True
            fcntl.ioctl(listener, _SEND, bytearray(_ANSWER.pack(identity, 0, 0, _CONTINUE)))
        return False


@cache
def hold_place() -> int:
    """A descriptor to be inherited under the number that the memory will have; BackendFailed without room for it.

    A process with threads waits some 10 ms for the kernel when its table of descriptors has to grow; one that inherits
    so high a number starts with a table that is large enough. Held for good, so that the number is nobody else's.
    """
    nothing = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return fcntl.fcntl(nothing, fcntl.F_DUPFD_CLOEXEC, GUEST_MEMORY_FD)
    except OSError as error:
        raise BackendFailed(f"cannot hold a descriptor for guest memory: {error.strerror}", hint=FD_HINT) from error
    finally:
        os.close(nothing)


def _read_path(pid: int, address: int) -> bytes:
    try:
        with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
            return os.pread(memory.fileno(), MAX_PATH, address).partition(b"\0")[0]
    except OSError:
        return b""
