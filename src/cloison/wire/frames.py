"""Frames: twelve bytes of header, then the payload.

In: numbers. Out: header bytes, and the limits of each kind. May import: the standard library.

Header, little endian: u32 payload length, u32 session, u8 kind, three zero bytes. Session 0 is the connection itself;
sessions that the host opens are even, sessions that the agent opens are odd.
"""

from __future__ import annotations

from enum import IntEnum
from struct import Struct
from typing import Final


class Kind(IntEnum):
    HELLO = 1
    PING = 2
    PONG = 3
    CONTROL = 4
    REPLY = 5
    NOTICE = 6
    OPEN = 16
    CALL = 17
    ACCEPTED = 18
    REFUSED = 19
    STDIN = 32
    STDOUT = 33
    STDERR = 34
    CREDIT = 35
    EXIT = 36
    SIGNAL = 37
    WINSIZE = 38
    RESET = 39


class Stream(IntEnum):
    """The three byte streams of a session; the kind of a data frame is 32 + stream."""

    STDIN = 0
    STDOUT = 1
    STDERR = 2


HEADER: Final = Struct("<III")
"""length, session, kind: reading kind and padding as one u32 makes non-zero padding an unknown kind."""
HEADER_BYTES: Final = 12

MAX_PAYLOAD: Final = 65536
"""Bytes in one frame: as qrexec 3 and later; above the 32 KiB that a virtio-serial port takes in one write."""
MAX_JSON: Final = 8192
"""Bytes of what an agent says about itself: a few flat fields; small, because it is hostile and is parsed."""
MAX_CALL_JSON: Final = MAX_PAYLOAD
"""Bytes of OPEN and CALL: a qubes.VMExec argument carries a whole command line (qrexec allows 65000)."""
MAX_CONTROL_JSON: Final = MAX_PAYLOAD
"""Bytes of CONTROL: comes from the trusted side and may list many services or firewall rules."""
MAX_PING: Final = 64
"""Bytes echoed by PONG: a token and a time, not a transport."""
MAX_REASON: Final = 1024
"""Bytes of a reason in REFUSED and RESET: one line for a person."""

WINDOW: Final = 1024 * 1024
"""Bytes of one stream that may be on the way without the receiver's CREDIT; also the highest value a window may have.
An emulated guest that shares two cores with others answers with credit after five to ten milliseconds: with 256 KiB a
stream spent most of its time waiting for it. Small enough that a hundred stuck streams fit in memory."""
CREDIT_STEP: Final = WINDOW // 2
"""A receiver returns credit when this much was consumed. Each CREDIT frame wakes the sending guest up, which costs it
as much as sending some ten kilobytes; no end may start with a window smaller than this."""

MAX_SESSIONS: Final = 4096
"""Live sessions on one connection; an agent that exceeds it is broken or hostile. Qubes: 256 per qube."""
MAX_GARBAGE: Final = 64 << 20
"""Bytes that a host skips while looking for the answer to its greeting: more than any queue left by an old
connection can hold; an agent that sends more never meant to answer."""

MAGIC: Final = b"\xffCLOISON-WIRE-1\n"
"""Begins a connection. Read as a header its length is too large, so it is never mistaken for a frame."""
NONCE_BYTES: Final = 16
FILLER: Final = b"\xff" * (MAX_PAYLOAD + HEADER_BYTES)
"""Pushes an agent out of whatever frame it was reading: the rest of the frame and one (impossible) header."""

LENGTHS: Final[dict[int, tuple[int, int]]] = {
    Kind.HELLO: (2, MAX_JSON),
    Kind.PING: (0, MAX_PING),
    Kind.PONG: (0, MAX_PING),
    Kind.CONTROL: (2, MAX_CONTROL_JSON),
    Kind.REPLY: (2, MAX_JSON),
    Kind.NOTICE: (2, MAX_JSON),
    Kind.OPEN: (2, MAX_CALL_JSON),
    Kind.CALL: (2, MAX_CALL_JSON),
    Kind.ACCEPTED: (0, 0),
    Kind.REFUSED: (0, MAX_REASON),
    Kind.STDIN: (0, MAX_PAYLOAD),
    Kind.STDOUT: (0, MAX_PAYLOAD),
    Kind.STDERR: (0, MAX_PAYLOAD),
    Kind.CREDIT: (8, 8),
    Kind.EXIT: (4, 4),
    Kind.SIGNAL: (1, 1),
    Kind.WINSIZE: (4, 4),
    Kind.RESET: (0, MAX_REASON),
}
"""Lowest and highest payload length of each kind: known before the payload is read."""


def pack_frame(kind: int, session: int, payload: bytes | memoryview = b"") -> bytes:
    """One frame as bytes."""
    header = HEADER.pack(len(payload), session, kind)
    return b"".join((header, payload)) if len(payload) else header
