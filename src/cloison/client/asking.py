"""An agent that asks the user, without its screen: what is open, what is chosen, when a yes may count.

In: what the daemon tells, keys, the time. Out: replies. May import: client. Pure: every front end (terminal, windows)
draws this state and feeds it.

A yes counts only when a question has been in view for a moment: the moment begins anew with each question that comes
into view, with each return of the focus, and when "remember" is switched. What is typed before is lost.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from cloison.client.framing import printable
from cloison.client.servicewords import words_for

DELAY_S = 1.0
NOTICES_KEPT = 50
PAGE = 10
MAX_SHOWN = 300
"""Characters of anything a qube chose that are shown."""


@dataclass(frozen=True)
class Face:
    """A qube (or ``@dispvm:NAME``) and its label; "" where it has none."""

    name: str
    label: str
    colour: str

    @property
    def spoken(self) -> str:
        template = self.name.removeprefix("@dispvm:")
        return self.name if template == self.name else f"a new disposable of {template}"


@dataclass(frozen=True)
class Question:
    """One prompt. ``ends_at``: by the agent's clock, when nobody waits for the answer any more."""

    id: str
    turn: int
    source: Face
    service: str
    argument: str
    requested_target: str
    targets: tuple[Face, ...]
    default_target: str | None
    warning: str
    rule: str
    ends_at: float
    file: str
    allow_lines: Mapping[str, str]
    deny_line: str
    why_not: str
    """Why no rule can remember the answer; "" if one can."""

    @classmethod
    def parse(cls, told: Mapping[str, Any], now: float) -> Question:
        """ValueError if the daemon speaks another language."""
        try:
            remember = told["remember"]
            return cls(
                str(told["id"]), int(told["turn"]), _face(told["source"]), shown(told["service"]),
                shown(told["argument"]), shown(told["requested_target"]), tuple(map(_face, told["targets"])),
                told["default_target"], shown(told["warning"]), shown(told["rule"]), now + float(told["left_s"]),
                shown(remember["file"]), {str(k): str(v) for k, v in remember["allow"].items()},
                str(remember["deny"]), shown(remember["why_not"]),
            )  # fmt: skip
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"a question that cannot be read: {error!r}") from None

    def wish(self, target: Face | None = None) -> str:
        """ "copy files to vault", or "... to another qube" while nothing is chosen."""
        face = target or (self.targets[0] if len(self.targets) == 1 else None)
        return words_for(self.service).format(face.spoken if face else "another qube")


@dataclass(frozen=True)
class Notice:
    """Calls that were refused, failed, or were allowed with ``notify=yes``; service "" is several."""

    kind: str
    source: str
    service: str
    target: str
    reason: str
    calls: int
    time: float

    @classmethod
    def parse(cls, told: Mapping[str, Any]) -> Notice:
        try:
            return cls(shown(told["kind"]), shown(told["source"]), shown(told["service"]), shown(told["target"]),
                       shown(told["reason"]), int(told["calls"]), float(told["time"]))  # fmt: skip
        except (KeyError, TypeError) as error:
            raise ValueError(f"a notice that cannot be read: {error!r}") from None


def _face(told: Mapping[str, Any]) -> Face:
    return Face(str(told["name"]), str(told["label"]), str(told["colour"]))


def shown(untrusted_text: object) -> str:
    """One line of printable characters, not endless."""
    text = printable(str(untrusted_text))
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}… ({len(text)} characters)"


class Key(Enum):
    """What a person may do."""

    UP = "up"
    DOWN = "down"
    PAGE_UP = "page up"
    PAGE_DOWN = "page down"
    FIRST = "first"
    LAST = "last"
    ALLOW = "allow"
    DENY = "deny"
    REMEMBER = "remember"
    NEXT = "next"
    QUIT = "quit"


_MOVES = {Key.UP: -1, Key.DOWN: 1, Key.PAGE_UP: -PAGE, Key.PAGE_DOWN: PAGE, Key.FIRST: -(10**9), Key.LAST: 10**9}


@dataclass(frozen=True)
class Reply:
    """An answer to send. ``line``: the rule to write, as it was shown."""

    id: str
    chosen: str | None
    line: str | None


class AskState:
    """``clock``: seconds that only go forward."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._questions: dict[str, Question] = {}
        self._current = ""
        self._sent = ""
        self.selected: int | None = None
        """Index of the chosen target of the question in view."""
        self.armed_at = 0.0
        self.is_remembering = False
        self.is_connected = False
        self.was_connected = False
        """Until then a daemon that does not answer is being looked for, not missing."""
        self.message = ""
        self.notices: deque[Notice] = deque(maxlen=NOTICES_KEPT)

    # What is there

    @property
    def questions(self) -> list[Question]:
        """In fair order."""
        return sorted(self._questions.values(), key=lambda question: question.turn)

    @property
    def current(self) -> Question | None:
        return self._questions.get(self._current)

    @property
    def chosen(self) -> Face | None:
        question = self.current
        return None if question is None or self.selected is None else question.targets[self.selected]

    @property
    def waits_s(self) -> float:
        """How long until keys count."""
        return max(0.0, self.armed_at - self._clock())

    @property
    def is_sent(self) -> bool:
        """The answer to the question in view is on its way."""
        return bool(self._sent) and self._sent == self._current

    def line(self, *, allow: bool) -> str:
        """The rule that would be written; "" if none would."""
        question = self.current
        if question is None or not self.is_remembering:
            return ""
        if not allow:
            return question.deny_line
        return question.allow_lines.get(self.chosen.name, "") if self.chosen else ""

    # What the daemon tells

    def told(self, name: str, value: Mapping[str, Any]) -> bool:
        """Take it in; whether a new question came. ValueError for what cannot be read."""
        match name:
            case "prompt":
                question = Question.parse(value, self._clock())
                is_new = question.id not in self._questions
                self._questions[question.id] = question
                self._look()
                return is_new
            case "gone":
                self._take_away(str(value.get("id")))
            case "notice":
                self.notices.append(Notice.parse(value))
            case "ready":
                self.is_connected = self.was_connected = True
        return False

    def connecting(self) -> None:
        """The daemon is out of reach, or a connection begins: what was open is stale."""
        self.is_connected = False
        self._questions.clear()
        self._sent = ""
        self._look()

    def refused(self, prompt_id: str, why: str) -> None:
        """The daemon did not take an answer."""
        self.message = shown(why)
        if self._sent == prompt_id:
            self._sent = ""
            self._arm()

    def focused(self) -> None:
        """The person looks at us again."""
        self._arm()

    # What the person does

    def press(self, key: Key) -> Reply | None:
        """The reply to send, if that was one. Everything before its time is lost; quitting is the front end's."""
        question = self.current
        if question is None or key is Key.QUIT or self.waits_s > 0 or self.is_sent:
            return None
        self.message = ""
        if key in _MOVES:
            self._move(_MOVES[key], len(question.targets))
        elif key is Key.NEXT:
            self._show_next()
        elif key is Key.REMEMBER:
            self._switch_remember(question)
        elif key is Key.DENY:
            return self._reply(question, None)
        elif self.chosen is None:
            self.message = "choose a target first"
        else:
            return self._reply(question, self.chosen.name)
        return None

    def _reply(self, question: Question, chosen: str | None) -> Reply:
        self._sent = question.id
        line = self.line(allow=chosen is not None)
        return Reply(question.id, chosen, line or None)

    def _move(self, steps: int, count: int) -> None:
        if self.selected is None:
            self.selected = 0 if steps > 0 else count - 1
        else:
            self.selected = min(max(self.selected + steps, 0), count - 1)

    def _switch_remember(self, question: Question) -> None:
        if question.why_not:
            self.message = f"cannot be remembered: {question.why_not}"
            return
        self.is_remembering = not self.is_remembering
        self._arm()

    def _show_next(self) -> None:
        order = [question.id for question in self.questions]
        if len(order) > 1:
            self._view(order[(order.index(self._current) + 1) % len(order)])

    def _take_away(self, prompt_id: str) -> None:
        self._questions.pop(prompt_id, None)
        if self._sent == prompt_id:
            self._sent = ""
        self._look()

    def _look(self) -> None:
        """Keep in view what is; otherwise show what is next."""
        if self._current not in self._questions:
            order = self.questions
            self._view(order[0].id if order else "")

    def _view(self, prompt_id: str) -> None:
        self._current = prompt_id
        self.is_remembering = False
        self.message = ""
        question = self.current
        names = [face.name for face in question.targets] if question else []
        default = question.default_target if question else None
        self.selected = names.index(default) if default in names else None
        self._arm()

    def _arm(self) -> None:
        self.armed_at = self._clock() + DELAY_S
