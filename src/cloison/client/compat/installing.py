"""The fixed paths on the whole host, for every program: put there by root, taken away again, looked at.

In: an owner, a prefix (``/``, or a directory that becomes a host). Out: files, links, a group, and a list of them in
which uninstalling finds what is ours. May import: client.compat, errors.

Nothing that somebody else made is ever replaced or removed: a file counts as ours only while it is as we wrote it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from cloison.client.compat.fixedpaths import GROUP, GROUP_FILE, HELPERS, SOCKET, Owner, Piece, pieces, with_group
from cloison.errors import BackendFailed, NotNow

HELPERS_AT = "/usr/local/bin"
LIST = "/var/lib/cloison/compat.json"
AT_BOOT = "/etc/tmpfiles.d/cloison-compat.conf"
"""``/run`` is empty after a start of the host: systemd makes the link to the socket again."""
PROGRAMS = {"column": "bsdextrautils", "losetup": "mount", "scrypt": "scrypt", "setpriv": "util-linux", "sudo": "sudo"}
"""What the tools of Qubes OS run, and the package of Debian that has it."""
TOOL_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Standing:
    """What is to be said of one path: ``ours``, ``missing``, ``foreign`` (somebody else's, or changed)."""

    path: str
    state: str


class Host:
    """The host below ``prefix``."""

    def __init__(self, prefix: Path = Path("/")) -> None:
        self._prefix = prefix
        self._notes: dict[str, Any] = {"files": {}, "made_group": False, "added_member": ""}
        if (found := self._at(LIST)).exists():
            self._notes = json.loads(found.read_text())

    def _at(self, path: str) -> Path:
        return self._prefix / path[1:]

    def look(self, owner: Owner) -> list[Standing]:
        """How every path stands that an installation for this owner would have."""
        return [Standing(piece.path, self._state(piece)) for piece in self._wanted(owner)]

    @property
    def is_installed(self) -> bool:
        return self._at(LIST).exists()

    def install(self, owner: Owner) -> list[str]:
        """Put everything there; the paths. NotNow if something of somebody else's is in the way: then nothing is."""
        wanted = self._wanted(owner)
        if foreign := [piece.path for piece in wanted if self._state(piece) == "foreign" and not self._is_noted(piece)]:
            raise NotNow(f"not ours, and in the way: {', '.join(foreign)}", hint="move them away first")
        for path in self._notes["files"].keys() - {piece.path for piece in wanted}:
            self._remove(path)
        for piece in wanted:
            self._notes["files"][piece.path] = _fingerprint(piece)
        self._write_notes()  # before the files: what a crash leaves behind can be uninstalled
        for piece in wanted:
            self._put(piece)
        self._join_group(owner.name)
        self._write_notes()
        return [piece.path for piece in wanted]

    def uninstall(self) -> tuple[list[str], list[str]]:
        """Take away what is ours; (removed, left because somebody changed it)."""
        removed: list[str] = []
        left: list[str] = []
        for path in sorted(self._notes["files"], reverse=True):
            (removed if self._remove(path) else left).append(path)
        self._leave_group()
        self._at(LIST).unlink(missing_ok=True)
        return removed, left

    def _wanted(self, owner: Owner) -> list[Piece]:
        link = f"L+ {SOCKET} - - - - {owner.layout.admin_socket}\n"
        helpers = {f"{HELPERS_AT}/{name}" for name in HELPERS}
        found = [*pieces(owner, HELPERS_AT), Piece(AT_BOOT, link.encode())]
        # a helper that the host has already (perhaps of our own package) does its work
        return [p for p in found if p.path not in helpers or p.path in self._notes["files"] or not self._has(p.path)]

    def _has(self, path: str) -> bool:
        return os.path.lexists(self._at(path))

    def _is_noted(self, piece: Piece) -> bool:
        """What is there is what an earlier installation (perhaps for another owner) wrote."""
        return piece.path in self._notes["files"] and self._found(piece.path) == self._notes["files"][piece.path]

    def _state(self, piece: Piece) -> str:
        found = self._found(piece.path)
        return "missing" if not found else "ours" if found == _fingerprint(piece) else "foreign"

    def _found(self, path: str) -> str:
        """The fingerprint of what is there; empty: nothing."""
        place = self._at(path)
        if place.is_symlink():
            return f"link {place.readlink()}"
        if not place.exists():
            return ""
        return sha256(place.read_bytes()).hexdigest() if place.is_file() else "something else"

    def _put(self, piece: Piece) -> None:
        place = self._at(piece.path)
        place.parent.mkdir(parents=True, exist_ok=True)
        new = place.with_name(f".{place.name}.cloison-new")
        new.unlink(missing_ok=True)
        if piece.target:
            new.symlink_to(piece.target)
        else:
            new.write_bytes(piece.content)
            new.chmod(piece.mode)
        new.replace(place)

    def _remove(self, path: str) -> bool:
        """Whether it is gone; directories named after Qubes that are empty then go, too."""
        found = self._found(path)
        if found and found != self._notes["files"][path]:
            return False
        place = self._at(path)
        place.unlink(missing_ok=True)
        for above in place.parents:
            if "qubes" not in above.name or not above.is_dir() or any(above.iterdir()):
                break
            above.rmdir()
        return True

    def _write_notes(self) -> None:
        self._put(Piece(LIST, json.dumps(self._notes, indent=2).encode() + b"\n"))

    # -- the group ---------------------------------------------------------------------------------------------------

    def _join_group(self, user: str) -> None:
        text = self._at(GROUP_FILE).read_text() if self._has(GROUP_FILE) else ""
        known = {line.split(":")[0]: line.split(":")[-1].split(",") for line in text.splitlines()}
        if user in known.get(GROUP, ()):
            return
        self._notes["made_group"] = self._notes["made_group"] or GROUP not in known
        self._notes["added_member"] = user
        self._write_notes()
        if self._prefix != Path("/"):
            self._at(GROUP_FILE).parent.mkdir(parents=True, exist_ok=True)
            self._at(GROUP_FILE).write_text(with_group(text, user))
            return
        if GROUP not in known:
            _run("groupadd", "--system", GROUP)
        _run("gpasswd", "--add", user, GROUP)

    def _leave_group(self) -> None:
        """Only where this host's own tools did it; a directory that is to become a host keeps its group."""
        if self._prefix != Path("/"):
            return
        if self._notes["made_group"]:
            _run("groupdel", GROUP)
        elif self._notes["added_member"]:
            _run("gpasswd", "--delete", self._notes["added_member"], GROUP)


def _fingerprint(piece: Piece) -> str:
    return f"link {piece.target}" if piece.target else sha256(piece.content).hexdigest()


def _run(*command: str) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TOOL_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BackendFailed(f"cannot run {command[0]}: {error}") from None
    if done.returncode:
        raise BackendFailed(f"`{' '.join(command)}` failed: {done.stderr.strip()[-200:]}")


def missing_programs() -> Sequence[tuple[str, str]]:
    """(program, package) of what the tools of Qubes OS would not find."""
    return [(name, package) for name, package in PROGRAMS.items() if shutil.which(name) is None]
