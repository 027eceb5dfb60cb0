"""A qube without a guest: an agent made of the real wire code, behind a unix socket as QEMU would offer it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from pathlib import Path

from cloison.wire import (
    MAX_PAYLOAD,
    Accepted,
    Call,
    Connection,
    Control,
    Credit,
    CreditCounter,
    Data,
    Event,
    Exit,
    Hello,
    Notice,
    Open,
    Refused,
    Reply,
    Reset,
    Restarted,
    Role,
    SessionEvent,
    Signal,
    Stream,
)


class Ended(Exception):
    """The session was reset or the connection is gone."""


class FakeSession:
    """One session at the agent: a service being run, or a call being made."""

    def __init__(self, agent: FakeAgent, number: int, opened: Open | None = None) -> None:
        self.agent, self.number, self.opened = agent, number, opened
        self.events: asyncio.Queue[SessionEvent] = asyncio.Queue()
        self.moved = asyncio.Event()
        self.ended = False
        self._counters = {stream: CreditCounter() for stream in Stream}

    async def next_event(self) -> SessionEvent:
        event = await self.events.get()
        if isinstance(event, Data):
            if credit := self._counters[Stream(event.stream)].consumed(len(event.payload)):
                await self.agent.send(Credit(self.number, event.stream, credit))
        elif isinstance(event, Reset):
            raise Ended(event.reason)
        return event

    async def read(self, stream: Stream) -> bytes:
        """Data of that stream, b'' at its end; other events are skipped."""
        while True:
            event = await self.next_event()
            if isinstance(event, Data) and event.stream == stream:
                return bytes(event.payload)
            if isinstance(event, Exit):
                return b""

    async def read_all(self, stream: Stream) -> bytes:
        return b"".join([part async for part in self.parts(stream)])

    async def parts(self, stream: Stream):
        while part := await self.read(stream):
            yield part

    async def write(self, stream: Stream, data: bytes | memoryview, *, end: bool = False) -> None:
        view = memoryview(data)
        while view:
            room = min(self.agent.connection.window(self.number, stream), MAX_PAYLOAD, len(view))
            if room:
                await self.agent.send(Data(self.number, stream, view[:room]))
                view = view[room:]
            elif self.ended:
                raise Ended
            else:
                self.moved.clear()
                await self.moved.wait()
        if end:
            await self.agent.send(Data(self.number, stream, b""))

    async def exit(self, code: int = 0) -> None:
        await self.agent.send(Exit(self.number, code))

    async def result(self) -> tuple[int, bytes, bytes]:
        """As a caller: gather everything until the exit."""
        outputs = {Stream.STDOUT: b"", Stream.STDERR: b""}
        while True:
            event = await self.next_event()
            if isinstance(event, Exit):
                return event.code, outputs[Stream.STDOUT], outputs[Stream.STDERR]
            if isinstance(event, Data):
                outputs[Stream(event.stream)] += event.payload


Service = Callable[[FakeSession], Awaitable[None]]


async def echo(session: FakeSession) -> None:
    async for part in session.parts(Stream.STDIN):
        await session.write(Stream.STDOUT, part)
    await session.exit(0)


class FakeAgent:
    """Serves one connection at a time on ``path``; ``services`` by service name with argument."""

    def __init__(self, path: Path, services: dict[str, Service] | None = None, *, ready: bool = True) -> None:
        self.path = path
        self.services = {"test.Echo+": echo, **(services or {})}
        self.controls: list[Control] = []
        self.signals: list[Signal] = []
        self.connection = Connection(Role.AGENT, software="fake")
        self.sessions: dict[int, FakeSession] = {}
        self._ready = ready
        self.chop: Callable[[], int] | None = None
        """Sizes of the pieces in which bytes leave; None: whole."""
        self._one_at_a_time = asyncio.Lock()
        self._server: asyncio.Server | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._calling: dict[int, asyncio.Future[None]] = {}

    async def __aenter__(self) -> FakeAgent:
        self._server = await asyncio.start_unix_server(self._serve, self.path)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        await self.hang_up()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def hang_up(self) -> None:
        """What the host sees when the machine dies."""
        if self._writer is not None:
            self._writer.close()

    async def send(self, event: Event) -> None:
        await self.send_raw(self.connection.send(event))

    async def send_raw(self, data: bytes) -> None:
        async with self._one_at_a_time:
            await self._send_raw(data)

    async def _send_raw(self, data: bytes) -> None:
        while self._writer is not None and data:
            size = self.chop() if self.chop is not None else len(data)
            self._writer.write(data[:size])
            data = data[size:]
            with contextlib.suppress(ConnectionError):
                await self._sending(len(data))

    async def _sending(self, left: int) -> None:
        assert self._writer is not None
        await self._writer.drain()
        if left and self.chop is not None:
            await asyncio.sleep(0)

    async def call(self, target: str, service: str) -> FakeSession:
        """Make a call; PermissionError if it was refused."""
        number = self.connection.new_session()
        session = self.sessions[number] = FakeSession(self, number)
        answer = self._calling[number] = asyncio.get_running_loop().create_future()
        await self.send(Call(number, target, service))
        await answer
        return session

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        self.connection.restart()
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(1 << 18):
                for event in self.connection.receive_data(data):
                    await self._take(event)
                await self.send_raw(self.connection.data_to_send())
        for session in self.sessions.values():
            session.events.put_nowait(Reset(session.number, "connection lost"))
        for future in self._calling.values():
            if not future.done():
                future.set_exception(ConnectionError())

    async def _take(self, event: Event) -> None:
        if isinstance(event, Hello):
            if self._ready:
                await self.send(Notice("ready", {}))
        elif isinstance(event, Control):
            self.controls.append(event)
            if event.verb != "be-silent":
                ok = event.verb != "fail"
                await self.send(Reply(event.id, ok, {} if ok else {"error": "asked to fail"}))
        elif isinstance(event, Open):
            self._open(event)
        elif isinstance(event, Accepted):
            self._calling.pop(event.session).set_result(None)
        elif isinstance(event, Refused):
            self._calling.pop(event.session).set_exception(PermissionError())
        elif isinstance(event, Restarted):
            self.sessions.clear()
        elif isinstance(event, Credit):
            if session := self.sessions.get(event.session):
                session.moved.set()
        elif not isinstance(event, Reply | Notice):
            if isinstance(event, Data):
                event = Data(event.session, event.stream, bytes(event.payload))
            if isinstance(event, Signal):
                self.signals.append(event)
            session = self.sessions.get(event.session)  # type: ignore[union-attr]
            if session is not None:
                session.ended = isinstance(event, Reset | Exit)
                session.moved.set()
                session.events.put_nowait(event)  # type: ignore[arg-type]

    def _open(self, event: Open) -> None:
        session = self.sessions[event.session] = FakeSession(self, event.session, event)
        service = self.services.get(event.service or f"command:{event.command}")
        task = asyncio.create_task(self._run(session, service))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self, session: FakeSession, service: Service | None) -> None:
        if service is None:
            await session.exit(127)
            return
        with contextlib.suppress(Ended):
            await service(session)
