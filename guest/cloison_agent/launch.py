"""Starting programs as a user: one fork and one exec, no helper programs in between."""

from __future__ import annotations

import errno
import os
import resource
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from typing import Any

from cloison_agent.lookup import TROUBLE
from cloison_agent.users import User

Job = Callable[[], int]
"""A built-in service: runs in the forked child as the user, returns the exit code."""

_HIGHEST_FD = 1 << 16
_OUR_SIGNALS = (
    signal.SIGHUP,
    signal.SIGINT,
    signal.SIGPIPE,
    signal.SIGQUIT,
    signal.SIGTERM,
    signal.SIGUSR1,
    signal.SIGXFSZ,
)
"""Signals that Python, we, or whoever started us may handle in another way; programs get them as usual."""


Limit = tuple[int, int]
_LATER = frozenset({resource.RLIMIT_AS, resource.RLIMIT_CPU, resource.RLIMIT_DATA})
"""Limits that would hit ourselves if we had them even for a moment."""


@dataclass(frozen=True)
class Manners:
    """What a login says besides the environment: the umask, and the limits that differ from the agent's own."""

    umask: int = 0o022
    limits: tuple[tuple[int, Limit], ...] = ()


PLAIN_MANNERS = Manners()


@dataclass(frozen=True)
class Task:
    """What to run: ``argv`` (a name without slash is looked up in the environment's PATH), or ``job`` (no exec)."""

    user: User
    environment: Mapping[str, str]
    argv: Sequence[str | bytes] = ()
    job: Job | None = None
    manners: Manners = PLAIN_MANNERS


def start_task(task: Task, stdin: int, stdout: int, stderr: int, *, terminal: str = "") -> int:
    """Start it in a session of its own with these three descriptors and nothing else; returns its pid.

    ``terminal``: path of the terminal that becomes the session's own (the descriptors are that terminal).
    Raises OSError when a program cannot be started.
    """
    if task.job is not None:
        return _fork_job(task, task.job, stdin, stdout, stderr)
    with _behaving(task.manners, max(stdin, stdout, stderr) + 1), _acting_as(task.user):
        program = _find_program(task.argv[0], task.environment.get("PATH", os.defpath))
        actions: list[tuple[int, ...]] = [(os.POSIX_SPAWN_DUP2, fd, n) for n, fd in enumerate((stdin, stdout, stderr))]
        if terminal:  # a session's leader gets the first terminal that it opens
            opened = [(os.POSIX_SPAWN_OPEN, 0, terminal, os.O_RDWR, 0)]
            actions = [*opened, (os.POSIX_SPAWN_DUP2, 0, 1), (os.POSIX_SPAWN_DUP2, 0, 2)]  # type: ignore[list-item]
        try:
            pid = _spawn(program, task.argv, task.environment, actions)
        except OSError as error:
            if error.errno != errno.ENOEXEC:
                raise
            pid = _spawn("/bin/sh", ["/bin/sh", program, *task.argv[1:]], task.environment, actions)
    _limit(pid, task.manners)
    return pid


def _spawn(
    program: str | bytes, argv: Sequence[str | bytes], environment: Mapping[str, str], actions: Sequence[Any]
) -> int:
    """A vfork and an exec: nothing of our memory is copied, which under emulation is most of the cost of a fork."""
    return os.posix_spawn(
        program, list(argv), dict(environment), file_actions=actions, setsid=True, setsigdef=_OUR_SIGNALS
    )


@contextmanager
def _behaving(manners: Manners, least_files: int) -> Iterator[None]:
    """Have the login's umask and (soft) limits for the moment of a vfork: the program inherits them.

    ``least_files``: descriptors below this must go on being valid meanwhile, or they could not be given away.
    """
    if manners == PLAIN_MANNERS:
        yield
        return
    own_umask = os.umask(manners.umask)
    own_limits: list[tuple[int, Limit]] = []
    try:
        for number, (soft, _) in manners.limits:
            if number == resource.RLIMIT_NOFILE and 0 <= soft < least_files:
                soft = least_files
            own = resource.getrlimit(number)
            if number not in _LATER and soft != own[0]:
                with suppress(OSError, ValueError):  # beyond what we may have: the program gets it afterwards
                    resource.setrlimit(number, (soft, own[1]))
                    own_limits.append((number, own))
        yield
    finally:
        os.umask(own_umask)
        for number, limit in own_limits:
            resource.setrlimit(number, limit)


def _limit(pid: int, manners: Manners) -> None:
    """The rest of the limits: hard ones that we could not take back, and those that would hit ourselves."""
    for number, limit in manners.limits:
        with suppress(OSError, ValueError):  # it has ended already
            resource.prlimit(pid, number, limit)


@contextmanager
def _acting_as(user: User) -> Iterator[None]:
    """Be the user for the moment of a vfork; the program that is executed cannot come back (exec drops the saved ids).

    While it lasts the user's other processes may send us signals, but cannot trace us (the saved ids are root's).
    """
    if os.getuid() != 0:
        yield
        return
    own_groups = _own_groups()
    os.setgroups(user.groups)
    os.setresgid(user.gid, user.gid, 0)
    os.setresuid(user.uid, user.uid, 0)
    try:
        _enter_home(user)
        yield
    finally:
        os.setresuid(0, 0, 0)
        os.setresgid(0, 0, 0)
        os.setgroups(own_groups)


@cache
def _own_groups() -> list[int]:
    return os.getgroups()


def _enter_home(user: User) -> None:
    try:
        os.chdir(user.home)
    except OSError:
        os.chdir("/")


def _find_program(name: str | bytes, path: str) -> str | bytes:
    """As execvp would: a name with a slash is taken as it is."""
    program = os.fsdecode(name)
    if "/" in program:
        return name
    for directory in path.split(":"):
        candidate = f"{directory or '.'}/{program}"
        if os.access(candidate, os.X_OK) and not os.path.isdir(candidate):
            return candidate
    raise FileNotFoundError(errno.ENOENT, "command not found", program)


def _fork_job(task: Task, job: Job, stdin: int, stdout: int, stderr: int) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = TROUBLE
    try:
        os.setsid()
        for number, fd in enumerate((stdin, stdout, stderr)):
            os.dup2(fd, number)
        os.closerange(3, _HIGHEST_FD)
        for number in _OUR_SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        user = task.user
        os.umask(task.manners.umask)
        for limited, limit in task.manners.limits:
            resource.setrlimit(limited, limit)
        if os.getuid() == 0:
            os.setgroups(user.groups)
            os.setresgid(user.gid, user.gid, user.gid)
            os.setresuid(user.uid, user.uid, user.uid)
        _enter_home(user)
        os.environ.clear()
        os.environ.update(task.environment)
        code = job()
    except BaseException as error:  # the border of a forked child: it must end here whatever happened
        with suppress(OSError):
            os.write(2, f"{type(error).__name__}: {error}\n".encode("utf-8", "replace"))
    os._exit(code)


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
