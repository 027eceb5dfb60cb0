"""Questions: how many, in which order, who answers, what is remembered. No guests."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from pathlib import Path

import pytest

from cloison.errors import BadRequest, NotNow, Refused
from cloison.policy import Ask, PolicySource, Request, SystemInfo, evaluate
from cloison.policy.remember import CannotRemember, Memory
from cloison.policy.store import PolicyStore
from cloison.qrexec.asking import WAITING_PER_AGENT, AskDesk
from cloison.qrexec.notices import GROUPS_PER_OWNER, Notice, NoticeBoard
from cloison.qrexec.ports import Answer
from cloison.qrexec.prompts import PENDING, PENDING_PER_OWNER, QUESTION_BURST, PromptBook

QUBES = ("work", "vault", "personal", "evil", "good")
SYSTEM = SystemInfo.parse({
    "domains": {
        **{name: {"type": "AppVM", "default_dispvm": "dvm"} for name in QUBES},
        "dvm": {"type": "AppVM", "template_for_dispvms": True},
        "disp7": {"type": "DispVM"},
    }
})  # fmt: skip


class World:
    """A policy on disk, a desk of questions, a clock."""

    def __init__(self, directory: Path, text: str = "test.Echo * @anyvm @anyvm ask\n") -> None:
        self.directory = directory / "policy.d"
        self.directory.mkdir()
        self.user = self.directory / "30-user.policy"
        self.user.write_text("# mine\n")
        (self.directory / "90-default.policy").write_text(text)
        self.policy = PolicySource(self.directory)
        self.now = 1000.0
        self.memory = Memory(PolicyStore(self.directory), self.policy)
        self.desk = AskDesk(self.memory, lambda: SYSTEM, lambda name: ("red", "0xcc0000"), timeout_s=120,
                            clock=lambda: self.now)  # fmt: skip

    def counted(self, *about: str) -> tuple[Ask, Request, str]:
        """A question, counted for its source."""
        ask, request = self.question(*about)
        return ask, request, request.source

    def question(self, source: str = "work", target: str = "vault", service: str = "test.Echo") -> tuple[Ask, Request]:
        request = Request(source, target, service, "+")
        verdict = evaluate(self.policy.current(), SYSTEM, request)
        assert isinstance(verdict, Ask), verdict
        return verdict, request

    def ask(self, *about: str) -> asyncio.Task[Answer]:
        return asyncio.create_task(self.desk.ask(*self.counted(*about)))


class Agent:
    """Listens as an agent does."""

    def __init__(self, desk: AskDesk) -> None:
        self.told: list[tuple[str, dict]] = []
        self.task = asyncio.create_task(self._listen(desk))

    async def _listen(self, desk: AskDesk) -> None:
        async with aclosing(desk.listen()) as told:
            async for event in told:
                self.told.append((event.name, dict(event.fields)))

    async def next(self, name: str) -> dict:
        async with asyncio.timeout(5):
            while not any(told == name for told, _ in self.told):  # noqa: ASYNC110 - told by many
                await asyncio.sleep(0)
        index = next(i for i, (told, _) in enumerate(self.told) if told == name)
        return self.told.pop(index)[1]

    async def kill(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


@pytest.fixture
async def world(tmp_path: Path):
    return World(tmp_path)


# Order and bounds


@pytest.fixture
def book_of(tmp_path):
    world = World(tmp_path)
    return PromptBook(lambda: world.now), world


def sources(book: PromptBook) -> list[str]:
    return [prompt.request.source for prompt in book.pending()]


def test_a_qube_that_asks_much_waits_for_itself(book_of):
    book, world = book_of
    for source in ("evil", "evil", "evil", "good", "work"):
        book.add(*world.counted(source))
    assert sources(book) == ["evil", "good", "work", "evil", "evil"]
    first = book.pending()[0]
    book.close(first.id, is_answered=True)
    book.add(*world.counted("evil"))
    assert sources(book) == ["good", "work", "evil", "evil", "evil"]


def test_taking_questions_back_gives_no_better_place(book_of):
    book, world = book_of
    for _ in range(3):
        book.close(book.add(*world.counted("evil")).id)
    book.add(*world.counted("good"))
    book.add(*world.counted("evil"))
    assert sources(book) == ["good", "evil"]


def test_who_was_quiet_gets_no_credit_and_nobody_starves(book_of):
    book, world = book_of
    order = []
    waiting = {"evil": 20, "good": 5}
    clock = 0
    while any(waiting.values()) or book.pending():
        clock += 1
        world.now += 30
        for source in waiting:
            while waiting[source] and sources(book).count(source) < PENDING_PER_OWNER:
                if source == "good" and clock < 4:
                    break
                waiting[source] -= 1
                book.add(*world.counted(source))
        served = book.pending()[0]
        order.append(served.request.source)
        book.close(served.id, is_answered=True)
    begun = order.index("good")
    assert order[begun : begun + 9].count("good") in (4, 5)


def test_one_qube_has_so_many_open_questions_and_the_others_theirs(book_of):
    book, world = book_of
    for _ in range(PENDING_PER_OWNER):
        book.add(*world.counted("evil"))
    with pytest.raises(Refused, match="evil has 4 open questions"):
        book.add(*world.counted("evil"))
    book.add(*world.counted("good"))
    assert PENDING > 2 * PENDING_PER_OWNER


def test_one_qube_may_ask_so_often_however_fast_it_is_answered(book_of):
    book, world = book_of
    for _ in range(QUESTION_BURST):
        book.close(book.add(*world.counted("evil")).id, is_answered=True)
    with pytest.raises(Refused, match="asks too often"):
        book.add(*world.counted("evil"))
    book.add(*world.counted("good"))
    world.now += 3
    book.add(*world.counted("evil"))


# Answers


async def test_without_an_agent_nobody_is_asked(world):
    with pytest.raises(Refused, match="no ask-agent is running"):
        await world.ask()


async def test_what_nobody_could_read_is_not_asked(world):
    agent = Agent(world.desk)
    await agent.next("ready")
    request = Request("evil", "vault", "test.Echo", "+" + "x" * 60_000)
    with pytest.raises(Refused, match="more than 512 characters"):
        await world.desk.ask(evaluate(world.policy.current(), SYSTEM, request), request, "evil")
    assert not agent.told
    await agent.kill()


async def test_a_question_is_shown_and_answered(world):
    agent = Agent(world.desk)
    await agent.next("ready")
    asking = world.ask()
    shown = await agent.next("prompt")
    assert shown["source"] == {"name": "work", "label": "red", "colour": "0xcc0000"}
    assert [target["name"] for target in shown["targets"]] == [
        "@dispvm:dvm",
        *sorted({*QUBES, "dvm", "disp7"} - {"work"}),
    ]
    assert shown["default_target"] is None and shown["left_s"] == 120.0
    assert shown["remember"]["allow"]["vault"] == "test.Echo + work vault allow"
    world.now += 1
    await world.desk.answer(shown["id"], "vault", by="a test")
    assert await asking == Answer("vault", "a test")
    assert (await agent.next("gone"))["id"] == shown["id"]
    with pytest.raises(NotNow, match="not open any more"):
        await world.desk.answer(shown["id"], "vault", by="too late")
    await agent.kill()


async def test_yes_counts_only_after_a_moment_and_no_at_once(world):
    agent = Agent(world.desk)
    await agent.next("ready")
    asking = world.ask()
    shown = await agent.next("prompt")
    world.now += 0.9
    with pytest.raises(NotNow, match="seen for 1 s"):
        await world.desk.answer(shown["id"], "vault", by="fast fingers")
    assert not asking.done()
    await world.desk.answer(shown["id"], None, by="fast fingers")
    assert await asking == Answer(None, "fast fingers")
    await agent.kill()


async def test_what_was_not_offered_denies(world):
    agent = Agent(world.desk)
    await agent.next("ready")
    asking = world.ask()
    shown = await agent.next("prompt")
    with pytest.raises(BadRequest, match="not offered"):
        await world.desk.answer(shown["id"], "dom0", by="a test")
    ask, _ = world.question()
    answer = await asking
    assert answer.chosen == "dom0" and answer.chosen not in ask.targets
    await agent.kill()


async def test_every_agent_sees_it_and_the_first_answer_counts(world):
    agents = [Agent(world.desk), Agent(world.desk)]
    for agent in agents:
        await agent.next("ready")
    asking = world.ask()
    shown = [await agent.next("prompt") for agent in agents]
    assert shown[0] == shown[1]
    await agents[0].kill()
    await asyncio.sleep(0)
    assert not asking.done()
    await world.desk.answer(shown[1]["id"], None, by="the second")
    assert (await asking).by == "the second"
    await agents[1].kill()


async def test_when_the_last_agent_dies_what_is_open_is_denied(world):
    agent = Agent(world.desk)
    await agent.next("ready")
    asking = [world.ask(source) for source in ("work", "good")]
    await agent.next("prompt")
    await agent.kill()
    for task in asking:
        with pytest.raises(Refused, match="went away"):
            await task
    with pytest.raises(Refused, match="no ask-agent"):
        await world.ask()


async def test_an_agent_that_comes_later_sees_what_is_open(world):
    first = Agent(world.desk)
    await first.next("ready")
    world.ask()
    shown = await first.next("prompt")
    world.now += 20
    second = Agent(world.desk)
    assert await second.next("prompt") == {**shown, "left_s": 100.0}
    await first.kill()
    await second.kill()


async def test_a_caller_that_gives_up_takes_its_question_away(world):
    agent = Agent(world.desk)
    await agent.next("ready")
    asking = world.ask()
    shown = await agent.next("prompt")
    asking.cancel()
    assert (await agent.next("gone"))["id"] == shown["id"]
    with pytest.raises(NotNow):
        await world.desk.answer(shown["id"], None, by="a test")
    await agent.kill()


async def test_an_agent_that_does_not_read_is_dropped(world):
    listening = world.desk.listen()
    await anext(listening)
    for number in range(WAITING_PER_AGENT + 1):
        world.desk.tell("notice", {"number": number})
    assert world.desk.agents == 0
    assert [event async for event in listening] == []


# Remembering


@pytest.mark.parametrize(
    ("target", "chosen", "line"),
    [
        ("vault", "vault", "test.Echo + work vault allow"),
        ("vault", "personal", "test.Echo + work vault allow target=personal"),
        ("@default", "vault", "test.Echo + work @default allow target=vault"),
        ("no-such-qube", "vault", "test.Echo + work @default allow target=vault"),
        ("@dispvm", "@dispvm:dvm", "test.Echo + work @dispvm allow target=@dispvm:dvm"),
        ("vault", None, "test.Echo + work vault deny"),
    ],
)
async def test_the_line_is_written_as_it_was_shown_and_decides_from_then_on(world, target, chosen, line):
    agent = Agent(world.desk)
    await agent.next("ready")
    asking = world.ask("work", target)
    shown = await agent.next("prompt")
    remember = shown["remember"]
    assert line == (remember["deny"] if chosen is None else remember["allow"][chosen])
    world.now += 1
    with pytest.raises(CannotRemember, match="not the one that was shown"):
        await world.desk.answer(shown["id"], chosen, by="a test", line="* * * * allow")
    assert world.user.read_text() == "# mine\n" and not asking.done()
    await world.desk.answer(shown["id"], chosen, by="a test", line=line)
    assert (await asking).chosen == chosen
    assert world.user.read_text() == f"# mine\n{line}\n"
    verdict = evaluate(world.policy.current(), SYSTEM, Request("work", target, "test.Echo", "+"))
    assert getattr(verdict, "target", None) == chosen
    await agent.kill()


async def test_a_line_goes_above_the_users_own_question(world):
    world.user.write_text("other * * * deny\ntest.Echo * work @anyvm ask user=bob notify=yes\n")
    agent = Agent(world.desk)
    await agent.next("ready")
    world.ask()
    shown = await agent.next("prompt")
    line = shown["remember"]["allow"]["vault"]
    assert line == "test.Echo + work vault allow user=bob notify=yes"
    world.now += 1
    await world.desk.answer(shown["id"], "vault", by="a test", line=line)
    assert world.user.read_text().splitlines()[1] == line
    await agent.kill()


async def test_what_cannot_be_remembered_is_said(world):
    (world.directory / "10-first.policy").write_text("test.Echo * vault @anyvm ask\n")
    agent = Agent(world.desk)
    await agent.next("ready")
    for source, why in (("vault", "is read before"), ("disp7", "is a disposable")):
        world.ask(source, "personal")
        shown = await agent.next("prompt")
        assert why in shown["remember"]["why_not"]
        world.now += 1
        with pytest.raises(CannotRemember, match=why):
            await world.desk.answer(shown["id"], "personal", by="a", line=shown["remember"]["allow"]["personal"])
    assert world.user.read_text() == "# mine\n"
    await agent.kill()


async def test_a_rule_that_came_meanwhile_is_not_overruled(world):
    agent = Agent(world.desk)
    await agent.next("ready")
    world.ask()
    shown = await agent.next("prompt")
    world.user.write_text("test.Echo * work @anyvm deny\n")
    world.now += 1
    with pytest.raises(CannotRemember, match="would not decide"):
        await world.desk.answer(shown["id"], "vault", by="a", line=shown["remember"]["allow"]["vault"])
    assert world.user.read_text() == "test.Echo * work @anyvm deny\n"
    await agent.kill()


# Notices


def denied(source="evil", service="qubes.VMShell", target="work", calls=1):
    return Notice("denied", source, service, target, "denied by f:1", calls)


def test_the_first_refusal_is_told_at_once_and_the_others_are_summed_up_ever_more_seldom():
    board = NoticeBoard()
    assert board.add(denied(), 0.0) == denied()
    told = []
    for second in range(1, 600):
        assert board.add(denied(), float(second)) is None
        told += [(second, notice.calls) for notice in board.take_due(float(second))]
    assert [second for second, _ in told] == [10, 30, 70, 150, 310]
    assert sum(calls for _, calls in told) == 310
    assert board.add(denied(source="good"), 600.0) == denied(source="good")


def test_who_varies_its_calls_is_told_of_in_one():
    board = NoticeBoard()
    told = [board.add(denied(service=f"x.{number}"), 0.0) for number in range(100)]
    assert len([notice for notice in told if notice]) == GROUPS_PER_OWNER + 1
    assert told[GROUPS_PER_OWNER] == Notice("denied", "evil", "", "", "other calls")
    (rest,) = board.take_due(10.0)
    assert rest.calls == 100 - GROUPS_PER_OWNER - 1 and rest.service == ""


def test_a_qube_that_uses_up_disposables_is_told_of_like_one():
    board = NoticeBoard()
    told = [board.add(denied(source=f"disp{number}", service=f"x.{number % 7}"), 0.0, "evil") for number in range(100)]
    seen = [notice for notice in told if notice]
    assert len(seen) == GROUPS_PER_OWNER + 1 and seen[-1].source == "evil"
    assert sum(notice.calls for notice in board.take_due(10.0)) == 100 - len(seen)
    assert board.add(denied(source="good"), 10.0) == denied(source="good")


def test_what_is_over_is_forgotten():
    board = NoticeBoard()
    board.add(denied(), 0.0)
    assert board.next_due() == 10.0
    assert board.take_due(10.0) == [] and board.next_due() is None
    assert board.add(denied(), 11.0) == denied()
