"""Just enough of DNS to follow the addresses of a name: one question, and what is believed of the answer.

In: a name, or the bytes of an untrusted datagram. Out: bytes, or addresses with how long they hold, or DnsError. May
import: the standard library. Source of the format: RFC 1035, 3596, 6891.

Believed is only what answers our own question: its identifier, its name in the case that we spelled it (random, so that
a forger must guess it too), and addresses at the end of the chain of aliases that begins there.
"""

from __future__ import annotations

import ipaddress
import random
import struct
from typing import NamedTuple

A, CNAME, AAAA = 1, 5, 28
_IN, _OPT = 1, 41
UDP_BYTES = 1232
"""Longest answer asked for: fits into any path's packets (DNS flag day 2020)."""
MAX_ADDRESSES = 64
"""Addresses of one name that are followed: twice what the largest sites give."""
MAX_ALIASES = 12
MAX_TTL_S = 3600
_HEADER = struct.Struct("!HHHHHH")
_RECORD = struct.Struct("!HHIH")


class DnsError(Exception):
    """The datagram is no answer to the question."""


class Answer(NamedTuple):
    """What a server says; no addresses: the name has none of this kind."""

    addresses: tuple[str, ...]
    ttl_s: int
    truncated: bool = False
    """Ask again by TCP."""
    failed: bool = False
    """The server could not say; nothing is known."""


def question(identifier: int, name: str, kind: int) -> bytes:
    """A question as bytes; the name is used as it is spelled. DnsError: no such name can be asked for."""
    labels = name.rstrip(".").encode("ascii").split(b".")
    if not all(0 < len(label) < 64 for label in labels) or sum(len(label) + 1 for label in labels) > 254:
        raise DnsError(f"{name[:60]!a} cannot be asked for")
    spelled = b"".join(bytes([len(label)]) + label for label in labels) + b"\0"
    extra = b"\0" + struct.pack("!HHIH", _OPT, UDP_BYTES, 0, 0)
    return _HEADER.pack(identifier, 0x0100, 1, 0, 0, 1) + spelled + struct.pack("!HH", kind, _IN) + extra


def spell(name: str) -> str:
    """The name with each letter's case thrown by a coin."""
    coins = random.SystemRandom().getrandbits(len(name))
    return "".join(c.upper() if coins >> n & 1 else c for n, c in enumerate(name))


def parse_answer(untrusted: bytes, asked: bytes) -> Answer:
    """The answer to the question ``asked`` (its bytes), or DnsError."""
    if len(untrusted) < _HEADER.size:
        raise DnsError("too short")
    identifier, flags, questions, answers, _, _ = _HEADER.unpack_from(untrusted)
    end = asked.index(b"\0", _HEADER.size) + 5
    if identifier != int.from_bytes(asked[:2], "big") or not flags & 0x8000 or flags & 0x7800:
        raise DnsError("answers something else")
    if questions != 1 or untrusted[_HEADER.size : end] != asked[_HEADER.size : end]:
        raise DnsError("answers another question")
    code = flags & 15
    if flags & 0x0200:
        return Answer((), 0, truncated=True)
    if code not in (0, 3):
        return Answer((), 0, failed=True)
    try:
        return _collect(untrusted, end, answers, int.from_bytes(asked[end - 4 : end - 2], "big"))
    except (struct.error, IndexError) as error:
        raise DnsError(f"malformed ({type(error).__name__})") from None


def _collect(untrusted: bytes, at: int, answers: int, kind: int) -> Answer:
    name, _ = _read_name(untrusted, _HEADER.size)
    aliases: dict[bytes, tuple[bytes, int]] = {}
    found: list[tuple[bytes, int, bytes]] = []
    for _ in range(min(answers, 256)):
        owner, at = _read_name(untrusted, at)
        record, group, ttl_s, length = _RECORD.unpack_from(untrusted, at)
        at += _RECORD.size
        data = untrusted[at : at + length]
        if len(data) != length:
            raise DnsError("malformed (cut short)")
        if group == _IN and record == CNAME:
            aliases[owner] = (_read_name(untrusted, at)[0], ttl_s)
        elif group == _IN and record == kind and length == (4 if kind == A else 16):
            found.append((owner, ttl_s, data))
        at += length
    times = []
    for _ in range(MAX_ALIASES):
        if name not in aliases:
            break
        name, ttl_s = aliases[name]
        times.append(ttl_s)
    mine = [(ttl_s, data) for owner, ttl_s, data in found if owner == name][:MAX_ADDRESSES]
    times += [ttl_s for ttl_s, _ in mine]
    addresses = sorted({str(ipaddress.ip_address(data)) for _, data in mine})
    return Answer(tuple(addresses), min([MAX_TTL_S, *times]) if addresses else min([60, *times]))


def _read_name(untrusted: bytes, at: int) -> tuple[bytes, int]:
    """A name in small letters, and where it ends; pointers may only lead back."""
    labels: list[bytes] = []
    after, limit = -1, len(untrusted)
    while True:
        length = untrusted[at]
        if length >= 0xC0:
            pointer = (length & 0x3F) << 8 | untrusted[at + 1]
            after = at + 2 if after < 0 else after
            if pointer >= min(at, limit):
                raise DnsError("malformed (pointer)")
            at = limit = pointer
        elif length >= 0x40:
            raise DnsError("malformed (label)")
        elif length == 0:
            return b".".join(labels).lower(), after if after >= 0 else at + 1
        else:
            labels.append(untrusted[at + 1 : at + 1 + length])
            if len(labels) > 128 or len(labels[-1]) != length:
                raise DnsError("malformed (name)")
            at += 1 + length
