"""Starting programs as a user: one fork and one exec, no helper programs in between."""

from __future__ import annotations

import fcntl
import os
import signal
import termios
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from cloison_agent.lookup import TROUBLE
from cloison_agent.users import User

Job = Callable[[], int]
"""A built-in service: runs in the forked child as the user, returns the exit code."""

_HIGHEST_FD = 1 << 16


@dataclass(frozen=True)
class Task:
    """What to run. ``job`` (our own code, no exec) or ``argv``."""

    user: User
    environment: Mapping[str, str]
    argv: Sequence[str] = ()
    job: Job | None = None
    as_root_first: Callable[[], None] | None = None
    """Done in the child before it becomes the user."""


def start_task(task: Task, stdin: int, stdout: int, stderr: int, *, terminal: bool = False) -> int:
    """Fork; the child owns a new session, has the three descriptors and nothing else. Returns its pid at once."""
    pid = os.fork()
    if pid:
        return pid
    code = TROUBLE
    try:
        _become(task, stdin, stdout, stderr, terminal)
        if task.job is not None:
            os.closerange(3, _HIGHEST_FD)
            code = task.job()
        else:
            os.execve(task.argv[0], list(task.argv), dict(task.environment))
    except FileNotFoundError as error:
        _complain(error)
        code = 127 if error.filename == (task.argv[0] if task.argv else None) else TROUBLE
    except BaseException as error:  # the border of a forked child: it must end here whatever happened
        _complain(error)
    os._exit(code)


def _become(task: Task, stdin: int, stdout: int, stderr: int, terminal: bool) -> None:
    os.setsid()
    for number, fd in enumerate((stdin, stdout, stderr)):
        os.dup2(fd, number)
    if terminal:
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    if task.as_root_first is not None:
        task.as_root_first()
    user = task.user
    if os.getuid() == 0:
        os.setgroups(user.groups)
        os.setresgid(user.gid, user.gid, user.gid)
        os.setresuid(user.uid, user.uid, user.uid)
    os.umask(0o022)
    try:
        os.chdir(user.home)
    except OSError:
        os.chdir("/")
    if task.job is not None:
        os.environ.clear()
        os.environ.update(task.environment)


def _complain(error: BaseException) -> None:
    try:
        os.write(2, f"{type(error).__name__}: {error}\n".encode("utf-8", "replace"))
    except OSError:
        return


def kill_session(pid: int, number: int) -> None:
    """Send a signal to every process of the session that ``pid`` leads, in whatever group it hides."""
    try:
        os.killpg(pid, number)
    except (ProcessLookupError, PermissionError):
        pass
    for name in os.listdir("/proc"):
        if not name.isdecimal():
            continue
        try:
            with open(f"/proc/{name}/stat", "rb") as file:
                fields = file.read().rpartition(b")")[2].split()
            if int(fields[3]) == pid:
                os.kill(int(name), number)
        except (OSError, IndexError, ValueError):
            continue
