"""What is wrong with policy files, and what is probably not meant.

In: texts, rules, the system if it is known. Out: findings with file and line. May import: errors, files, grammar,
loader, rules, ruleset, system, tokens.

Errors are what the loader refuses, all of them and not only the first. Hints are rules that cannot do anything.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from cloison.policy.errors import PolicyError
from cloison.policy.files import Disk
from cloison.policy.grammar import decode_policy, find_errors, parse_new, parse_old
from cloison.policy.loader import SUFFIX, load_from
from cloison.policy.rules import Action, Rule, RulePlace, ServicePattern
from cloison.policy.ruleset import PolicySet
from cloison.policy.system import ADMIN_CLASS, KNOWN_CLASSES, SystemInfo
from cloison.policy.tokens import DISPOSABLE_PREFIX, UUID_PREFIX, Token, TokenKind

_UUID = re.compile(r"uuid:[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII)
_QUBE_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,30}", re.ASCII)
_NEVER_A_SOURCE = (TokenKind.DISPOSABLE_OF, TokenKind.DISPOSABLE_TAGGED)


class Severity(Enum):
    ERROR = "error"
    HINT = "hint"


@dataclass(frozen=True, order=True)
class Finding:
    file: str
    line: int
    severity: Severity
    message: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        return f"{place}: {self.severity.value}: {self.message}"


def check_policy(
    policy: Path, runtime: Path | None = None, *, legacy: Path | None = None, system: SystemInfo | None = None
) -> list[Finding]:
    """All findings of a whole set, in reading order; errors leave no room for hints."""
    try:
        loaded = load_from(Disk(), policy, runtime, legacy=legacy)
    except PolicyError as error:
        directories = [policy] if runtime is None else [policy, runtime]
        others = (found for directory in directories for found in _errors_of_directory(directory))
        return list(dict.fromkeys([_error(error), *others]))
    return list(find_hints(loaded, system))


def check_text(
    content: bytes, file: str, *, old_syntax: bool = False, system: SystemInfo | None = None
) -> list[Finding]:
    """The findings of one file by itself; what it includes is not followed. Errors leave no room for hints."""
    try:
        text = decode_policy(content, file)
    except PolicyError as error:
        return [_error(error)]
    pattern = ServicePattern("*", "*") if old_syntax else None
    errors = [_error(error) for error in find_errors(text, file, pattern)]
    if errors:
        return errors
    statements = parse_new(text, file) if pattern is None else parse_old(text, file, pattern)
    rules = tuple(statement for statement in statements if isinstance(statement, Rule))
    return list(find_hints(PolicySet(rules), system))


def find_hints(policy: PolicySet, system: SystemInfo | None = None) -> Iterator[Finding]:
    """Rules that do nothing, or less than it seems, or more."""
    earlier: dict[tuple[str, str, str, str], RulePlace] = {}
    for rule in policy.rules:
        for message in _rule_hints(rule, earlier, system):
            yield Finding(rule.place.file, rule.place.line, Severity.HINT, message)
        earlier.setdefault((rule.service, rule.argument, _word(rule.source), _word(rule.target)), rule.place)


def _error(error: PolicyError) -> Finding:
    message = f"{error.plain_message} (hint: {error.hint})" if error.hint else error.plain_message
    return Finding(error.file, error.line or 0, Severity.ERROR, message)


def _errors_of_directory(directory: Path) -> Iterator[Finding]:
    """Line errors of every file at the top of the directory, so that one run shows them all."""
    disk = Disk()
    try:
        names = sorted(disk.list_names(str(directory)))
    except OSError:
        return
    for name in names:
        path = os.path.join(directory, name)
        if not name.endswith(SUFFIX) or name.startswith("."):
            continue
        try:
            content = disk.read_file(path)
        except OSError:
            continue
        yield from check_text(content or b"", path)


def _rule_hints(
    rule: Rule, earlier: dict[tuple[str, str, str, str], RulePlace], system: SystemInfo | None
) -> Iterator[str]:
    if rule.source.kind in _NEVER_A_SOURCE:
        yield f"this never matches: no call comes from {rule.source}"
    shadow = _find_shadow(rule, earlier)
    if shadow is not None and rule.place.line:
        yield f"this never matches: {shadow} already decides every such call"
    for token in (rule.source, rule.target, rule.redirect, rule.default_target):
        if token is not None:
            yield from _token_hints(token, system)
    if rule.action is Action.ALLOW and rule.service == "*" and _is_anyone(rule.source) and _is_anyone(rule.target):
        yield "this allows every call between qubes: there is no isolation left"
    if rule.default_target is not None and _uuid_part(rule.default_target.text) and rule.redirect is None:
        yield f"default_target={rule.default_target} is never preselected: lists of targets hold names, write the name"
    if rule.action is Action.DENY and rule.target.kind in (TokenKind.DISPOSABLE_OF, TokenKind.DISPOSABLE_TAGGED):
        yield (
            f"prompts may still offer {rule.target} to qubes whose default disposable template it is, "
            "unless @dispvm is denied too"
        )


def _is_anyone(token: Token) -> bool:
    return token.kind in (TokenKind.EVERYTHING, TokenKind.ANY_QUBE)


def _word(token: Token) -> str:
    return "@adminvm" if token.kind is TokenKind.ADMIN else token.text


def _find_shadow(rule: Rule, earlier: dict[tuple[str, str, str, str], RulePlace]) -> RulePlace | None:
    """An earlier rule that takes every call this one could match."""
    for service in {rule.service, "*"}:
        for argument in {rule.argument, "*"}:
            for source in _wider(rule.source):
                for target in _wider(rule.target):
                    found = earlier.get((service, argument, source, target))
                    if found is not None:
                        return found
    return None


def _wider(token: Token) -> set[str]:
    """Words that stand for everything this word stands for, and perhaps for more."""
    wider = {_word(token), "*"}
    may_be_dom0 = token.kind in (TokenKind.EVERYTHING, TokenKind.ADMIN, TokenKind.TAG) or (
        token.kind is TokenKind.TYPE and token.value == ADMIN_CLASS
    )
    return wider if may_be_dom0 else wider | {"@anyvm"}


def _uuid_part(text: str) -> str:
    name = text.removeprefix(DISPOSABLE_PREFIX)
    return name if name.startswith(UUID_PREFIX) else ""


def _token_hints(token: Token, system: SystemInfo | None) -> Iterator[str]:
    if token.kind is TokenKind.TYPE and token.value not in KNOWN_CLASSES:
        yield f"no qube is of class {token.value} (known: {', '.join(sorted(KNOWN_CLASSES))})"
    if token.kind not in (TokenKind.QUBE, TokenKind.DISPOSABLE_OF):
        if token.kind is TokenKind.TAG and system is not None and not system.shape.matching[token.text]:
            yield f"no qube carries the tag {token.value} now"
        return
    name = token.value
    if name.startswith(UUID_PREFIX):
        if not _UUID.fullmatch(name):
            yield f"{name} is not a uuid: 36 characters, lower case"
            return
    elif name.startswith("$"):
        yield f"{name} is taken as a qube name: in this syntax keywords begin with '@'"
        return
    elif not _QUBE_NAME.fullmatch(name):
        yield f"{name!a} cannot be the name of a qube"
        return
    if system is None:
        return
    shape = system.shape
    if name not in shape.names:
        yield f"no qube is named {name} now"
    elif token.kind is TokenKind.DISPOSABLE_OF and shape.names[name] not in shape.templates:
        yield f"{name} is not a disposable template"
