"""What the broker sees of the system: who exists, who runs, and disposables for single calls.

In: the broker's questions. Out: the engine's answers. May import: engine, qrexec, policy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from cloison.engine.inventory import Ledger
from cloison.engine.qubes import Qubes
from cloison.engine.stock import Stock
from cloison.engine.system import System
from cloison.errors import QubeNotRunning
from cloison.model.inventory import Inventory
from cloison.model.names import QubeName
from cloison.model.power import PowerState
from cloison.policy import SystemInfo
from cloison.qrexec.link import RelayLink

Describe = Callable[[], Mapping[str, object]]
"""The picture of the system in the form of ``internal.GetSystemInfo``."""


class EngineTargets:
    """Implements the broker's ``Targets`` on the engine."""

    def __init__(self, system: System, ledger: Ledger, qubes: Qubes, stock: Stock, describe: Describe) -> None:
        self._system = system
        self._ledger = ledger
        self._qubes = qubes
        self._stock = stock
        self._describe = describe
        self._cached: tuple[Inventory, int, SystemInfo] | None = None

    def system_info(self) -> SystemInfo:
        inventory, changes = self._ledger.inventory, self._system.power_changes
        if self._cached is None or self._cached[0] is not inventory or self._cached[1] != changes:
            described = self._describe()
            self._cached = (inventory, changes, SystemInfo.parse(described))
        return self._cached[2]

    async def ensure_running(self, name: QubeName) -> None:
        if not self._ledger.inventory.qube(name).is_machine:
            raise QubeNotRunning(f"{name} is no machine of this host, and calls are not carried to other hosts")
        self._check_reachable(name)
        await self._system.start(name)
        if self._system.power_state(name) is PowerState.PAUSED:
            raise QubeNotRunning(f"{name} is paused", hint=f"`cloison unpause {name}` lets it go on")

    async def create_disposable(self, template: QubeName, source: QubeName) -> QubeName:
        if (ready := await self._stock.take(template, source, call_owned=True)) is not None:
            return ready
        name = await self._qubes.create_disposable(template, source=source)
        try:
            await self._system.start(name, call_owned=True)
        except BaseException:
            self._system.release(name)
            raise
        return name

    def release_disposable(self, name: QubeName) -> None:
        self._system.release(name)

    def _check_reachable(self, name: QubeName) -> None:
        """What waits for its first use is nobody's yet: whatever calls it by name would be its first user."""
        if self._stock.is_waiting(name):
            raise QubeNotRunning(f"{name} is kept ready for a call to a fresh disposable")

    def link(self, name: QubeName) -> RelayLink:
        self._check_reachable(name)
        link = self._system.link(name)
        if not isinstance(link, RelayLink):
            raise QubeNotRunning(f"{name} has no relay")
        return link
