"""Changing policy files safely: list, get, replace, remove; and the first policy of a new system.

In: a policy directory, file names and contents. Out: changed files, or StoreError / PolicyError with nothing changed.
May import: files, loader, errors.

A change names the content it was based on (a ``sha256:`` token), is refused if the whole set would not load with it,
and replaces the file in one step, under the lock of the directory (reference: C1).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from cloison.errors import CloisonError
from cloison.policy.errors import PolicyError
from cloison.policy.files import (
    Disk,
    Overlay,
    create_file,
    list_regular,
    make_directory,
    open_locked,
    read_present,
    remove_file,
    replace_file,
)
from cloison.policy.loader import SUFFIX, load_from
from cloison.policy.ruleset import PolicySet

INCLUDE = "include"
TOKEN_ANY = "any"
TOKEN_NEW = "new"
_POLICY_STEM = re.compile(r"[0-9a-z_-]+", re.ASCII)  # Qubes takes upper case here too, and then refuses its own file
_INCLUDE_NAME = re.compile(r"[A-Za-z0-9_-]+", re.ASCII)
_DEFAULTS = Path(__file__).parent / "defaults"
_INSTALLED = ".installed"


class StoreError(CloisonError):
    """A file operation that was refused; nothing was changed. ``wire_name`` is what policy clients expect."""

    wire_name = "PolicyAdminException"


class BadToken(StoreError):
    wire_name = "PolicyAdminTokenException"


class FileMissing(StoreError):
    wire_name = "PolicyAdminFileNotFoundException"


class BadFileName(StoreError):
    wire_name = "PolicyAdminInvalidFileNameException"


class WouldBreak(StoreError):
    """The set with this change does not load; the text is the loader's FILE:LINE."""

    wire_name = "PolicyAdminSyntaxException"


@dataclass(frozen=True)
class PolicyStore:
    """The files of one system. Names are ``30-user`` (a policy file) or ``include/NAME``."""

    policy: Path
    runtime: Path | None = None
    legacy: Path | None = None

    def list_files(self, *, include: bool = False) -> list[str]:
        """Names, without suffix, sorted; or those of the include directory."""
        names = [
            name for name in list_regular(self.policy / INCLUDE if include else self.policy) if name[0] not in ".!"
        ]
        if include:
            return sorted(f"{INCLUDE}/{name}" for name in names)
        return sorted(name.removesuffix(SUFFIX) for name in names if name.endswith(SUFFIX))

    def get(self, untrusted_name: str) -> tuple[str, bytes]:
        """The token of the present content, and the content."""
        content = read_present(self.path_of(untrusted_name))
        if content is None:
            raise FileMissing(f"there is no policy file {untrusted_name}", hint="`cloison policy list` shows them")
        return content_token(content), content

    def replace(self, untrusted_name: str, content: bytes, token: str) -> None:
        """Put ``content`` under that name, if the file still is what ``token`` says and the set stays whole."""
        path = self.path_of(untrusted_name)
        with open_locked(self.policy):
            self._check_token(path, token)
            self._check_set({str(path): content})
            replace_file(path, content)

    def remove(self, untrusted_name: str, token: str) -> None:
        """Remove the file, under the same conditions."""
        path = self.path_of(untrusted_name)
        with open_locked(self.policy):
            if read_present(path) is None:
                raise FileMissing(f"there is no policy file {untrusted_name}", hint="`cloison policy list` shows them")
            self._check_token(path, token)
            self._check_set({str(path): None})
            remove_file(path)

    def append_line(self, untrusted_name: str, line: str) -> None:
        """Add a line at the end of a file (made if need be), under the same lock and check."""
        path = self.path_of(untrusted_name)
        with open_locked(self.policy):
            old = read_present(path) or b""
            separator = b"" if not old or old.endswith(b"\n") else b"\n"
            content = old + separator + line.encode() + b"\n"
            self._check_set({str(path): content})
            replace_file(path, content)

    def insert_line(
        self,
        untrusted_name: str,
        line: str,
        *,
        place: Callable[[PolicySet], int | None],
        check: Callable[[PolicySet], None],
    ) -> None:
        """Put a line above the one that ``place`` names in the present set (None: at the end), under the same lock.

        ``check`` raises for a set, with the line in it, that will not do; then nothing is changed.
        """
        path = self.path_of(untrusted_name)
        with open_locked(self.policy):
            number = place(self._check_set({}))
            lines = (read_present(path) or b"").splitlines(keepends=True)
            if lines and not lines[-1].endswith((b"\n", b"\r")):
                lines[-1] += b"\n"
            lines.insert(len(lines) if number is None else number - 1, line.encode() + b"\n")
            content = b"".join(lines)
            check(self._check_set({str(path): content}))
            replace_file(path, content)

    def find_files_for(self, service: str) -> list[str]:
        """The files that hold rules for the service or for every service, in rule order."""
        rules = load_from(Disk(), self.policy, self.runtime, legacy=self.legacy).rules
        files = dict.fromkeys(rule.place.file for rule in rules if rule.service in ("*", service))
        return [self._shown(Path(file)) for file in files]

    def path_of(self, untrusted_name: str) -> Path:
        """Where a file of that name lives; BadFileName for anything that is not a plain name."""
        folder, slash, name = untrusted_name.rpartition("/")
        if not slash and _POLICY_STEM.fullmatch(name):
            return self.policy / (name + SUFFIX)
        if slash and folder == INCLUDE and _INCLUDE_NAME.fullmatch(name):
            return self.policy / INCLUDE / name
        raise BadFileName(
            f"{untrusted_name[:80]!a} cannot be the name of a policy file",
            hint="lower-case letters, digits, '_', '-', without '.policy'; or include/NAME",
        )

    def _shown(self, path: Path) -> str:
        if path.parent in (self.policy, self.runtime):
            return path.name.removesuffix(SUFFIX)
        return str(path)

    def _check_token(self, path: Path, token: str) -> None:
        if token == TOKEN_ANY:
            return
        content = read_present(path)
        if token != (TOKEN_NEW if content is None else content_token(content)):
            why = "exists already" if token == TOKEN_NEW else "was changed by somebody else in the meantime"
            raise BadToken(f"{self._shown(path)} {why}", hint="get it again and repeat the change")

    def _check_set(self, changes: dict[str, bytes | None]) -> PolicySet:
        try:
            return load_from(Overlay(Disk(), changes), self.policy, self.runtime, legacy=self.legacy)
        except PolicyError as error:
            raise WouldBreak(f"refused, the policy would be broken: {error}") from None


def content_token(content: bytes) -> str:
    return "sha256:" + sha256(content).hexdigest()


def install_defaults(directory: Path) -> list[Path]:
    """Put the default files where they are missing, and say which were put there. Never touches a file that exists.

    A default that was installed once and removed since stays removed: a file's return could allow what was forbidden.
    """
    make_directory(directory)
    with open_locked(directory):
        record = directory / _INSTALLED
        before = set((read_present(record) or b"").decode().splitlines())
        known = set(before)
        installed: list[Path] = []
        for source in _default_files():
            name = source.relative_to(_DEFAULTS).as_posix()
            path = directory / name
            if name in known:
                continue
            if create_file(path, read_present(source) or b""):
                installed.append(path)
            known.add(name)
        if known != before:
            replace_file(record, "".join(f"{name}\n" for name in sorted(known)).encode())
    return installed


def default_policy() -> PolicySet:
    """The rules that a new system begins with."""
    return load_from(Disk(), _DEFAULTS)


def _default_files() -> list[Path]:
    """Includes first: an interruption must not leave a file whose include is missing."""
    includes = [_DEFAULTS / INCLUDE / name for name in sorted(list_regular(_DEFAULTS / INCLUDE))]
    return includes + [_DEFAULTS / name for name in sorted(list_regular(_DEFAULTS)) if name.endswith(SUFFIX)]
