"""Strict parsing of JSON objects from the wire: the type, alphabet and length of every field are checked.

In: bytes. Out: dictionaries of checked values, or RemoteProtocolError. May import: the standard library, errors.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from cloison.wire.errors import LocalProtocolError, RemoteProtocolError

Check = Callable[[object], bool]

MAX_TEXT = 2048
"""Characters of any text that an agent says about itself (an error, a version): a few lines."""
_KEY = re.compile(r"[a-z][a-z0-9_-]{0,39}", re.ASCII)


def text(pattern: str) -> Check:
    """Text that the pattern matches as a whole (the pattern bounds the length too)."""
    match = re.compile(pattern, re.ASCII | re.DOTALL).fullmatch
    return lambda value: isinstance(value, str) and match(value) is not None


def integer(lowest: int, highest: int) -> Check:
    return lambda value: type(value) is int and lowest <= value <= highest


def boolean(value: object) -> bool:
    return isinstance(value, bool)


def flat_value(value: object) -> bool:
    """A number, a truth value, null, or printable ASCII text."""
    if isinstance(value, str):
        return len(value) <= MAX_TEXT and value.isascii() and value.isprintable()
    return value is None or isinstance(value, bool) or (isinstance(value, int) and abs(value) < 1 << 63)


def parse_object(untrusted_payload: bytes | memoryview) -> dict[str, Any]:
    """The payload as one JSON object without duplicate keys, floats or other extravagances."""
    try:
        value = json.loads(
            str(untrusted_payload, "utf-8"),
            object_pairs_hook=_unique_pairs,
            parse_float=_refuse_number,
            parse_constant=_refuse_number,
        )
    except (ValueError, RecursionError) as error:
        raise RemoteProtocolError(f"payload is not strict JSON ({type(error).__name__})") from None
    if not isinstance(value, dict):
        raise RemoteProtocolError("payload is not a JSON object")
    return value


def parse_fields(
    untrusted_payload: bytes | memoryview, checks: Mapping[str, Check], required: frozenset[str]
) -> dict[str, Any]:
    """The payload's fields, each checked by its row in ``checks``."""
    fields = parse_object(untrusted_payload)
    for key, value in fields.items():
        check = checks.get(key)
        if check is None:
            raise RemoteProtocolError(f"unknown field {key[:40]!a}")
        if not check(value):
            raise RemoteProtocolError(f"field {key!a} has an illegal value")
    if missing := required - fields.keys():
        raise RemoteProtocolError(f"field {min(missing)!a} is missing")
    return fields


def parse_flat(untrusted_payload: bytes | memoryview) -> dict[str, Any]:
    """An object whose keys and values are plain; which keys there are is the receiver's business."""
    fields = parse_object(untrusted_payload)
    for key, value in fields.items():
        if not _KEY.fullmatch(key) or not flat_value(value):
            raise RemoteProtocolError(f"field {key[:40]!a} is not plain")
    return fields


def encode_fields(fields: Mapping[str, Any]) -> bytes:
    try:
        return json.dumps(fields, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise LocalProtocolError(f"cannot be written as JSON: {error}") from None


def printable(untrusted_text: str, limit: int = MAX_TEXT) -> str:
    """The text as one line of printable ASCII, cut at ``limit`` characters; for texts that go into messages."""
    return "".join(c if " " <= c <= "~" else "_" if c not in "\n\r\t" else " " for c in untrusted_text[:limit])


def _unique_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique = dict(pairs)
    if len(unique) != len(pairs):
        raise ValueError("duplicate key")
    return unique


def _refuse_number(_: str) -> NoReturn:
    raise ValueError("not an integer")
