"""The Admin API's bytes, without I/O.

In: calls, and received bytes in any portions. Out: request bytes, events, the answer. May import: client.failures.

Request: ``METHOD+ARG SRC name DEST NUL PAYLOAD`` and end-of-file. Answer: any number of event records ``1 NUL ...``,
then ``0 NUL DATA`` or ``2 NUL TYPE NUL TRACEBACK NUL FORMAT NUL (ARG NUL)*``, then end-of-file
(reference: Admin API notes, sections 1.2 to 1.4; that an answer may follow events is ours, for long verbs).
"""

from __future__ import annotations

from dataclasses import dataclass

from cloison.client.failures import OutcomeUnknown, Refused, refusal

MAX_REQUEST = 65_536
"""Bytes of header and payload together; the daemon drops longer ones."""
MAX_EVENT = 1 << 20
"""Bytes of one event record: a daemon that never ends a record must not fill our memory."""


@dataclass(frozen=True)
class Event:
    """One event: about ``subject`` (a qube's name, "" for the system), named ``name``."""

    subject: str
    name: str
    fields: dict[str, str]


def encode_request(method: str, arg: str, dest: str, payload: bytes) -> bytes:
    """The bytes of one call; Refused if it cannot be said (spaces, not ASCII, too long)."""
    header = f"{method}+{arg} dom0 name {dest}"
    for part in (arg, dest):
        if not part.isascii() or any(c <= " " or c == "\x7f" for c in part):
            raise Refused(f"{part!a} holds characters that no name may hold", name="ProtocolError")
    request = header.encode("ascii") + b"\0" + payload
    if len(request) > MAX_REQUEST:
        raise Refused(f"request of {len(request)} bytes is longer than {MAX_REQUEST}", name="ProtocolError")
    return request


def printable(text: str) -> str:
    """``text`` on one line, with control characters replaced: it is going to be shown on a terminal."""
    return "".join(c if c.isprintable() else " " if c in "\n\t" else "_" for c in text.strip())


class AnswerReader:
    """Collects one answer. ``receive`` bytes, take ``events``; at end-of-file ``finish`` returns data or raises."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._buffer = bytearray()
        self._in_events = True
        self.complete = False
        """An exception record or the first bytes of an OK record were seen."""

    def receive(self, data: bytes) -> list[Event]:
        """Take bytes; the events that became whole."""
        self._buffer += data
        events: list[Event] = []
        while self._in_events and len(self._buffer) >= 2:
            if self._buffer[:2] != b"1\0":
                self._in_events = False
                break
            record = self._take_event()
            if record is None:
                break
            events.append(record)
        self.complete = not self._in_events
        return events

    def _take_event(self) -> Event | None:
        fields: list[bytes] = []
        position = 2
        while True:
            end = self._buffer.find(b"\0", position)
            if end < 0:
                if len(self._buffer) > MAX_EVENT:
                    raise OutcomeUnknown(f"{self._what}: the daemon sent an event without end")
                return None
            field = bytes(self._buffer[position:end])
            position = end + 1
            if len(fields) >= 2 and len(fields) % 2 == 0 and not field:
                break
            fields.append(field)
        del self._buffer[:position]
        texts = [field.decode("utf-8", "replace") for field in fields]
        return Event(texts[0], texts[1], dict(zip(texts[2::2], texts[3::2], strict=True)))

    def finish(self) -> bytes:
        """End-of-file was reached: the OK data; Refused as the daemon said; OutcomeUnknown without a whole answer."""
        kind, rest = bytes(self._buffer[:2]), bytes(self._buffer[2:])
        if kind == b"0\0":
            return rest
        if kind == b"2\0":
            return _raise_refusal(rest)
        hint = "`cloison daemon log` shows what happened"
        raise OutcomeUnknown(f"{self._what}: the daemon closed the connection without an answer", hint=hint)


def _raise_refusal(record: bytes) -> bytes:
    name, _, rest = record.partition(b"\0")
    _traceback, _, rest = rest.partition(b"\0")
    template, *arguments = rest.split(b"\0")
    text = template.decode("utf-8", "replace")
    values = [a.decode("utf-8", "replace") for a in arguments[:-1]]
    try:
        text %= tuple(int(v) if v.isdecimal() else v for v in values)
    except (TypeError, ValueError):
        pass  # not a format string after all: show it as it came
    raise refusal(name.decode("ascii", "replace"), printable(text))
