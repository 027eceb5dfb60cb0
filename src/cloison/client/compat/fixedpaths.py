"""What stands at which path.

In: a layout, a user, the host's group file. Out: ``Piece`` objects. Nothing is changed here.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field

from cloison import __version__
from cloison.errors import BadRequest
from cloison.layout import Layout

RELEASE = "/etc/qubes-release"
SOCKET = "/run/qubesd.sock"
"""The library says ``/var/run/qubesd.sock``; ``/var/run`` is a link to ``/run`` on every host that we support."""
QREXEC_CLIENT = "/usr/lib/qubes/qrexec-client"
SERVICES = "/etc/qubes-rpc"
IMPORTS = ("admin.vm.volume.Import", "admin.vm.volume.ImportWithSize")
POLICY = "/etc/qubes/policy.d"
BACKUP_PROFILES = "/etc/qubes/backup"
GROUP_FILE = "/etc/group"
GROUP = "qubes"
GROUP_ID = 98
"""What Qubes OS uses; the next free one if the host has given it away."""
HELPERS = ("qvm-appmenus", "qvm-console-dispvm", "qvm-sync-appmenus")
SETTINGS = ("HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME", "XDG_RUNTIME_DIR", "CLOISON_ROOT",
            "CLOISON_CACHE")  # fmt: skip
"""The environment that says which system is meant: our programs keep it whatever their caller's is."""


@dataclass(frozen=True)
class Piece:
    """One thing at a path: a link if ``target``, else a file with ``content``."""

    path: str
    content: bytes = b""
    target: str = ""
    mode: int = 0o644


@dataclass(frozen=True)
class Owner:
    """Whose system it is, and the environment that names it. ``become``: root's programs turn into that user first."""

    name: str
    layout: Layout
    environment: Mapping[str, str] = field(default_factory=dict)
    become: bool = False

    @classmethod
    def ourselves(cls, layout: Layout) -> Owner:
        import pwd

        settings = {key: os.environ[key] for key in SETTINGS if os.environ.get(key)}
        return cls(pwd.getpwuid(os.getuid()).pw_name, layout, settings)

    @classmethod
    def named(cls, name: str, root: str = "") -> Owner:
        """Another user's system, at the places it has by default or below ``root``. Raises BadRequest."""
        import pwd

        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            raise BadRequest(f"this host has no user {name!a}") from None
        settings = {"HOME": entry.pw_dir}
        if entry.pw_uid:
            settings["XDG_RUNTIME_DIR"] = f"/run/user/{entry.pw_uid}"
        if root:
            settings["CLOISON_ROOT"] = root
        layout = Layout.from_environment(settings, uid=entry.pw_uid)
        return cls(name, layout, settings, become=entry.pw_uid != 0)


def pieces(owner: Owner, helpers_at: str) -> list[Piece]:
    """Everything but the group. ``helpers_at``: the directory of the helper programs."""
    found = [
        Piece(RELEASE, f"Cloison {__version__} (speaks the Admin API of Qubes OS 4.4)\n".encode()),
        Piece(SOCKET, target=str(owner.layout.admin_socket)),
        Piece(POLICY, target=str(owner.layout.policy)),
        Piece(BACKUP_PROFILES, target=str(owner.layout.data / "backup")),
        _program(owner, QREXEC_CLIENT, "cloison.client.compat.hostclient"),
    ]
    found += [_program(owner, f"{SERVICES}/{name}", "cloison.client.compat.importing", name) for name in IMPORTS]
    found += [_program(owner, f"{helpers_at}/{name}", "cloison.client.compat.helpers", name) for name in HELPERS]
    return found


def _program(owner: Owner, path: str, module: str, *words: str) -> Piece:
    lines = ["#!/bin/sh", "# Written by `cloison compat`: changes are lost."]
    lines += [f"export {key}={shlex.quote(value)}" for key, value in owner.environment.items()]
    command = " ".join(shlex.quote(word) for word in (sys.executable, "-I", "-m", module, *words)) + ' "$@"'
    if owner.become:
        name = shlex.quote(owner.name)
        lines.append('if [ "$(id -u)" = 0 ]; then')
        lines.append(f'  exec setpriv --reuid {name} --regid "$(id -g {name})" --init-groups -- {command}')
        lines.append("fi")
    lines.append(f"exec {command}")
    return Piece(path, "\n".join(lines).encode() + b"\n", mode=0o755)


def services_of(layout: Layout) -> list[Piece]:
    """dom0's own services, at the place where the library looks for them when the target is dom0."""
    try:
        names = sorted(path.name for path in layout.services.iterdir())
    except FileNotFoundError:
        return []
    return [Piece(f"{SERVICES}/{name}", target=str(layout.services / name)) for name in names if name not in IMPORTS]


def with_group(group_file: str, member: str) -> str:
    """The text of a group file in which the group ``qubes`` has a member: an empty one is an error to the library."""
    lines = group_file.splitlines()
    for index, line in enumerate(lines):
        fields = line.split(":")
        if fields[0] == GROUP and len(fields) == 4:
            members = [name for name in fields[3].split(",") if name]
            lines[index] = ":".join([*fields[:3], ",".join(dict.fromkeys([member, *members]))])
            return "\n".join(lines) + "\n"
    taken = {line.split(":")[2] for line in lines if line.count(":") == 3}
    number = next(n for n in range(GROUP_ID, 1000) if str(n) not in taken)
    return "\n".join([*lines, f"{GROUP}:x:{number}:{member}"]) + "\n"
