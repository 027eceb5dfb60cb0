"""The daemon's own end of a call: to run a service in a qube, or to be one for a qube.

In: a leg's socket. Out: results. May import: wire, errors, engine's agent interface.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import deque

from cloison.engine.agent import ServiceResult
from cloison.errors import BackendFailed
from cloison.wire import (
    LEG_SESSION,
    MAX_PAYLOAD,
    Connection,
    Credit,
    CreditCounter,
    Data,
    Event,
    Exit,
    LocalProtocolError,
    RemoteProtocolError,
    Reset,
    Role,
    SessionEvent,
    Stream,
)

READ_BYTES = 2 * MAX_PAYLOAD


class LegLost(BackendFailed):
    """The other end of a call went away before the call was over."""


class Leg:
    """One live leg: events in, events out, windows obeyed. Closed by ``close`` or as a context manager."""

    def __init__(self, sock: socket.socket, role: Role) -> None:
        self._socket = sock
        self._connection = Connection(role, live=True)
        self._loop = asyncio.get_running_loop()
        self._counters = {stream: CreditCounter() for stream in Stream}
        self._waiting: deque[Event] = deque()
        self._moved = asyncio.Event()
        self._lost = ""
        self._writing = asyncio.Lock()
        sock.setblocking(False)

    async def next_event(self) -> Event:
        """The next event of the other end; raises LegLost at its end (also for RESET)."""
        while not self._waiting:
            if self._lost:
                raise LegLost(self._lost)
            await self._receive()
        event = self._waiting.popleft()
        if isinstance(event, Reset):
            self._lost = event.reason or "the other end gave up"
            raise LegLost(self._lost)
        return event

    async def consumed(self, stream: int, size_bytes: int) -> None:
        """Give the other end room again."""
        if credit := self._counters[Stream(stream)].consumed(size_bytes):
            await self.send(Credit(LEG_SESSION, stream, credit))

    async def send(self, event: SessionEvent) -> None:
        try:
            data = self._connection.send(event)
        except LocalProtocolError as error:
            raise BackendFailed(f"cannot send {type(event).__name__}: {error}") from error
        await self._write(data)

    async def send_stream(self, stream: int, data: bytes | memoryview, *, end: bool = False) -> None:
        """All of ``data`` as the windows allow (somebody must be in ``next_event`` meanwhile), then end of file."""
        view = memoryview(data)
        while view:
            room = min(self._connection.window(LEG_SESSION, stream), MAX_PAYLOAD, len(view))
            if room:
                await self.send(Data(LEG_SESSION, stream, view[:room]))
                view = view[room:]
            elif not self._connection.is_live(LEG_SESSION):
                return
            else:
                self._moved.clear()
                await self._moved.wait()
        if end:
            await self.send(Data(LEG_SESSION, stream, b""))

    def close(self) -> None:
        self._socket.close()

    async def _receive(self) -> None:
        try:
            data = await self._loop.sock_recv(self._socket, READ_BYTES)
            events = self._connection.receive_data(data)
        except (OSError, RemoteProtocolError) as error:
            data, events, self._lost = b"", [], str(error)
        if not data:
            self._lost = self._lost or "the connection was lost"
        for event in events:
            if not isinstance(event, Credit):
                self._waiting.append(event)
        self._moved.set()
        if answer := self._connection.data_to_send():
            await self._write(answer)

    async def _write(self, data: bytes) -> None:
        async with self._writing:
            try:
                await self._loop.sock_sendall(self._socket, data)
            except OSError as error:
                self._lost = self._lost or f"the connection was lost ({error.strerror})"


async def run_as_caller(sock: socket.socket, stdin: bytes, *, max_output_bytes: int) -> ServiceResult:
    """Be the caller: feed stdin, gather output, return at the exit. Raises LegLost; closes ``sock``."""
    with contextlib.closing(Leg(sock, Role.LEG_CALLER)) as leg:
        feeding = asyncio.create_task(leg.send_stream(Stream.STDIN, stdin, end=True))
        outputs: dict[int, bytearray] = {Stream.STDOUT: bytearray(), Stream.STDERR: bytearray()}
        try:
            while True:
                event = await leg.next_event()
                if isinstance(event, Exit):
                    return ServiceResult(event.code, bytes(outputs[Stream.STDOUT]), bytes(outputs[Stream.STDERR]))
                if isinstance(event, Data):
                    output = outputs[event.stream]
                    output += event.payload
                    if len(output) > max_output_bytes:
                        raise BackendFailed(f"a service answered more than {max_output_bytes} bytes")
                    await leg.consumed(event.stream, len(event.payload))
        finally:
            feeding.cancel()
