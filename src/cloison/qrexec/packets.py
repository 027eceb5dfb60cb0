"""What the daemon and a relay say to each other: one packet each, eight bytes of header, then bytes.

In: a kind, a session or request number, bytes. Out: packets. May import: nothing of ours (both sides use it).

The payloads of calls, requests and answers are those of the wire protocol, unchanged; the daemon parses them again
with the same strict parsers, because a relay that was taken over may say anything.
"""

from __future__ import annotations

from enum import IntEnum
from struct import Struct
from typing import Final, NamedTuple

HEADER: Final = Struct("<BBHI")
CLOSED: Final = Struct("<QQQiB")
"""Bytes of stdin, stdout, stderr; exit code; whether there was an exit code. Then the reason as text."""
TRAFFIC: Final = Struct("<IQQQ")
"""Session; bytes of stdin, stdout, stderr."""

MAX_PACKET: Final = 66 * 1024
"""Bytes: the largest wire payload and a header."""


class Order(IntEnum):
    """Daemon to relay."""

    OPEN = 1
    """Start ``payload`` (OPEN) as ``number``; comes with the leg. Flag 1: the other end may send signals."""
    ACCEPT = 2
    """The agent's call ``number`` is joined to the leg that comes with this."""
    REFUSE = 3
    CONTROL = 4
    """``payload`` is a CONTROL frame's; the answer is REPLY."""
    KILL = 5
    """Reset session ``number``; ``payload`` says why."""
    TRAFFIC = 6
    """Tell the bytes of all sessions so far."""


class Report(IntEnum):
    """Relay to daemon."""

    HERE = 1
    """First packet: the relay runs (its credentials carry its pid)."""
    UP = 2
    """The agent answered the greeting; ``payload`` is its HELLO."""
    NOTICE = 3
    REPLY = 4
    CALL = 5
    """The agent asks for ``payload`` (CALL) as ``number``."""
    GONE = 6
    """The agent gave up call ``number`` before it was answered."""
    CLOSED = 7
    """Session ``number`` is over and its last byte was handed on; ``payload`` is CLOSED."""
    TRAFFIC = 8
    FAILED = 9
    """Last packet: the relay ends; ``payload`` says why."""


class Closing(NamedTuple):
    """How a session ended."""

    stdin_bytes: int
    stdout_bytes: int
    stderr_bytes: int
    exit_code: int | None
    reason: str


def pack(kind: int, number: int = 0, payload: bytes | memoryview = b"", *, flag: int = 0) -> bytes:
    return HEADER.pack(kind, flag, 0, number) + payload


def pack_closing(closing: Closing) -> bytes:
    counts = closing[:3]
    return CLOSED.pack(*counts, closing.exit_code or 0, closing.exit_code is not None) + closing.reason.encode()


def parse_closing(untrusted_payload: bytes) -> Closing:
    """Raises ValueError for anything that ``pack_closing`` does not make."""
    if len(untrusted_payload) < CLOSED.size:
        raise ValueError("short packet")
    *counts, code, has_code = CLOSED.unpack_from(untrusted_payload)
    reason = untrusted_payload[CLOSED.size :].decode("ascii")
    if not (reason.isprintable() and len(reason) <= 1024):
        raise ValueError("reason is not one line of text")
    return Closing(counts[0], counts[1], counts[2], code if has_code else None, reason)
