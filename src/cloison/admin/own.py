"""What our own methods (``cloison.*``) need of the daemon, and progress as they tell it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from cloison.model.names import QubeName

Json = Mapping[str, Any]


@dataclass(frozen=True)
class Progress:
    """One step of long work. ``percent`` None: unknown."""

    step: str
    text: str = ""
    percent: float | None = None


Report = Callable[[Progress], None]


class OwnVerbs(Protocol):
    """Provided by the daemon's wiring. Answers must be plain JSON values."""

    def status(self) -> Json: ...
    def stop_daemon(self, *, kill_qubes: bool) -> None:
        """Begin to end the daemon; returns at once."""
        ...

    async def build_template(self, name: QubeName, wishes: Json, report: Report) -> Json: ...
    async def templates(self) -> Sequence[Json]: ...
    async def commit_template(self, name: QubeName, report: Report) -> Json: ...
    async def hold_trial(self, name: QubeName, report: Report) -> Json:
        """Start the qube so that what is written counts only once it is settled; over when it is, or when it stops.

        Cancelled before, the qube is killed and what was written is gone.
        """
        ...

    async def settle_trial(self, name: QubeName) -> None: ...
    async def take_preloaded(self, template: QubeName | None, source: QubeName) -> QubeName | None:
        """A disposable that was kept ready (it runs), of this template or of the source's default one; or None."""
        ...

    async def forkpoints(self) -> Sequence[Json]: ...
    async def make_forkpoint(self, name: QubeName, report: Report) -> Json: ...
    async def drop_forkpoints(self, *, key: str | None, template: QubeName | None) -> Sequence[str]: ...
    async def import_standalone(self, name: QubeName, wishes: Json, report: Report) -> Json: ...
    def policy_changed(self) -> None:
        """Somebody put policy files in place: look at them now rather than at the next call."""
        ...

    async def erase_audit(self, name: str) -> int:
        """Destroy the keys of the records about every qube that had this name last; how many qubes."""
        ...

    def trouble(self, name: QubeName) -> str:
        """Why a running qube stands still although nobody paused it; empty otherwise."""
        ...

    def network_trouble(self, name: QubeName) -> str:
        """Why a running qube has no network although it should; empty otherwise."""
        ...

    async def rule_counters(self, name: QubeName) -> Json:
        """What the qube's firewall rules have decided: ``rules`` (index: packets, bytes), ``refused``, ``spoofed``;
        NotNow while they are in force nowhere."""
        ...

    def outdated(self, name: QubeName) -> Sequence[str]:
        """Volumes of a running qube whose source has changed since it started."""
        ...
