"""What dom0 has done in many running qubes at once: clocks set, sleep prepared and ended, templates asked for news.

In: the computer's sleep and its clock's jumps, starts of templates. Out: services run in guests. May import: model,
wire, errors. A guest that fails or is silent is told of in the log and holds up nobody.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, Protocol

from cloison.engine.agent import AgentLink
from cloison.engine.events import FeatureRemoved, FeatureSet, QubeStarted, QubeUnpaused
from cloison.engine.facts import CONFIG_PREFIX, SERVICE_PREFIX, facts_of
from cloison.engine.inventory import Ledger
from cloison.errors import CloisonError
from cloison.model.names import QubeName
from cloison.model.power import PowerState
from cloison.wire.dates import format_date

log = logging.getLogger(__name__)

SLEEP_TIMEOUT_S = 60.0
"""Of each service before and after sleep, as in Qubes."""
CLOCK_TIMEOUT_S = 30.0
POST_INSTALL_TIMEOUT_S = 300.0
"""An emulated template that has just booted is slow, and packages bring scripts of their own."""
NOT_FOUND = 127
PCI = "pci"


class Guests(Protocol):
    """Who runs, and how to reach them; ``engine.system`` provides it."""

    def running(self) -> frozenset[QubeName]: ...
    def power_state(self, name: QubeName) -> PowerState: ...
    def link(self, name: QubeName) -> AgentLink: ...
    async def pause(self, name: QubeName) -> None: ...
    async def unpause(self, name: QubeName) -> None: ...


class SleepVerbs(Protocol):
    """What the Admin API asks for."""

    async def suspend(self, name: QubeName) -> None: ...
    async def resume(self, name: QubeName) -> None: ...
    async def before_sleep(self) -> None: ...
    async def after_sleep(self) -> None: ...


class Errands:
    """Implements ``SleepVerbs``."""

    def __init__(self, guests: Guests, ledger: Ledger) -> None:
        self._guests = guests
        self._ledger = ledger
        self._asleep: set[QubeName] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    # -- sleep

    async def suspend(self, name: QubeName) -> None:
        """Prepare one qube for the sleep of the computer, and stop its processors."""
        await self._in_one(name, "qubes.SuspendPreAll", SLEEP_TIMEOUT_S)
        if self._has_pci(name):
            await self._in_one(name, "qubes.SuspendPre", SLEEP_TIMEOUT_S)
        await self._guests.pause(name)

    async def resume(self, name: QubeName) -> None:
        await self._guests.unpause(name)
        await self._wake(name)

    async def before_sleep(self) -> None:
        """The computer is about to sleep: every running qube is told; those with devices are stopped, too."""
        awake = self._awake()
        await self._in_all(awake, "qubes.SuspendPreAll", SLEEP_TIMEOUT_S)
        holders = [name for name in awake if self._has_pci(name)]
        await self._in_all(holders, "qubes.SuspendPre", SLEEP_TIMEOUT_S)
        for name in holders:
            try:
                await self._guests.pause(name)
                self._asleep.add(name)
            except CloisonError as error:
                log.warning("%s was not stopped before sleep: %s", name, error)

    async def after_sleep(self) -> None:
        for name in sorted(self._asleep):
            try:
                await self._guests.unpause(name)
            except CloisonError as error:
                log.warning("%s did not go on after sleep: %s", name, error)
        self._asleep.clear()
        awake = self._awake()
        await asyncio.gather(*(self._wake(name) for name in awake))
        if (clockvm := self._ledger.inventory.setting("clockvm")) in awake:
            await self._in_one(QubeName(str(clockvm)), "qubes.SyncNtpClock", CLOCK_TIMEOUT_S)

    async def _wake(self, name: QubeName) -> None:
        await self.set_clock(name)
        if self._has_pci(name):
            await self._in_one(name, "qubes.SuspendPost", SLEEP_TIMEOUT_S)
        await self._in_one(name, "qubes.SuspendPostAll", SLEEP_TIMEOUT_S)

    def _has_pci(self, name: QubeName) -> bool:
        qube = self._ledger.inventory.find(name)
        return qube is not None and any(assigned.devclass == PCI for assigned in qube.assignments)

    # -- time

    async def set_clock(self, name: QubeName) -> None:
        """A qube's clock becomes the computer's; a guest that is less than two seconds off ignores it."""
        await self._in_one(name, "qubes.SetDateTime", CLOCK_TIMEOUT_S, lambda: format_date(time.time_ns(), exact=True))

    async def set_clocks(self) -> None:
        await asyncio.gather(*(self.set_clock(name) for name in self._awake()))

    # -- starts

    async def follow(self) -> None:
        """For as long as the daemon runs: templates that have started say what they can, who was paused gets the
        time, and features that guests read reach them."""
        async for event in self._ledger.bus.subscribe():
            if isinstance(event, QubeUnpaused):
                qube = self._ledger.inventory.find(event.qube)
                if qube is None or qube.is_preloaded:
                    continue  # whoever takes it tells it the time, and must not wait for us
                self._begin(self.set_clock(event.qube), f"clock of {event.qube}")
            elif isinstance(event, FeatureSet | FeatureRemoved):
                if event.feature.startswith((SERVICE_PREFIX, CONFIG_PREFIX)):
                    self._tell_features(event.qube)
            elif isinstance(event, QubeStarted):
                qube = self._ledger.inventory.find(event.qube)
                if qube is not None and qube.klass.keeps_root:
                    self._begin(self._post_install(event.qube), f"post-install of {event.qube}")

    def _tell_features(self, holder: QubeName) -> None:
        """A feature that guests are told of was changed: it reaches the running qubes that have or inherit it."""
        for name in self._awake():
            qube = self._ledger.inventory.find(name)
            chain = self._ledger.inventory.chain(name, "template") if qube is not None else ()
            if holder in (member.name for member in chain):
                self._begin(self._tell_one(name), f"features of {name}")

    async def _tell_one(self, name: QubeName) -> None:
        try:
            facts = facts_of(self._ledger.inventory, name)
            fields = {"services": dict(facts.services), "vm_config": dict(facts.vm_config)}
            await self._guests.link(name).control("tell", fields, timeout_s=CLOCK_TIMEOUT_S)
        except CloisonError as error:
            log.warning("%s was not told of its changed features: %s", name, error)

    async def _post_install(self, name: QubeName) -> None:
        await self._in_one(name, "qubes.PostInstall", POST_INSTALL_TIMEOUT_S)

    def _begin(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # -- inside

    def _awake(self) -> list[QubeName]:
        running = self._guests.running()
        return sorted(name for name in running if self._guests.power_state(name) is PowerState.RUNNING)

    async def _in_all(self, names: Iterable[QubeName], service: str, timeout_s: float) -> None:
        await asyncio.gather(*(self._in_one(name, service, timeout_s) for name in names))

    async def _in_one(self, name: QubeName, service: str, timeout_s: float, stdin: Callable[[], bytes] = bytes) -> None:
        try:
            link = self._guests.link(name)
            result = await link.run_service(service, user="root", stdin=stdin(), timeout_s=timeout_s)
        except CloisonError as error:
            log.warning("%s in %s: %s", service, name, error)
            return
        if result.exit_code not in (0, NOT_FOUND):
            said = result.stderr.decode("utf-8", "replace").strip()[-200:]
            log.warning("%s in %s ended with code %d: %a", service, name, result.exit_code, said)
