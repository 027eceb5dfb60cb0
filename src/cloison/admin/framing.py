"""Requests and answers as bytes, without I/O (formats: Admin API notes, sections 1.2 to 1.4)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cloison.errors import CloisonError

MAX_REQUEST_BYTES = 65_536
"""Header and payload together; as in the reference."""
OK = b"0\0"


class FramingError(Exception):
    """The bytes are no request: the connection is closed without an answer."""


@dataclass(frozen=True)
class Request:
    """As it came: nothing is known of the names in it. ``dest`` may be ``uuid:...``."""

    method: str
    arg: str
    source: str
    dest: str
    payload: bytes


def parse_request(untrusted_data: bytes) -> Request:
    """The whole request, read up to end-of-file."""
    if len(untrusted_data) > MAX_REQUEST_BYTES:
        raise FramingError(f"longer than {MAX_REQUEST_BYTES} bytes")
    header, nul, payload = untrusted_data.partition(b"\0")
    if not nul:
        raise FramingError("no NUL after the header")
    parts = header.split(b" ", 3)
    if len(parts) != 4:
        raise FramingError("the header has not four parts")
    try:
        service, source, kind, dest = (part.decode("ascii") for part in parts)
    except UnicodeDecodeError:
        raise FramingError("the header is not ASCII") from None
    if kind == "keyword" and dest == "adminvm":
        dest = "dom0"
    elif kind != "name":
        raise FramingError("the destination is neither a name nor adminvm")
    method, _, arg = service.partition("+")
    return Request(method, arg, source, dest, payload)


def encode_ok(data: bytes | str = b"") -> bytes:
    return OK + (data.encode() if isinstance(data, str) else data)


def encode_error(name: str, text: str) -> bytes:
    """An exception record. The client formats the text with ``%``, so every one of them is doubled."""
    return b"2\0" + name.encode() + b"\0\0" + text.replace("%", "%%").replace("\0", " ").encode() + b"\0"


def encode_failure(error: CloisonError) -> bytes:
    return encode_error(error.wire_name, str(error))


def encode_event(subject: str, event: str, fields: Mapping[str, str]) -> bytes:
    """One record of a stream. An empty key would end it, and only ASCII is allowed."""
    parts = [subject, event]
    for key, value in fields.items():
        parts += [key, value]
    text = "".join(part.replace("\0", " ") + "\0" for part in parts)
    return b"1\0" + text.encode("ascii", "replace") + b"\0"
