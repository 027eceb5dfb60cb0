"""Asking the user: open questions on one side, the agents that show them on the other.

In: questions of the broker; answers of agents. Out: answers for the broker; what agents are to show. May import:
prompts, ports, policy, engine's event bus, errors.

Every agent sees every question, and the first answer counts. Without an agent the answer is no at once; when the last
one goes away, so it is for what is open.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from cloison.engine.events import Event, EventBus, SubscriptionDropped
from cloison.errors import BadRequest, NotNow, Refused
from cloison.policy import Ask, Request, SystemInfo
from cloison.policy.remember import Memory
from cloison.qrexec.ports import Answer
from cloison.qrexec.prompts import Prompt, PromptBook

log = logging.getLogger(__name__)

DELAY_S = 1.0
"""Before this nobody has read a question; an "allow" that comes earlier was meant for something else."""
MAX_ASKED = 512
"""Characters of service and argument: nobody reads more, and each question repeats them once for every target."""
WAITING_PER_AGENT = 1024
"""What may wait for an agent that does not read; then it is dropped, and comes again."""

Look = Callable[[str], tuple[str, str]]
"""Label and colour of a qube."""


@dataclass(frozen=True)
class Told(Event):
    """Something for agents: ``prompt``, ``gone`` or ``notice``."""

    name: str
    fields: Mapping[str, Any]


@dataclass
class _Waiting:
    prompt: Prompt
    answer: asyncio.Future[Answer] = field(repr=False)


class AskDesk:
    """``ask`` is the broker's Asker. ``timeout_s``: how long the broker waits, for agents to show."""

    def __init__(self, memory: Memory, system: Callable[[], SystemInfo], look: Look, *, timeout_s: float,
                 clock: Callable[[], float] = time.monotonic) -> None:  # fmt: skip
        self._memory = memory
        self._system = system
        self._look = look
        self._timeout_s = timeout_s
        self._clock = clock
        self._book = PromptBook(clock)
        self._waiting: dict[str, _Waiting] = {}
        self._bus = EventBus()

    @property
    def agents(self) -> int:
        return len(self._bus)

    async def ask(self, ask: Ask, request: Request, owner: str) -> Answer:
        """Raises Refused where nobody was asked. Cancelled, it takes the question away from the agents.

        ``owner``: the qube whose question it counts as.
        """
        if not self.agents:
            raise Refused("nobody could be asked: no ask-agent is running", hint="start one: `cloison ask-agent`")
        if len(request.service) + len(request.argument) > MAX_ASKED:
            raise Refused(f"nobody is asked about a service and argument of more than {MAX_ASKED} characters")
        prompt = self._book.add(ask, request, owner)
        waiting = _Waiting(prompt, asyncio.get_running_loop().create_future())
        self._waiting[prompt.id] = waiting
        reason = "its caller gave up, or the time is over"
        try:
            self._bus.emit(Told("prompt", self._shown(prompt)))
            answer = await waiting.answer
            reason = "answered" if answer.chosen is None else f"answered: {answer.chosen[:80]}"
            return answer
        except Refused as error:
            reason = error.message
            raise
        finally:
            answered = waiting.answer.done() and not waiting.answer.cancelled()
            self._book.close(prompt.id, is_answered=answered)
            del self._waiting[prompt.id]
            self._bus.emit(Told("gone", {"id": prompt.id, "reason": reason}))

    async def listen(self) -> AsyncGenerator[Told, None]:
        """For an agent: what is open, then what happens. Whoever listens is asked."""
        subscription = self._bus.subscribe(WAITING_PER_AGENT)
        try:
            for shown in [self._shown(prompt) for prompt in self._book.pending()]:
                yield Told("prompt", shown)
            yield Told("ready", {"delay_s": DELAY_S, "file": self._memory.file})
            async for event in subscription:
                if isinstance(event, SubscriptionDropped):
                    return
                assert isinstance(event, Told)
                yield event
        finally:
            subscription.close()
            if not self.agents:
                self._give_up()

    def tell(self, name: str, fields: Mapping[str, Any]) -> None:
        """Something else that agents show."""
        self._bus.emit(Told(name, fields))

    async def answer(self, prompt_id: str, chosen: str | None, *, by: str, line: str | None = None) -> None:
        """What a person said. ``line``: the rule that shall remember it, as it was shown.

        NotNow if the question is not open any more or an allow comes too early; StoreError if the line cannot be
        written (the question stays open); BadRequest for what was not offered (which denies the call).
        """
        waiting = self._waiting.get(prompt_id)
        if waiting is None or waiting.answer.done():
            raise NotNow("that question is not open any more")
        prompt = waiting.prompt
        if chosen is not None and chosen not in prompt.ask.targets:
            waiting.answer.set_result(Answer(chosen, by))
            raise BadRequest(f"{chosen[:80]!a} was not offered; the call is denied")
        if chosen is not None and self._clock() - prompt.asked_at < DELAY_S:
            raise NotNow(f"a question must have been seen for {DELAY_S:g} s before it is answered with yes")
        if line is not None:
            await asyncio.to_thread(self._memory.write, self._system(), prompt.ask, prompt.request, chosen, line)
            log.info("%s had this remembered in %s: %s", by, self._memory.file, line)
        if waiting.answer.done():
            also = "; the rule was written" if line is not None else ""
            raise NotNow(f"that question was answered by somebody else, or its caller gave up{also}")
        waiting.answer.set_result(Answer(chosen, by))

    def _give_up(self) -> None:
        for waiting in self._waiting.values():
            if not waiting.answer.done():
                waiting.answer.set_exception(Refused("the ask-agent went away before it was answered"))

    def _shown(self, prompt: Prompt) -> Mapping[str, Any]:
        ask, request = prompt.ask, prompt.request
        offer = self._memory.offer(ask, request)
        return {
            "id": prompt.id,
            "turn": prompt.turn,
            "source": self._face(ask.source),
            "service": request.service,
            "argument": request.argument.removeprefix("+"),
            "requested_target": ask.shape.targets.get(request.target, "@default"),
            "targets": [self._face(target) for target in ask.targets],
            "default_target": ask.default_target,
            "warning": ask.warning,
            "rule": str(ask.rule),
            "left_s": round(max(0.0, prompt.asked_at + self._timeout_s - self._clock()), 1),
            "remember": {"file": offer.file, "allow": offer.allow, "deny": offer.deny, "why_not": offer.why_not},
        }

    def _face(self, name: str) -> Mapping[str, str]:
        label, colour = self._look(name.removeprefix("@dispvm:"))
        return {"name": name, "label": label, "colour": colour}
