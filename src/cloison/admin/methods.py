"""What a method is: one row, from which come dispatch, checks, policy service name, documentation and completion."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Protocol

from cloison.admin.doorverbs import ClosedDoor, DoorVerbs
from cloison.admin.own import OwnVerbs
from cloison.engine.devices import Devices, NoDevices, Shelf
from cloison.engine.errands import SleepVerbs
from cloison.engine.inventory import Ledger
from cloison.engine.properties import Properties
from cloison.engine.qubes import Qubes
from cloison.engine.running import RunningVerbs
from cloison.engine.volumes import Volumes
from cloison.errors import ProtocolError, QubeNotFound
from cloison.model.inventory import Inventory
from cloison.model.names import DOM0, QubeName
from cloison.model.qube import Qube


class Dest(Enum):
    """Which destination a method takes."""

    DOM0 = "dom0"
    QUBE = "qube"
    ANY = "any"


class Need(Enum):
    """Whether there must, may or must not be an argument or a payload."""

    NONE = "-"
    REQUIRED = "!"
    OPTIONAL = "?"


class Scope(Enum):
    """Which default policy include a method belongs to: reaching one qube or the system, reading or changing."""

    LOCAL_RO = "local-ro"
    LOCAL_RW = "local-rw"
    LOCAL_X = "local-rwx"
    GLOBAL_RO = "global-ro"
    GLOBAL_RW = "global-rw"
    GLOBAL_X = "global-rwx"
    INTERNAL = "internal"
    """Only dom0 itself."""


class Permits(Protocol):
    """What a caller other than dom0 may know: asked for each line of a list and each event of a stream."""

    def __call__(self, source: QubeName, method: str, arg: str, dest: QubeName) -> bool: ...


def permit_only_itself(source: QubeName, method: str, arg: str, dest: QubeName) -> bool:
    """Without a policy to ask, a qube knows of itself."""
    return source in (DOM0, dest)


CLOSED = ClosedDoor()
NO_DEVICES = NoDevices()


@dataclass(frozen=True)
class Desk:
    """All that handlers work with; made once by the daemon."""

    ledger: Ledger
    qubes: Qubes
    properties: Properties
    volumes: Volumes
    running: RunningVerbs
    sleep: SleepVerbs
    own: OwnVerbs
    imports: Path
    """Private directory for volume data on its way in."""
    permits: Permits = permit_only_itself
    door: DoorVerbs = CLOSED
    devices: Devices = NO_DEVICES
    shelf: Shelf = NO_DEVICES

    @property
    def inventory(self) -> Inventory:
        return self.ledger.inventory


@dataclass(frozen=True)
class Call:
    """A checked request: the names are of existing qubes, argument and payload are there or not as the row says."""

    source: QubeName
    dest: QubeName
    method: str
    arg: str
    payload: bytes

    @property
    def text(self) -> str:
        """The payload as ASCII; ProtocolError if it is not."""
        try:
            return self.payload.decode("ascii")
        except UnicodeDecodeError:
            raise ProtocolError(f"the payload of {self.method} is not ASCII") from None

    @property
    def number(self) -> int:
        """The payload as a number: digits without leading zeros, at most 19."""
        return self._number(r"0|[1-9][0-9]{0,18}")

    @property
    def signed_number(self) -> int:
        return self._number(r"0|-?[1-9][0-9]{0,18}")

    def _number(self, pattern: str) -> int:
        if not re.fullmatch(pattern, self.text):
            raise ProtocolError(f"the payload of {self.method} is not a number")
        return int(self.text)


TellEnd = Callable[[str], None]
"""Told once how a call ended: "" for well, else the failure."""
Witness = Callable[[Call], TellEnd]
"""Is told of every call that may change something, before it does."""


def nothing_to_tell(_failure: str) -> None:
    """The end of a call that changes nothing, or that nobody watches."""


Answer = bytes | str
Handler = Callable[[Desk, Call], Awaitable[Answer]]
Streamer = Callable[[Desk, Call], AsyncIterator[bytes]]


@dataclass(frozen=True)
class Method:
    name: str
    dest: Dest
    arg: Need
    payload: Need
    scope: Scope
    doc: str
    handler: Handler | None = None
    streamer: Streamer | None = None
    """Instead of a handler: yields whole records; the last one may be an answer."""

    @property
    def may_change(self) -> bool:
        return self.scope not in (Scope.LOCAL_RO, Scope.GLOBAL_RO) and self.name != "internal.GetSystemInfo"

    def check(self, request_arg: str, request_payload: bytes, dest: QubeName) -> None:
        """ProtocolError if the call does not fit the row."""
        if self.dest is Dest.DOM0 and dest != DOM0:
            raise ProtocolError(f"{self.name} goes to dom0 only")
        if self.dest is Dest.QUBE and dest == DOM0:
            raise ProtocolError(f"{self.name} does not go to dom0")
        for need, given, what in ((self.arg, request_arg, "argument"), (self.payload, request_payload, "payload")):
            if need is Need.NONE and given:
                raise ProtocolError(f"{self.name} takes no {what}")
            if need is Need.REQUIRED and not given:
                raise ProtocolError(f"{self.name} needs {'an' if what[0] == 'a' else 'a'} {what}")


def may_know(desk: Desk, call: Call, name: QubeName) -> bool:
    """Whether the caller may know that the qube exists: whether ``admin.vm.List`` would show it."""
    return call.source in (DOM0, name) or desk.permits(call.source, "admin.vm.List", "", name)


def named_qube(desk: Desk, call: Call, name: QubeName) -> Qube:
    """A qube that the argument or the payload names; QubeNotFound also for one that the caller may not know."""
    if not may_know(desk, call, name):
        raise QubeNotFound(name)
    return desk.inventory.qube(name)


def target(desk: Desk, call: Call) -> Qube:
    return desk.inventory.qube(call.dest)


def lines(items: Any) -> str:
    """One item per line with a final newline; nothing for an empty list."""
    return "".join(f"{item}\n" for item in items)


def parse_bool_payload(call: Call) -> bool:
    match call.text:
        case "True":
            return True
        case "False":
            return False
        case other:
            folded = other.casefold()
            if folded in ("1", "yes", "true", "on"):
                return True
            if folded in ("0", "no", "false", "off"):
                return False
            raise ProtocolError(f"the payload of {call.method} is neither True nor False")
