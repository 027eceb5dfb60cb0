"""The messages: one immutable type for each kind of frame (the three data kinds share ``Data``).

In: payload bytes. Out: messages (or RemoteProtocolError), and payload bytes from messages (or LocalProtocolError).
May import: the standard library, this package.

They are named tuples because a guest under emulation makes many of them. ``event.session`` is there on each that
belongs to a session; ``renumbered`` gives the same event another session number (relays).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar

from cloison.wire.errors import LocalProtocolError, RemoteProtocolError
from cloison.wire.fields import (
    boolean,
    encode_fields,
    flat_value,
    integer,
    parse_fields,
    parse_flat,
    parse_object,
    printable,
    text,
)
from cloison.wire.frames import LENGTHS, MAX_REASON, WINDOW, Kind, Stream

VERSION = 1
REMEMBERED_BYTES = 512
"""The same short OPEN comes again and again, and reading JSON costs an emulated guest as much as ten system calls."""


class Hello(NamedTuple):
    """First frame of each side on the virtio port."""

    version: int = VERSION
    software: str = ""


class Ping(NamedTuple):
    token: bytes = b""


class Pong(NamedTuple):
    token: bytes = b""


class Control(NamedTuple):
    """Host -> agent: do something to the qube itself; answered by the Reply with the same id."""

    id: int
    verb: str
    fields: Mapping[str, Any]


class Reply(NamedTuple):
    """Agent -> host. Fields are plain (numbers, truth values, printable ASCII text); "error" says why not ok."""

    id: int
    ok: bool
    fields: Mapping[str, Any]


class Notice(NamedTuple):
    """Agent -> host, unasked: ``ready`` and the like."""

    event: str
    fields: Mapping[str, Any]


class Tty(NamedTuple):
    term: str
    rows: int
    cols: int


class Open(NamedTuple):
    """Broker -> service side: start this. Not answered: data may follow at once; a failure is an Exit of 125 or 127.

    Exactly one of ``service`` (``NAME+ARG``) and ``command`` (shell text, dom0 only) is not empty.
    """

    session: int
    service: str = ""
    command: str = ""
    user: str = ""
    source: str = ""
    target_type: str = ""
    target: str = ""
    tty: Tty | None = None
    nogui: bool = False


class Call(NamedTuple):
    """Caller -> broker: please connect me. Answered by Accepted or Refused.

    A guest may fill in ``target``, ``service`` and ``source`` (relays of remote qubes); the rest is for dom0's clients.
    """

    session: int
    target: str = ""
    service: str = ""
    source: str = ""
    command: str = ""
    user: str = ""
    tty: Tty | None = None
    nogui: bool = False
    autostart: bool = True
    wait_exit: bool = True


class Accepted(NamedTuple):
    session: int


class Refused(NamedTuple):
    """The call is over. The reason is empty toward guests (they learn nothing but "no")."""

    session: int
    reason: str = ""


class Data(NamedTuple):
    """Bytes of one stream; empty = end of file. ``payload`` is a view of what was given to ``receive_data``."""

    session: int
    stream: int
    payload: bytes | memoryview


class Credit(NamedTuple):
    """The receiver of a stream consumed ``size_bytes``; that many more may be sent."""

    session: int
    stream: int
    size_bytes: int


class Exit(NamedTuple):
    """Service -> caller; the last of a session. Implies end of file on stdout and stderr."""

    session: int
    code: int


class Signal(NamedTuple):
    session: int
    number: int


class WindowSize(NamedTuple):
    session: int
    rows: int
    cols: int


class Reset(NamedTuple):
    """One side gave up (caller gone, service side lost); the session is over."""

    session: int
    reason: str = ""


class Restarted(NamedTuple):
    """Role.AGENT only; never on the wire: the host's stream broke or began anew, all sessions are gone."""

    reason: str


SessionEvent = Open | Call | Accepted | Refused | Data | Credit | Exit | Signal | WindowSize | Reset
Event = Hello | Ping | Pong | Control | Reply | Notice | SessionEvent | Restarted

_E = TypeVar("_E", bound=SessionEvent)


def renumbered(event: _E, session: int) -> _E:
    """The same event for another session: what a relay sends on its other side."""
    return event._replace(session=session)  # type: ignore[return-value]


# The fields of each JSON message, with alphabet and length (lengths as in qrexec: 64-byte names, 65000-byte services).

_NAME = text(r"[A-Za-z0-9_.:@-]{0,63}")
_USER = text(r"[A-Za-z0-9_.-]{0,32}")
SERVICE_PATTERN = r"[A-Za-z0-9_.-][A-Za-z0-9_.+-]{0,64999}"
_SERVICE = text(rf"(?:{SERVICE_PATTERN})?")
_COMMAND = text(r"[^\0]{0,65000}")
_ID = integer(0, 2**53)
_TTY = {"term": text(r"[A-Za-z0-9._+-]{1,64}"), "rows": integer(0, 65535), "cols": integer(0, 65535)}


def _is_tty(value: object) -> bool:
    return value is None or (
        isinstance(value, dict)
        and value.keys() == _TTY.keys()
        and all(check(value[key]) for key, check in _TTY.items())
    )


_HELLO = {"version": integer(1, 2**31), "software": text(r"[ -~]{0,64}")}
_OPEN = {
    "service": _SERVICE,
    "command": _COMMAND,
    "user": _USER,
    "source": _NAME,
    "target_type": text("(?:name|keyword)?"),
    "target": _NAME,
    "tty": _is_tty,
    "nogui": boolean,
}
_CALL = {
    "target": _NAME,
    "service": _SERVICE,
    "source": _NAME,
    "command": _COMMAND,
    "user": _USER,
    "tty": _is_tty,
    "nogui": boolean,
    "autostart": boolean,
    "wait_exit": boolean,
}
_NONE: frozenset[str] = frozenset()
_CREDIT = struct.Struct("<B3xI")
_EXIT = struct.Struct("<i")
_WINSIZE = struct.Struct("<HH")
_VERB = text(r"[a-z][a-z0-9-]{0,39}")


def parse_message(kind: int, session: int, untrusted_payload: bytes | memoryview) -> Event:
    """The message of a frame whose header was checked already (kind known, length within ``LENGTHS``)."""
    return _PARSERS[kind](session, untrusted_payload)


def encode_message(event: Event) -> tuple[int, int, bytes | memoryview]:
    """Kind, session and payload; raises LocalProtocolError for values that the other side would refuse."""
    encoder = _ENCODERS.get(type(event))
    if encoder is None:
        raise LocalProtocolError(f"{type(event).__name__} does not travel")
    kind, payload = encoder(event)
    lowest, highest = LENGTHS[kind]
    if not lowest <= len(payload) <= highest:
        raise LocalProtocolError(f"{type(event).__name__} of {len(payload)} bytes is out of its limits")
    return kind, getattr(event, "session", 0), payload


def _parse_hello(_: int, payload: bytes | memoryview) -> Hello:
    return Hello(**parse_fields(payload, _HELLO, frozenset({"version"})))


def _parse_control(_: int, payload: bytes | memoryview) -> Control:
    fields = parse_object(payload)
    number, verb = fields.pop("id", None), fields.pop("verb", None)
    if not _ID(number) or not _VERB(verb):
        raise RemoteProtocolError("control request without id or verb")
    return Control(number, verb, fields)


def _parse_reply(_: int, payload: bytes | memoryview) -> Reply:
    fields = parse_flat(payload)
    number, ok = fields.pop("id", None), fields.pop("ok", None)
    if not _ID(number) or not isinstance(ok, bool):
        raise RemoteProtocolError("reply without id or ok")
    return Reply(number, ok, fields)


def _parse_notice(_: int, payload: bytes | memoryview) -> Notice:
    fields = parse_flat(payload)
    event = fields.pop("event", None)
    if not _VERB(event):
        raise RemoteProtocolError("notice without event")
    return Notice(event, fields)


def _parse_open(session: int, payload: bytes | memoryview) -> Open:
    parse = _remember_open if len(payload) <= REMEMBERED_BYTES else _open_of
    return Open(session, *parse(bytes(payload))[1:])


def _open_of(payload: bytes) -> Open:
    fields = _with_tty(parse_fields(payload, _OPEN, _NONE))
    if bool(fields.get("service")) == bool(fields.get("command")):
        raise RemoteProtocolError("OPEN needs a service or a command")
    return Open(0, **fields)


_remember_open = lru_cache(maxsize=32)(_open_of)


def _parse_call(session: int, payload: bytes | memoryview) -> Call:
    fields = _with_tty(parse_fields(payload, _CALL, _NONE))
    if bool(fields.get("service")) == bool(fields.get("command")):
        raise RemoteProtocolError("CALL needs a service or a command")
    return Call(session, **fields)


def _with_tty(fields: dict[str, Any]) -> dict[str, Any]:
    if fields.get("tty") is not None:
        fields["tty"] = Tty(**fields["tty"])
    return fields


def _parse_refused(session: int, payload: bytes | memoryview) -> Refused:
    return Refused(session, printable(str(payload, "utf-8", "replace")))


def _parse_reset(session: int, payload: bytes | memoryview) -> Reset:
    return Reset(session, printable(str(payload, "utf-8", "replace")))


def _parse_credit(session: int, payload: bytes | memoryview) -> Credit:
    stream, size_bytes = _CREDIT.unpack(payload)
    if stream > Stream.STDERR or not 0 < size_bytes <= WINDOW or bytes(payload[1:4]) != b"\0\0\0":
        raise RemoteProtocolError("illegal credit")
    return Credit(session, stream, size_bytes)


def _parse_signal(session: int, payload: bytes | memoryview) -> Signal:
    number = payload[0]
    if not 1 <= number <= 64:
        raise RemoteProtocolError(f"signal {number} does not exist")
    return Signal(session, number)


_PARSERS: dict[int, Callable[[int, bytes | memoryview], Event]] = {
    Kind.HELLO: _parse_hello,
    Kind.PING: lambda session, payload: Ping(bytes(payload)),
    Kind.PONG: lambda session, payload: Pong(bytes(payload)),
    Kind.CONTROL: _parse_control,
    Kind.REPLY: _parse_reply,
    Kind.NOTICE: _parse_notice,
    Kind.OPEN: _parse_open,
    Kind.CALL: _parse_call,
    Kind.ACCEPTED: lambda session, payload: Accepted(session),
    Kind.REFUSED: _parse_refused,
    Kind.STDIN: lambda session, payload: Data(session, Stream.STDIN, payload),
    Kind.STDOUT: lambda session, payload: Data(session, Stream.STDOUT, payload),
    Kind.STDERR: lambda session, payload: Data(session, Stream.STDERR, payload),
    Kind.CREDIT: _parse_credit,
    Kind.EXIT: lambda session, payload: Exit(session, _EXIT.unpack(payload)[0]),
    Kind.SIGNAL: _parse_signal,
    Kind.WINSIZE: lambda session, payload: WindowSize(session, *_WINSIZE.unpack(payload)),
    Kind.RESET: _parse_reset,
}


def _encode_json(fields: Mapping[str, Any], checks: Mapping[str, Callable[[object], bool]]) -> bytes:
    for key, value in fields.items():
        if not checks[key](value):
            raise LocalProtocolError(f"field {key!r} has an illegal value: {value!a:.80}")
    return encode_fields(fields)


def _encode_request(event: Any, kind: int, checks: Mapping[str, Callable[[object], bool]]) -> tuple[int, bytes]:
    """OPEN or CALL: only the fields that differ from their defaults are written."""
    defaults = type(event)._field_defaults
    fields = {key: value for key, value in zip(event._fields[1:], event[1:], strict=True) if value != defaults[key]}
    if event.tty is not None:
        fields["tty"] = event.tty._asdict()
    if bool(event.service) == bool(event.command):
        raise LocalProtocolError("exactly one of service and command is needed")
    return kind, _encode_json(fields, checks)


def _encode_control(event: Control) -> tuple[int, bytes]:
    if not _ID(event.id) or not _VERB(event.verb) or {"id", "verb"} & event.fields.keys():
        raise LocalProtocolError("illegal control request")
    return Kind.CONTROL, encode_fields({"id": event.id, "verb": event.verb, **event.fields})


def _plain(fields: Mapping[str, Any]) -> dict[str, Any]:
    for key, value in fields.items():
        if not flat_value(value):
            raise LocalProtocolError(f"field {key!r} is not plain: {value!a:.80}")
    return dict(fields)


def _encode_credit(event: Credit) -> tuple[int, bytes]:
    if not 0 < event.size_bytes <= WINDOW:
        raise LocalProtocolError(f"credit of {event.size_bytes} bytes")
    return Kind.CREDIT, _CREDIT.pack(event.stream, event.size_bytes)


def _encode_struct(kind: int, layout: struct.Struct, *values: int) -> tuple[int, bytes]:
    try:
        return kind, layout.pack(*values)
    except struct.error as error:
        raise LocalProtocolError(str(error)) from None


_ENCODERS: dict[type, Callable[[Any], tuple[int, bytes | memoryview]]] = {
    Hello: lambda e: (Kind.HELLO, _encode_json(e._asdict(), _HELLO)),
    Ping: lambda e: (Kind.PING, e.token),
    Pong: lambda e: (Kind.PONG, e.token),
    Control: _encode_control,
    Reply: lambda e: (Kind.REPLY, encode_fields({"id": e.id, "ok": e.ok, **_plain(e.fields)})),
    Notice: lambda e: (Kind.NOTICE, encode_fields({"event": e.event, **_plain(e.fields)})),
    Open: lambda e: _encode_request(e, Kind.OPEN, _OPEN),
    Call: lambda e: _encode_request(e, Kind.CALL, _CALL),
    Accepted: lambda e: (Kind.ACCEPTED, b""),
    Refused: lambda e: (Kind.REFUSED, printable(e.reason, MAX_REASON).encode()),
    Data: lambda e: (Kind.STDIN + e.stream, e.payload),
    Credit: _encode_credit,
    Exit: lambda e: _encode_struct(Kind.EXIT, _EXIT, e.code),
    Signal: lambda e: _encode_struct(Kind.SIGNAL, struct.Struct("<B"), e.number),
    WindowSize: lambda e: _encode_struct(Kind.WINSIZE, _WINSIZE, e.rows, e.cols),
    Reset: lambda e: (Kind.RESET, printable(e.reason, MAX_REASON).encode()),
}
