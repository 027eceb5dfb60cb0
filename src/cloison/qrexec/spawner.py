"""Relays on demand: starts the jailed fork server and asks it for one relay per connected agent.

In: a connected agent channel. Out: the control socket of a new relay. May import: jail, errors.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import json
import logging
import os
import socket
import sys

from cloison.errors import BackendFailed
from cloison.qrexec.jail import find_jail

log = logging.getLogger(__name__)

START_TIMEOUT_S = 60.0
"""Longest wait for the fork server: an interpreter's start on a machine that is busy emulating."""
MAX_LOGGED_LINE = 500


class Spawner:
    """Owner of the fork server. It ends with this process, and all relays end with it."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self._server: asyncio.subprocess.Process | None = None
        self._requests: socket.socket | None = None
        self._listener: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        """Of the fork server's outer process; None when it does not run."""
        return self._server.pid if self._server is not None and self._server.returncode is None else None

    async def start(self) -> None:
        """Start the fork server unless it runs; raises BackendFailed."""
        async with self._lock:
            if self.pid is None:
                await self._stop()
                await self._start()

    async def spawn(self, name: str, channel: socket.socket, *, resync: bool) -> socket.socket:
        """A relay for this channel; returns the daemon's end of its control socket (non-blocking).

        ``channel`` is the relay's from now on and closed here. Raises BackendFailed.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with channel, theirs:
            # The first packet of the relay then carries its pid, as the kernel knows it.
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
            ours.setblocking(False)
            channel.setblocking(False)
            order = json.dumps({"name": name, "resync": resync}).encode()
            try:
                await self._send(order, [channel.fileno(), theirs.fileno()])
            except BaseException:
                ours.close()
                raise
        return ours

    async def close(self) -> None:
        """End the fork server and with it every relay. Idempotent."""
        async with self._lock:
            await self._stop()

    async def _send(self, order: bytes, fds: list[int]) -> None:
        async with self._lock:
            for attempt in (1, 2):
                if self.pid is None or self._requests is None:
                    await self._stop()
                    await self._start()
                assert self._requests is not None
                try:
                    socket.send_fds(self._requests, [order], fds)
                    return
                except OSError as error:
                    log.warning("the qrexec fork server is gone (%s)", error)
                    await self._stop()
                    if attempt == 2:
                        raise BackendFailed(f"cannot start a qrexec relay: {error}") from error

    async def _stop(self) -> None:
        if self._requests is not None:
            self._requests.close()
            self._requests = None
        if self._server is not None:
            with contextlib.suppress(ProcessLookupError):
                self._server.kill()
            await self._server.wait()
            self._server = None
        if self._listener is not None:
            self._listener.cancel()
            self._listener = None

    async def _start(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        greeting = b""
        try:
            with theirs:
                self._server = await asyncio.create_subprocess_exec(
                    *find_jail(theirs.fileno()),
                    pass_fds=[theirs.fileno()],
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=asyncio.subprocess.DEVNULL,
                    stderr=asyncio.subprocess.PIPE,
                )
            with contextlib.suppress(TimeoutError, OSError):
                async with asyncio.timeout(START_TIMEOUT_S):
                    greeting = await asyncio.get_running_loop().sock_recv(ours, 16)
            assert self._server.stderr is not None
            if greeting != b"ready":
                with contextlib.suppress(ProcessLookupError):
                    self._server.kill()
                said = (await self._server.stderr.read()).decode("utf-8", "replace").strip().splitlines()
                raise BackendFailed(
                    f"cannot start the qrexec jail: {said[-1] if said else 'no answer'}",
                    hint="`cloison doctor` checks bubblewrap and user namespaces",
                )
        except BaseException:
            ours.close()
            await self._stop()
            raise
        self._requests = ours
        self._listener = asyncio.create_task(_log_lines(self._server.stderr), name="qrexec fork server's errors")


async def _log_lines(stderr: asyncio.StreamReader) -> None:
    """What relays say on stderr is the last thing they say; a jailed process gets no more of the log than this."""
    budget = 200
    while data := await stderr.read(4096):
        for line in data.decode("utf-8", "replace").splitlines():
            budget -= 1
            if budget > 0:
                log.warning("qrexec relay: %s", ascii(line[:MAX_LOGGED_LINE]))


_SCM_CREDENTIALS = 2
"""Not in Python's socket module: a struct ucred (pid, uid, gid), filled in by the kernel."""


def find_peer_pid(ancillary: list[tuple[int, int, bytes]]) -> int | None:
    """The sender's pid out of the ancillary data of a packet received with SO_PASSCRED."""
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == _SCM_CREDENTIALS and len(data) >= 4:
            return int.from_bytes(data[:4], sys.byteorder)
    return None


def drop_descriptors(ancillary: list[tuple[int, int, bytes]]) -> bool:
    """Close what a packet brought along; whether there was any (a relay has none to give)."""
    fds = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    for fd in fds:
        os.close(fd)
    return bool(fds)
