"""The questions that are open: how many a qube may have, and in which order they are answered. Pure.

In: questions, answers, the time. Out: prompts, in fair order, or Refused. May import: policy, pace, errors.

A qube that asks much waits for itself: each question gets a *turn* when it comes, one later than the same qube's last,
and never earlier than the turn that is being answered. Turns never change, so a list on a screen does not jump.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass

from cloison.errors import Refused
from cloison.policy import Ask, Request
from cloison.qrexec.pace import Pace

PENDING_PER_OWNER = 4
"""Open questions of one qube and its disposables: a person with more of them before him reads none."""
PENDING = 64
QUESTIONS_PER_MINUTE, QUESTION_BURST = 20.0, 10
"""New questions of one qube, however fast they are answered or taken back."""


@dataclass(frozen=True)
class Prompt:
    """One question. ``owner``: the qube that it counts for, which is another one than its source where that is a
    disposable. ``asked_at``: by the clock of the book."""

    id: str
    turn: int
    ask: Ask
    request: Request
    owner: str
    asked_at: float


class PromptBook:
    """``clock``: seconds that only go forward."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._open: dict[str, Prompt] = {}
        self._turn = 0
        self._last_turns: dict[str, int] = {}
        self._paces: dict[str, Pace] = {}

    def add(self, ask: Ask, request: Request, owner: str) -> Prompt:
        """Open a question; Refused if its qube has too many, or all have."""
        if sum(1 for prompt in self._open.values() if prompt.owner == owner) >= PENDING_PER_OWNER:
            raise Refused(f"{owner} has {PENDING_PER_OWNER} open questions already")
        if len(self._open) >= PENDING:
            raise Refused(f"there are {PENDING} open questions already")
        self._spend(owner)
        last = self._last_turns.get(owner)
        turn = self._turn if last is None else max(self._turn, last + 1)
        self._last_turns[owner] = turn
        # A random name: an answer meant for an earlier daemon's question must not fit one of ours.
        prompt = Prompt(secrets.token_hex(8), turn, ask, request, owner, self._clock())
        self._open[prompt.id] = prompt
        return prompt

    def close(self, prompt_id: str, *, is_answered: bool = False) -> None:
        """The question is answered, or nobody wants to know any more."""
        prompt = self._open.pop(prompt_id, None)
        if prompt is not None and is_answered:
            self._turn = max(self._turn, prompt.turn)
        self._last_turns = {owner: turn for owner, turn in self._last_turns.items() if turn >= self._turn}

    def find(self, prompt_id: str) -> Prompt | None:
        return self._open.get(prompt_id)

    def pending(self) -> list[Prompt]:
        """In the order in which they should be answered."""
        return sorted(self._open.values(), key=lambda prompt: prompt.turn)  # stable: by arrival within a turn

    def _spend(self, owner: str) -> None:
        pace = self._paces.get(owner)
        if pace is None:
            self._paces = {name: other for name, other in self._paces.items() if not other.is_full()}
            pace = self._paces[owner] = Pace(QUESTIONS_PER_MINUTE / 60, QUESTION_BURST, self._clock)
        if not pace.has_permit():
            raise Refused(f"{owner} asks too often")
        pace.spend()
