"""One relay process, seen from the daemon: orders to it, reports from it.

In: a control socket. Out: answers of the agent, calls opened and accepted, calls of the agent. May import: wire,
packets, spawner, legs, errors, engine's agent interface.

All that a relay says is parsed strictly: it is jailed because it may be taken over. A relay that breaks the rules is
ended, and with it only the calls of its qube.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import signal
import socket
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, TypeVar

from cloison.engine.agent import AgentFailed, ServiceResult
from cloison.errors import BackendFailed
from cloison.model.names import QubeName
from cloison.qrexec.legs import run_as_caller
from cloison.qrexec.pace import Pace
from cloison.qrexec.packets import (
    HEADER,
    MAX_PACKET,
    TRAFFIC,
    Closing,
    Order,
    Report,
    pack,
    parse_closing,
)
from cloison.qrexec.spawner import drop_descriptors, find_peer_pid
from cloison.wire.errors import LocalProtocolError, RemoteProtocolError
from cloison.wire.frames import LENGTHS, Kind
from cloison.wire.messages import Call, Control, Notice, Open, Reply, encode_message, parse_message

_T = TypeVar("_T")
log = logging.getLogger(__name__)

COMMAND_PREFIX = "command:"
MAX_ORDERS = 1024
"""Orders that wait for a relay; one that reads none of so many is stuck and is ended."""
_PACKETS_PER_SECOND, _PACKET_BURST = 2000.0, 4000
"""Of all kinds; what a qube says to the daemon itself is little."""
_CALLS_PER_SECOND, _CALL_BURST = 200.0, 400
"""Pace of one qube's calls; above it they wait. An emulated guest makes some ten calls a second, with KVM some
hundreds; the broker handles some thousands."""

PASSING = frozenset({errno.ETOOMANYREFS, errno.ENOBUFS, errno.ENOMEM})
PASSING_PAUSE_S = 0.05
"""An order that the kernel would not take for one of these reasons is given again."""
MIN_PAUSE_S = 0.01
"""Wake up for a handful of packets, not for each."""


class Handlers(Protocol):
    """What is done about the agent's own calls; the broker's."""

    on_call: Callable[[RelayProcess, int, Call], None]
    on_gone: Callable[[RelayProcess, int], None]


class Opened(NamedTuple):
    """A call that was ordered: the process that carries it, its handle there, and a future that ends with it."""

    link: RelayProcess
    handle: int
    closed: asyncio.Future[Closing]


class RelayProcess:
    """From its start to its end; afterwards everything fails or is ignored. ``link.RelayLink`` outlives it."""

    def __init__(self, qube: QubeName, control: socket.socket, handlers: Handlers) -> None:
        self.qube = qube
        self.pid: int | None = None
        """Of the relay; known once it spoke."""
        self._process = -1
        self._control = control
        self._handlers = handlers
        self._loop = asyncio.get_running_loop()
        self._up: asyncio.Future[None] = self._loop.create_future()
        self._ready: asyncio.Future[None] = self._loop.create_future()
        self._closed: asyncio.Future[str] = self._loop.create_future()
        self._requests: dict[int, asyncio.Future[Reply]] = {}
        self._traffic: dict[int, asyncio.Future[dict[int, tuple[int, int, int]]]] = {}
        self._calls: dict[int, asyncio.Future[Closing]] = {}
        self._asked: set[int] = set()
        self._next_open = 2
        self._next_request = 1
        self._orders: deque[tuple[bytes, socket.socket | None]] = deque()
        self._packet_pace = Pace(_PACKETS_PER_SECOND, _PACKET_BURST, self._loop.time)
        self._call_pace = Pace(_CALLS_PER_SECOND, _CALL_BURST, self._loop.time)
        self._loop.add_reader(control.fileno(), self._read)

    # What the engine asks

    async def wait_up(self, *, ready: bool) -> None:
        """Returns after the agent's HELLO (and its NOTICE ready); BackendFailed if the relay ends first."""
        await self._or_closed(self._ready if ready else self._up)

    @property
    def is_up(self) -> bool:
        return self._up.done() and not self._closed.done()

    async def control(self, verb: str, fields: Mapping[str, Any], *, timeout_s: float) -> Mapping[str, Any]:
        """See AgentLink.control."""
        number, self._next_request = self._next_request, self._next_request + 1
        answer: asyncio.Future[Reply] = self._loop.create_future()
        self._requests[number] = answer
        try:
            _, _, payload = encode_message(Control(number, verb, fields))
            self._order(Order.CONTROL, number & 0xFFFFFFFF, payload)
            async with asyncio.timeout(timeout_s):
                reply = await self._or_closed(answer)
        except TimeoutError as error:
            raise BackendFailed(f"the agent of {self.qube} did not answer {verb} within {timeout_s:g} s") from error
        except LocalProtocolError as error:
            raise BackendFailed(f"cannot ask the agent of {self.qube} for {verb}: {error}") from error
        finally:
            del self._requests[number]
        if not reply.ok:
            raise AgentFailed(f"the agent of {self.qube} failed to {verb}: {reply.fields.get('error', 'no reason')}")
        return reply.fields

    async def run_service(self, service: str, *, user: str = "", stdin: bytes = b"", timeout_s: float,
                          max_output_bytes: int = 1 << 20) -> ServiceResult:  # fmt: skip
        """See AgentLink.run_service."""
        what = {"command": service.removeprefix(COMMAND_PREFIX)} if service.startswith(COMMAND_PREFIX) else {}
        request = Open(0, **what or {"service": service}, user=user, source="dom0", nogui=True)  # type: ignore[arg-type]
        ours, theirs = socket.socketpair()
        _, handle, closed = self.open_call(request, theirs, may_signal=False)
        try:
            async with asyncio.timeout(timeout_s):
                return await run_as_caller(ours, stdin, max_output_bytes=max_output_bytes)
        except TimeoutError as error:
            raise BackendFailed(f"{service} in {self.qube} did not end within {timeout_s:g} s") from error
        except BackendFailed as error:
            raise BackendFailed(f"{service} in {self.qube} failed: {error.message}") from error
        finally:
            ours.close()
            if not closed.done():
                self.end_call(handle, "dom0 gave up")

    async def wait_closed(self) -> str:
        """Returns why, once the relay is gone."""
        await asyncio.wait({self._closed})
        return self._closed.result()

    def close(self, reason: str = "closed by the daemon") -> None:
        """End the relay; its calls end with an error at their callers. Idempotent."""
        self._end(reason)

    # What the broker asks

    def open_call(self, request: Open, leg: socket.socket, *, may_signal: bool) -> Opened:
        """Start a service in the qube, joined to ``leg`` (which is closed here)."""
        handle, self._next_open = self._next_open, (self._next_open + 2) % 2**32 or 2
        try:
            _, _, payload = encode_message(request)
        except LocalProtocolError as error:
            leg.close()
            raise BackendFailed(f"cannot ask for that in {self.qube}: {error}") from error
        closed = self._await_closing(handle)
        self._order(Order.OPEN, handle, payload, leg=leg, flag=int(may_signal))
        return Opened(self, handle, closed)

    def accept(self, handle: int, leg: socket.socket) -> asyncio.Future[Closing]:
        """Join the agent's call to ``leg`` (which is closed here)."""
        closed = self._await_closing(handle)
        self._asked.discard(handle)
        self._order(Order.ACCEPT, handle, leg=leg)
        return closed

    def refuse(self, handle: int) -> None:
        self._asked.discard(handle)
        self._order(Order.REFUSE, handle)

    def end_call(self, handle: int, reason: str) -> None:
        """Reset a call at both ends."""
        self._order(Order.KILL, handle, reason.encode("ascii", "replace")[:200])

    async def traffic(self) -> dict[int, tuple[int, int, int]]:
        """Bytes so far (stdin, stdout, stderr) of each running call, by handle."""
        number, self._next_request = self._next_request, self._next_request + 1
        answer: asyncio.Future[dict[int, tuple[int, int, int]]] = self._loop.create_future()
        self._traffic[number] = answer
        try:
            self._order(Order.TRAFFIC, number & 0xFFFFFFFF)
            return await self._or_closed(answer)
        finally:
            del self._traffic[number]

    def _await_closing(self, handle: int) -> asyncio.Future[Closing]:
        closed: asyncio.Future[Closing] = self._loop.create_future()
        if self._closed.done():
            closed.set_result(Closing(0, 0, 0, None, self._closed.result()))
        else:
            self._calls[handle] = closed
        return closed

    async def _or_closed(self, future: asyncio.Future[_T]) -> _T:
        """The future's result, or BackendFailed once the relay is gone."""
        watched: set[asyncio.Future[Any]] = {future, self._closed}
        await asyncio.wait(watched, return_when=asyncio.FIRST_COMPLETED)
        if future.done():
            return future.result()
        raise BackendFailed(f"the agent of {self.qube} is out of reach: {self._closed.result()}")

    # The socket

    def _order(self, kind: Order, number: int, payload: bytes | memoryview = b"", *,
               leg: socket.socket | None = None, flag: int = 0) -> None:  # fmt: skip
        if leg is not None:
            leg = socket.socket(fileno=leg.detach())  # ours alone, however long the order waits
            leg.setblocking(False)
        if self._closed.done():
            if leg is not None:
                leg.close()
            return
        self._orders.append((pack(kind, number, payload, flag=flag), leg))
        if len(self._orders) == 1:
            self._write()
        elif len(self._orders) > MAX_ORDERS:
            self._end("the relay does not read")

    def _write(self) -> None:
        try:
            while self._orders:
                packet, leg = self._orders[0]
                if leg is None:
                    self._control.send(packet)
                else:
                    socket.send_fds(self._control, [packet], [leg.fileno()])
                    leg.close()
                self._orders.popleft()
            self._loop.remove_writer(self._control.fileno())
        except BlockingIOError:
            self._loop.add_writer(self._control.fileno(), self._write)
        except OSError as error:
            if error.errno in PASSING:
                # Descriptors on their way count for the user: other relays, which may be captured, must read theirs.
                self._loop.remove_writer(self._control.fileno())
                self._loop.call_later(PASSING_PAUSE_S, self._write_again)
                return
            # The relay is gone; what it said last is still to be read, and reading ends the link.
            self._loop.remove_writer(self._control.fileno())

    def _write_again(self) -> None:
        if not self._closed.done():
            self._write()

    def _read(self) -> None:
        try:
            packet, ancillary, flags, _ = self._control.recvmsg(MAX_PACKET, socket.CMSG_SPACE(12))
        except BlockingIOError:
            return
        except OSError:
            packet, ancillary, flags = b"", [], 0
        if self.pid is None and (pid := find_peer_pid(ancillary)):
            self._know_process(pid)
        if not packet:
            self._end("the relay ended")
            return
        try:
            if drop_descriptors(ancillary) or len(packet) < HEADER.size or flags & socket.MSG_TRUNC:
                raise RemoteProtocolError("a malformed packet")
            kind, _, _, number = HEADER.unpack_from(packet)
            self._take(kind, number, packet[HEADER.size :])
            self._pause(self._packet_pace.spend())
        except (RemoteProtocolError, ValueError) as error:
            log.error("the relay of %s broke its rules and is ended: %s", self.qube, error)
            self._end("the relay broke its rules")

    def _take(self, kind: int, number: int, untrusted_payload: bytes) -> None:
        if kind == Report.CALL:
            self._take_call(number, untrusted_payload)
        elif kind == Report.GONE:
            if number in self._asked:
                self._asked.discard(number)
                self._handlers.on_gone(self, number)
        elif kind == Report.CLOSED:
            closing = parse_closing(untrusted_payload)
            closed = self._calls.pop(number, None)
            if closed is not None and not closed.done():
                closed.set_result(closing)
        elif kind == Report.REPLY:
            reply = self._parse(Kind.REPLY, untrusted_payload)
            answer = self._requests.get(reply.id)
            if answer is not None and not answer.done():
                answer.set_result(reply)
        elif kind == Report.NOTICE:
            self._take_notice(self._parse(Kind.NOTICE, untrusted_payload))
        elif kind == Report.UP:
            self._parse(Kind.HELLO, untrusted_payload)
            if not self._up.done():
                self._up.set_result(None)
        elif kind == Report.TRAFFIC:
            self._take_traffic(number, untrusted_payload)
        elif kind == Report.FAILED:
            self._end(ascii(untrusted_payload[:500].decode("ascii"))[1:-1])
        elif kind != Report.HERE:
            raise RemoteProtocolError(f"packet {kind}")

    def _take_call(self, number: int, untrusted_payload: bytes) -> None:
        call = self._parse(Kind.CALL, untrusted_payload)
        assert isinstance(call, Call)
        if call != Call(0, call.target, call.service, call.source) or number in self._asked or number in self._calls:
            raise RemoteProtocolError("an illegal call")
        self._asked.add(number)
        self._pause(self._call_pace.spend())
        self._handlers.on_call(self, number, call)

    def _pause(self, wait_s: float) -> None:
        """Nothing is refused, but nothing more is read of this qube for a moment."""
        if wait_s > 0 and not self._closed.done():
            self._loop.remove_reader(self._control.fileno())
            self._loop.call_later(max(wait_s, MIN_PAUSE_S), self._read_again)

    def _read_again(self) -> None:
        if not self._closed.done():
            self._loop.add_reader(self._control.fileno(), self._read)

    def _take_notice(self, notice: Notice) -> None:
        log.debug("the agent of %s says: %s", self.qube, notice.event)
        if notice.event == "ready" and not self._ready.done():
            self._ready.set_result(None)

    def _take_traffic(self, number: int, untrusted_payload: bytes) -> None:
        if len(untrusted_payload) % TRAFFIC.size:
            raise RemoteProtocolError("malformed traffic figures")
        answer = self._traffic.get(number)
        if answer is not None and not answer.done():
            rows = TRAFFIC.iter_unpack(untrusted_payload)
            answer.set_result({handle: (stdin, stdout, stderr) for handle, stdin, stdout, stderr in rows})

    def _parse(self, kind: Kind, untrusted_payload: bytes) -> Any:
        lowest, highest = LENGTHS[kind]
        if not lowest <= len(untrusted_payload) <= highest:
            raise RemoteProtocolError(f"{kind.name} of {len(untrusted_payload)} bytes")
        return parse_message(kind, 0, untrusted_payload)

    def _end(self, reason: str) -> None:
        if self._closed.done():
            return
        log.debug("the relay of %s ended: %s", self.qube, reason)
        self._closed.set_result(reason)
        self._loop.remove_reader(self._control.fileno())
        self._loop.remove_writer(self._control.fileno())
        for _, leg in self._orders:
            if leg is not None:
                leg.close()
        self._orders.clear()
        for handle in list(self._asked):
            self._handlers.on_gone(self, handle)
        self._asked.clear()
        for closed in self._calls.values():
            if not closed.done():  # whoever waited may have given up
                closed.set_result(Closing(0, 0, 0, None, reason))
        self._calls.clear()
        # A relay that still obeys ends when the socket closes; one that was taken over might not.
        self._control.close()
        self._kill()

    def _know_process(self, pid: int) -> None:
        with contextlib.suppress(OSError):
            self._process = os.pidfd_open(pid)
            self.pid = pid

    def _kill(self) -> None:
        if self._process >= 0:
            with contextlib.suppress(OSError):
                signal.pidfd_send_signal(self._process, signal.SIGKILL)
            os.close(self._process)
            self._process = -1
