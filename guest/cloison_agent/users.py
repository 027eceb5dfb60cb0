"""Users of this qube, and what can be said of their logins by looking at files."""

from __future__ import annotations

import os
import pwd
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

Signature = tuple[tuple[int, int] | None, ...]


@dataclass(frozen=True)
class User:
    name: str
    uid: int
    gid: int
    home: str
    shell: str
    groups: tuple[int, ...]


_absent: set[str] = set()
"""Files that were not there: asking whether they are still not is half as dear as failing to look at them."""
_users: dict[str, tuple[Signature, User]] = {}


def _signature(paths: tuple[str, ...]) -> Signature:
    """Sizes and times of files: the same as long as nobody changed them."""
    found: list[tuple[int, int] | None] = []
    for path in paths:
        if path in _absent and not os.access(path, os.F_OK):
            found.append(None)
            continue
        try:
            status = os.stat(path)
            _absent.discard(path)
            found.append((status.st_size, status.st_mtime_ns))
        except OSError:
            _absent.add(path)
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


def profile_signature(user: User) -> Signature:
    """Changes whenever a file does that a login reads."""
    return _signature((*PROFILES, f"{user.home}/.profile"))


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


def forget_users() -> None:
    _users.clear()
