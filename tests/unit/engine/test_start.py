"""Starting: which way a qube starts, and that every way back is whole."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

import pytest

from cloison.drivers.hypervisor.base import Drive, DriveKind
from cloison.engine.runs import Phase, StartMode
from cloison.engine.start import Facts, launch
from cloison.engine.system import NoCables, System
from cloison.errors import BackendFailed, BadRequest, CloisonError, NotNow
from cloison.model.names import QubeName

from .conftest import Bench

MakeBench = Callable[[], Bench]


async def test_an_app_qube_is_forked_from_a_fork_point_made_on_the_way(bench: MakeBench, facts: Facts) -> None:
    it = bench()
    live = await launch(it.ground, facts)
    assert it.hypervisor.started == ["boot to freeze", "fork"]
    assert live.run.mode is StartMode.FORK
    assert it.runs[facts.name].phase is Phase.RUNNING
    root = next(disk for disk in it.hypervisor.disks if disk.slot == "root")
    assert [layer.path.name for layer in root.chain] == ["root", "root.qcow2", "root"]


async def test_the_second_start_reuses_the_fork_point(bench: MakeBench, facts: Facts) -> None:
    it = bench()
    live = await launch(it.ground, facts)
    await live.machine.kill()
    for ref in live.run.volumes:
        await it.pool.end_run(ref.vid)
    await launch(it.ground, facts)
    assert it.hypervisor.started == ["boot to freeze", "fork", "fork"]


@pytest.mark.parametrize(
    ("change", "started"),
    [
        ({"start_mode": "boot"}, ["boot"]),
        ({"kept_root": True}, ["boot"]),
        ({"kernel": "", "has_agent": False}, ["boot"]),
    ],
)
async def test_what_cannot_fork_boots(
    bench: MakeBench, facts: Facts, change: dict[str, object], started: list[str]
) -> None:
    it = bench()
    await launch(it.ground, replace(facts, **change))  # type: ignore[arg-type]
    assert it.hypervisor.started == started


async def test_start_mode_fork_is_refused_where_only_a_boot_is_possible(bench: MakeBench, facts: Facts) -> None:
    with pytest.raises(BadRequest, match="can only boot"):
        await launch(bench().ground, replace(facts, kept_root=True, start_mode="fork"))


async def test_a_prohibited_start_touches_nothing(bench: MakeBench, facts: Facts) -> None:
    it = bench()
    with pytest.raises(NotNow, match="under repair"):
        await launch(it.ground, replace(facts, prohibited="under repair"))
    assert it.trouble.steps == []


async def test_a_first_fork_that_fails_falls_back_to_a_boot_and_its_fork_point_goes(
    bench: MakeBench, facts: Facts
) -> None:
    it = bench()
    await (await launch(it.ground, facts)).machine.kill()
    it.pool.open.clear()
    it.trouble.steps.clear()
    it.trouble.fail_at = 4  # root, private, volatile, fork, connect, configure
    it.ground.forkpoints._failures.clear()  # as after a restart of the daemon
    live = await launch(it.ground, facts)
    assert live.run.mode is StartMode.BOOT
    assert it.hypervisor.started[-2:] == ["fork", "boot"]
    assert it.ground.forkpoints.complete() == []


STEPS_OF_A_FORK = 11  # boot to freeze, connect, prepare-freeze, freeze, three volumes, fork, connect, configure


@pytest.mark.parametrize("hang", [False, True], ids=["failed", "cancelled"])
@pytest.mark.parametrize("step", range(STEPS_OF_A_FORK))
async def test_a_start_that_breaks_at_any_step_leaves_nothing(
    bench: MakeBench, facts: Facts, step: int, hang: bool
) -> None:
    it = bench()
    it.trouble.fail_at, it.trouble.hang = step, hang
    task = asyncio.create_task(launch(it.ground, replace(facts, start_mode="fork")))
    done, _ = await asyncio.wait({task}, timeout=0.3 if hang else 5)
    if not done:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await it.ground.forkpoints.close()
    if task.cancelled() or task.exception() is not None:
        assert task.cancelled() or isinstance(task.exception(), CloisonError)
        assert it.rests() == []
    else:
        assert step >= len(it.trouble.steps), "a step failed and the start went on"


async def test_a_fork_point_that_proved_good_survives_one_failure_but_not_two(bench: MakeBench, facts: Facts) -> None:
    it = bench()

    async def start(fail_at: int) -> None:
        it.trouble.steps.clear()
        it.trouble.fail_at = fail_at
        live = await launch(it.ground, facts)
        await live.machine.kill()
        it.pool.open.clear()

    await start(-1)
    await start(4)  # connect
    assert len(it.ground.forkpoints.complete()) == 1
    await start(4)
    assert it.ground.forkpoints.complete() == []


async def test_a_volume_that_cannot_be_opened_is_not_the_fork_points_fault(bench: MakeBench, facts: Facts) -> None:
    it = bench()
    await (await launch(it.ground, facts)).machine.kill()
    it.pool.open.clear()
    it.trouble.steps.clear()
    it.trouble.fail_at = 1
    with pytest.raises(CloisonError, match="open work/private failed"):
        await launch(it.ground, facts)
    assert len(it.ground.forkpoints.complete()) == 1
    assert it.hypervisor.started == ["boot to freeze", "fork"]


class _Bookkeeping:
    def __init__(self, facts: Facts) -> None:
        self._facts = facts

    def facts(self, name: QubeName) -> Facts:
        return self._facts

    def say(self, event: object) -> None: ...


class _SlowCables(NoCables):
    def __init__(self) -> None:
        self.asked, self.made = asyncio.Event(), asyncio.Event()

    async def started(self, name: QubeName) -> None:
        self.asked.set()
        await self.made.wait()


@pytest.mark.parametrize("is_stuck", [False, True])
async def test_a_calls_disposable_is_there_once_its_cable_is_or_after_a_while(
    bench: MakeBench, facts: Facts, monkeypatch: pytest.MonkeyPatch, is_stuck: bool
) -> None:
    monkeypatch.setattr("cloison.engine.system.CABLE_WAIT_S", 0.05 if is_stuck else 60)
    system = System(bench().ground, _Bookkeeping(facts), on_committed=lambda name: None)  # type: ignore[arg-type]
    system.cables = cables = _SlowCables()
    starting = asyncio.create_task(system.start(facts.name, call_owned=True))
    await asyncio.wait_for(cables.asked.wait(), 10)
    assert not starting.done() and facts.name in system.running()
    if not is_stuck:
        cables.made.set()
    await asyncio.wait_for(starting, 10)
    await system.close()


DRIVES = (Drive("xvdi", DriveKind.DISK, 3, read_only=False, is_block_node=False, label=""),)


async def test_a_fork_gets_its_drives_before_it_is_told_who_it_is(bench: MakeBench, facts: Facts) -> None:
    it = bench()
    live = await launch(it.ground, facts, drives=DRIVES)
    assert it.hypervisor.plugged == [("xvdi", 1)], "only the fork point's own agent was there before"
    assert live.run.mode is StartMode.FORK


async def test_a_drive_that_finds_no_place_is_not_the_fork_points_fault(bench: MakeBench, facts: Facts) -> None:
    it = bench()
    await (await launch(it.ground, facts)).machine.kill()
    it.pool.open.clear()
    it.trouble.steps.clear()
    it.trouble.fail_at = 4  # root, private, volatile, fork, drive
    with pytest.raises(BackendFailed, match="drive failed"):
        await launch(it.ground, facts, drives=DRIVES)
    assert it.hypervisor.started == ["boot to freeze", "fork", "fork"]
    assert len(it.ground.forkpoints.complete()) == 1


async def test_a_boot_has_its_drives_from_the_start(bench: MakeBench, facts: Facts) -> None:
    it = bench()
    await launch(it.ground, replace(facts, start_mode="boot"), drives=DRIVES)
    assert (it.hypervisor.drives, it.hypervisor.plugged) == (DRIVES, [])
