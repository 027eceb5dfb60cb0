"""The daemon's own end of a call: to run a service in a qube, or to be one for a qube.

In: a leg's socket. Out: results. May import: wire, errors, engine's agent interface.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket

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
MAX_WAITING_EVENTS = 100_000
"""Data are bounded by the windows (many tiny frames at worst); more events than this are a flood."""


class LegLost(BackendFailed):
    """The other end of a call went away before the call was over."""


class Leg:
    """One live leg: events in, events out, windows obeyed. Closed by ``aclose``.

    A task of its own listens from the beginning, so credit and the end of the call are noticed whatever the owner
    waits for; what it keeps is bounded by the windows.
    """

    def __init__(self, sock: socket.socket, role: Role) -> None:
        sock.setblocking(False)
        self._socket = sock
        self._connection = Connection(role, live=True)
        self._loop = asyncio.get_running_loop()
        self._counters = {stream: CreditCounter() for stream in Stream}
        self._events: asyncio.Queue[Event | None] = asyncio.Queue()
        self._moved = asyncio.Event()
        self._writing = asyncio.Lock()
        self.lost: asyncio.Future[str] = self._loop.create_future()
        """Why no more events come (also after the last one of a good end)."""
        self._listener = asyncio.create_task(self._listen(), name="leg")

    async def next_event(self) -> Event:
        """The next event of the other end, credit aside; raises LegLost at its end (also for RESET)."""
        event = await self._events.get()
        if event is None:
            self._events.put_nowait(None)
            raise LegLost(self.lost.result())
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
        """All of ``data`` as the windows allow, then end of file if asked for. Raises LegLost."""
        view = memoryview(data)
        while view:
            room = min(self._connection.window(LEG_SESSION, stream), MAX_PAYLOAD, len(view))
            if room:
                await self.send(Data(LEG_SESSION, stream, view[:room]))
                view = view[room:]
            elif self.lost.done():
                raise LegLost(self.lost.result())
            else:
                self._moved.clear()
                await self._moved.wait()
        if end:
            await self.send(Data(LEG_SESSION, stream, b""))

    async def aclose(self) -> None:
        # The listener lets go of the descriptor first: its number may be somebody else's at once.
        self._listener.cancel()
        await asyncio.gather(self._listener, return_exceptions=True)
        self._socket.close()

    async def _listen(self) -> None:
        reason = ""
        while not reason:
            try:
                data = await self._loop.sock_recv(self._socket, READ_BYTES)
                events = self._connection.receive_data(data)
            except (OSError, RemoteProtocolError) as error:
                data, events, reason = b"", [], str(error)
            for event in events:
                if isinstance(event, Reset):
                    reason = event.reason or "the other end gave up"
                elif not isinstance(event, Credit):
                    self._events.put_nowait(event)
            if not data or self._events.qsize() > MAX_WAITING_EVENTS:
                reason = reason or "the connection was lost"
            if answer := self._connection.data_to_send():
                await self._write(answer)
            self._moved.set()
        self.lost.set_result(reason)
        self._moved.set()
        self._events.put_nowait(None)

    async def _write(self, data: bytes) -> None:
        async with self._writing:
            with contextlib.suppress(OSError):  # the listener hears of it
                await self._loop.sock_sendall(self._socket, data)


async def run_as_caller(sock: socket.socket, stdin: bytes, *, max_output_bytes: int) -> ServiceResult:
    """Be the caller: feed stdin, gather output, return at the exit. Raises LegLost; closes ``sock``."""
    async with contextlib.aclosing(Leg(sock, Role.LEG_CALLER)) as leg:
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
            await asyncio.gather(feeding, return_exceptions=True)
