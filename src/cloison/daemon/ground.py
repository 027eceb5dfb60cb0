"""The ground a daemon stands on: its directories and the lock that makes it the only one.

In: a layout. Out: private directories, a held lock. May import: layout, errors.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import stat
from pathlib import Path
from types import TracebackType

from cloison.errors import BackendFailed
from cloison.layout import Layout

MAX_SOCKET_PATH = 107
"""Linux's limit for the path of a unix socket, in bytes."""


def prepare_ground(layout: Layout) -> None:
    """Make the directories of a system, private to this user; refuse ones that somebody else owns."""
    longest = len(os.fsencode(layout.qube_runtime("x" * 36) / "console.sock"))
    if longest > MAX_SOCKET_PATH:
        raise BackendFailed(
            f"the path {layout.runtime} is too long: sockets in it would need {longest} of {MAX_SOCKET_PATH} bytes",
            hint="choose a shorter CLOISON_ROOT",
        )
    for directory in (layout.runtime, layout.data, layout.config, layout.cache):
        _make_private(directory)
    for directory in (layout.log.parent, layout.pools, layout.runtime_policy, layout.services, layout.policy):
        directory.mkdir(parents=True, exist_ok=True)


def _make_private(directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        found = directory.lstat()
    except OSError as error:
        raise BackendFailed(f"cannot make the directory {directory}: {error.strerror}") from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise BackendFailed(
            f"{directory} does not belong to this user", hint="remove it or choose another CLOISON_ROOT"
        )
    if stat.S_IMODE(found.st_mode) & 0o077:
        directory.chmod(0o700)


class SystemLock:
    """One daemon per system: an advisory lock on a file, freed by the kernel whatever way the holder ends."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = -1
        self.held = False

    def __enter__(self) -> SystemLock:
        self._descriptor = os.open(self._path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return self
        os.ftruncate(self._descriptor, 0)
        os.write(self._descriptor, f"{os.getpid()}\n".encode())
        self.held = True
        return self

    def nudge(self) -> None:
        """Ask the holder, who runs but was not reached, to put its sockets back (SIGHUP)."""
        with contextlib.suppress(OSError, ValueError):
            os.kill(int(os.pread(self._descriptor, 32, 0)), signal.SIGHUP)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._descriptor)
        self.held = False
