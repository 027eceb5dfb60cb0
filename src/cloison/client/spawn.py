"""Starting the daemon when nobody answers.

In: a layout. Out: a daemon that accepts connections, or DaemonUnreachable. May import: client, errors, layout.

Under a systemd user manager that really runs, the user's unit is started; elsewhere the daemon becomes a process of
its own session. Two callers at once are fine: the daemon holds a lock, the loser's copy ends, both find the winner.
"""

from __future__ import annotations

import fcntl
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

from cloison.client import unit
from cloison.client.failures import DaemonUnreachable
from cloison.errors import BackendFailed
from cloison.layout import Layout

START_TIMEOUT_S = 90.0
"""Python's start, opening the database and finding running qubes again take below 2 s; a slow disk may add, and where
the whole computer is emulated it was 30. A daemon that ends meanwhile is not waited for."""
POLL_S = 0.02
RETRY_S = 0.2
UNIT_RETRY_S = 2.0
"""For systemd a daemon that is just ending still runs, and starting it does nothing."""
PATH_SETTINGS = ("CLOISON_ROOT", "CLOISON_CACHE")


def start_daemon(layout: Layout, *, also: Path | None = None) -> None:
    """Return once a daemon listens on the Admin API socket (and has made the socket ``also``).

    DaemonUnreachable with the log's last line otherwise.
    """
    process = None if _start_unit() else _spawn(layout)
    deadline = time.monotonic() + START_TIMEOUT_S
    ask_again = time.monotonic() + UNIT_RETRY_S
    while time.monotonic() < deadline:
        if is_listening(layout.admin_socket) and (also is None or also.exists()):
            return
        if process is not None and (ended := process.poll()) is not None:
            if ended:
                break
            time.sleep(RETRY_S)  # another one holds the lock: it is starting too, about to end, or lost its sockets
            process = _spawn(layout)
        if process is None and time.monotonic() > ask_again:
            ask_again += UNIT_RETRY_S
            process = None if _start_unit() else _spawn(layout)
        time.sleep(POLL_S)
    reason = f": {last}" if (last := _last_line(layout.log)) else ""
    raise DaemonUnreachable(f"the daemon did not start{reason}", hint=f"see {layout.log}, or `cloison doctor`")


def is_listening(path: Path) -> bool:
    """Somebody accepts connections on this unix socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(5)
        try:
            probe.connect(str(path))
        except OSError:
            return False
        return True


def is_locked(lock: Path) -> bool:
    """A daemon lives, whether or not it answers (it may be starting or ending)."""
    try:
        with lock.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _start_unit() -> bool:
    if not unit.is_installed():
        return False
    try:
        unit.run_systemctl("start", unit.UNIT)
    except BackendFailed:  # a manager that is about to end, say: the daemon does not need one
        return False
    return True


def _spawn(layout: Layout) -> subprocess.Popen[bytes]:
    layout.log.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    environment = dict(os.environ)  # the daemon works in "/": paths that are relative to here mean something else there
    environment |= {key: str(Path(environment[key]).absolute()) for key in PATH_SETTINGS if environment.get(key)}
    with layout.log.open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "cloison.daemon"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
            env=environment,
            start_new_session=True,
            close_fds=True,
        )


def _last_line(log: Path) -> str:
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 4096))
            lines = [line.strip() for line in file.read().decode("utf-8", "replace").splitlines() if line.strip()]
    except OSError:
        return ""
    return lines[-1][:300] if lines else ""
