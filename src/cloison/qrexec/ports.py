"""What the broker needs from the other rooms, as interfaces.

In: nothing. Out: protocols and the values that cross them. May import: policy, model, wire, packets.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from cloison.errors import Refused
from cloison.model.names import QubeName
from cloison.policy import Ask, Judged, Request, SystemInfo
from cloison.qrexec.packets import Closing
from cloison.wire.messages import Open


class CallLink(Protocol):
    """One relay process (RelayProcess): the end of calls that it carries, by their handles."""

    @property
    def qube(self) -> QubeName: ...
    def accept(self, handle: int, leg: socket.socket) -> asyncio.Future[Closing]: ...
    def refuse(self, handle: int) -> None: ...
    def end_call(self, handle: int, reason: str) -> None: ...
    async def traffic(self) -> Mapping[int, tuple[int, int, int]]: ...


class OpenedCall(Protocol):
    """A call that a target was told to serve; ``closed`` ends with it."""

    @property
    def link(self) -> CallLink: ...
    @property
    def handle(self) -> int: ...
    @property
    def closed(self) -> asyncio.Future[Closing]: ...


class TargetLink(Protocol):
    """A running qube that can be called (RelayLink)."""

    def open_call(self, request: Open, leg: socket.socket, *, may_signal: bool) -> OpenedCall: ...


class Targets(Protocol):
    """What exists and what runs; the engine's side."""

    def system_info(self) -> SystemInfo:
        """One frozen picture of the system. Asked once per call: keep it until something changes."""
        ...

    async def ensure_running(self, name: QubeName) -> None:
        """Returns when the qube runs and knows who it is; raises CloisonError if it cannot be started."""
        ...

    async def create_disposable(self, template: QubeName, source: QubeName) -> QubeName:
        """A new running disposable for one call by ``source``; it is the caller's until ``release_disposable``."""
        ...

    def release_disposable(self, name: QubeName) -> None:
        """The call is over. Returns at once; the clean-up is the engine's and survives a crash."""
        ...

    def link(self, name: QubeName) -> TargetLink:
        """The relay of a running qube; QubeNotRunning if it has none."""
        ...


class PolicyDoor(Protocol):
    """PolicySource. Whatever it raises counts as a denial."""

    def judge(self, system: SystemInfo, request: Request) -> Judged: ...


class Answer(NamedTuple):
    """What a person said: the chosen one of the targets, or None for no; and through which agent."""

    chosen: str | None
    by: str


Asker = Callable[[Ask, Request, str], Awaitable[Answer]]
"""Ask the user; the question counts as one of the qube named last. Silence is no; so is every error, and a Refused says
in words for the user why nobody was asked. Cancelled when the caller goes away."""


async def refuse_all(_: Ask, __: Request, ___: str) -> Answer:
    """Nobody is there to be asked."""
    raise Refused("nobody can be asked")


AuditValue = str | int | float | bool | None


class AuditSink(Protocol):
    def write(self, record: Mapping[str, AuditValue]) -> None:
        """Returns when the record would survive the end of this process; raises OSError when it cannot be kept."""
        ...


@dataclass(frozen=True)
class ServiceCall:
    """A call that dom0 itself answers. ``argument`` has no "+"; ``requested_target`` as the caller's policy saw it."""

    source: QubeName
    service: str
    argument: str
    requested_target: str

    @property
    def full_name(self) -> str:
        return f"{self.service}+{self.argument}"


Handler = Callable[[ServiceCall, bytes], Awaitable[bytes | AsyncIterator[bytes]]]
"""A service that lives in the daemon: gets all of stdin, answers stdout (whole, or piece by piece); exit code 0.
An exception is exit code 125 and a line in the log, never a word to the caller."""


@dataclass(frozen=True)
class Fed:
    """A handler that reads the caller's stdin piece by piece (empty: the end), so that there is no limit to it."""

    serve: Callable[[ServiceCall, Callable[[], Awaitable[bytes]]], Awaitable[bytes]]


class ServiceFailed(Exception):
    """What a handler raises to end with an exit code and a line for the caller's standard error."""

    def __init__(self, exit_code: int, said: str) -> None:
        super().__init__(said)
        self.exit_code = exit_code
        self.said = said


@dataclass(frozen=True)
class Limits:
    """How much one qube may ask for at the very most; limit rules (``limits``) say how much it should."""

    calls_per_source: int = 256
    """Running and waiting together, those of its disposables included, whatever the limit rules say. Qubes: 256."""
    disposables_per_source: int = 16
    """Disposables that calls of one qube, and of disposables among these, hold at once: each costs memory."""
    calls: int = 1024
    """All qubes together; each costs the daemon some descriptors while it is made."""
    ask_timeout_s: float = 120.0
    """A question that nobody answers is a no."""
    admission_timeout_s: float = 600.0
    """From asking to joined: a cold boot under emulation takes one minute or two."""
    builtin_stdin_bytes: int = 1 << 20
    """What a service in the daemon reads of its caller; more is refused (exit code 125)."""
