"""The asyncio twin of the blocking client: the same calls, the same three ends.

In: calls. Out: answers, events. May import: client, layout.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import TypeVar

from cloison.client.calls import Call
from cloison.client.connection import CONNECT_TIMEOUT_S, RECONNECT_DELAY_S
from cloison.client.failures import DaemonUnreachable, OutcomeUnknown
from cloison.client.framing import AnswerReader, Event, encode_request
from cloison.client.peer import require_own_peer
from cloison.layout import Layout

T = TypeVar("T")


class AsyncClient:
    """One system's Admin API for asyncio programs. Cancelling a call closes its connection."""

    def __init__(self, layout: Layout | None = None, *, start_daemon: bool = True) -> None:
        self.layout = layout or Layout.from_environment()
        self._start_daemon = start_daemon

    async def do(self, call: Call[T], *, on_event: Callable[[Event], None] | None = None,
                 timeout_s: float | None = None) -> T:  # fmt: skip
        """Carry out one call; as ``Client.do``, except that ``timeout_s`` bounds the whole call."""
        reader = AnswerReader(call.what)
        try:
            async with asyncio.timeout(timeout_s):
                async for event in self._exchange(call, reader):
                    if on_event is not None:
                        on_event(event)
        except TimeoutError:
            raise OutcomeUnknown(f"{call.what}: no answer within {timeout_s} s") from None
        return call.read(reader.finish())

    async def events(self, dest: str = "dom0", *, reconnect: bool = True,
               method: str = "admin.Events") -> AsyncIterator[Event]:  # fmt: skip
        """Every event, for ever; as ``Client.events``."""
        call: Call[bytes] = Call(method, dest, parse=bytes)
        while True:
            reader = AnswerReader(call.what)
            try:
                async for event in self._exchange(call, reader):
                    yield event
                reader.finish()
            except (OutcomeUnknown, DaemonUnreachable):
                if not reconnect:
                    raise
            if not reconnect:
                return
            await asyncio.sleep(RECONNECT_DELAY_S)

    async def _exchange(self, call: Call[T], reader: AnswerReader) -> AsyncIterator[Event]:
        request = encode_request(call.method, call.arg, call.dest, call.payload)
        incoming, outgoing = await self._connect()
        try:
            outgoing.write(request)
            outgoing.write_eof()
            while data := await incoming.read(1 << 18):
                for event in reader.receive(data):
                    yield event
        except OSError as error:
            if not reader.complete:
                raise OutcomeUnknown(f"{call.what}: connection lost: {error.strerror}") from None
        finally:
            outgoing.close()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        path = self.layout.admin_socket
        for may_start in (self._start_daemon, False):
            try:
                async with asyncio.timeout(CONNECT_TIMEOUT_S):
                    reader, writer = await asyncio.open_unix_connection(str(path))
                try:
                    require_own_peer(writer.get_extra_info("socket"), str(path))
                except DaemonUnreachable:
                    writer.close()
                    raise
                return reader, writer
            except (FileNotFoundError, ConnectionRefusedError):
                if not may_start:
                    break
            except OSError as error:
                raise DaemonUnreachable(f"cannot connect to {path}: {error.strerror or error}") from None
            from cloison.client.spawn import start_daemon

            await asyncio.to_thread(start_daemon, self.layout)
        raise DaemonUnreachable(f"no daemon listens on {path}", hint="start it with `cloison daemon start`")
