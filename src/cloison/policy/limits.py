"""How much a qube may ask for: text to limit rules, and the limits that hold for one call.

In: ``*.limits`` files. Out: ``LimitSet``, or PolicyError naming file and line. May import: files, grammar, rules,
tokens, system, errors.

A line is ``SERVICE ARGUMENT SOURCE TARGET`` as in a policy rule, then at least one of ``calls=``, ``rate=``, ``bytes=``
and ``time=``. For each of the four the first line that matches the call and speaks of it wins; ``none`` lifts a limit
that a later line (or the built-in ones) would set.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import NamedTuple

from cloison.policy.errors import PolicyError
from cloison.policy.files import Disk, PolicyFiles
from cloison.policy.grammar import decode_policy, parse_pattern
from cloison.policy.loader import FILE_NAME
from cloison.policy.rules import RulePlace
from cloison.policy.system import SystemInfo
from cloison.policy.tokens import Column, Token, TokenError, parse_token

SUFFIX = ".limits"
MAX_RULES = 10_000  # each call looks at all of them
_BUILT_IN = "built-in"
_NONE = "none"
_SIZE_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_TIME_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


class Kind(Enum):
    CALLS = "calls"
    """Calls at once."""
    RATE = "rate"
    """New calls in a time."""
    BYTES = "bytes"
    """Of one call, both ways and its errors together."""
    TIME = "time"
    """Of one call, in seconds."""


class Rate(NamedTuple):
    new_calls: int
    period_s: float


class Limit(NamedTuple):
    """One limit. ``value``: calls, bytes or seconds; the rate is in ``rate``; both None: there is none."""

    kind: Kind
    text: str
    value: float | None = None
    rate: Rate | None = None

    @property
    def is_none(self) -> bool:
        return self.value is None and self.rate is None

    def __str__(self) -> str:
        return f"{self.kind.value}={self.text}"


class LimitRule(NamedTuple):
    service: str
    argument: str
    source: Token
    target: Token
    limits: tuple[Limit, ...]
    place: RulePlace

    def __str__(self) -> str:
        words = [self.service, self.argument, self.source.text, self.target.text, *map(str, self.limits)]
        return " ".join(words)

    @property
    def where(self) -> str:
        return str(self.place) if self.place.line else self.place.file

    def matches(self, call: LimitedCall, system: SystemInfo) -> bool:
        return (
            self.service in ("*", call.service)
            and self.argument in ("*", call.argument)
            and system.shape.may_be_source(self.source, call.source)
            and system.shape.may_be_target(self.target, call.source, call.target)
        )


class LimitedCall(NamedTuple):
    """What limits look at. ``argument`` has its "+"; ``target`` is the one asked for, in its normal form."""

    source: str
    target: str
    service: str
    argument: str

    @classmethod
    def of(cls, system: SystemInfo, source: str, untrusted_target: str, service: str) -> LimitedCall:
        """``service`` with its argument, as the caller wrote it."""
        name, _, argument = service.partition("+")
        return cls(source, system.shape.targets.get(untrusted_target, "@default"), name, "+" + argument)


class Held(NamedTuple):
    """A limit that holds for a call, and the rule it comes from (which is where calls are counted together)."""

    limit: Limit
    rule: LimitRule


@dataclass(frozen=True)
class LimitSet:
    """All limit rules, in reading order, the built-in ones last."""

    rules: tuple[LimitRule, ...]

    def find(self, call: LimitedCall, system: SystemInfo) -> dict[Kind, Held]:
        """The limits of this call, by kind; kinds without limit are missing."""
        found: dict[Kind, Held] = {}
        for rule in self.rules:
            if len(found) < len(Kind) and rule.matches(call, system):
                for limit in rule.limits:
                    found.setdefault(limit.kind, Held(limit, rule))
        return {kind: held for kind, held in found.items() if not held.limit.is_none}


class LimitSource:
    """The limits as the files are now; read again only when one changed. A missing directory is an empty one."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._disk: Disk | None = None
        self._settled = False
        self._current: LimitSet | PolicyError = LimitSet(BUILT_IN)

    def current(self) -> LimitSet:
        """Raises PolicyError while a file is wrong."""
        if self._disk is None or not self._settled or not self._disk.is_unchanged():
            self._read()
        if isinstance(self._current, PolicyError):
            raise self._current
        return self._current

    def _read(self) -> None:
        self._disk = disk = Disk()
        try:
            read = load_limits(disk, self.directory)
            if read != self._current:  # the same object as long as nothing changed: others count by it
                self._current = read
        except PolicyError as error:
            self._current = error
        self._settled = disk.is_settled()


def load_limits(files: PolicyFiles, directory: Path) -> LimitSet:
    """Every ``*.limits`` file of the directory, in byte order of the names. Raises PolicyError."""
    rules: list[LimitRule] = []
    for name in _names(files, directory):
        path = os.path.join(directory, name)
        try:
            content = files.read_file(path)
        except OSError as error:
            raise PolicyError(f"cannot read the file: {error.strerror or error}", file=path) from None
        if content is not None:
            rules += parse_limits(decode_policy(content, path), path)
        if len(rules) > MAX_RULES:
            raise PolicyError(f"more than {MAX_RULES} limit rules", file=path)
    return LimitSet((*rules, *BUILT_IN))


def parse_limits(text: str, file: str) -> Iterator[LimitRule]:
    """The rules of one file; PolicyError at the first bad line, after what stood above."""
    for number, raw in enumerate(re.split(r"\r\n|\r|\n", text), 1):
        line = raw.strip()
        if line and line[0] != "#":
            place = RulePlace(file, number)
            try:
                yield _parse_line(line.split(), place)
            except (ValueError, TokenError) as error:
                raise PolicyError(str(error), file=file, line=number, hint=getattr(error, "hint", "")) from None


def _names(files: PolicyFiles, directory: Path) -> list[str]:
    try:
        names = sorted(name for name in files.list_names(str(directory)) if name.endswith(SUFFIX) and name[0] != ".")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise PolicyError(f"cannot read the directory: {error.strerror or error}", file=str(directory)) from None
    for name in names:
        if not FILE_NAME.fullmatch(name):
            raise PolicyError(
                "the file name has a character that it may not have",
                file=os.path.join(directory, ascii(name)[1:-1]),
                hint="digits, lower-case letters, '_', '.', '-'; rename or remove the file",
            )
    return names


def _parse_line(words: list[str], place: RulePlace) -> LimitRule:
    if len(words) < 5:
        raise ValueError(f"a limit needs at least 5 words, here are {len(words)}: SERVICE ARGUMENT SOURCE TARGET LIMIT")
    service, argument = parse_pattern(words[0], words[1])
    source, target = parse_token(words[2], Column.SOURCE), parse_token(words[3], Column.TARGET)
    limits = tuple(_parse_limit(word) for word in words[4:])
    kinds = [limit.kind for limit in limits]
    if len(set(kinds)) < len(kinds):
        raise ValueError("a limit is given twice")
    return LimitRule(service, argument, source, target, limits, place)


def _parse_limit(word: str) -> Limit:
    key, equals, text = word.partition("=")
    kinds = {kind.value: kind for kind in Kind}
    if not equals or key not in kinds:
        raise ValueError(f"{word[:60]!a} is no limit; there are calls=, rate=, bytes= and time=")
    kind = kinds[key]
    if text == _NONE:
        return Limit(kind, text)
    try:
        match kind:
            case Kind.CALLS:
                return Limit(kind, text, value=_number(text, r"(\d{1,9})()", {"": 1}))
            case Kind.BYTES:
                return Limit(kind, text, value=_number(text, r"(\d{1,12})([KMGT]?)", _SIZE_UNITS))
            case Kind.TIME:
                return Limit(kind, text, value=_number(text, r"(\d{1,9})([smhd])", _TIME_UNITS))
            case Kind.RATE:
                count, _, period = text.partition("/")
                return Limit(kind, text, rate=Rate(int(_number(count, r"([1-9]\d{0,8})()", {"": 1})),
                                                   _TIME_UNITS[period]))  # fmt: skip
    except (ValueError, KeyError):
        raise ValueError(f"{word[:60]!a} is not understood; write {_EXAMPLES[kind]}, or {key}=none") from None


_EXAMPLES = {
    Kind.CALLS: "calls=8",
    Kind.RATE: "rate=5/s (or /m, /h, /d)",
    Kind.BYTES: "bytes=2G (or K, M, T)",
    Kind.TIME: "time=10m (or s, h, d)",
}


def _number(text: str, pattern: str, units: dict[str, float] | dict[str, int]) -> float:
    match = re.fullmatch(pattern, text, re.ASCII)
    if match is None:
        raise ValueError(text)
    return int(match[1]) * units[match[2]]


BUILT_IN = tuple(
    rule._replace(place=RulePlace(_BUILT_IN, 0)) for rule in parse_limits("* * @anyvm * calls=128 rate=500/s", "")
)
"""What holds when no file says otherwise: more than programs of people ask for, less than hurts the others. Relays let
a qube's calls wait above some hundreds a second, so that the rate refuses only who gets around that."""
