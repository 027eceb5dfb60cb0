"""Calls that are asked about, through the real broker, relays and desk: what happens to the ends meanwhile."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest

from cloison.errors import NotNow
from cloison.policy import PolicySource
from cloison.policy.remember import Memory
from cloison.policy.store import PolicyStore
from cloison.qrexec.asking import DELAY_S, AskDesk
from cloison.qrexec.pace import DENIAL_BURST
from cloison.qrexec.prompts import PENDING_PER_OWNER
from cloison.wire import Stream


class Front:
    """The desk of a house whose policy asks, and one agent."""

    def __init__(self, house) -> None:
        directory = house.directory / "policy.d"
        directory.mkdir()
        self.user = directory / "30-user.policy"
        self.user.write_text("test.Hold * @anyvm @dispvm allow target=@dispvm:default-dvm\n* * @anyvm @anyvm ask\n")
        house.policy.files = PolicySource(directory)
        self.skipped_s = 0.0
        clock = asyncio.get_running_loop().time
        memory = Memory(PolicyStore(directory), house.policy.files)
        self.desk = AskDesk(memory, house.qubes.system_info, lambda name: ("", ""), timeout_s=120,
                            clock=lambda: clock() + self.skipped_s)  # fmt: skip
        house.broker._ask = self.desk.ask
        self.house = house
        self.open: dict[str, dict] = {}
        self.agent = asyncio.create_task(self._listen())

    async def _listen(self) -> None:
        async with aclosing(self.desk.listen()) as told:
            async for event in told:
                if event.name == "prompt":
                    self.open[event.fields["id"]] = dict(event.fields)
                elif event.name == "gone":
                    del self.open[event.fields["id"]]

    async def question(self) -> dict:
        await self.house.until(lambda: self.open)
        return next(iter(self.open.values()))

    async def allow(self, prompt: dict, target: str = "vault") -> None:
        self.skipped_s += DELAY_S
        await self.desk.answer(prompt["id"], target, by="a test")


@pytest.fixture
async def front(house):
    front = Front(house)
    await house.until(lambda: front.desk.agents)
    yield front
    front.agent.cancel()


async def echo(call) -> bytes:
    await call.write(Stream.STDIN, b"hello", end=True)
    return (await call.result())[1]


async def test_who_is_allowed_gets_through(house, front):
    caller = await house.qubes.start("work")
    await house.qubes.start("vault")
    calling = asyncio.create_task(caller.call("vault", "test.Echo"))
    await front.allow(await front.question())
    assert await echo(await calling) == b"hello"
    answered = next(line for line in house.audit.lines if line["event"] == "answered")
    assert (answered["who"], answered["verdict"]) == ("a test", "allow")


async def test_the_question_of_a_qube_that_dies_goes_away(house, front):
    caller = await house.qubes.start("work")
    await house.qubes.start("vault")
    calling = asyncio.create_task(caller.call("vault", "test.Echo"))
    prompt = await front.question()
    await caller.__aexit__()
    await house.until(lambda: not front.open)
    with pytest.raises(NotNow, match="not open any more"):
        await front.allow(prompt)
    assert await house.broker.calls() == []
    calling.cancel()


async def test_a_target_that_dies_meanwhile_is_started_again(house, front):
    caller = await house.qubes.start("work")
    await house.qubes.start("vault")
    calling = asyncio.create_task(caller.call("vault", "test.Echo"))
    prompt = await front.question()
    await house.qubes.stop("vault")
    house.qubes.halted.add("vault")
    await front.allow(prompt)
    assert await echo(await calling) == b"hello"


async def test_a_target_that_is_removed_meanwhile_is_a_no(house, front):
    caller = await house.qubes.start("work")
    await house.qubes.start("vault")
    calling = asyncio.create_task(caller.call("vault", "test.Echo"))
    prompt = await front.question()
    await house.qubes.stop("vault")
    await front.allow(prompt)
    with pytest.raises(PermissionError):
        await calling


async def test_an_agent_that_dies_in_the_middle_is_a_no(house, front):
    caller = await house.qubes.start("work")
    await house.qubes.start("vault")
    calling = asyncio.create_task(caller.call("vault", "test.Echo"))
    await front.question()
    front.agent.cancel()
    with pytest.raises(PermissionError):
        await calling
    assert "went away" in house.audit.lines[-1]["reason"]
    assert house.events[-1].notify, "a no that nobody said is told"


async def test_a_qube_that_floods_the_user_is_bounded_and_the_next_qube_is_asked_about(house, front):
    evil, good = await house.qubes.start("evil"), await house.qubes.start("good")
    await house.qubes.start("vault")
    flood = [asyncio.create_task(evil.call("vault", "test.Echo")) for _ in range(100)]
    await house.until(lambda: sum(task.done() for task in flood) == 100 - PENDING_PER_OWNER, 20)
    assert len(front.open) == PENDING_PER_OWNER
    calling = asyncio.create_task(good.call("vault", "test.Echo"))
    await house.until(lambda: len(front.open) == PENDING_PER_OWNER + 1)
    order = sorted(front.open.values(), key=lambda prompt: prompt["turn"])
    assert "good" in [prompt["source"]["name"] for prompt in order[:2]]
    await front.allow(next(prompt for prompt in order if prompt["source"]["name"] == "good"))
    assert await echo(await calling) == b"hello"
    for task in flood:
        task.cancel()
    await asyncio.gather(*flood, return_exceptions=True)


async def test_the_disposables_of_a_qube_ask_on_its_account(house, front):
    """However long the line of disposables: else they could fill the list of open questions for everybody."""
    held = asyncio.Event()

    async def hold(session) -> None:
        await held.wait()
        await session.exit(0)

    house.qubes.services["test.Hold+"] = hold
    evil, good = await house.qubes.start("evil"), await house.qubes.start("good")
    await house.qubes.start("vault")
    await evil.call("@dispvm", "test.Hold")
    first = house.qubes.agents["disp1"]
    await first.call("@dispvm", "test.Hold")
    second = house.qubes.agents["disp2"]
    flood = [asyncio.create_task(agent.call("vault", "test.Echo")) for agent in (evil, first, second) for _ in range(8)]
    await house.until(lambda: sum(task.done() for task in flood) == len(flood) - PENDING_PER_OWNER, 20)
    assert len(front.open) == PENDING_PER_OWNER
    calling = asyncio.create_task(good.call("vault", "test.Echo"))
    await house.until(lambda: len(front.open) == PENDING_PER_OWNER + 1)
    held.set()
    for task in (*flood, calling):
        task.cancel()
    await asyncio.gather(*flood, calling, return_exceptions=True)


async def test_the_record_names_the_policy_that_asked_though_there_is_another_by_now(house, front):
    caller = await house.qubes.start("work")
    await house.qubes.start("vault")
    asked_by = house.policy.files.current().digest
    calling = asyncio.create_task(caller.call("vault", "test.Echo"))
    prompt = await front.question()
    front.user.write_text(front.user.read_text() + "# a remark\n")
    assert house.policy.files.current().digest != asked_by
    await front.allow(prompt)
    assert await echo(await calling) == b"hello"
    await house.until(lambda: house.audit.events()[-1] == "ended")
    told = [(line["event"], line["policy"]) for line in house.audit.lines]
    assert told == [(event, asked_by) for event in ("answered", "allowed", "ended")]


async def test_a_no_of_the_policy_that_came_meanwhile_names_that_policy_and_its_rule(house, front):
    caller = await house.qubes.start("work")
    await house.qubes.start("vault")
    calling = asyncio.create_task(caller.call("vault", "test.Echo"))
    prompt = await front.question()
    front.user.write_text("# another line\ntest.Echo * work @anyvm deny\n")
    await front.allow(prompt)
    with pytest.raises(PermissionError):
        await calling
    last = house.audit.lines[-1]
    assert (last["event"], last["policy"]) == ("denied", house.policy.files.current().digest)
    assert str(last["rule"]).endswith("30-user.policy:2")


async def test_refusals_of_disposables_are_recorded_at_the_pace_of_one_qube(house, front):
    front.user.write_text(front.user.read_text().replace("@anyvm ask", "@anyvm deny"))
    held = asyncio.Event()

    async def hold(session) -> None:
        await held.wait()
        await session.exit(0)

    house.qubes.services["test.Hold+"] = hold
    evil = await house.qubes.start("evil")
    await house.qubes.start("vault")
    for _ in range(3):
        await evil.call("@dispvm", "test.Hold")
    agents = [house.qubes.agents[f"disp{number}"] for number in (1, 2, 3)]
    calls = [agent.call("vault", "test.Echo") for agent in agents for _ in range(DENIAL_BURST)]
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert all(isinstance(outcome, PermissionError) for outcome in outcomes)
    lines = house.audit.events().count("denied")
    assert lines < 2 * DENIAL_BURST, "three disposables have one qube's burst"
    held.set()
