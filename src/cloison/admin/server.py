"""The private socket of the Admin API.

In: connections of this user's programs. Out: answers. Each connection carries one request, up to its end-of-file
(nothing is done before), and its answer. Directory and socket are the user's alone, and the peer is checked besides.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import resource
import select
import socket
import struct
from pathlib import Path

from cloison.admin.dispatch import Admin
from cloison.admin.framing import MAX_REQUEST_BYTES, FramingError, parse_request
from cloison.admin.uploads import UPLOADS, sweep

log = logging.getLogger(__name__)

REQUEST_TIMEOUT_S = 30.0
"""A request comes whole within this time, or not at all: local programs need milliseconds."""
MAX_CONNECTIONS = 4096
"""Open at once, and at most half of the files that this process may open; each holds a request of at most 64 KiB while
it is read."""
LISTEN_BACKLOG = 256
UPLOAD_CHUNK_BYTES = 1 << 20
IDLE_CHECK_S = 2.0
"""How often a silent stream looks whether its listener is still there (its write side is closed from the start)."""
_PEER = struct.Struct("3i")


class AdminServer:
    def __init__(self, path: Path, admin: Admin) -> None:
        self._path = path
        self._admin = admin
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._most = min(MAX_CONNECTIONS, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)

    async def start(self) -> None:
        """Listen. An old socket file is replaced: the system's lock, which the caller holds, says it is nobody's."""
        sweep(self._admin.desk)
        await self._listen()

    async def listen_again(self) -> None:
        """Put the socket back if somebody removed it; connections are not touched."""
        if not self._path.exists():
            if self._server is not None:
                self._server.close()
            await self._listen()

    async def _listen(self) -> None:
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._path.parent.chmod(0o700)
        self._path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        old_mask = os.umask(0o177)
        try:
            listener.bind(str(self._path))
        finally:
            os.umask(old_mask)
        self._path.chmod(0o600)
        self._server = await asyncio.start_unix_server(
            self._connected, sock=listener, backlog=LISTEN_BACKLOG, limit=MAX_REQUEST_BYTES
        )

    async def close(self) -> None:
        """Stop listening, end every connection. Idempotent."""
        if self._server is not None:
            self._server.close()
            self._server = None
        self._path.unlink(missing_ok=True)
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._tasks) >= self._most or not _is_ours(writer):
            log.warning("a connection was refused: %s", "too many" if _is_ours(writer) else "another user")
            writer.transport.abort()
            return
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._answer(reader, writer)
        except (FramingError, TimeoutError) as error:
            log.info("a request was dropped: %s", error or "it did not end")
        except OSError:
            log.debug("a client went away")
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with asyncio.timeout(REQUEST_TIMEOUT_S):
            data = await _read_start(reader)
            if not data:
                return  # somebody only looked whether we are there
            if is_upload := _method(data) in UPLOADS:
                request = parse_request(data)
            else:
                request = parse_request(data + await _read_rest(reader, MAX_REQUEST_BYTES - len(data)))
                if _has_hung_up(writer):
                    # The end of the bytes is all that says where a request ends. Who died while it was writing looks
                    # the same, but for having closed both ways: half of some firewall rules must not count as all.
                    log.info("the client of a request went away before its end")
                    return
        if is_upload:
            writer.write(await self._admin.take(request, lambda: reader.read(UPLOAD_CHUNK_BYTES)))
            while await reader.read(UPLOAD_CHUNK_BYTES):
                pass  # a client that is still sending hears the answer only when it has finished
            await writer.drain()
            return
        parts = self._admin.stream(request.source, request.dest, request.method, request.arg, request.payload)
        following = None
        try:
            while True:
                following = following or asyncio.ensure_future(anext(parts, None))
                done, _ = await asyncio.wait({following}, timeout=IDLE_CHECK_S)
                if not done:
                    if _has_hung_up(writer):
                        return
                    continue
                part = following.result()
                following = None
                if part is None:
                    return
                writer.write(part)
                await writer.drain()
        finally:
            if following is not None:
                following.cancel()
                await asyncio.wait({following})
            await parts.aclose()


async def _read_start(reader: asyncio.StreamReader) -> bytes:
    """At least the header, if there is one, and never more than a request may hold."""
    data = b""
    while b"\0" not in data and len(data) < MAX_REQUEST_BYTES:
        chunk = await reader.read(MAX_REQUEST_BYTES - len(data))
        if not chunk:
            break
        data += chunk
    return data


async def _read_rest(reader: asyncio.StreamReader, limit: int) -> bytes:
    """Up to end-of-file; FramingError as soon as it is longer than the limit."""
    chunks: list[bytes] = []
    while limit >= 0 and (chunk := await reader.read(limit + 1)):
        chunks.append(chunk)
        limit -= len(chunk)
    if limit < 0:
        raise FramingError(f"longer than {MAX_REQUEST_BYTES} bytes")
    return b"".join(chunks)


def _method(data: bytes) -> str:
    return re.split(rb"[+ \0]", data, maxsplit=1)[0].decode("ascii", "replace")


def _is_ours(writer: asyncio.StreamWriter) -> bool:
    peer = writer.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
    _pid, uid, _gid = _PEER.unpack(peer)
    return uid in (os.getuid(), 0)


def _has_hung_up(writer: asyncio.StreamWriter) -> bool:
    poll = select.poll()
    poll.register(writer.get_extra_info("socket").fileno(), select.POLLHUP | select.POLLERR)
    return any(events & (select.POLLHUP | select.POLLERR) for _fd, events in poll.poll(0))
