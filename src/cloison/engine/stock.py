"""Disposables kept ready: started and told who they are before anybody asks, then paused until one is wanted.

In: wishes for disposables, changes of records. Out: disposables that answer at once. May import: model, errors.

How many is the feature ``preload-dispvm-max`` of a disposable template (on dom0: of the system's default one, going
before the template's own). One that waits is an ordinary unnamed disposable which nothing reaches, marked by features
that only the daemon writes; it belongs to the daemon, so that one killed with -9 leaves none behind. It is thrown away
when it is no longer what a new one would be. At its hand-over it gets new randomness and the time of now.

One is made at a time, when no other qube starts and memory is plentiful; so a busy machine makes none.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import logging
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field

from cloison.drivers.state.base import Transaction
from cloison.engine import events as e
from cloison.engine.facts import facts_of
from cloison.engine.inventory import Ledger
from cloison.engine.qubes import Qubes
from cloison.engine.start import FORKED_COST_MIB, available_memory_mib
from cloison.engine.system import System
from cloison.errors import CloisonError, NotNow
from cloison.model.inventory import Inventory
from cloison.model.names import DOM0, QubeName
from cloison.model.power import PowerState
from cloison.model.qube import Qube

log = logging.getLogger(__name__)

WANTED, DELAY, MEMORY_LEFT = "preload-dispvm-max", "preload-dispvm-delay", "preload-dispvm-threshold"
LISTED, INTERNAL, COMING, COMPLETE = (
    "preload-dispvm",
    "internal",
    "preload-dispvm-in-progress",
    "preload-dispvm-completed",
)
MAX_WAITING = 50
"""Of one template, whatever its feature says: each is a running machine."""
DEFAULT_MEMORY_LEFT_MIB = 512
"""Available memory below which what waits is given up again."""


@dataclass(frozen=True)
class Pace:
    """How fast the stock is filled and looked after; each number in seconds."""

    delay_s: float = 3.0
    """After a start or a hand-over, until the next one is made (feature ``preload-dispvm-delay``)."""
    look_s: float = 10.0
    """Between looks at free memory."""
    settle_s: float = 4.0
    """From the start until it may be paused: by then the guest's agent has caught up with what it put off."""
    settled_share: float = 0.15
    """A guest that uses less of a processor than this has nothing more to do..."""
    settle_limit_s: float = 20.0
    """...but it is paused after this time in any case."""
    hand_over_timeout_s: float = 5.0
    """For the agent's answer at the hand-over; an ordinary start is next then."""
    longest_pause_s: float = 300.0
    """Between attempts that fail."""


@dataclass(eq=False)
class _Waiting:
    name: QubeName
    recipe: str
    """What it was made from."""
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while it is paused or handed over."""


class Stock:
    """See the module. ``start`` it once recovery is done; ``close`` it before the system."""

    def __init__(
        self,
        system: System,
        ledger: Ledger,
        qubes: Qubes,
        *,
        pace: Pace | None = None,
        available_mib: Callable[[], int] = available_memory_mib,
    ) -> None:
        self._system = system
        self._ledger = ledger
        self._qubes = qubes
        self._pace = pace or Pace()
        self._available_mib = available_mib
        self._waiting: dict[QubeName, list[_Waiting]] = {}
        """By template, oldest first."""
        self._coming: QubeName | None = None
        self._making = asyncio.Lock()
        self._barred: set[QubeName] = set()
        """Templates that are just being removed or renamed."""
        self._last_use = float("-inf")
        self._failures = 0
        self._wake = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    # -- asking ----------------------------------------------------------------------------------------------------

    def is_waiting(self, name: str) -> bool:
        """Whether this qube is made for a use that has not come yet: nothing may reach it."""
        return name == self._coming or any(name == one.name for one in self._all())

    def names(self, template: QubeName) -> list[QubeName]:
        """Those that wait, oldest first."""
        return [one.name for one in self._waiting.get(template, ())]

    async def take(self, template: QubeName | None, source: QubeName, *, call_owned: bool) -> QubeName | None:
        """A running disposable that was never used, now ``source``'s; None if there is none (make a new one).

        ``call_owned``: it is lost with the daemon, because the call is. Never raises: one that is of no use is
        thrown away.
        """
        if template is None:
            chosen = self._ledger.inventory.peer(source, "default_dispvm")
            template = None if chosen is None else chosen.name
        while template is not None and (queue := self._waiting.get(template)):
            one = queue.pop(0)
            self._last_use = asyncio.get_running_loop().time()
            try:
                if one.recipe == await self._recipe(template):
                    await self._hand_over(one, template, source, call_owned=call_owned)
                    self._wake.set()
                    return one.name
                log.info("%s is thrown away: %s has changed since it was made", one.name, template)
            except CloisonError as error:
                log.warning("%s, kept ready, is of no use: %s", one.name, error)
            except asyncio.CancelledError:
                self._throw_away(one.name, template)
                raise
            self._throw_away(one.name, template)
        return None

    # -- life ------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to keep the stock: fill it now, and after each change."""
        with self._ledger.change(durable=False) as records:
            for qube in self._ledger.inventory:
                if LISTED in qube.features:  # of an earlier daemon: recovery has ended them
                    records.remove_feature(qube.name, LISTED)
        self._tasks = [
            asyncio.create_task(self._follow(self._ledger.bus.subscribe()), name="stock: events"),
            asyncio.create_task(self._keep(), name="stock: keeper"),
        ]

    async def close(self) -> None:
        """End all that wait; returns when nothing is left of them."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        doomed = [one.name for one in self._all()]
        self._waiting.clear()
        await asyncio.gather(*(self._system.dispose(name) for name in doomed))

    @contextlib.asynccontextmanager
    async def leaving(self, template: QubeName) -> AsyncIterator[None]:
        """While a template is removed or renamed: nothing is, or will be, kept ready of it."""
        self._barred.add(template)
        try:
            async with self._making:  # one that is just being made ends first
                self._waiting.pop(template, None)
            inventory = self._ledger.inventory
            doomed = [q.name for q in inventory.children(template) if q.is_preloaded]
            await asyncio.gather(*(self._system.dispose(name) for name in doomed))
            yield
        finally:
            self._barred.discard(template)
            self._wake.set()

    async def _follow(self, events: e.Subscription) -> None:
        async for event in events:
            if isinstance(event, e.QubeUnpaused) and (found := self._find(event.qube)):
                await self._used_by_hand(*found)
            self._wake.set()

    async def _used_by_hand(self, one: _Waiting, template: QubeName) -> None:
        """Somebody unpaused it: it is theirs."""
        self._waiting[template].remove(one)
        try:
            await self._hand_over(one, template, DOM0, call_owned=False)
        except CloisonError as error:
            log.warning("%s was unpaused but does not answer: %s", one.name, error)

    async def _keep(self) -> None:
        while True:
            self._wake.clear()
            try:
                pause_s = await self._round()
                self._failures = 0
            except CloisonError as error:
                self._failures += 1
                pause_s = min(self._pace.delay_s * 2**self._failures, self._pace.longest_pause_s)
                log.warning("no disposable could be made ready (next attempt in %.0f s): %s", pause_s, error)
                await asyncio.sleep(pause_s)
                continue
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._wake.wait()

    async def _round(self) -> float | None:
        """Throw away what is of no use, make one if it is wanted; seconds until the next look (None: when woken)."""
        wanted = wanted_stock(self._ledger.inventory)
        await self._discard(wanted)
        missing = self._find_missing(wanted)
        if missing is None:
            return self._pace.look_s if any(self._all()) else None
        wait_s = self._not_now_s(missing)
        if wait_s > 0:
            return wait_s
        await self._make(missing)
        return 0.0

    def _find_missing(self, wanted: dict[QubeName, int]) -> QubeName | None:
        for template, count in wanted.items():
            have = len(self._waiting.get(template, ()))
            if template in self._barred:
                continue
            if have < count and not (have and self._delay_s(template) < 0) and self._has_network(template):
                return template
        return None

    def _not_now_s(self, template: QubeName) -> float:
        """How long to wait because the machine has better things to do; 0: now."""
        if self._system.starting or self._system.ground.forkpoints.making():
            return self._pace.delay_s
        if self._available_mib() < self._memory_left_mib() + 2 * FORKED_COST_MIB:
            return self._pace.look_s
        since = max(self._last_use, self._system.last_start)
        delay_s = abs(self._delay_s(template))
        return max(0.0, since + delay_s - asyncio.get_running_loop().time())

    async def _discard(self, wanted: dict[QubeName, int]) -> None:
        for template, queue in list(self._waiting.items()):
            recipe = await self._recipe(template) if queue and template in wanted else ""
            for place, one in enumerate(list(queue)):
                if self._system.find_live(one.name) is None:
                    why = "it ended"
                elif place >= wanted.get(template, 0):
                    why = "it is not wanted any more"
                elif one.recipe != recipe:
                    why = f"{template} has changed since it was made"
                elif place == 0 and self._available_mib() < self._memory_left_mib():
                    why = "memory is short"
                else:
                    continue
                if one in queue:  # nobody took it meanwhile
                    log.info("%s, kept ready, is thrown away: %s", one.name, why)
                    queue.remove(one)
                    self._throw_away(one.name, template)

    def _throw_away(self, name: QubeName, template: QubeName) -> None:
        self._list(template)
        self._system.release(name)

    # -- making ----------------------------------------------------------------------------------------------------

    async def _make(self, template: QubeName) -> None:
        self._ledger.tell(e.PreloadBegun(template, "fill"))
        async with self._making:
            try:
                one = await self._start_one(template)
            finally:
                self._coming = None
        log.info("%s of %s is ready for its first use", one.name, template)
        await self._settle(one, template)

    async def _start_one(self, template: QubeName) -> _Waiting:
        name = self._coming = await self._qubes.create_disposable(
            template, source=DOM0, features={INTERNAL: "1", COMING: "1"}
        )
        try:
            recipe = await self._recipe(template, with_network=False)
            await self._system.start(name, call_owned=True)
            if template in self._barred or recipe != await self._recipe(template, with_network=False):
                raise NotNow(f"{template} changed while a disposable was made of it")
            one = _Waiting(name, await self._recipe(template))
            await self._warm(name)
            self._waiting.setdefault(template, []).append(one)
            with self._ledger.change(durable=False) as records:
                records.set_feature(name, COMING, "")
                records.set_feature(name, COMPLETE, "1")
                self._list_in(records, template)
        except BaseException:
            await asyncio.shield(self._system.dispose(name))
            raise
        return one

    async def _warm(self, name: QubeName) -> None:
        """Run a program as a first call will, so that all the code on its way has run once."""
        result = await self._system.link(name).run_service("command:true", timeout_s=60.0)
        if result.exit_code != 0:
            log.warning("the first program in %s ended with %d", name, result.exit_code)

    async def _settle(self, one: _Waiting, template: QubeName) -> None:
        """Pause it once it has nothing to do, unless it was taken before."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        while one in self._waiting.get(template, ()):
            used_ns, at = self._system.cpu_time_ns(one.name), loop.time()
            await asyncio.sleep(self._pace.settle_s / 4)
            share = (self._system.cpu_time_ns(one.name) - used_ns) / 1e9 / max(0.001, loop.time() - at)
            age_s = loop.time() - began
            if age_s >= self._pace.settle_s and (share < self._pace.settled_share or age_s > self._pace.settle_limit_s):
                async with one.lock:
                    if one in self._waiting.get(template, ()) and self._system.find_live(one.name):
                        await self._system.pause(one.name)
                return

    # -- handing over ----------------------------------------------------------------------------------------------

    async def _hand_over(self, one: _Waiting, template: QubeName, source: QubeName, *, call_owned: bool) -> None:
        """Wake it, tell it what it missed, make it a disposable like any other."""
        async with one.lock:
            live = self._system.live(one.name)
            if self._system.power_state(one.name) is PowerState.PAUSED:
                await self._system.unpause(one.name)
            entropy = base64.b64encode(os.urandom(64)).decode()
            await self._system.link(one.name).control(
                "refresh",
                {"clock_ns": time.time_ns(), "entropy": entropy},
                timeout_s=self._pace.hand_over_timeout_s,
            )
            tag = f"disp-created-by-{source}"
            with self._ledger.change(durable=False) as records:
                for feature in (INTERNAL, COMING):
                    records.remove_feature(one.name, feature)
                records.add_tag(one.name, tag)
                self._list_in(records, template)
            self._system.set_call_owned(live, call_owned)
        self._ledger.tell(
            e.FeatureRemoved(one.name, INTERNAL),
            e.TagAdded(one.name, tag),
            e.PropertyReset(one.name, "is_preload", True, is_consequence=True),
            e.PreloadUsed(template, one.name, self._delay_s(template)),
        )

    # -- records ---------------------------------------------------------------------------------------------------

    def _list(self, template: QubeName) -> None:
        """Write down which wait, where clients look for it."""
        with self._ledger.change(durable=False) as records:
            self._list_in(records, template)

    def _list_in(self, records: Transaction, template: QubeName) -> None:
        qube = self._ledger.inventory.find(template)
        if qube is None:
            return
        names = " ".join(self.names(template))
        if names:
            records.set_feature(template, LISTED, names)
        elif LISTED in qube.features:
            records.remove_feature(template, LISTED)

    async def _recipe(self, template: QubeName, *, with_network: bool = True) -> str:
        """All that a disposable made now would be made from."""
        inventory = self._ledger.inventory
        facts = facts_of(inventory, template)
        revisions = []
        for ref in (facts.root_source, facts.private_source):
            info = await self._system.ground.pool(ref.pool).info(ref.vid)
            revisions.append((info.revision_id, info.size_bytes))
        netvm = inventory.peer(template, "netvm")
        network = netvm and with_network and (live := self._system.find_live(netvm.name)) and live.run.started_at
        chain = [_made_from(qube) for qube in inventory.chain(template, "template")]
        return repr((facts, revisions, chain, sorted(inventory.settings.items()), netvm and netvm.name, network))

    def _has_network(self, template: QubeName) -> bool:
        """Whether the netvm runs, if there is one: what waits must not be why it starts."""
        netvm = self._ledger.inventory.peer(template, "netvm")
        return netvm is None or self._system.find_live(netvm.name) is not None

    def _delay_s(self, template: QubeName) -> float:
        inventory = self._ledger.inventory
        for holder in (inventory.find(template), inventory.find(DOM0)):
            with contextlib.suppress(ValueError):
                if holder is not None and holder.features.get(DELAY):
                    return float(holder.features[DELAY])
        return self._pace.delay_s

    def _memory_left_mib(self) -> int:
        text = self._ledger.inventory.qube(DOM0).features.get(MEMORY_LEFT, "")
        return int(text) if text.isdigit() else DEFAULT_MEMORY_LEFT_MIB

    def _all(self) -> Iterator[_Waiting]:
        for queue in self._waiting.values():
            yield from queue

    def _find(self, name: QubeName) -> tuple[_Waiting, QubeName] | None:
        for template, queue in self._waiting.items():
            for one in queue:
                if one.name == name:
                    return one, template
        return None


def wanted_stock(inventory: Inventory) -> dict[QubeName, int]:
    """How many shall wait, by disposable template."""
    default = inventory.setting("default_dispvm")
    overriding = inventory.qube(DOM0).features.get(WANTED)
    wanted: dict[QubeName, int] = {}
    for qube in inventory:
        text = overriding if qube.name == default and overriding is not None else qube.features.get(WANTED)
        count = min(int(text), MAX_WAITING) if text and text.isdigit() else 0
        if count and _makes_disposables(inventory, qube):
            wanted[qube.name] = count
    return wanted


def _makes_disposables(inventory: Inventory, qube: Qube) -> bool:
    return (
        qube.is_machine
        and bool(qube.properties.get("template_for_dispvms"))
        and not qube.features.get("prohibit-start")
    )


def _made_from(qube: Qube) -> tuple[object, ...]:
    features = sorted((f, v) for f, v in qube.features.items() if not f.startswith("preload-dispvm"))
    sizes = sorted((v.name, v.size_bytes) for v in qube.volumes.values())
    return (qube.name, qube.label, sorted(qube.properties.items()), features, sorted(qube.tags), sizes,
            qube.assignments, qube.firewall)  # fmt: skip
