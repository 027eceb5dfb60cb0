"""The serial console of one machine: kept as a bounded log, shared with whoever attaches.

In: QEMU's serial socket. Out: a log file and a socket for people. May import: launch (listener).

QEMU's socket takes one connection; the pump holds it, appends to the log and serves ``console.sock`` to any number of
watchers. QEMU throws console output away while nobody is connected, so nothing is logged between the death of a
daemon and the next one: a log file that QEMU itself kept could be filled by the guest without bound.
The text is the guest's own: show it to a terminal only after cleaning.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from pathlib import Path

from cloison.drivers.hypervisor.launch import open_listener

LOG_LIMIT_BYTES = 1 << 20
LOG_KEPT_BYTES = 512 << 10
"""How much of the end is kept when the log is full."""
CHUNK_BYTES = 64 << 10
MAX_WATCHERS = 8
WATCHER_BACKLOG_BYTES = 256 << 10
"""A watcher that falls this far behind is dropped."""
REPLAY_BYTES = 4096
"""What a new watcher is shown of the past."""


class BoundedLog:
    """A file that keeps the end of what was written to it."""

    def __init__(self, path: Path, *, limit_bytes: int = LOG_LIMIT_BYTES, kept_bytes: int = LOG_KEPT_BYTES) -> None:
        self._limit_bytes, self._kept_bytes = limit_bytes, kept_bytes
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._size = os.fstat(self._fd).st_size

    def write(self, data: bytes) -> None:
        """A full disk loses log lines, never the machine."""
        data = data[-self._kept_bytes :]
        with contextlib.suppress(OSError):
            if self._size + len(data) > self._limit_bytes:
                keep = self._kept_bytes - len(data)
                tail = os.pread(self._fd, keep, max(0, self._size - keep)) if keep else b""
                os.ftruncate(self._fd, 0)
                self._size = os.write(self._fd, tail)
            self._size += os.write(self._fd, data)

    def tail(self, size_bytes: int) -> bytes:
        return os.pread(self._fd, size_bytes, max(0, self._size - size_bytes))

    def close(self) -> None:
        os.close(self._fd)


class ConsolePump:
    """Moves console bytes between QEMU, the log and watchers until the machine is gone or ``close``."""

    def __init__(self, serial: Path, served: Path, log: Path) -> None:
        self._serial, self._served = serial, served
        self._log = BoundedLog(log)
        self._watchers: set[asyncio.StreamWriter] = set()
        self._port: asyncio.StreamWriter | None = None
        self._server: asyncio.Server | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Connect (QEMU may accept later) and serve. Raises OSError if QEMU's socket is dead."""
        port = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            port.setblocking(False)
            port.connect(str(self._serial))
            reader, self._port = await asyncio.open_unix_connection(sock=port, limit=CHUNK_BYTES)
        except BaseException:
            port.close()
            raise
        self._server = await asyncio.start_unix_server(self._serve, sock=open_listener(self._served))
        self._task = asyncio.create_task(self._pump(reader))

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._server is not None:
            self._server.close()
        for writer in (*self._watchers, *([self._port] if self._port else [])):
            writer.close()
        self._log.close()

    async def _pump(self, reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(CHUNK_BYTES):
                self._log.write(data)
                for watcher in tuple(self._watchers):
                    watcher.write(data)
                    if watcher.transport.get_write_buffer_size() > WATCHER_BACKLOG_BYTES:
                        watcher.transport.abort()
        for watcher in tuple(self._watchers):
            watcher.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._watchers) >= MAX_WATCHERS:
            writer.close()
            return
        self._watchers.add(writer)
        try:
            writer.write(self._log.tail(REPLAY_BYTES))
            while (data := await reader.read(CHUNK_BYTES)) and self._port is not None:
                self._port.write(data)
                await self._port.drain()
        except ConnectionError:
            pass
        finally:
            self._watchers.discard(writer)
            writer.close()
