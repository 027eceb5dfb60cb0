"""The running system: which qubes live, and the verbs that change that.

In: verbs from the Admin API and the broker. Out: changed state, events. May import: model, errors, driver interfaces.

One lock per qube orders its verbs; every background task is owned here and ends with ``close``.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from cloison.drivers.hypervisor.base import Drive, StopReason
from cloison.engine.agent import AgentLink
from cloison.engine.events import (
    Event,
    QubeFilesVerified,
    QubePaused,
    QubeShutdownFailed,
    QubeShutdownRequested,
    QubeSpawned,
    QubeSpawnRequested,
    QubeStarted,
    QubeStartFailed,
    QubeStartRequested,
    QubeStopped,
    QubeUnpaused,
)
from cloison.engine.runs import Phase
from cloison.engine.start import Facts, Ground, Live, check_startable, launch, settle_volumes
from cloison.engine.stop import ask_to_stop, put_away
from cloison.errors import (
    BackendFailed,
    BadRequest,
    CloisonError,
    NotNow,
    QubeInUse,
    QubeNotFound,
    QubeNotHalted,
    QubeNotPaused,
    QubeNotRunning,
    QubeNotStarted,
    ShutdownTimedOut,
)
from cloison.model.names import DOM0, QubeName
from cloison.model.power import PowerState

log = logging.getLogger(__name__)

RESIZE_TIMEOUT_S = 300.0
"""Growing a file system by hundreds of gigabytes takes an emulated guest minutes."""
CABLE_WAIT_S = 10.0
"""Longest wait of a call's new disposable for its network: a command that needs one at once finds it, and a netvm that
is stuck does not hold up one that does not."""


class Books(Protocol):
    """What the running verbs need of the bookkeeping."""

    def facts(self, name: QubeName) -> Facts:
        """Everything a start needs, from the present inventory; QubeNotFound."""
        ...

    def say(self, event: Event) -> None:
        """Publish an event."""
        ...

    def running_users(self, name: QubeName, running: frozenset[QubeName]) -> list[QubeName]:
        """Those of ``running`` that use ``name`` as netvm, guivm or audiovm."""
        ...

    async def forget(self, name: QubeName) -> None:
        """Remove the record and the volumes of a halted qube."""
        ...


class Cables(Protocol):
    """Who joins running qubes to their netvms."""

    async def before_start(self, name: QubeName) -> None:
        """Whatever must run before the qube may start; CloisonError if that cannot be."""
        ...

    async def started(self, name: QubeName) -> None:
        """The qube runs and its agent knows who it is. Raises nothing."""
        ...

    def stopped(self, name: QubeName) -> None:
        """Its machine is gone."""
        ...

    def unpaused(self, name: QubeName) -> None: ...
    def trouble(self, name: QubeName) -> str:
        """Why a running qube has no network although it should; empty: it has, or should have none."""
        ...

    async def rule_counters(self, name: QubeName) -> Mapping[str, object]:
        """What the qube's firewall rules have decided; NotNow while they are in force nowhere."""
        ...


class NoCables:
    """Nobody has a network."""

    async def before_start(self, name: QubeName) -> None: ...
    async def started(self, name: QubeName) -> None: ...
    def stopped(self, name: QubeName) -> None: ...
    def unpaused(self, name: QubeName) -> None: ...
    def trouble(self, name: QubeName) -> str:
        return ""

    async def rule_counters(self, name: QubeName) -> Mapping[str, object]:
        raise NotNow(f"{name} has no network")


class Drives(Protocol):
    """Who gives running qubes the devices of their disks' kind."""

    def required(self, name: QubeName) -> AbstractContextManager[tuple[Drive, ...]]:
        """What the qube must have from its start, held open meanwhile; NotNow if something is missing."""
        ...

    async def started(self, name: QubeName) -> None:
        """The qube runs. Raises nothing."""
        ...

    def stopped(self, name: QubeName) -> None:
        """Its machine is gone."""
        ...


class NoDrives:
    """Nobody has any."""

    def required(self, name: QubeName) -> AbstractContextManager[tuple[Drive, ...]]:
        return contextlib.nullcontext(())

    async def started(self, name: QubeName) -> None: ...
    def stopped(self, name: QubeName) -> None: ...


@dataclass
class _Seat:
    """One qube's place: its lock, and its run while it lives."""

    lock: asyncio.Lock
    state: PowerState = PowerState.HALTED
    live: Live | None = None
    watcher: asyncio.Task[None] | None = None
    wanted_down: bool = False


class System:
    """See the module. Make it, ``await recover(...)`` (recover.py), use it, ``await close()``."""

    def __init__(self, ground: Ground, books: Books, *, on_committed: Callable[[QubeName], None]) -> None:
        self.ground = ground
        self.books = books
        self._on_committed = on_committed
        self.cables: Cables = NoCables()
        self.drives: Drives = NoDrives()
        self._seats: dict[QubeName, _Seat] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closing = False
        self.starting = 0
        """How many qubes are being started now."""
        self.last_start = float("-inf")
        """When the last start ended, by the loop's clock."""
        self.power_changes = 0
        """Counts changes of power states, for whoever keeps a picture of them."""

    # -- looking

    def power_state(self, name: QubeName) -> PowerState:
        if name == DOM0:
            return PowerState.RUNNING
        seat = self._seats.get(name)
        if seat is None:
            return PowerState.HALTED
        if seat.state is PowerState.RUNNING and seat.live is not None and seat.live.machine.is_leaving:
            return PowerState.HALTING  # the guest powers off by itself
        return seat.state

    def trouble(self, name: QubeName) -> str:
        """Why a running qube stands still although nobody paused it; empty: it does not."""
        live = self.find_live(name)
        return live.machine.trouble if live is not None else ""

    def is_running(self, name: QubeName) -> bool:
        return self.power_state(name) not in (PowerState.HALTED, PowerState.CRASHED)

    def running(self) -> frozenset[QubeName]:
        """Names of all qubes that have a machine now."""
        return frozenset(name for name, seat in self._seats.items() if seat.live is not None)

    def find_live(self, name: QubeName) -> Live | None:
        seat = self._seats.get(name)
        return seat.live if seat else None

    def live(self, name: QubeName) -> Live:
        if (live := self.find_live(name)) is None:
            raise QubeNotRunning(f"{name} is not running", hint=f"`cloison start {name}` starts it")
        return live

    def link(self, name: QubeName) -> AgentLink:
        """The agent of a running qube; QubeNotRunning if it has none."""
        if (link := self.live(name).link) is None:
            raise QubeNotRunning(f"{name} runs without an agent", hint=f"`cloison console {name}` reaches it")
        return link

    def console_path(self, name: QubeName) -> Path:
        return self.live(name).machine.console_socket

    def console_log(self, name: QubeName) -> Path:
        """The last output of the serial console; kept after the stop, until the next start."""
        live = self.find_live(name)
        return live.machine.console_log if live is not None else self.ground.kept_console_log(name)

    async def memory_kib(self, name: QubeName) -> int:
        live = self.find_live(name)
        return await live.machine.memory_kib() if live is not None else 0

    def cpu_time_ns(self, name: QubeName) -> int:
        live = self.find_live(name)
        return live.machine.cpu_time_ns() if live is not None else 0

    # -- verbs

    async def start(self, name: QubeName, *, call_owned: bool = False, on_trial: bool = False) -> None:
        """Start the qube; returns when its agent knows who it is. A running qube is left alone (no error), but cannot
        be put on trial: QubeNotHalted.

        A disposable that cleans up after itself goes as well when it does not start, soon after the error is raised.
        """
        if name == DOM0:
            raise QubeNotHalted("dom0 is always running")
        async with self._turn(name) as seat:
            if seat.live is not None:
                if on_trial:
                    raise QubeNotHalted(f"{name} is running", hint=f"`cloison shutdown {name}` first")
                return
            facts = self.books.facts(name)
            self._turn_to(seat, PowerState.TRANSIENT)
            self.starting += 1
            start_id = str(uuid.uuid4())
            self.books.say(QubeStartRequested(name, start_id, facts.memory_mib))
            try:
                check_startable(facts)
                self.books.say(QubeFilesVerified(name))
                await self.cables.before_start(name)
                with self.drives.required(name) as drives:
                    live = await launch(self.ground, facts, call_owned=call_owned, on_trial=on_trial, drives=drives,
                                        on_spawned=lambda: self._say_spawned(name, start_id))  # fmt: skip
            except BaseException as error:
                self._turn_to(seat, PowerState.HALTED)
                reason = str(error) if isinstance(error, CloisonError) else type(error).__name__
                self.books.say(QubeStartFailed(name, reason))
                if facts.auto_cleanup and not self._closing:
                    self.own(self._forget(name), f"forget {name}")
                raise
            finally:
                self.starting -= 1
                self.last_start = asyncio.get_running_loop().time()
            self.seat(live, PowerState.RUNNING)
            self.books.say(QubeStarted(name, start_id))
            log.info("%s started (%s)", name, live.run.mode.value)
            await self.drives.started(name)
        cable = self.own(self.cables.started(name), f"cable of {name}")
        await asyncio.wait({cable}, timeout=CABLE_WAIT_S if call_owned else None)

    def _say_spawned(self, name: QubeName, start_id: str) -> None:
        for event in (QubeSpawnRequested(name, start_id), QubeSpawned(name, start_id)):
            self.books.say(event)

    def seat(self, live: Live, state: PowerState) -> None:
        """Take a live qube into the system and watch over it."""
        seat = self._seats.setdefault(live.facts.name, _Seat(asyncio.Lock()))
        seat.live, seat.wanted_down = live, False
        self._turn_to(seat, state)
        seat.watcher = self.own(self._watch(seat, live), f"watch {live.facts.name}")

    async def shutdown(self, name: QubeName, *, force: bool = False, wait: bool = False) -> None:
        """Ask the guest to power off. ``wait``: until it is off, or ShutdownTimedOut (it is not killed)."""
        seat, live = self._standing(name)
        self.books.say(QubeShutdownRequested(name, force))
        users = self.books.running_users(name, self.running())
        if users and not force:
            reason = f"{name} is used by running qubes: {', '.join(users)}"
            self.books.say(QubeShutdownFailed(name, reason))
            raise QubeInUse(reason, hint="shut them down first, or use force", others=users)
        if seat.state is PowerState.PAUSED:
            if not force:
                raise QubeNotRunning(f"{name} is paused", hint=f"`cloison unpause {name}` first, or use force")
            await self.kill(name)
            return
        seat.wanted_down = True
        await ask_to_stop(live)
        if seat.live is live:
            self._turn_to(seat, PowerState.HALTING)
        if wait:
            assert seat.watcher is not None
            limit = live.facts.shutdown_timeout_s
            done, _ = await asyncio.wait({seat.watcher}, timeout=limit)
            if not done:
                raise ShutdownTimedOut(
                    f"{name} is not off after {limit:g} s", hint=f"wait longer, or `cloison kill {name}`"
                )

    async def kill(self, name: QubeName) -> None:
        """End the qube now; returns when it is cleaned up."""
        seat, live = self._standing(name)
        seat.wanted_down = True
        if live.link is not None:
            await live.link.close()
        await live.machine.kill()
        assert seat.watcher is not None
        await asyncio.wait({seat.watcher})

    async def pause(self, name: QubeName) -> None:
        async with self._turn(name) as seat:
            live = self.live(name)
            if seat.state is PowerState.PAUSED:
                raise QubeNotRunning(f"{name} is paused already")
            await live.machine.pause()
            self._write_paused(live, paused=True)
            self._turn_to(seat, PowerState.PAUSED)
            self.books.say(QubePaused(name))

    async def unpause(self, name: QubeName) -> None:
        async with self._turn(name) as seat:
            live = self.live(name)
            if seat.state is not PowerState.PAUSED:
                raise QubeNotPaused(f"{name} is not paused")
            await live.machine.resume()
            self._write_paused(live, paused=False)
            self._turn_to(seat, PowerState.RUNNING)
            self.books.say(QubeUnpaused(name))
        self.cables.unpaused(name)

    async def grow_disk(self, name: QubeName, volume: str, size_bytes: int) -> None:
        """The volume became larger: tell the machine, and the guest, which then grows its file system."""
        live = self.find_live(name)
        if live is None or volume not in live.facts.volumes:
            return
        await live.machine.grow_disk(volume, size_bytes)
        if live.link is not None and volume != "volatile":
            result = await live.link.run_service(
                "qubes.ResizeDisk", user="root", stdin=f"{volume}\n".encode(), timeout_s=RESIZE_TIMEOUT_S
            )
            if result.exit_code != 0:
                said = result.stderr.decode(errors="replace").strip()[-200:]
                raise BackendFailed(f"{name} did not grow the file system of its {volume} volume: {said!a}")

    def release(self, name: QubeName) -> None:
        """A disposable's task is done: end it and remove all traces, in the background."""
        self.own(self.dispose(name), f"release {name}")

    async def settle(self, live: Live) -> None:
        """What a run on trial wrote shall be kept. The record of the run decides, whatever dies next: the volumes
        follow it, now or in the next daemon."""
        live.run = replace(live.run, on_trial=False)
        self.ground.write_run(live.facts.name, live.run)
        await settle_volumes(self.ground.pool, live.run.volumes)

    async def wait_ended(self, live: Live) -> None:
        """Until this run is over and put away."""
        seat = self._seats.get(live.facts.name)
        if seat is not None and seat.live is live and seat.watcher is not None:
            await asyncio.wait({seat.watcher})

    def set_call_owned(self, live: Live, call_owned: bool) -> None:
        """Write down whether the run is lost with the daemon."""
        if live.run.call_owned is not call_owned:
            live.run = replace(live.run, call_owned=call_owned)
            self.ground.write_run(live.facts.name, live.run)

    # -- inside

    @contextlib.asynccontextmanager
    async def _turn(self, name: QubeName) -> AsyncIterator[_Seat]:
        seat = self._seats.setdefault(name, _Seat(asyncio.Lock()))
        async with seat.lock:
            yield seat

    @contextlib.asynccontextmanager
    async def halted(self, name: QubeName) -> AsyncIterator[None]:
        """Hold a qube halted while it is changed; QubeNotHalted if it runs."""
        async with self._turn(name) as seat:
            if seat.live is not None:
                raise QubeNotHalted(f"{name} is running", hint=f"`cloison shutdown {name}` first", others=[name])
            yield

    def _turn_to(self, seat: _Seat, state: PowerState) -> None:
        seat.state = state
        self.power_changes += 1

    def _standing(self, name: QubeName) -> tuple[_Seat, Live]:
        if name == DOM0:
            raise BadRequest("dom0 cannot be stopped from here")
        seat = self._seats.get(name)
        if seat is None or seat.live is None:
            self.books.facts(name)
            raise QubeNotStarted(f"{name} is not running")
        return seat, seat.live

    def _write_paused(self, live: Live, *, paused: bool) -> None:
        live.run = replace(live.run, paused=paused)
        self.ground.write_run(live.facts.name, live.run)

    async def _watch(self, seat: _Seat, live: Live) -> None:
        name = live.facts.name
        reason = await live.machine.wait_stopped()
        expected = seat.wanted_down or reason is StopReason.GUEST_POWEROFF
        log.log(logging.INFO if expected else logging.WARNING, "%s stopped: %s", name, reason.value)
        self._turn_to(seat, PowerState.DYING)
        try:
            await put_away(self.ground, live, clean=reason is StopReason.GUEST_POWEROFF)
        except CloisonError as error:
            log.error("%s was not put away cleanly: %s", name, error)
        finally:
            seat.live = None
            self._turn_to(seat, PowerState.HALTED)
            self.cables.stopped(name)
            self.drives.stopped(name)
        self.books.say(QubeStopped(name, reason.value))
        if live.facts.kept_root and not live.run.on_trial:
            self._on_committed(name)
        if live.facts.auto_cleanup:
            await self._forget(name)

    async def dispose(self, name: QubeName) -> None:
        """End a disposable and remove all traces; returns when it is done."""
        if self.find_live(name) is not None:
            with contextlib.suppress(CloisonError):
                await self.kill(name)
        else:
            await self._forget(name)

    async def _forget(self, name: QubeName) -> None:
        try:
            async with self.halted(name):
                await self.books.forget(name)
                self._seats.pop(name, None)
        except QubeNotFound:
            pass  # somebody else was faster
        except CloisonError as error:
            log.error("%s could not be removed: %s", name, error)

    # -- tasks

    def own(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """Run a background task until it ends or the system closes; its failure is logged."""
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._task_done)
        return task

    def _task_done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("task %r failed", task.get_name(), exc_info=error)

    async def close(self) -> None:
        """Let go of everything; qubes keep running for the next daemon."""
        self._closing = True
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for seat in self._seats.values():
            if (live := seat.live) is None:
                continue
            if live.link is not None:
                with contextlib.suppress(CloisonError):
                    await live.link.close()
            await live.machine.detach()


def lost_with_daemon(live: Live) -> bool:
    """Whether this run makes no sense after its daemon ended (a disposable whose caller is gone, a trial, a half
    start)."""
    return live.run.call_owned or live.run.on_trial or live.run.phase is not Phase.RUNNING
