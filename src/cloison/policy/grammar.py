"""Text to statements: both syntaxes, line by line, pure.

In: the text of one file. Out: statements in order, or PolicyError naming the line. May import: tokens, rules, errors.

The *new* syntax is ``SERVICE ARGUMENT SOURCE TARGET ACTION [KEY=VALUE ...]``; the *old* one, only reached through
``!include-service`` and ``!compat-4.0``, lacks the first two columns and spells ``$`` for ``@`` (reference: A2, A3).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import lru_cache, partial

from cloison.policy.errors import PolicyError
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
from cloison.policy.tokens import Column, Token, TokenError, TokenKind, parse_token

ANY = "*"
_SERVICE = re.compile(r"[A-Za-z0-9._-]+", re.ASCII)
_ARGUMENT = re.compile(r"\+[A-Za-z0-9._+-]*", re.ASCII)
_NEWLINE = re.compile(r"\r\n|\r|\n")  # str.splitlines would also split at VT, FF, NEL and more
_YES_NO = {"yes": True, "no": False}
_SHOWN_CHARACTERS = 60

_PARAMETERS: dict[Action, frozenset[str]] = {
    Action.ALLOW: frozenset({"target", "user", "notify", "autostart"}),
    Action.ASK: frozenset({"target", "default_target", "user", "notify", "autostart"}),
    Action.DENY: frozenset({"notify"}),
}
_ACTIONS = {action.value: action for action in Action}


class _LineError(ValueError):
    """What is wrong with one line; becomes a PolicyError where file and line are known."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


def is_service_name(untrusted_text: str) -> bool:
    return _SERVICE.fullmatch(untrusted_text) is not None


def is_argument(untrusted_text: str) -> bool:
    """A whole argument with its leading "+"."""
    return _ARGUMENT.fullmatch(untrusted_text) is not None


@lru_cache(maxsize=4096)
def parse_pattern(untrusted_service: str, untrusted_argument: str) -> ServicePattern:
    """The first two columns; ValueError says what is wrong with them."""
    if untrusted_service != ANY and not is_service_name(untrusted_service):
        raise _LineError(
            f"invalid service name {_shown(untrusted_service)}",
            "letters, digits, '-', '.', '_', or '*' for every service",
        )
    if untrusted_argument != ANY:
        if not untrusted_argument.startswith("+"):
            raise _LineError(
                f"argument {_shown(untrusted_argument)} must be '*' or start with '+'",
                "a rule is SERVICE ARGUMENT SOURCE TARGET ACTION; '*' stands for any argument or none",
            )
        if not is_argument(untrusted_argument):
            raise _LineError(f"invalid argument {_shown(untrusted_argument)}", "letters, digits, '-', '.', '_', '+'")
        if untrusted_service == ANY:
            raise _LineError("service '*' needs argument '*'")
    return ServicePattern(untrusted_service, untrusted_argument)


def parse_new(text: str, file: str) -> Iterator[Statement]:
    """The statements of a new-syntax file. Lazy: PolicyError comes at the first bad line, after what stood above."""
    return _statements(text, file, _new_statement)


def parse_old(text: str, file: str, pattern: ServicePattern) -> Iterator[Statement]:
    """The statements of an old-syntax file, all about ``pattern``; PolicyError as in parse_new."""
    return _statements(text, file, partial(_old_statement, pattern))


def find_errors(text: str, file: str, pattern: ServicePattern | None = None) -> Iterator[PolicyError]:
    """Every bad line of a file, for a linter; ``pattern`` means old syntax. What a line includes is not followed."""
    parse_line = _new_statement if pattern is None else partial(_old_statement, pattern)
    for place, line in _lines(text, file):
        try:
            parse_line(line, place)
        except (_LineError, TokenError) as error:
            yield _policy_error(error, place)


def decode_policy(content: bytes, file: str) -> str:
    """The text of a policy file; PolicyError where it is not UTF-8."""
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = len(_NEWLINE.findall(content[: error.start].decode("utf-8"))) + 1
        raise PolicyError("the file is not UTF-8 text", file=file, line=line) from None


_LineParser = Callable[[str, RulePlace], Statement]


def _lines(text: str, file: str) -> Iterator[tuple[RulePlace, str]]:
    for number, raw in enumerate(_NEWLINE.split(text), 1):
        line = raw.strip()
        if line and line[0] != "#":
            yield RulePlace(file, number), line


def _statements(text: str, file: str, parse_line: _LineParser) -> Iterator[Statement]:
    for place, line in _lines(text, file):
        try:
            yield parse_line(line, place)
        except (_LineError, TokenError) as error:
            raise _policy_error(error, place) from None


def _policy_error(error: ValueError, place: RulePlace) -> PolicyError:
    return PolicyError(str(error), file=place.file, line=place.line, hint=getattr(error, "hint", ""))


def _new_statement(line: str, place: RulePlace) -> Statement:
    words = line.split()
    if line[0] == "!":
        return _directive(words, place)
    if len(words) < 5:
        raise _LineError(
            f"a rule needs at least 5 words, here are {len(words)}",
            "SERVICE ARGUMENT SOURCE TARGET ACTION, where ARGUMENT is '*' or starts with '+'",
        )
    return _rule(parse_pattern(words[0], words[1]), words[2:], place)


def _old_statement(pattern: ServicePattern, line: str, place: RulePlace) -> Statement:
    words = line.replace("$include:", "!include ").replace("$", "@").replace(",", " ").split()
    if not words:
        raise _LineError("a rule needs at least 3 words, here are 0")
    if words[0].startswith("!"):
        if words[0] != "!include":
            raise _LineError(f"unknown directive {_shown(words[0])} (the old syntax knows only !include)")
        return _directive(words, place)
    if len(words) < 3:
        raise _LineError(f"a rule needs at least 3 words, here are {len(words)}", "old syntax: SOURCE TARGET ACTION")
    return _rule(pattern, words, place)


def _directive(words: list[str], place: RulePlace) -> Statement:
    name, *operands = words
    match name, operands:
        case "!include", [path]:
            return Include(path, place)
        case "!include-dir", [path]:
            return IncludeDirectory(path, place)
        case "!include-service", [service, argument, path]:
            return IncludeService(parse_pattern(service, argument), path, place)
        case "!compat-4.0", []:
            return Compat40(place)
    usage = _USAGES.get(name)
    if usage is None:
        raise _LineError(f"unknown directive {_shown(name)}", "known: " + ", ".join(_USAGES))
    raise _LineError(f"{name} has {len(operands)} operands", f"write: {usage}")


_USAGES = {
    "!include": "!include FILE",
    "!include-dir": "!include-dir DIRECTORY",
    "!include-service": "!include-service SERVICE ARGUMENT FILE",
    "!compat-4.0": "!compat-4.0",
}


def _rule(pattern: ServicePattern, words: list[str], place: RulePlace) -> Rule:
    """``words`` = SOURCE TARGET ACTION [KEY=VALUE ...]."""
    source = parse_token(words[0], Column.SOURCE)
    target = parse_token(words[1], Column.TARGET)
    action = _ACTIONS.get(words[2])
    if action is None:
        raise _LineError(f"unknown action {_shown(words[2])}", "allow, ask or deny, in lower case")
    parameters = _parameters(words[3:], action)
    redirect = _redirect(parameters, "target")
    default_target = _redirect(parameters, "default_target")
    if action is Action.ALLOW and target.kind is TokenKind.DEFAULT and redirect is None:
        raise _LineError("allow for @default needs target=", "say where the call should go: target=NAME")
    return Rule(
        pattern.service,
        pattern.argument,
        source,
        target,
        action,
        redirect,
        default_target,
        parameters.get("user") or None,
        _yes_no(parameters, "notify", default=action is Action.DENY),
        _yes_no(parameters, "autostart", default=True),
        place,
    )


def _parameters(words: list[str], action: Action) -> dict[str, str]:
    parameters: dict[str, str] = {}
    for word in words:
        key, separator, value = word.partition("=")
        if not separator:
            raise _LineError(
                f"parameter {_shown(word)} has no '='", "comments stand on lines of their own" if "#" in word else ""
            )
        if key not in _PARAMETERS[action]:
            known = ", ".join(sorted(_PARAMETERS[action]))
            raise _LineError(f"{action.value} has no parameter {_shown(key)}", f"{action.value} knows: {known}")
        if key in parameters:
            raise _LineError(f"parameter {_shown(key)} is given twice")
        parameters[key] = value
    return parameters


def _redirect(parameters: dict[str, str], key: str) -> Token | None:
    return parse_token(parameters[key], Column.REDIRECT) if key in parameters else None


def _yes_no(parameters: dict[str, str], key: str, *, default: bool) -> bool:
    if key not in parameters:
        return default
    value = _YES_NO.get(parameters[key])
    if value is None:
        raise _LineError(f"{key}= must be yes or no, not {_shown(parameters[key])}")
    return value


def _shown(untrusted_word: str) -> str:
    """A word for an error message: quoted, control characters escaped, not endless."""
    return ascii(
        untrusted_word if len(untrusted_word) <= _SHOWN_CHARACTERS else untrusted_word[:_SHOWN_CHARACTERS] + "..."
    )
