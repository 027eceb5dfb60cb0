"""Users of this qube and the environment that a login gives them.

A login shell reads the user's profile on every call in qrexec; under emulation that costs more than the call. Here the
first call runs through a login shell, and the environment it ended with is remembered until a profile changes.
"""

from __future__ import annotations

import os
import pwd
from collections.abc import Callable, Mapping
from dataclasses import dataclass

DEFAULT_USER = "user"
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
PROFILES = (
    "/etc/profile",
    "/etc/profile.d",
    "/etc/environment",
    "/etc/default/locale",
    "/etc/localtime",
    "/run/qubes-service",
)
"""What a login reads, or (the last) what our own profiles ask: which services this qube has."""
MAX_ENVIRONMENT = 1 << 20

_Signature = tuple[tuple[int, int] | None, ...]


@dataclass(frozen=True)
class User:
    name: str
    uid: int
    gid: int
    home: str
    shell: str
    groups: tuple[int, ...]


_users: dict[str, tuple[_Signature, User]] = {}
_environments: dict[str, tuple[_Signature, dict[str, str]]] = {}


def _signature(paths: tuple[str, ...]) -> _Signature:
    """Sizes and times of files: the same as long as nobody changed them."""
    found: list[tuple[int, int] | None] = []
    for path in paths:
        try:
            status = os.stat(path)
            found.append((status.st_size, status.st_mtime_ns))
        except OSError:
            found.append(None)
    return tuple(found)


def find_user(name: str) -> User | None:
    """The user of this name; remembered until the user database changes."""
    signature = _signature(("/etc/passwd", "/etc/group"))
    known = _users.get(name)
    if known is not None and known[0] == signature:
        return known[1]
    try:
        entry = pwd.getpwnam(name)
    except (KeyError, ValueError):
        return None
    groups = tuple(os.getgrouplist(name, entry.pw_gid))
    user = User(name, entry.pw_uid, entry.pw_gid, entry.pw_dir, entry.pw_shell or "/bin/sh", groups)
    _users[name] = (signature, user)
    return user


def _profile_signature(user: User) -> _Signature:
    return _signature((*PROFILES, f"{user.home}/.profile"))


def find_login_environment(user: User) -> Mapping[str, str] | None:
    """The remembered environment after a login, or None when it is unknown or a profile has changed."""
    known = _environments.get(user.name)
    if known is None or known[0] != _profile_signature(user):
        return None
    return known[1]


def bare_environment(user: User) -> dict[str, str]:
    """What a login program sets before any profile is read."""
    environment = {
        "HOME": user.home,
        "SHELL": user.shell,
        "USER": user.name,
        "LOGNAME": user.name,
        "PATH": DEFAULT_PATH,
        "LANG": "C.UTF-8",
    }
    if os.path.isdir(runtime := f"/run/user/{user.uid}"):
        environment["XDG_RUNTIME_DIR"] = runtime
    for path in ("/etc/environment", "/etc/default/locale"):
        environment.update(_assignments(path))
    return environment


def _assignments(path: str) -> dict[str, str]:
    try:
        with open(path, encoding="utf-8") as file:
            lines = file.read(65536).splitlines()
    except (OSError, ValueError):
        return {}
    pairs = (line.strip().removeprefix("export ").partition("=") for line in lines if not line.lstrip().startswith("#"))
    return {
        key.strip(): value.strip().strip("'\"") for key, sign, value in pairs if sign and key.strip().isidentifier()
    }


LOGIN_SHELL = ("/bin/sh", "-lc", 'exec "$0" "$@"')
"""Followed by a program and its arguments: runs it with the environment of a login."""
PRINT_ENVIRONMENT = ("/bin/sh", "-lc", "exec env -0")


def remember_login_environment(user: User, untrusted_output: bytes) -> None:
    """What ``env -0`` printed at the end of a login."""
    pairs = (item.partition("=") for item in untrusted_output.decode("utf-8", "surrogateescape").split("\0"))
    environment = {key: value for key, sign, value in pairs if sign and key}
    for shells_own in ("_", "PWD", "OLDPWD", "SHLVL"):
        environment.pop(shells_own, None)
    if environment.get("HOME"):
        _environments[user.name] = (_profile_signature(user), environment)


def forget_users() -> None:
    _users.clear()
    _environments.clear()


Remember = Callable[[User, bytes], None]
