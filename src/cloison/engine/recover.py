"""After a daemon ended in whatever way: find the running qubes again, put away the rest.

In: run records of the last daemon. Out: live qubes, no rests. May import: model, errors, driver interfaces.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import Iterable, Mapping

from cloison.drivers.hypervisor.base import Machine
from cloison.engine.events import QubeStopped
from cloison.engine.runs import Phase, Run
from cloison.engine.start import Ground, Live, end_volumes, settle_volumes
from cloison.engine.system import System
from cloison.errors import CloisonError
from cloison.model.names import QubeName
from cloison.model.power import PowerState

log = logging.getLogger(__name__)

RECONNECT_TIMEOUT_S = 10.0
"""How long the daemon's start waits for the agent of a found qube; one that is busy is tried again afterwards."""
RETRY_TIMEOUT_S = 60.0


async def recover(system: System, runs: Mapping[QubeName, Run], leftovers: Iterable[QubeName]) -> None:
    """Take every recorded run back or end it; then remove ``leftovers`` (disposables that nobody will come back for).

    Afterwards each qube of the old daemon is either live here or halted with its volumes closed.
    """
    await _end_unrecorded(system, runs)
    await asyncio.gather(*(_recover_one(system, name, run) for name, run in runs.items()))
    for name in leftovers:
        if system.find_live(name) is None:
            try:
                await system.books.forget(name)
                log.info("removed the disposable %s that an earlier daemon left", name)
            except CloisonError as error:
                log.error("the disposable %s could not be removed: %s", name, error)
    _sweep_runtime(system)


async def _end_unrecorded(system: System, runs: Mapping[QubeName, Run]) -> None:
    """End machines whose daemon died before it could write them down: their volumes must be closed before use."""
    root = system.ground.layout.machines_runtime
    recorded = {str(run.machine.get("directory", "")) for run in runs.values()}
    for directory in root.iterdir() if root.is_dir() else ():
        if str(directory) not in recorded:
            try:
                await system.ground.hypervisor.end_leftover(directory)
            except CloisonError as error:
                log.error("%s", error)


async def _recover_one(system: System, name: QubeName, run: Run) -> None:
    ground = system.ground
    if run.phase is Phase.RUNNING and not run.on_trial:
        try:
            await settle_volumes(ground.pool, run.volumes)  # the old daemon may have died in the middle of that
        except CloisonError as error:
            log.error("a volume of %s is in trouble: %s", name, error)
    machine = await ground.hypervisor.adopt(run.machine) if run.machine else None
    if machine is not None and run.phase is Phase.RUNNING and not (run.call_owned or run.on_trial):
        try:
            system.seat(await _take_back(ground, system, name, run, machine), _state(run))
        except CloisonError as error:
            log.error("%s cannot be taken back (%s): ending it", name, error)
        else:
            log.info("%s was found running", name)
            return
    if machine is not None:
        await machine.kill()
    try:
        await end_volumes(ground.pool, run.volumes)
    except CloisonError as error:
        log.error("a volume of %s is in trouble: %s", name, error)
    ground.write_run(name, None)
    log.warning("%s is not running any more; its run was put away", name)
    system.books.say(QubeStopped(name, "its daemon ended"))


def _state(run: Run) -> PowerState:
    return PowerState.PAUSED if run.paused else PowerState.RUNNING


async def _take_back(ground: Ground, system: System, name: QubeName, run: Run, machine: Machine) -> Live:
    facts = system.books.facts(name)
    live = Live(facts, run, machine, None, ground.layout.qube_runtime(facts.uuid))
    if facts.has_agent and run.paused:
        system.own(_reconnect(system, live), f"reconnect {name}")  # it answers once it goes on
    elif facts.has_agent:
        try:
            live.link = await ground.connector.connect(
                name, machine.agent_socket, ready_timeout_s=RECONNECT_TIMEOUT_S, resync=True, wait_ready=False
            )
        except CloisonError as error:
            log.warning("the agent of %s does not answer yet: %s", name, error)
            system.own(_reconnect(system, live), f"reconnect {name}")
    return live


async def _reconnect(system: System, live: Live) -> None:
    """Try again for as long as the machine lives."""
    name = live.facts.name
    while system.find_live(name) is live:
        try:
            live.link = await system.ground.connector.connect(
                name, live.machine.agent_socket, ready_timeout_s=RETRY_TIMEOUT_S, resync=True, wait_ready=False
            )
        except CloisonError as error:
            log.warning("the agent of %s still does not answer: %s", name, error)
            await asyncio.sleep(1)
        else:
            log.info("the agent of %s answers again", name)
            return


def _sweep_runtime(system: System) -> None:
    """Remove runtime directories that belong to no live qube."""
    root = system.ground.layout.machines_runtime
    mine = {live.directory for name in system.running() if (live := system.find_live(name)) is not None}
    for directory in root.iterdir() if root.is_dir() else ():
        if directory not in mine:
            shutil.rmtree(directory, ignore_errors=True)
