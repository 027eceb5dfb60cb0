"""One connection of the wire protocol, without I/O.

In: bytes of the peer, events of our side. Out: events of the peer, bytes for the peer. May import: this package.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum

from cloison.wire.errors import LocalProtocolError, RemoteProtocolError
from cloison.wire.frames import (
    CREDIT_STEP,
    FILLER,
    HEADER,
    HEADER_BYTES,
    LENGTHS,
    MAGIC,
    MAX_GARBAGE,
    MAX_PAYLOAD,
    MAX_SESSIONS,
    NONCE_BYTES,
    Kind,
    pack_frame,
)
from cloison.wire.messages import (
    VERSION,
    Accepted,
    Call,
    Control,
    Credit,
    Data,
    Event,
    Hello,
    Notice,
    Open,
    Ping,
    Pong,
    Reply,
    Restarted,
    encode_message,
    parse_message,
)
from cloison.wire.sessions import LAST_WORDS, PEER_MAY, WE_MAY, Session, State

LEG_SESSION = 1
"""The number of the only session on a leg."""

_STDIN, _STDERR, _FIRST_SESSION_KIND = int(Kind.STDIN), int(Kind.STDERR), int(Kind.OPEN)
_unpack_header = HEADER.unpack_from
_CONNECTED = frozenset({State.CALLER, State.SERVICE})


class Role(Enum):
    """Which end of which hop we are."""

    HOST = "the qrexec daemon's end of a qube's port"
    AGENT = "the agent's end of that port"
    LEG_CALLER = "the calling end of a leg (one session, number 1)"
    LEG_SERVICE = "the serving end of a leg: the broker, or whoever stands for the service"


_PEER_CONNECTION_KINDS: dict[Role, frozenset[int]] = {
    Role.HOST: frozenset({Kind.HELLO, Kind.PING, Kind.PONG, Kind.REPLY, Kind.NOTICE}),
    Role.AGENT: frozenset({Kind.HELLO, Kind.PING, Kind.PONG, Kind.CONTROL}),
    Role.LEG_CALLER: frozenset(),
    Role.LEG_SERVICE: frozenset(),
}
_OUR_CONNECTION_EVENTS: dict[Role, tuple[type, ...]] = {
    Role.HOST: (Ping, Control),
    Role.AGENT: (Ping, Reply, Notice),
    Role.LEG_CALLER: (),
    Role.LEG_SERVICE: (),
}
_PEER_OPENS: dict[Role, tuple[Kind, State, int] | None] = {
    Role.HOST: (Kind.CALL, State.ASKED, 1),
    Role.AGENT: (Kind.OPEN, State.SERVICE, 0),
    Role.LEG_CALLER: None,
    Role.LEG_SERVICE: (Kind.CALL, State.ASKED, 1),
}
_WE_OPEN: dict[Role, tuple[type, State, int] | None] = {
    Role.HOST: (Open, State.CALLER, 0),
    Role.AGENT: (Call, State.CALLING, 1),
    Role.LEG_CALLER: (Call, State.CALLING, 1),
    Role.LEG_SERVICE: None,
}


class Connection:
    """Both directions of one hop.

    ``nonce`` (Role.HOST, 16 random bytes): tells the agent's answer to this greeting from an older one.
    ``resync`` (Role.HOST): the port may hold half a frame of an earlier daemon.
    ``live`` (legs): session 1 was accepted before we got the descriptor.

    Everything raised is LocalProtocolError or RemoteProtocolError. After RemoteProtocolError the connection is dead.
    Role.AGENT never raises RemoteProtocolError: a broken stream makes a ``Restarted`` event and it waits for the host's
    next greeting.
    """

    def __init__(
        self,
        role: Role,
        *,
        nonce: bytes = b"",
        resync: bool = False,
        live: bool = False,
        software: str = "",
        max_sessions: int = MAX_SESSIONS,
    ) -> None:
        self.role = role
        self._software = software
        self._max_sessions = max_sessions
        self._sessions: dict[int, Session] = {}
        self._next_id = 2 if role is Role.HOST else 1
        self._rest = bytearray()
        self._needed = 0
        self._out: list[bytes | memoryview] = []
        self._hunting = role in (Role.HOST, Role.AGENT)
        self._skipped = 0
        self._greeted = not self._hunting
        self._dead = ""
        self._target = MAGIC
        if role is Role.HOST:
            if len(nonce) != NONCE_BYTES:
                raise LocalProtocolError(f"a host needs a nonce of {NONCE_BYTES} bytes")
            self._target = MAGIC + nonce
            greeting = FILLER + self._target if resync else self._target
            self._out += [greeting, pack_frame(*encode_message(Hello(VERSION, software)))]
        elif live:
            self._sessions[LEG_SESSION] = Session(State.CALLER if role is Role.LEG_CALLER else State.SERVICE)

    # What comes in

    def receive_data(self, data: bytes | bytearray | memoryview) -> list[Event]:
        """The events that these bytes complete. Payloads of ``Data`` are views of ``data``: use them (or copy them)
        before its memory is used again. Afterwards ``data_to_send`` may hold automatic answers."""
        if self._dead:
            raise RemoteProtocolError(self._dead)
        if self._rest:
            self._rest += data
            if len(self._rest) < self._needed:
                return []
            data, self._rest = self._rest, bytearray()
        events: list[Event] = []
        view, position = memoryview(data), 0
        while True:
            if self._hunting:
                position = self._hunt(view, position)
                if self._hunting:
                    return events
            try:
                position = self._read_frames(view, position, events)
            except _BrokenAt as broken:
                if self.role is not Role.AGENT:
                    self._dead = broken.reason
                    raise RemoteProtocolError(broken.reason) from None
                self.restart()
                events.append(Restarted(broken.reason))
                position = broken.position
                continue
            if position < len(view):
                self._rest += view[position:]
            return events

    def _read_frames(self, view: memoryview, position: int, events: list[Event]) -> int:
        """Read whole frames, append their events, return where the first incomplete one begins."""
        end, sessions, append = len(view), self._sessions, events.append
        try:
            while end - position >= HEADER_BYTES:
                length, number, kind = _unpack_header(view, position)
                limits = LENGTHS.get(kind)
                if limits is None or not limits[0] <= length <= limits[1]:
                    raise RemoteProtocolError("no frame begins here")
                start = position + HEADER_BYTES
                if start + length > end:
                    self._needed = HEADER_BYTES + length
                    return position
                payload = view[start : start + length]
                if _STDIN <= kind <= _STDERR:
                    session, stream = sessions.get(number), kind - _STDIN
                    if session is None or kind not in PEER_MAY[session.state]:
                        raise RemoteProtocolError("data for no session")
                    if wrong := session.count_data(stream, length):
                        raise RemoteProtocolError(wrong)
                    if not session.ended:
                        append(Data(number, stream, payload))
                else:
                    event = self._receive_frame(kind, number, payload)
                    if event is not None:
                        append(event)
                position = start + length
        except RemoteProtocolError as error:
            raise _BrokenAt(position, str(error)) from None
        self._needed = HEADER_BYTES
        return position

    def _receive_frame(self, kind: int, number: int, payload: memoryview) -> Event | None:
        if (kind < _FIRST_SESSION_KIND) != (number == 0):
            raise RemoteProtocolError("session 0 and the connection's own kinds belong together")
        if number == 0:
            return self._receive_connection_frame(kind, payload)
        session = self._sessions.get(number)
        if session is None:
            return self._receive_opening(kind, number, payload)
        if kind not in PEER_MAY[session.state]:
            raise RemoteProtocolError(f"{Kind(kind).name} while {session.state.value!r}")
        event = parse_message(kind, number, payload)
        if kind == Kind.CREDIT:
            assert isinstance(event, Credit)
            if not session.sends(event.stream):
                raise RemoteProtocolError("credit for a stream of the peer's own")
            if wrong := session.count_credit(event.stream, event.size_bytes):
                raise RemoteProtocolError(wrong)
        elif kind == Kind.ACCEPTED:
            session.state = State.CALLER
        elif kind in LAST_WORDS:
            del self._sessions[number]
            if not session.ended:
                self._out.append(pack_frame(Kind.RESET, number))
        return None if session.ended else event

    def _receive_connection_frame(self, kind: int, payload: memoryview) -> Event | None:
        if kind not in _PEER_CONNECTION_KINDS[self.role]:
            raise RemoteProtocolError(f"{Kind(kind).name} from the wrong side")
        if (kind == Kind.HELLO) == self._greeted:
            raise RemoteProtocolError("a second HELLO" if self._greeted else "the first frame is not HELLO")
        event = parse_message(kind, 0, payload)
        self._greeted = True
        if isinstance(event, Ping):
            self._out.append(pack_frame(*encode_message(Pong(event.token))))
            return None
        return event

    def _receive_opening(self, kind: int, number: int, payload: memoryview) -> Event:
        opens = _PEER_OPENS[self.role]
        if opens is None or kind != opens[0] or number % 2 != opens[2] or not self._greeted:
            raise RemoteProtocolError(f"{Kind(kind).name} for no session")
        if len(self._sessions) >= self._max_sessions:
            raise RemoteProtocolError(f"more than {self._max_sessions} sessions at once")
        if self.role is Role.LEG_SERVICE and number != LEG_SESSION:
            raise RemoteProtocolError("a leg has one session")
        event = parse_message(kind, number, payload)
        if self.role is Role.HOST:
            assert isinstance(event, Call)
            if event != Call(number, event.target, event.service, event.source):
                raise RemoteProtocolError("a guest asked for what only dom0 may ask")
        self._sessions[number] = Session(opens[1])
        return event

    def _hunt(self, view: memoryview, position: int) -> int:
        """Skip to just behind the greeting; hunting goes on if it is not whole yet."""
        data = bytes(view[position:])
        found = data.find(self._target)
        width = len(MAGIC) + NONCE_BYTES
        if found >= 0 and len(data) - found >= width:
            self._hunting = False
            if self.role is Role.AGENT:
                hello = pack_frame(*encode_message(Hello(VERSION, self._software)))
                self._out += [data[found : found + width], hello]
            return position + found + width
        kept = data[found:] if found >= 0 else data[-(len(self._target) - 1) :]
        self._rest += kept
        self._needed = 0
        self._skipped += len(data) - len(kept)
        if self.role is Role.HOST and self._skipped > MAX_GARBAGE:
            self._dead = "the agent does not answer the greeting"
            raise RemoteProtocolError(self._dead)
        return len(view)

    def restart(self) -> None:
        """Role.AGENT: forget all sessions and wait for the host's next greeting (after the port was hung up)."""
        self._sessions.clear()
        self._out.clear()
        self._rest.clear()
        self._hunting, self._greeted, self._next_id = True, False, 1

    # What goes out

    def send(self, event: Event) -> bytes:
        """All that must be written now, in order, ending with this event.

        An event for a session that is over is dropped without error: its end may have come in the same batch.
        """
        kind, number, payload = encode_message(event)
        if self._may_send(event, kind, number, len(payload)):
            self._out.append(HEADER.pack(len(payload), number, kind))
            if len(payload):
                self._out.append(payload)
        return self.data_to_send()

    def data_header(self, session: int, stream: int, size_bytes: int) -> bytes:
        """Instead of ``send(Data(...))``: the bytes to be followed by ``size_bytes`` of payload that the caller writes
        (or splices) itself, at once. b'' means that the session is over and nothing must be written."""
        if not 0 <= size_bytes <= MAX_PAYLOAD:
            raise LocalProtocolError(f"a frame of {size_bytes} bytes")
        found, kind = self._sessions.get(session), _STDIN + stream
        if found is None or found.ended or self._dead:
            return self.data_to_send()
        if kind not in WE_MAY[found.state]:
            raise LocalProtocolError(f"Data while {found.state.value!r}")
        if wrong := found.count_data(stream, size_bytes):
            raise LocalProtocolError(wrong)
        header = HEADER.pack(size_bytes, session, kind)
        return self.data_to_send() + header if self._out else header

    def data_to_send(self) -> bytes:
        """Automatic answers and the greeting; call it after ``receive_data`` and once at the beginning."""
        if not self._out:
            return b""
        out, self._out = b"".join(self._out), []
        return out

    def _may_send(self, event: Event, kind: int, number: int, length: int) -> bool:
        """Whether the event is written (True) or dropped because its session is over; raises LocalProtocolError."""
        if self._dead:
            return False
        session = self._sessions.get(number)
        if number == 0:
            if type(event) not in _OUR_CONNECTION_EVENTS[self.role]:
                raise LocalProtocolError(f"{type(event).__name__} is not ours to send")
            return not (self.role is Role.AGENT and self._hunting)
        if session is None:
            if kind in (Kind.OPEN, Kind.CALL):
                return self._start(event, number)
            return False
        if session.ended:
            return False
        if kind not in WE_MAY[session.state]:
            raise LocalProtocolError(f"{type(event).__name__} while {session.state.value!r}")
        wrong = ""
        if isinstance(event, Data):
            wrong = session.count_data(event.stream, length)
        elif isinstance(event, Credit):
            wrong = "not ours to grant" if session.sends(event.stream) else ""
            wrong = wrong or session.count_credit(event.stream, event.size_bytes)
        elif isinstance(event, Accepted):
            session.state = State.SERVICE
        if wrong:
            raise LocalProtocolError(wrong)
        if kind in LAST_WORDS:
            session.ended = True
        return True

    def _start(self, event: Event, number: int) -> bool:
        opens = _WE_OPEN[self.role]
        if opens is None or type(event) is not opens[0] or number % 2 != opens[2]:
            raise LocalProtocolError(f"{type(event).__name__} with session {number} is not ours to send")
        if self.role is Role.LEG_CALLER and number != LEG_SESSION:
            raise LocalProtocolError("a leg has one session")
        if self.role is Role.AGENT and self._hunting:
            return False
        self._sessions[number] = Session(opens[1])
        return True

    # What is known

    def new_session(self) -> int:
        """A free session number of our own (legs: always 1)."""
        if self.role is Role.LEG_CALLER:
            return LEG_SESSION
        number = self._next_id
        while number in self._sessions:
            number = (number + 2) % 2**32 or 2
        self._next_id = (number + 2) % 2**32 or 2
        return number

    def window(self, session: int, stream: int) -> int:
        """How many bytes of this stream may be sent now; 0 when it or the session has ended."""
        found = self._sessions.get(session)
        if found is None or found.ended or found.state not in _CONNECTED:
            return 0
        window = found.windows[stream]
        return window if window > 0 else 0

    def is_live(self, session: int) -> bool:
        """Whether neither side has said its last word."""
        found = self._sessions.get(session)
        return found is not None and not found.ended

    def live_sessions(self) -> Iterable[int]:
        return [number for number, session in self._sessions.items() if not session.ended]

    @property
    def connected(self) -> bool:
        """Whether the peer's HELLO was seen (legs: always)."""
        return self._greeted


class CreditCounter:
    """For the end that consumes a stream: says when to return how much credit (relays do not need it)."""

    __slots__ = ("_consumed",)

    def __init__(self) -> None:
        self._consumed = 0

    def consumed(self, size_bytes: int) -> int:
        """Count consumed bytes; returns the credit to send now, usually 0."""
        self._consumed += size_bytes
        if self._consumed < CREDIT_STEP:
            return 0
        credit, self._consumed = self._consumed, 0
        return credit


class _BrokenAt(Exception):
    """Internal: the stream broke at this position."""

    def __init__(self, position: int, reason: str) -> None:
        super().__init__(reason)
        self.position, self.reason = position, reason
