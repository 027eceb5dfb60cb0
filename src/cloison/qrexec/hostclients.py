"""The socket on which host clients (``cloison run``) ask for calls; the caller is then dom0.

In: connections of this very user. Out: calls handed to the broker, with the connection itself as their leg.
May import: broker, wire, errors.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import struct
from pathlib import Path

from cloison.qrexec.broker import Broker
from cloison.wire import LEG_SESSION, Accepted, Call, Connection, Refused, RemoteProtocolError, Role

log = logging.getLogger(__name__)

REQUEST_TIMEOUT_S = 10.0
"""A client sends its one frame at once."""
READ_BYTES = 128 * 1024
BACKLOG = 128
_UCRED = struct.Struct("iII")


class HostClients:
    """``open`` makes the socket (mode 0600), ``close`` removes it and ends the calls that are being prepared."""

    def __init__(self, path: Path, broker: Broker) -> None:
        self._path = path
        self._broker = broker
        self._socket: socket.socket | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._accepting: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Listen; an old socket file is replaced (the system's lock says that nobody serves it)."""
        self._path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.setblocking(False)
        old_mask = os.umask(0o177)
        try:
            listener.bind(str(self._path))
        finally:
            os.umask(old_mask)
        listener.listen(BACKLOG)
        self._socket = listener
        self._accepting = asyncio.create_task(self._accept(listener), name="host clients")

    async def listen_again(self) -> None:
        """Put the socket back if somebody removed it; calls are not touched."""
        if not self._path.exists() and self._socket is not None and self._accepting is not None:
            self._accepting.cancel()
            await asyncio.gather(self._accepting, return_exceptions=True)
            self._socket.close()
            await self.open()

    async def close(self) -> None:
        tasks = [*self._tasks, *([self._accepting] if self._accepting else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._socket is not None:
            self._socket.close()
            self._path.unlink(missing_ok=True)
            self._socket = None

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                client, _ = await loop.sock_accept(listener)
            except OSError as error:
                log.error("a host client could not be accepted: %s", error)
                await asyncio.sleep(0.1)  # out of descriptors: others must end first
                continue
            client.setblocking(False)
            if _peer_uid(client) not in (os.getuid(), 0):
                log.warning("a host client of another user was turned away")
                client.close()
                continue
            task = asyncio.create_task(self._serve(client), name="host call")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _serve(self, client: socket.socket) -> None:
        connection = Connection(Role.LEG_SERVICE)
        loop = asyncio.get_running_loop()
        with client:
            try:
                async with asyncio.timeout(REQUEST_TIMEOUT_S):
                    call = await _read_call(client, connection)
            except (TimeoutError, OSError, RemoteProtocolError) as error:
                log.warning("a host client did not make itself understood: %s", error or "it sent nothing")
                return
            # Until it is answered a client sends nothing; whatever comes is its giving up.
            body = asyncio.current_task()
            assert body is not None
            watcher = asyncio.create_task(_watch(client, body))

            async def stop_watching() -> None:
                watcher.cancel()
                await asyncio.gather(watcher, return_exceptions=True)

            async def accepted() -> None:
                await stop_watching()
                await loop.sock_sendall(client, connection.send(Accepted(LEG_SESSION)))

            async def refused(reason: str) -> None:
                await stop_watching()
                with contextlib.suppress(OSError):
                    await loop.sock_sendall(client, connection.send(Refused(LEG_SESSION, reason)))

            try:
                await self._broker.run_host_call(call, client, accepted, refused)
            finally:
                await stop_watching()


async def _read_call(client: socket.socket, connection: Connection) -> Call:
    loop = asyncio.get_running_loop()
    while True:
        data = await loop.sock_recv(client, READ_BYTES)
        if not data:
            raise ConnectionError("it hung up")
        for event in connection.receive_data(data):
            if isinstance(event, Call):
                return event
            raise RemoteProtocolError(f"{type(event).__name__} instead of a call")


async def _watch(client: socket.socket, body: asyncio.Task[None]) -> None:
    with contextlib.suppress(OSError):
        await asyncio.get_running_loop().sock_recv(client, 1)
    body.cancel()


def _peer_uid(client: socket.socket) -> int:
    _, uid, _ = _UCRED.unpack(client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return int(uid)
