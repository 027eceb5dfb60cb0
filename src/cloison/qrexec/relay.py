"""The qrexec daemon of one qube: carries frames between its agent and the legs of its calls, and believes nobody.

In: bytes of the agent, bytes of the legs, orders of the daemon. Out: checked frames, reports. May import: wire,
packets, sessions (runs in the jail; no asyncio, no files, nothing imported late).

Whole frames only are passed on, so that a leg which stops in the middle of a frame holds up nobody. The bytes stay in
the buffer they were read into: only session numbers are rewritten there, and neighbouring frames for one leg leave in
one write. Nothing is read from legs while the agent has not taken what it was sent; what an agent sends to slow legs
waits here, bounded by the windows.
"""

from __future__ import annotations

import os
import select
import socket
from collections import deque

from cloison.qrexec.packets import HEADER as PACKET_HEADER
from cloison.qrexec.packets import MAX_PACKET, TRAFFIC, Closing, Order, Report, pack, pack_closing
from cloison.qrexec.sessions import RelayedCall
from cloison.wire.errors import ProtocolError, RemoteProtocolError
from cloison.wire.frames import (
    FILLER,
    HEADER,
    HEADER_BYTES,
    LENGTHS,
    MAGIC,
    MAX_GARBAGE,
    MAX_PAYLOAD,
    NONCE_BYTES,
    Kind,
    pack_frame,
)
from cloison.wire.messages import VERSION, Call, Hello, Reset, encode_message, parse_message
from cloison.wire.sessions import LAST_WORDS, PEER_MAY, WE_MAY, State

MAX_SESSIONS = 512
"""Calls at once in one qube, both ways, those that only wait for the last word included (Qubes: 256)."""
MAX_ASKED = 64
"""Calls of the agent that may wait for the broker's answer; more are refused here."""
MAX_UNREAD = 4 << 20
"""Bytes waiting for the agent. Legs are not read meanwhile, so only answers and the daemon's requests can pile up."""
MAX_HOARD = 96 << 20
"""Bytes waiting for legs, all together: 512 calls could ask for more than a small host has."""
MAX_REPORTS = 4096
"""Packets waiting for the daemon."""
BUFFER_BYTES = 4 * (MAX_PAYLOAD + HEADER_BYTES)
LEG_SESSION = 1

_STDIN, _STDERR = int(Kind.STDIN), int(Kind.STDERR)
_READ, _WRITE = select.EPOLLIN, select.EPOLLOUT
_read_header, _write_session = HEADER.unpack_from, HEADER.pack_into


class ChannelLost(Exception):
    """The relay has nothing left to do; the text says why."""


def open_relay(channel_fd: int, control_fd: int, *, resync: bool) -> Relay:
    """Take over the descriptors (non-blocking); everything that the filter forbids later is done here."""
    control = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, fileno=control_fd)
    return Relay(channel_fd, control, resync=resync)


class Relay:
    """``run`` returns when the daemon or the agent's channel is gone."""

    def __init__(self, channel: int, control: socket.socket, *, resync: bool) -> None:
        self._channel = channel
        self._control = control
        self._greeting = MAGIC + os.urandom(NONCE_BYTES)
        self._resync = resync
        self._up = False
        self._hunting = True
        self._skipped = 0
        self._sessions: dict[int, RelayedCall] = {}
        self._handles: dict[int, RelayedCall] = {}
        self._legs: dict[int, RelayedCall] = {}
        self._next_handle = 1
        self._asked = 0
        self._hoard = 0
        self._out: deque[bytes | memoryview] = deque()
        self._out_bytes = 0
        self._reports: deque[bytes] = deque()
        self._reports_blocked = False
        self._packet = memoryview(bytearray(MAX_PACKET))
        self._buffer = memoryview(bytearray(BUFFER_BYTES))
        self._filled = 0
        self._leg_buffer = memoryview(bytearray(BUFFER_BYTES))
        self._events = select.epoll()
        self._leg_events = select.epoll()
        """Readable legs; taken out of ``_events`` as a whole while the agent is not reading."""
        self._legs_paused = False

    def run(self) -> None:
        try:
            self._events.register(self._control.fileno(), _READ)
            self._events.register(self._channel, _READ)
            self._events.register(self._leg_events.fileno(), _READ)
            self._report(Report.HERE)
            hello = pack_frame(*encode_message(Hello(VERSION, "cloison")))
            self._send((FILLER if self._resync else b"") + self._greeting + hello)
            while True:
                self._step()
        except (ChannelLost, RemoteProtocolError) as error:
            self._say_last_word(str(error))

    def _step(self) -> None:
        for fd, ready in self._events.poll():
            if fd == self._channel:
                if ready & _WRITE:
                    self._flush_channel()
                if ready & ~_WRITE:
                    self._read_channel()
            elif fd == self._control.fileno():
                if ready & _WRITE:
                    self._flush_reports()
                if ready & ~_WRITE:
                    self._read_order()
            elif fd == self._leg_events.fileno():
                self._read_legs()
            elif call := self._legs.get(fd):
                if ready & _WRITE or not call.ended:
                    self._flush_leg(call)
                if ready & ~_WRITE and call.ended and call.leg == fd:
                    self._await_last_word(call)

    def _say_last_word(self, reason: str) -> None:
        try:
            text = reason[:500].encode("ascii", "replace")
            self._control.sendmsg([pack(Report.FAILED, 0, text)], [], socket.MSG_DONTWAIT)
        except OSError:
            pass  # the daemon is gone too: nobody is left to be told

    # The daemon

    def _report(self, kind: Report, number: int = 0, payload: bytes | memoryview = b"") -> None:
        self._reports.append(pack(kind, number, payload))
        if len(self._reports) > MAX_REPORTS:
            raise ChannelLost("the daemon does not read")
        if len(self._reports) == 1:
            self._flush_reports()

    def _flush_reports(self) -> None:
        try:
            while self._reports:
                self._control.sendmsg([self._reports[0]], [], socket.MSG_DONTWAIT)
                self._reports.popleft()
        except BlockingIOError:
            pass
        except OSError as error:
            raise ChannelLost("the daemon is gone") from error
        if self._reports_blocked != bool(self._reports):
            self._reports_blocked = not self._reports_blocked
            self._events.modify(self._control.fileno(), _READ | (_WRITE if self._reports_blocked else 0))

    def _read_order(self) -> None:
        try:
            size, ancillary, flags, _ = self._control.recvmsg_into(
                [self._packet], socket.CMSG_SPACE(4), socket.MSG_DONTWAIT
            )
        except BlockingIOError:
            return
        except OSError as error:
            raise ChannelLost("the daemon is gone") from error
        if size < PACKET_HEADER.size or flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            raise ChannelLost("the daemon is gone")
        leg = int.from_bytes(ancillary[0][2][:4], "little") if ancillary else -1
        kind, flag, _, number = PACKET_HEADER.unpack_from(self._packet)
        self._obey(kind, flag, number, bytes(self._packet[PACKET_HEADER.size : size]), leg)

    def _obey(self, kind: int, flag: int, number: int, payload: bytes, leg: int) -> None:
        call = self._handles.get(number)
        if kind == Order.OPEN and len(self._sessions) >= MAX_SESSIONS:
            os.close(leg)
            self._report(Report.CLOSED, number, pack_closing(Closing(0, 0, 0, None, "too many calls at once")))
        elif kind == Order.OPEN:
            call = RelayedCall(number, number, State.CALLER, may_signal=bool(flag))
            self._join(call, leg)
            self._send(pack_frame(Kind.OPEN, number, payload))
        elif kind == Order.CONTROL:
            self._send(pack_frame(Kind.CONTROL, 0, payload))
        elif kind == Order.TRAFFIC:
            rows = (TRAFFIC.pack(c.handle, *c.counts) for c in self._handles.values())
            self._report(Report.TRAFFIC, number, b"".join(rows))
        elif call is None:
            # It ended while the order was on its way; the leg closes, which tells the other end.
            if leg >= 0:
                os.close(leg)
        elif kind == Order.ACCEPT:
            self._asked -= 1
            call.state = State.SERVICE
            self._send(pack_frame(Kind.ACCEPTED, call.number))
            self._join(call, leg)
        elif kind == Order.REFUSE:
            self._asked -= 1
            call.ended = True
            self._send(pack_frame(Kind.REFUSED, call.number))
            del self._handles[number]
        elif kind == Order.KILL:
            self._abort(call, payload.decode("ascii", "replace"))

    def _join(self, call: RelayedCall, leg: int) -> None:
        call.leg = leg
        self._sessions[call.number] = self._handles[call.handle] = self._legs[leg] = call
        self._leg_events.register(leg, _READ)

    # The agent

    def _send(self, data: bytes | memoryview) -> None:
        """To the agent; what it does not take at once is kept (``data`` may be a view of a buffer in use)."""
        if not self._out:
            try:
                written = os.write(self._channel, data)
            except BlockingIOError:
                written = 0
            except OSError as error:
                raise ChannelLost(f"the agent's channel broke: {error.strerror}") from error
            if written == len(data):
                return
            self._events.modify(self._channel, _READ | _WRITE)
            data = memoryview(data)[written:]
        self._out.append(bytes(data))
        self._out_bytes += len(data)
        if self._out_bytes > MAX_UNREAD:
            raise ChannelLost("the agent does not read")
        if not self._legs_paused:
            self._legs_paused = True
            self._events.unregister(self._leg_events.fileno())

    def _flush_channel(self) -> None:
        try:
            while self._out:
                written = os.write(self._channel, self._out[0])
                self._out_bytes -= written
                if written < len(self._out[0]):
                    self._out[0] = memoryview(self._out[0])[written:]
                    return
                self._out.popleft()
        except BlockingIOError:
            return
        except OSError as error:
            raise ChannelLost(f"the agent's channel broke: {error.strerror}") from error
        self._events.modify(self._channel, _READ)
        if self._legs_paused:
            self._legs_paused = False
            self._events.register(self._leg_events.fileno(), _READ)

    def _read_channel(self) -> None:
        try:
            size = os.readv(self._channel, [self._buffer[self._filled :]])
        except BlockingIOError:
            return
        except OSError as error:
            raise ChannelLost(f"the agent's channel broke: {error.strerror}") from error
        if size == 0:
            raise ChannelLost("the agent's channel was closed")
        self._filled += size
        position = self._hunt() if self._hunting else 0
        if not self._hunting:
            position = self._pass_on_from_agent(position)
        rest = self._filled - position
        if position and rest:
            self._buffer[:rest] = bytes(self._buffer[position : self._filled])
        self._filled = rest

    def _hunt(self) -> int:
        """Skip rests of an earlier connection up to the answer to our greeting; returns where frames begin."""
        data = bytes(self._buffer[: self._filled])
        found = data.find(self._greeting)
        if found >= 0:
            self._hunting = False
            return found + len(self._greeting)
        skipped = max(0, len(data) - len(self._greeting) + 1)
        self._skipped += skipped
        if self._skipped > MAX_GARBAGE:
            raise RemoteProtocolError("the agent does not answer the greeting")
        return skipped

    def _pass_on_from_agent(self, position: int) -> int:
        """Check each whole frame of the buffer; returns where the first incomplete one begins.

        ``run``: neighbouring frames of one call, to be written to its leg together.
        """
        buffer, filled, sessions = self._buffer, self._filled, self._sessions
        run, run_start = None, position
        while filled - position >= HEADER_BYTES:
            length, number, kind = _read_header(buffer, position)
            limits = LENGTHS.get(kind)
            if limits is None or not limits[0] <= length <= limits[1]:
                raise RemoteProtocolError("the agent sent what is no frame")
            end = position + HEADER_BYTES + length
            if end > filled:
                break
            call = sessions.get(number)
            if call is not run:
                if run is not None and run_start < position:
                    self._write_leg(run, buffer[run_start:position])
                run, run_start = call, position
            if call is None:
                self._take_from_agent(kind, number, buffer[position + HEADER_BYTES : end])
                run_start = end
            else:
                if _STDIN <= kind <= _STDERR:
                    if kind not in PEER_MAY[call.state]:
                        raise RemoteProtocolError(f"{Kind(kind).name} while {call.state.value!r}")
                    call.count(kind - _STDIN, length)
                    passes = not call.ended
                else:
                    passes = call.check_from_agent(kind, buffer[position + HEADER_BYTES : end]) and not call.ended
                if passes:
                    _write_session(buffer, position, length, LEG_SESSION, kind)
                last_word = kind in LAST_WORDS
                if last_word or not passes:
                    if run_start < position:
                        self._write_leg(call, buffer[run_start:position])
                    run_start = end
                    if last_word:
                        self._agent_ends(call, kind, buffer[position + HEADER_BYTES : end])
                        run = None
            position = end
        if run is not None and run_start < position:
            self._write_leg(run, buffer[run_start:position])
        return position

    def _take_from_agent(self, kind: int, number: int, payload: memoryview) -> None:
        """A frame that belongs to no call we know: the connection's own, or a new call."""
        if kind == Kind.CALL and number % 2 == 1 and self._up:
            self._ask(number, payload)
            return
        if number != 0 or (kind == Kind.HELLO) == self._up:
            raise RemoteProtocolError(f"the agent sent {Kind(kind).name} out of turn")
        message = parse_message(kind, 0, payload)
        if kind == Kind.HELLO:
            self._up = True
            self._report(Report.UP, 0, payload)
        elif kind == Kind.PING:
            self._send(pack_frame(Kind.PONG, 0, payload))
        elif kind == Kind.REPLY:
            self._report(Report.REPLY, message.id, payload)  # type: ignore[union-attr]
        elif kind == Kind.NOTICE:
            self._report(Report.NOTICE, 0, payload)
        elif kind != Kind.PONG:
            raise RemoteProtocolError(f"the agent sent {Kind(kind).name}")

    def _ask(self, number: int, payload: memoryview) -> None:
        message = parse_message(Kind.CALL, number, payload)
        assert isinstance(message, Call)
        if message != Call(number, message.target, message.service, message.source):
            raise RemoteProtocolError("the agent asked for what only dom0 may ask")
        if len(self._sessions) >= MAX_SESSIONS:
            raise RemoteProtocolError(f"more than {MAX_SESSIONS} calls at once")
        call = RelayedCall(number, self._next_handle, State.ASKED)
        self._sessions[number] = call
        self._next_handle = (self._next_handle + 2) % 2**32
        if self._asked >= MAX_ASKED:
            call.ended = True
            self._send(pack_frame(Kind.REFUSED, number))
            return
        self._asked += 1
        self._handles[call.handle] = call
        self._report(Report.CALL, call.handle, payload)

    def _agent_ends(self, call: RelayedCall, kind: int, payload: memoryview) -> None:
        """The agent's last word: the number is free again, and the leg gets the word after all that waits for it."""
        del self._sessions[call.number]
        if call.ended:
            return
        call.ended = True
        self._send(pack_frame(Kind.RESET, call.number))
        if call.leg < 0:
            self._asked -= 1
            del self._handles[call.handle]
            self._report(Report.GONE, call.handle)
            return
        message = parse_message(kind, LEG_SESSION, payload)
        if isinstance(message, Reset):
            call.reason = message.reason or "the qube ended the call"
        else:
            call.exit_code = int.from_bytes(payload, "little", signed=True)
        # Closing now could cost a slow reader what it has not read yet: the leg closes when its end has answered.
        self._leg_events.unregister(call.leg)
        self._write_leg(call, pack_frame(*encode_message(message)))
        if call.backlog:
            self._events.modify(call.leg, _READ | _WRITE)
        else:
            self._events.register(call.leg, _READ)

    # The legs

    def _write_leg(self, call: RelayedCall, data: bytes | memoryview) -> None:
        if call.leg < 0:
            return
        if not call.backlog:
            try:
                written = os.write(call.leg, data)
            except BlockingIOError:
                written = 0
            except OSError:
                # Its other end is gone; reading it says so too, and that is where the call is ended.
                return
            if written == len(data):
                return
            self._events.register(call.leg, _WRITE)
            data = data[written:]
        call.backlog.append(bytes(data))
        call.backlog_bytes += len(data)
        self._hoard += len(data)
        if self._hoard > MAX_HOARD:
            raise ChannelLost("too much waits for slow readers")

    def _flush_leg(self, call: RelayedCall) -> None:
        if not call.backlog:
            return  # the event was for an earlier leg with this descriptor
        try:
            while call.backlog:
                written = os.write(call.leg, call.backlog[0])
                call.backlog_bytes -= written
                self._hoard -= written
                if written < len(call.backlog[0]):
                    call.backlog[0] = call.backlog[0][written:]
                    return
                del call.backlog[0]
        except BlockingIOError:
            return
        except OSError:
            if call.ended:
                self._close_leg(call)
                return
            # What its end said last may still be unread: it is read before the call is given up.
            self._drop_backlog(call)
        if call.ended:
            self._events.modify(call.leg, _READ)
        else:
            self._events.unregister(call.leg)

    def _read_legs(self) -> None:
        for fd, _ in self._leg_events.poll(0):
            if call := self._legs.get(fd):
                self._read_leg(call)
            if self._out:
                return

    def _read_leg(self, call: RelayedCall) -> None:
        try:
            filled = self._fill_leg_buffer(call)
            position, last_word = self._check_leg(call, filled)
        except BlockingIOError:
            return
        except OSError:
            self._lose_leg(call)
            return
        except ProtocolError as error:
            self._abort(call, f"the other end broke the protocol: {error}")
            return
        if position:
            self._send(self._leg_buffer[:position])
        call.partial = bytes(self._leg_buffer[position:filled])
        if last_word:
            call.ended = True
            self._close_leg(call)

    def _await_last_word(self, call: RelayedCall) -> None:
        """The agent ended the call; what the leg still says is of no interest, except that it is done."""
        try:
            filled = self._fill_leg_buffer(call)
            position, last_word = self._check_leg(call, filled)
        except BlockingIOError:
            return
        except (OSError, ProtocolError):
            self._close_leg(call)
            return
        call.partial = bytes(self._leg_buffer[position:filled])
        if last_word:
            self._close_leg(call)

    def _fill_leg_buffer(self, call: RelayedCall) -> int:
        """Read after what is left of an incomplete frame; returns how much is there. OSError at its end."""
        buffer, kept = self._leg_buffer, len(call.partial)
        buffer[:kept] = call.partial
        size = os.readv(call.leg, [buffer[kept:]])
        if size == 0:
            raise ConnectionError("closed")
        return kept + size

    def _check_leg(self, call: RelayedCall, filled: int) -> tuple[int, bool]:
        """Check and renumber whole frames in the leg buffer.

        Returns where the first incomplete frame begins and whether the leg said its last word.
        """
        buffer, position = self._leg_buffer, 0
        may = WE_MAY[call.state]
        while filled - position >= HEADER_BYTES:
            length, number, kind = _read_header(buffer, position)
            limits = LENGTHS.get(kind)
            if limits is None or not limits[0] <= length <= limits[1] or number != LEG_SESSION:
                raise RemoteProtocolError("no frame begins here")
            end = position + HEADER_BYTES + length
            if end > filled:
                break
            if _STDIN <= kind <= _STDERR:
                if kind not in may:
                    raise RemoteProtocolError(f"{Kind(kind).name} while {call.state.value!r}")
                call.count(kind - _STDIN, length)
            else:
                call.check_from_leg(kind, buffer[position + HEADER_BYTES : end])
            _write_session(buffer, position, length, call.number, kind)
            position = end
            if kind in LAST_WORDS:
                if kind == Kind.EXIT and not call.ended:
                    call.exit_code = int.from_bytes(buffer[end - 4 : end], "little", signed=True)
                return position, True
        return position, False

    def _lose_leg(self, call: RelayedCall) -> None:
        """The other end is gone without a last word (or does not want the rest after the agent's)."""
        if not call.ended:
            call.reason = "the other end of the call is gone"
            call.ended = True
            self._send(pack_frame(Kind.RESET, call.number, call.reason.encode()))
        self._close_leg(call)

    def _abort(self, call: RelayedCall, reason: str) -> None:
        """End a call that goes on at both ends."""
        message = encode_message(Reset(call.number, reason))
        if call.leg < 0:
            self._asked -= 1
            self._send(pack_frame(Kind.REFUSED, call.number))
            call.ended = True
            del self._handles[call.handle]
            return
        call.reason = reason
        if not call.ended:
            call.ended = True
            self._send(pack_frame(*message))
        if not call.backlog:
            self._write_leg(call, pack_frame(Kind.RESET, LEG_SESSION, message[2]))
        self._close_leg(call)

    def _drop_backlog(self, call: RelayedCall) -> None:
        self._hoard -= call.backlog_bytes
        call.backlog, call.backlog_bytes = [], 0

    def _close_leg(self, call: RelayedCall) -> None:
        self._drop_backlog(call)
        call.partial = b""
        del self._legs[call.leg]
        del self._handles[call.handle]
        # Closing takes it out of both epoll sets: this is its only descriptor.
        os.close(call.leg)
        call.leg = -1
        closing = Closing(call.counts[0], call.counts[1], call.counts[2], call.exit_code, call.reason)
        self._report(Report.CLOSED, call.handle, pack_closing(closing))
