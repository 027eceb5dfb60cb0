"""From the policy directories to one PolicySet: order of files, includes, limits. All files or none.

In: a view of the files (``files.PolicyFiles``) and directories. Out: PolicySet, or PolicyError naming file and line.
May import: files, grammar, rules, ruleset, errors.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

from cloison.policy.errors import PolicyError
from cloison.policy.files import Disk, PolicyFiles
from cloison.policy.grammar import ANY, decode_policy, is_argument, is_service_name, parse_new, parse_old
from cloison.policy.rules import (
    Action,
    Compat40,
    Include,
    IncludeDirectory,
    IncludeService,
    Rule,
    RulePlace,
    ServicePattern,
    Statement,
)
from cloison.policy.ruleset import PolicySet
from cloison.policy.tokens import Column, parse_token

SUFFIX = ".policy"
FILE_NAME = re.compile(r"[0-9a-z_.-]+", re.ASCII)
MAX_INCLUDE_DEPTH = 32  # real sets nest 2 deep; a loop is reported as a loop before this is reached
MAX_FILES_READ = 4096  # a file counts once for each time it is included: bounds includes that double at each level
MAX_RULES = 500_000
_LEGACY_SKIPPED_SUFFIXES = (".rpmsave", ".rpmnew", ".swp")


def load_policy(policy: Path, runtime: Path | None = None, *, legacy: Path | None = None) -> PolicySet:
    """Read ``policy`` and ``runtime`` (whose files win over files of the same name) and, where ``!compat-4.0`` asks for
    it, ``legacy``. Every directory given must exist. Raises PolicyError, and nothing else, on anything wrong."""
    return load_from(Disk(), policy, runtime, legacy=legacy)


def load_from(
    files: PolicyFiles, policy: Path, runtime: Path | None = None, *, legacy: Path | None = None
) -> PolicySet:
    """As load_policy, through another view of the files."""
    reader = _Reader(files, None if legacy is None else str(legacy))
    rules: list[Rule] = []
    beginnings: list[tuple[str, int]] = []
    directories = [str(policy)] if runtime is None else [str(policy), str(runtime)]
    for directory, name in _reading_order(files, directories):
        path = os.path.join(directory, name)
        beginnings.append((path, len(rules)))
        for rule in reader.read_top(path, directory):
            if len(rules) >= MAX_RULES:
                raise PolicyError(f"more than {MAX_RULES} rules", file=rule.place.file, line=rule.place.line)
            rules.append(rule)
    return PolicySet(tuple(rules), f"sha256:{reader.digest.hexdigest()}", tuple(reader.contents), tuple(beginnings))


def _reading_order(files: PolicyFiles, directories: list[str]) -> list[tuple[str, str]]:
    """(directory, name) of each top-level file, by name; of equal names the one in the later directory."""
    chosen: dict[str, str] = {}
    for directory in directories:
        for name in _policy_names(files, directory, RulePlace(directory, 0)):
            chosen[name] = directory
    return [(chosen[name], name) for name in sorted(chosen)]


def _policy_names(files: PolicyFiles, directory: str, place: RulePlace) -> list[str]:
    """The names to read in a directory, in order; names of things that are no regular files included."""
    try:
        names = files.list_names(directory)
    except OSError as error:
        raise _unreadable(directory, place, "directory ", error) from None
    names = sorted(name for name in names if name.endswith(SUFFIX) and not name.startswith("."))
    for name in names:
        if not FILE_NAME.fullmatch(name):
            raise PolicyError(
                "the file name has a character that policy file names may not have",
                file=os.path.join(directory, ascii(name)[1:-1]),
                hint="digits, lower-case letters, '_', '.', '-'; rename or remove the file",
            )
    return names


def _unreadable(path: str, place: RulePlace, kind: str, error: OSError) -> PolicyError:
    why = error.strerror or str(error)
    if place.line == 0 and place.file == path:
        return PolicyError(f"cannot read the {kind or 'file'}".rstrip() + f": {why}", file=path)
    return PolicyError(f"cannot read {kind}{path}: {why}", file=place.file, line=place.line or None)


class _Reader:
    """Follows directives. ``base`` is always the policy directory of the top-level file, never the including file."""

    def __init__(self, files: PolicyFiles, legacy: str | None) -> None:
        self._files = files
        self._legacy = legacy
        self._opened = 0
        self.contents: dict[str, bytes] = {}
        self.digest = sha256()

    def read_top(self, path: str, base: str) -> Iterator[Rule]:
        content = self._content(path, RulePlace(path, 0), may_be_special=True)
        if content is not None:
            yield from self._rules(parse_new(decode_policy(content, path), path), base, (path,))

    def _rules(self, statements: Iterator[Statement], base: str, chain: tuple[str, ...]) -> Iterator[Rule]:
        for statement in statements:
            match statement:
                case Rule():
                    yield statement
                case Include(path, place):
                    yield from self._include(os.path.join(base, path), base, chain, place)
                case IncludeDirectory(path, place):
                    directory = os.path.join(base, path)
                    for name in _policy_names(self._files, directory, place):
                        yield from self._include(os.path.join(directory, name), base, chain, place, may_be_special=True)
                case IncludeService(pattern, path, place):
                    yield from self._old_file(os.path.join(base, path), base, chain, place, pattern)
                case Compat40(place):
                    yield from self._compat(place, chain)

    def _include(
        self, path: str, base: str, chain: tuple[str, ...], place: RulePlace, *, may_be_special: bool = False
    ) -> Iterator[Rule]:
        inner = self._deeper(path, chain, place)
        content = self._content(path, place, may_be_special=may_be_special)
        if content is not None:
            yield from self._rules(parse_new(decode_policy(content, path), path), base, inner)

    def _old_file(
        self, path: str, base: str, chain: tuple[str, ...], place: RulePlace, pattern: ServicePattern
    ) -> Iterator[Rule]:
        inner = self._deeper(path, chain, place)
        content = self._content(path, place)
        if content is None:
            return
        for statement in parse_old(decode_policy(content, path), path, pattern):
            match statement:
                case Rule():
                    yield statement
                case Include(included, included_place):
                    yield from self._old_file(os.path.join(base, included), base, inner, included_place, pattern)
                case _:
                    raise AssertionError(f"the old syntax cannot give {statement!r}")

    def _compat(self, place: RulePlace, chain: tuple[str, ...]) -> Iterator[Rule]:
        legacy = self._legacy
        if legacy is None:
            raise PolicyError(
                "!compat-4.0 needs a legacy policy directory, and none is known", file=place.file, line=place.line
            )
        try:
            names = self._files.list_names(legacy)
        except OSError as error:
            raise _unreadable(legacy, place, "directory ", error) from None
        for pattern, name in sorted(_legacy_patterns(names), key=_legacy_order):
            path = os.path.join(legacy, name)
            if self._files.read_file(path) is None:
                continue
            yield from self._old_file(path, legacy, chain, place, pattern)
            if pattern.argument != ANY:
                yield _implied_deny(pattern, "@anyvm", path)
                yield _implied_deny(pattern, "@adminvm", path)

    def _deeper(self, path: str, chain: tuple[str, ...], place: RulePlace) -> tuple[str, ...]:
        normal = os.path.normpath(path)
        if normal in chain:
            raise PolicyError(
                f"{path} includes itself: {' -> '.join((*chain, normal))}", file=place.file, line=place.line
            )
        if len(chain) >= MAX_INCLUDE_DEPTH:
            raise PolicyError(
                f"includes are nested more than {MAX_INCLUDE_DEPTH} deep", file=place.file, line=place.line
            )
        return (*chain, normal)

    def _content(self, path: str, place: RulePlace, *, may_be_special: bool = False) -> bytes | None:
        """The bytes of the file; None for something that is no regular file where that is to be passed over."""
        line = place.line or None
        self._opened += 1
        if self._opened > MAX_FILES_READ:
            raise PolicyError(f"more than {MAX_FILES_READ} files are read", file=place.file, line=line)
        if path in self.contents:
            return self.contents[path]
        try:
            content = self._files.read_file(path)
        except OSError as error:
            raise _unreadable(path, place, "", error) from None
        if content is None:
            if may_be_special:
                return None
            raise PolicyError(f"{path} is not a regular file", file=place.file, line=line)
        self.contents[path] = content
        self.digest.update(path.encode("utf-8", "surrogateescape") + b"\0" + sha256(content).digest())
        return content


def _legacy_patterns(names: list[str]) -> Iterator[tuple[ServicePattern, str]]:
    for name in names:
        service, plus, argument = name.partition("+")
        if name.startswith(".") or name.endswith(_LEGACY_SKIPPED_SUFFIXES) or not is_service_name(service):
            continue
        if not plus:
            yield ServicePattern(service, ANY), name
        elif is_argument(plus + argument):
            yield ServicePattern(service, plus + argument), name


def _legacy_order(entry: tuple[ServicePattern, str]) -> tuple[str, bool, str]:
    """By service; of one service the exact arguments in order, then the file for all others."""
    (service, argument), _name = entry
    return service, argument == ANY, argument


def _implied_deny(pattern: ServicePattern, target: str, path: str) -> Rule:
    return Rule(
        *pattern,
        source=parse_token("@anyvm", Column.SOURCE),
        target=parse_token(target, Column.TARGET),
        action=Action.DENY,
        redirect=None,
        default_target=None,
        user=None,
        notify=True,
        autostart=True,
        place=RulePlace(path, 0),
    )
