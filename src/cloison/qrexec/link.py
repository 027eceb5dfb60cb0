"""The engine's ``AgentConnector`` and ``AgentLink``: a qube's relay, and another one when it dies.

In: a machine's agent socket. Out: links that last as long as the machine. May import: relays, spawner, errors,
engine's agent interface.

A relay that ended (its agent broke the rules, or somebody killed it) took its calls with it; the machine is still
there. The link then starts another relay, which finds the agent again in whatever it was doing; the pause before
grows, so that an agent which breaks every relay at once costs next to nothing.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cloison.engine.agent import ServiceResult
from cloison.errors import BackendFailed
from cloison.model.names import QubeName
from cloison.qrexec.relays import Opened, RelayProcess
from cloison.qrexec.spawner import Spawner
from cloison.wire.messages import Call, Open

log = logging.getLogger(__name__)

CONNECT_RETRY_S = 0.02
"""Pause between attempts to reach a socket which QEMU is about to create."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.05, 60.0
STEADY_S = 30.0
"""A relay that lived so long was not ended by a habit of its agent."""
RETURN_TIMEOUT_S = 20.0
"""Longest wait for the agent to answer a new relay, before another one tries; an emulated guest may be busy."""


def _refuse(link: RelayProcess, handle: int, _: Call) -> None:
    link.refuse(handle)


def _ignore(_: RelayProcess, __: int) -> None:
    pass


class RelayConnector:
    """The engine's AgentConnector. ``on_call``, ``on_gone`` are the broker's; until it is there, calls are refused.

    ``on_return`` is told of a qube for which another relay took over: its agent may be another one, too."""

    def __init__(self, spawner: Spawner) -> None:
        self._spawner = spawner
        self.on_call: Callable[[RelayProcess, int, Call], None] = _refuse
        self.on_gone: Callable[[RelayProcess, int], None] = _ignore
        self.on_return: Callable[[QubeName], None] = lambda qube: None

    async def connect(self, qube: QubeName, socket_path: Path, *, ready_timeout_s: float, resync: bool = False,
                      wait_ready: bool = True) -> RelayLink:  # fmt: skip
        """See AgentConnector.connect."""
        relay: RelayProcess | None = None
        try:
            async with asyncio.timeout(ready_timeout_s):
                relay = await self._start(qube, await _await_socket(socket_path), resync=resync)
                await relay.wait_up(ready=wait_ready)
        except BaseException as error:
            if relay is not None:
                relay.close()
            if isinstance(error, TimeoutError):
                what = "is not ready" if relay is not None and relay.is_up else "does not answer"
                raise BackendFailed(f"the agent of {qube} {what} after {ready_timeout_s:g} s") from error
            raise
        return RelayLink(qube, socket_path, self, relay)

    async def connect_again(self, qube: QubeName, socket_path: Path) -> RelayProcess:
        """Another relay for a machine that had one. OSError: the machine is gone; else BackendFailed, TimeoutError."""
        relay = await self._start(qube, _connect(socket_path), resync=True)
        try:
            async with asyncio.timeout(RETURN_TIMEOUT_S):
                await relay.wait_up(ready=False)
        except BaseException:
            relay.close("the agent does not answer")
            raise
        return relay

    async def close(self) -> None:
        """End the fork server and all relays."""
        await self._spawner.close()

    async def _start(self, qube: QubeName, channel: socket.socket, *, resync: bool) -> RelayProcess:
        return RelayProcess(qube, await self._spawner.spawn(qube, channel, resync=resync), self)


class RelayLink:
    """The engine's AgentLink, and the broker's way to open calls in this qube."""

    def __init__(self, qube: QubeName, socket_path: Path, connector: RelayConnector, relay: RelayProcess) -> None:
        self.qube = qube
        self._path = socket_path
        self._connector = connector
        self._relay = relay
        self._gone = asyncio.Event()
        self._keeper = asyncio.create_task(self._keep_up(), name=f"link to {qube}")

    @property
    def pid(self) -> int | None:
        """Of the relay."""
        return self._relay.pid

    @property
    def is_up(self) -> bool:
        return self._relay.is_up

    async def control(self, verb: str, fields: Mapping[str, Any], *, timeout_s: float) -> Mapping[str, Any]:
        """See AgentLink.control."""
        return await self._relay.control(verb, fields, timeout_s=timeout_s)

    async def run_service(self, service: str, *, user: str = "", stdin: bytes = b"", timeout_s: float,
                          max_output_bytes: int = 1 << 20) -> ServiceResult:  # fmt: skip
        """See AgentLink.run_service."""
        return await self._relay.run_service(
            service, user=user, stdin=stdin, timeout_s=timeout_s, max_output_bytes=max_output_bytes
        )

    def open_call(self, request: Open, leg: socket.socket, *, may_signal: bool) -> Opened:
        """See RelayProcess.open_call; while there is no relay the call ends at once."""
        return self._relay.open_call(request, leg, may_signal=may_signal)

    async def wait_closed(self) -> None:
        """Returns when the machine's channel is gone, or after ``close``; a relay's death alone does not count."""
        await self._gone.wait()

    async def close(self) -> None:
        """See AgentLink.close."""
        self._keeper.cancel()
        await asyncio.gather(self._keeper, return_exceptions=True)
        self._relay.close()
        self._gone.set()

    async def _keep_up(self) -> None:
        loop = asyncio.get_running_loop()
        pause_s = FIRST_PAUSE_S
        try:
            while True:
                since = loop.time()
                reason = await self._relay.wait_closed()
                if loop.time() - since > STEADY_S:
                    pause_s = FIRST_PAUSE_S
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
                try:
                    self._relay = await self._connector.connect_again(self.qube, self._path)
                    log.warning("the relay of %s ended (%s); another one took over", self.qube, reason)
                    self._connector.on_return(self.qube)
                except (FileNotFoundError, ConnectionRefusedError) as error:
                    log.info("the channel to %s is gone: %s", self.qube, error)
                    return
                except (BackendFailed, OSError) as error:
                    why = str(error) or "no answer"
                    log.warning("the relay of %s ended (%s); another one failed: %s", self.qube, reason, why)
        finally:
            self._gone.set()


async def _await_socket(path: Path) -> socket.socket:
    """A connection to a socket that may not be there yet; the caller has a deadline."""
    while True:
        try:
            return _connect(path)
        except (FileNotFoundError, ConnectionRefusedError, BlockingIOError):
            await asyncio.sleep(CONNECT_RETRY_S)


def _connect(path: Path) -> socket.socket:
    """At once or not at all: unix sockets connect without waiting, and BlockingIOError means that too many wait."""
    channel = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    channel.setblocking(False)
    try:
        channel.connect(str(path))
    except BaseException:
        channel.close()
        raise
    return channel
