"""Trials: what is written counts only if somebody says so, whoever dies meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace

import pytest

from cloison.engine.recover import recover
from cloison.engine.start import Facts, launch
from cloison.engine.system import System
from cloison.engine.trials import Trials
from cloison.errors import BackendFailed, BadRequest, NotNow, QubeNotHalted
from cloison.model.power import PowerState

from .conftest import Bench
from .test_recover import Records, adopting

MakeBench = Callable[[], Bench]


class Template:
    """A template, a system that can start it, and what became of it."""

    def __init__(self, it: Bench, facts: Facts) -> None:
        self.it = it
        self.facts = replace(facts, kept_root=True)
        self.committed: list[str] = []
        self.system = System(it.ground, Records(self.facts), on_committed=self.committed.append)
        self.trials = Trials(self.system)
        self.begun = asyncio.Event()

    async def hold(self) -> asyncio.Task[bool]:
        holding = asyncio.create_task(self.trials.hold(self.facts.name, self.begun.set))
        begun = asyncio.create_task(self.begun.wait())
        await asyncio.wait({begun, holding}, return_when=asyncio.FIRST_COMPLETED, timeout=10)
        assert self.begun.is_set(), holding
        return holding

    async def until_halted(self) -> None:
        async with asyncio.timeout(10):
            while self.system.power_state(self.facts.name) is not PowerState.HALTED:  # noqa: ASYNC110
                await asyncio.sleep(0.01)


@pytest.fixture
async def template(bench: MakeBench, facts: Facts) -> AsyncIterator[Template]:
    made = Template(bench(), facts)
    yield made
    await made.system.close()


async def test_when_whoever_tries_is_gone_so_is_what_was_tried(template: Template) -> None:
    holding = await template.hold()
    assert template.it.runs[template.facts.name].on_trial
    holding.cancel()
    await template.until_halted()
    pool = template.it.pool
    assert "root" in " ".join(pool.dropped) and pool.kept == [] and template.committed == []


async def test_what_is_settled_is_kept_like_any_other_change(template: Template) -> None:
    holding = await template.hold()
    await template.trials.settle(template.facts.name)
    assert await holding is True
    assert not template.it.runs[template.facts.name].on_trial
    assert template.system.power_state(template.facts.name) is PowerState.RUNNING
    await template.system.shutdown(template.facts.name)
    await template.until_halted()
    assert template.it.pool.dropped == [] and template.committed == [template.facts.name]


async def test_a_guest_that_powers_off_settles_nothing(template: Template) -> None:
    holding = await template.hold()
    await template.system.shutdown(template.facts.name)
    assert await holding is False
    assert template.it.pool.kept == [] and template.committed == []
    with pytest.raises(NotNow, match="nothing is tried"):
        await template.trials.settle(template.facts.name)


async def test_a_daemon_that_comes_back_ends_the_trial_of_the_last_one(bench: MakeBench, facts: Facts) -> None:
    template = Template(bench(), facts)
    live = await launch(template.it.ground, template.facts, on_trial=True)
    adopting(template.it, template.it.hypervisor.machines[-1])
    template.it.connector.links.clear()  # the old daemon's relay died with it
    await recover(template.system, {facts.name: live.run}, [])
    assert template.system.power_state(facts.name) is PowerState.HALTED
    assert template.it.pool.kept == [] and template.it.pool.dropped != [] and template.it.rests() == []


@pytest.mark.parametrize("is_machine_alive", [True, False])
async def test_a_daemon_that_dies_while_it_settles_has_settled(
    bench: MakeBench, facts: Facts, is_machine_alive: bool
) -> None:
    template = Template(bench(), facts)
    live = await launch(template.it.ground, template.facts, on_trial=True)
    settled = replace(live.run, on_trial=False)  # written first; the volumes were not told
    if is_machine_alive:
        adopting(template.it, template.it.hypervisor.machines[-1])
    template.it.connector.links.clear()
    await recover(template.system, {facts.name: settled}, [])
    assert (template.system.find_live(facts.name) is not None) is is_machine_alive
    if is_machine_alive:
        await template.system.shutdown(facts.name)
        await template.until_halted()
    assert template.it.pool.dropped == [] and any("root" in vid for vid in template.it.pool.kept)
    await template.system.close()


async def test_what_runs_or_keeps_no_root_cannot_be_tried(template: Template) -> None:
    await template.system.start(template.facts.name)
    with pytest.raises(QubeNotHalted):
        await template.trials.hold(template.facts.name, template.begun.set)
    template.system.books.known = replace(template.facts, kept_root=False)  # type: ignore[attr-defined]
    with pytest.raises(BadRequest, match="keeps nothing"):
        await template.trials.hold(template.facts.name, template.begun.set)


async def test_a_start_that_fails_leaves_no_trial(bench: MakeBench, facts: Facts) -> None:
    template = Template(bench(), facts)
    template.it.trouble.fail_at = 0
    with pytest.raises(BackendFailed, match="as the test wished"):
        await template.trials.hold(facts.name, template.begun.set)
    assert not template.begun.is_set() and template.it.rests() == []
