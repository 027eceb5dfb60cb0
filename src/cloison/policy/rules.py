"""Rules and directives as values.

In: nothing. Out: frozen values, each of which knows the file and line it came from. May import: tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from cloison.policy.tokens import Token


class RulePlace(NamedTuple):
    """Where a rule stands. Line 0: the rule is implied by the file as a whole (``!compat-4.0``)."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


class Action(Enum):
    ALLOW = "allow"
    ASK = "ask"
    DENY = "deny"


class Rule(NamedTuple):
    """One line: who (source) may call what (service, argument) on whom (target), and how (action and parameters).

    ``service`` and ``argument`` are "*" or exact; an exact argument starts with "+". ``user`` None means the default
    user of the target.
    """

    service: str
    argument: str
    source: Token
    target: Token
    action: Action
    redirect: Token | None
    default_target: Token | None
    user: str | None
    notify: bool
    autostart: bool
    place: RulePlace

    def __str__(self) -> str:
        words = [self.service, self.argument, self.source.text, self.target.text, self.action.value]
        if self.redirect is not None:
            words.append(f"target={self.redirect.text}")
        if self.default_target is not None:
            words.append(f"default_target={self.default_target.text}")
        if self.user is not None:
            words.append(f"user={self.user}")
        if self.notify != (self.action is Action.DENY):
            words.append("notify=yes" if self.notify else "notify=no")
        if not self.autostart and self.action is not Action.DENY:
            words.append("autostart=no")
        return " ".join(words)


class ServicePattern(NamedTuple):
    """The first two columns of a rule: "*" or exact."""

    service: str
    argument: str


@dataclass(frozen=True, slots=True)
class Include:
    """``!include FILE``: the file, in the same syntax, in place of the line."""

    path: str
    place: RulePlace


@dataclass(frozen=True, slots=True)
class IncludeDirectory:
    """``!include-dir DIR``: its ``*.policy`` files in name order."""

    path: str
    place: RulePlace


@dataclass(frozen=True, slots=True)
class IncludeService:
    """``!include-service SERVICE ARGUMENT FILE``: an old-syntax file whose rules are all about that service."""

    pattern: ServicePattern
    path: str
    place: RulePlace


@dataclass(frozen=True, slots=True)
class Compat40:
    """``!compat-4.0``: the whole legacy directory, in the old syntax."""

    place: RulePlace


Statement = Rule | Include | IncludeDirectory | IncludeService | Compat40
