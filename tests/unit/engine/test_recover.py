"""After the daemon's death: running qubes are found, everything else is put away."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest

from cloison.engine.events import Event
from cloison.engine.recover import recover
from cloison.engine.runs import Phase, Run
from cloison.engine.start import Facts, launch
from cloison.engine.system import System
from cloison.model.names import QubeName
from cloison.model.power import PowerState

from .conftest import Bench, CountingMachine

MakeBench = Callable[[], Bench]


class Records:
    """The bookkeeping of one qube."""

    def __init__(self, facts: Facts) -> None:
        self.known = facts
        self.said: list[Event] = []
        self.forgotten: list[QubeName] = []

    def facts(self, name: QubeName) -> Facts:
        return self.known

    def say(self, event: Event) -> None:
        self.said.append(event)

    def running_users(self, name: QubeName, running: frozenset[QubeName]) -> list[QubeName]:
        return []

    async def forget(self, name: QubeName) -> None:
        self.forgotten.append(name)


def adopting(it: Bench, machine: CountingMachine | None) -> None:
    async def adopt(record: Mapping[str, str | int]) -> CountingMachine | None:
        return machine

    it.hypervisor.adopt = adopt  # type: ignore[method-assign]


async def started(it: Bench, facts: Facts, **changes: object) -> tuple[Run, CountingMachine]:
    live = await launch(it.ground, facts)
    run = replace(live.run, **changes)  # type: ignore[arg-type]
    it.connector.links.clear()  # the old daemon's relays died with it
    return run, it.hypervisor.machines[-1]


async def test_a_running_qube_is_found_with_its_channel_resynchronised(bench: MakeBench, facts: Facts) -> None:
    it = bench()
    run, machine = await started(it, facts)
    adopting(it, machine)
    system = System(it.ground, Records(facts), on_committed=lambda name: None)
    await recover(system, {facts.name: run}, [])
    assert system.power_state(facts.name) is PowerState.RUNNING
    assert system.link(facts.name) is it.connector.links[0]
    await system.close()


async def test_a_paused_qube_is_found_paused_and_answers_once_it_goes_on(bench: MakeBench, facts: Facts) -> None:
    it = bench()
    run, machine = await started(it, facts, paused=True)
    adopting(it, machine)
    system = System(it.ground, Records(facts), on_committed=lambda name: None)
    await recover(system, {facts.name: run}, [])
    assert system.power_state(facts.name) is PowerState.PAUSED
    await system.unpause(facts.name)
    await asyncio.sleep(0.05)
    assert system.link(facts.name) is not None
    await system.close()


@pytest.mark.parametrize("changes", [{"phase": Phase.STARTING}, {"phase": Phase.STOPPING}, {"call_owned": True}])
async def test_half_starts_half_stops_and_disposables_of_lost_calls_are_ended(
    bench: MakeBench, facts: Facts, changes: dict[str, object]
) -> None:
    it = bench()
    run, machine = await started(it, facts, **changes)
    adopting(it, machine)
    records = Records(facts)
    system = System(it.ground, records, on_committed=lambda name: None)
    await recover(system, {facts.name: run}, [facts.name])
    assert it.rests() == []
    assert records.forgotten == [facts.name]
    assert system.power_state(facts.name) is PowerState.HALTED


async def test_a_qube_whose_machine_is_gone_is_put_away(bench: MakeBench, facts: Facts) -> None:
    it = bench()
    run, machine = await started(it, facts)
    await machine.kill()
    adopting(it, None)
    system = System(it.ground, Records(facts), on_committed=lambda name: None)
    await recover(system, {facts.name: run}, [])
    assert it.rests() == []


def test_a_run_survives_being_written_down() -> None:
    from cloison.engine.runs import StartMode, VolumeRef

    run = Run(Phase.RUNNING, StartMode.FORK, (VolumeRef("p", "v"),), 1.5, "r", "k", {"pid": 7}, True, True)
    assert Run.from_record(run.to_record()) == run
