"""The words that stand for qubes in a rule.

In: one word of a policy line (or the target a caller spelled). Out: ``Token`` or ``TokenError``. May import: nothing of
ours.

Which word may stand in which column is one table, ``_COLUMNS`` (reference: qrexec notes, A2).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from functools import lru_cache

DOM0 = "dom0"
DOM0_SPELLINGS = frozenset({DOM0, "@adminvm", "uuid:00000000-0000-0000-0000-000000000000"})
DISPOSABLE_PREFIX = "@dispvm:"
UUID_PREFIX = "uuid:"


class TokenError(ValueError):
    """The word is not a token, or may not stand where it stands; the text says why."""


class Column(Enum):
    """Where a word may stand."""

    SOURCE = "the source column"
    TARGET = "the target column"
    REDIRECT = "target= or default_target="
    REQUEST = "a call"


class TokenKind(Enum):
    EVERYTHING = "*"
    ANY_QUBE = "@anyvm"
    ADMIN = "@adminvm"
    DEFAULT = "@default"
    DISPOSABLE = "@dispvm"
    DISPOSABLE_OF = "@dispvm:NAME"
    DISPOSABLE_TAGGED = "@dispvm:@tag:TAG"
    QUBE = "NAME"
    TAG = "@tag:TAG"
    TYPE = "@type:TYPE"


_S, _T, _R, _Q = Column.SOURCE, Column.TARGET, Column.REDIRECT, Column.REQUEST
_COLUMNS: dict[TokenKind, frozenset[Column]] = {
    TokenKind.EVERYTHING: frozenset({_S, _T}),
    TokenKind.ANY_QUBE: frozenset({_S, _T}),
    TokenKind.ADMIN: frozenset({_S, _T, _R, _Q}),
    TokenKind.DEFAULT: frozenset({_T, _Q}),
    TokenKind.DISPOSABLE: frozenset({_T, _R, _Q}),
    # As a source the next two are accepted and never match: no call ever comes from "a new disposable".
    TokenKind.DISPOSABLE_OF: frozenset({_S, _T, _R, _Q}),
    TokenKind.DISPOSABLE_TAGGED: frozenset({_S, _T}),
    TokenKind.QUBE: frozenset({_S, _T, _R, _Q}),
    TokenKind.TAG: frozenset({_S, _T}),
    TokenKind.TYPE: frozenset({_S, _T}),
}

_KEYWORDS: dict[str, TokenKind] = {
    "*": TokenKind.EVERYTHING,
    "@anyvm": TokenKind.ANY_QUBE,
    "@default": TokenKind.DEFAULT,
    "@dispvm": TokenKind.DISPOSABLE,
    **dict.fromkeys(DOM0_SPELLINGS, TokenKind.ADMIN),
}

_PREFIXES: tuple[tuple[str, TokenKind], ...] = (
    ("@dispvm:@tag:", TokenKind.DISPOSABLE_TAGGED),
    (DISPOSABLE_PREFIX, TokenKind.DISPOSABLE_OF),
    ("@tag:", TokenKind.TAG),
    ("@type:", TokenKind.TYPE),
)


@dataclass(frozen=True, slots=True)
class Token:
    """One word. ``value`` is what follows the prefix (a name, ``uuid:...``, a tag, a class), "" for plain keywords."""

    kind: TokenKind
    value: str
    text: str

    def __str__(self) -> str:
        return self.text


@lru_cache(maxsize=4096)  # the same few words stand in thousands of rules
def parse_token(untrusted_word: str, column: Column) -> Token:
    """The word as a token of that column; TokenError if it is none or may not stand there.

    Names and uuids are not validated: an unknown one simply never matches.
    """
    token = _classify(untrusted_word)
    if column not in _COLUMNS[token.kind]:
        raise TokenError(f"{untrusted_word!a} may not stand in {column.value}")
    return token


def _classify(untrusted_word: str) -> Token:
    kind = _KEYWORDS.get(untrusted_word)
    if kind is not None:
        return Token(kind, DOM0 if kind is TokenKind.ADMIN else "", untrusted_word)
    if not untrusted_word:
        raise TokenError("the name of a qube is missing")
    if not untrusted_word.startswith("@"):
        return Token(TokenKind.QUBE, untrusted_word, untrusted_word)
    for prefix, prefixed_kind in _PREFIXES:
        if untrusted_word.startswith(prefix):
            value = untrusted_word[len(prefix) :]
            if not value:
                raise TokenError(f"nothing follows {prefix!r}")
            if value.startswith("@"):
                raise TokenError(f"{value!a} may not follow {prefix!r}")
            return Token(prefixed_kind, value, untrusted_word)
    raise TokenError(f"unknown keyword {untrusted_word!a}")
