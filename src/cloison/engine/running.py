"""What others may ask of the running system: the surface of the running verbs.

In: names. Out: power states, and machines that start and stop. May import: model. ``engine.system`` provides it.
"""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Protocol

from cloison.model.names import QubeName
from cloison.model.power import PowerState


class Seats(Protocol):
    """Who runs, and the promise that somebody stays halted for a while. The bookkeeping verbs need no more."""

    def power_state(self, name: QubeName) -> PowerState: ...
    def is_running(self, name: QubeName) -> bool:
        """Whether the qube has, or is about to get, a machine."""
        ...

    def running(self) -> frozenset[QubeName]:
        """Names of all qubes that have a machine now."""
        ...

    def halted(self, name: QubeName) -> AbstractAsyncContextManager[None]:
        """Hold a qube halted while it is changed; QubeNotHalted if it runs. Not re-entrant."""
        ...


class RunningVerbs(Seats, Protocol):
    """The verbs that need machines."""

    async def start(self, name: QubeName) -> None:
        """Returns when programs may run in it; silently when it runs already."""
        ...

    async def shutdown(self, name: QubeName, *, force: bool = False, wait: bool = False) -> None: ...
    async def kill(self, name: QubeName) -> None: ...
    async def pause(self, name: QubeName) -> None: ...
    async def grow_disk(self, name: QubeName, volume: str, size_bytes: int) -> None:
        """A volume's record says that it is larger: tell its running machine and guest, if there is one."""
        ...

    async def unpause(self, name: QubeName) -> None: ...
    def console_path(self, name: QubeName) -> Path:
        """Socket (or terminal) of the serial console; QubeNotRunning."""
        ...

    def console_log(self, name: QubeName) -> Path:
        """File with the last output of the serial console, also after the stop."""
        ...

    async def memory_kib(self, name: QubeName) -> int:
        """Resident memory of the qube's machine; 0 when it is halted."""
        ...

    def cpu_time_ns(self, name: QubeName) -> int:
        """Processor time its machine has used; 0 when it is halted."""
        ...
