"""Sessions of this qube's users: what a login gives (environment, limits, umask), once for all calls of a user.

qrexec opens a PAM session and reads the user's profile in every call; under emulation that costs more than the call.
Here each user gets one session, opened by ``runuser`` (so PAM's session modules run) and held open by a
program that sleeps; what it got is given to every call of that user. A call waits for the session of its user, and
fails if PAM refuses it. When a profile has changed, a new session is opened beside the next call, which reads the
profile itself.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from cloison_agent import users
from cloison_agent.launch import Manners, Task, start_task
from cloison_agent.loop import READ, Loop
from cloison_agent.users import User

RUNUSER = "/usr/sbin/runuser"
_HOLD = (
    "/bin/sh",
    "-lc",
    "printf '\\0'; env -0; printf 'CLOISON_PID=%s\\0CLOISON_UMASK=%s\\0\\0' $$ $(umask); exec cat >/dev/null",
)
"""Tells what a login left, then sleeps until the agent is gone. A NUL first: profiles may print."""
LOGIN_SHELL = ("/bin/sh", "-lc", 'exec "$0" "$@"')
"""Followed by a program and its arguments: runs it with the environment of a login."""
_LIMITS = (
    *(resource.RLIMIT_CORE, resource.RLIMIT_FSIZE, resource.RLIMIT_MEMLOCK, resource.RLIMIT_MSGQUEUE),
    *(resource.RLIMIT_NICE, resource.RLIMIT_NOFILE, resource.RLIMIT_NPROC, resource.RLIMIT_RTPRIO),
    *(resource.RLIMIT_RTTIME, resource.RLIMIT_SIGPENDING, resource.RLIMIT_STACK),
    *(resource.RLIMIT_AS, resource.RLIMIT_CPU, resource.RLIMIT_DATA),
)


@dataclass(frozen=True)
class Login:
    """What every program of this user is started with."""

    environment: Mapping[str, str]
    manners: Manners
    is_stale: bool = False
    """A profile has changed since; the program must be started by a login shell."""

    def command(self, argv: Sequence[str | bytes]) -> Sequence[str | bytes]:
        """What to execute so that the program finds what the profiles say now."""
        return [*LOGIN_SHELL, *argv] if self.is_stale else argv


class Logins:
    """``when_known`` gives a user's session, opened if need be. Descriptors are watched by ``loop``."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._known: dict[str, tuple[int, users.Signature, Login]] = {}
        """Per user: the pipe whose end is the end of the session, and what the session got."""
        self._waiting: dict[str, list[Callable[[Login | None], None]]] = {}

    def when_known(self, user: User, act: Callable[[Login | None], None]) -> None:
        """``act(session)``: now, or as soon as it is open; None: it cannot be opened."""
        known = self._known.get(user.name)
        if known is None:
            self.begin(user, act)
            return
        _, signature, login = known
        if signature != users.profile_signature(user):
            login = replace(login, environment={**login.environment, **users.bare_environment(user)}, is_stale=True)
            self.begin(user)
        act(login)

    def begin(self, user: User, act: Callable[[Login | None], None] = lambda login: None) -> None:
        """Open a session for the user, also if there is one: it then takes that one's place."""
        waiting = self._waiting.setdefault(user.name, [])
        waiting.append(act)
        if len(waiting) > 1:
            return
        held, hold = os.pipe()
        read_end, write_end = os.pipe()
        try:
            with open(os.devnull, "r+b") as nothing:
                pid = start_task(_holding_task(user), held, write_end, nothing.fileno())
        except OSError:
            os.close(read_end)
            self._settle(user, hold, None)
            return
        finally:
            os.close(held)
            os.close(write_end)
        self._listen(user, hold, read_end)
        self._loop.watch_exit(pid, lambda code: self._ended(user.name, hold))

    def _listen(self, user: User, hold: int, read_end: int) -> None:
        os.set_blocking(read_end, False)
        signature = users.profile_signature(user)
        output = bytearray()

        def collect(_: int) -> None:
            try:
                piece = os.read(read_end, 65536)
            except BlockingIOError:
                return
            output.extend(piece)
            done = output.endswith(b"\0\0")
            if done or not piece or len(output) > users.MAX_ENVIRONMENT:
                self._loop.remove(read_end)
                os.close(read_end)
                login = parse_login(bytes(output)) if done else None
                self._settle(user, hold, (signature, login) if login is not None else None)

        self._loop.add(read_end, READ, collect)

    def _settle(self, user: User, hold: int, found: tuple[users.Signature, Login] | None) -> None:
        """The holder has spoken, or failed."""
        if found is None:
            os.close(hold)
        else:
            self._end(user.name)
            self._known[user.name] = hold, *found
        for act in self._waiting.pop(user.name, []):
            act(found[1] if found is not None else None)

    def _ended(self, name: str, hold: int) -> None:
        """A holder is gone: the next call opens another session."""
        known = self._known.get(name)
        if known is not None and known[0] == hold:
            self._end(name)

    def _end(self, name: str) -> None:
        if known := self._known.pop(name, None):
            os.close(known[0])


def _holding_task(user: User) -> Task:
    environment = users.bare_environment(user)
    root = users.find_user("root")
    if os.getuid() != 0 or root is None:
        return Task(user, environment, argv=_HOLD)
    starter = replace(root, home="/")  # it stays: what is mounted on homes later must not find them in use
    return Task(starter, environment, argv=[RUNUSER, "-u", user.name, "--", *_HOLD])


def parse_login(untrusted_output: bytes) -> Login | None:
    """What the holder printed; None if that is not a login's environment."""
    pairs = (item.partition("=") for item in untrusted_output.decode("utf-8", "surrogateescape").split("\0")[1:])
    environment = {key: value for key, sign, value in pairs if sign and key and not key.startswith("QREXEC")}
    pid, mask = environment.pop("CLOISON_PID", ""), environment.pop("CLOISON_UMASK", "")
    for shells_own in ("_", "PWD", "OLDPWD", "SHLVL"):
        environment.pop(shells_own, None)
    if not environment.get("HOME") or not pid.isdecimal():
        return None
    try:
        umask = int(mask, 8) & 0o777
        limits = [(number, resource.prlimit(int(pid), number)) for number in _LIMITS]
    except (OSError, ValueError):
        return None
    differing = tuple((number, limit) for number, limit in limits if limit != resource.getrlimit(number))
    return Login(environment, Manners(umask, differing))
