"""Who has how much open: counts calls against the limit rules, and ends those that outgrow theirs.

In: calls as they come and go, limit rules. Out: Refused; calls to end. May import: policy, pace, calls, errors.

What is counted together: the calls of one source that are under the same rule.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import NamedTuple, Protocol

from cloison.errors import Refused
from cloison.policy.errors import PolicyError
from cloison.policy.limits import BUILT_IN, Held, Kind, LimitedCall, LimitSet
from cloison.policy.rules import RulePlace
from cloison.policy.system import SystemInfo
from cloison.qrexec.calls import CallView
from cloison.qrexec.pace import Pace

log = logging.getLogger(__name__)

LOOK_S = 1.0
"""How often bytes are looked at: a call may pass as much more as it can send in this time."""


class LimitDoor(Protocol):
    """LimitSource. A PolicyError refuses every call."""

    def current(self) -> LimitSet: ...


class BuiltInLimits:
    """A LimitDoor for who has no files."""

    def current(self) -> LimitSet:
        return LimitSet(BUILT_IN)


class _Open(NamedTuple):
    call: LimitedCall
    system: SystemInfo


class LimitBook:
    """The open calls of qubes and the pace of new ones. ``clock``: seconds that only go forward."""

    def __init__(self, door: LimitDoor, clock: Callable[[], float]) -> None:
        self._door = door
        self._clock = clock
        self._open: dict[int, _Open] = {}
        self._paces: dict[tuple[RulePlace, str], Pace] = {}
        self._of_paces: LimitSet | None = None
        self._complained = ""

    def admit(self, number: int, system: SystemInfo, call: LimitedCall) -> Mapping[Kind, Held]:
        """Count a new call until ``leave(number)``; the limits that hold for it. Above one: Refused, not counted."""
        try:
            rules = self._door.current()
        except PolicyError as error:
            if self._complained != str(error):  # a qube must not fill the log with it
                log.error("every call is refused, the limits are broken: %s", error)
                self._complained = str(error)
            raise Refused(f"the limits are broken: {error}") from error
        self._complained = ""
        held = rules.find(call, system)
        if (at_once := held.get(Kind.CALLS)) is not None and at_once.limit.value is not None:
            mine = sum(1 for other in self._open.values() if self._is_counted(other, call, rules, at_once))
            if mine >= at_once.limit.value:
                raise Refused(f"{call.source} has {mine} calls already ({at_once.limit}, {at_once.rule.where})")
        if (pace := held.get(Kind.RATE)) is not None:
            self._spend(call, rules, pace)
        self._open[number] = _Open(call, system)
        return held

    def leave(self, number: int) -> None:
        self._open.pop(number, None)

    def _is_counted(self, other: _Open, call: LimitedCall, rules: LimitSet, held: Held) -> bool:
        """Whether a call that is open counts against this limit: under the rules as they are now."""
        if other.call.source != call.source:
            return False
        if other.call == call:
            return True
        theirs = rules.find(other.call, other.system).get(Kind.CALLS)
        return theirs is not None and theirs.rule.place == held.rule.place

    def _spend(self, call: LimitedCall, rules: LimitSet, held: Held) -> None:
        rate = held.limit.rate
        assert rate is not None
        if self._of_paces is not rules and self._of_paces != rules:
            self._paces.clear()
        self._of_paces = rules
        key = held.rule.place, call.source
        pace = self._paces.get(key)
        if pace is None:
            self._paces = {k: p for k, p in self._paces.items() if not p.is_full()}
            pace = self._paces[key] = Pace(rate.new_calls / rate.period_s, rate.new_calls, self._clock)
        if not pace.has_permit():
            raise Refused(f"{call.source} calls too often ({held.limit}, {held.rule.where})")
        pace.spend()


class Watchdog:
    """Ends running calls that reach the ``bytes`` or ``time`` limit they were admitted under.

    ``look`` answers the calls with their counts; ``kill(number, reason)`` ends one.
    """

    def __init__(self, look: Callable[[], Awaitable[list[CallView]]], kill: Callable[[int, str], object]) -> None:
        self._look = look
        self._kill = kill
        self._most_bytes: dict[int, Held] = {}
        self._task: asyncio.Task[None] | None = None

    @contextlib.contextmanager
    def watching(self, number: int, held: Mapping[Kind, Held]) -> Iterator[None]:
        """While a call runs."""
        timer = None
        if (longest := held.get(Kind.TIME)) is not None and longest.limit.value is not None:
            reason = f"it took too long ({longest.limit}, {longest.rule.where})"
            timer = asyncio.get_running_loop().call_later(longest.limit.value, self._kill, number, reason)
        if (most := held.get(Kind.BYTES)) is not None:
            self._most_bytes[number] = most
            if self._task is None or self._task.done():
                self._task = asyncio.create_task(self._watch_bytes(), name="byte limits")
        try:
            yield
        finally:
            if timer is not None:
                timer.cancel()
            self._most_bytes.pop(number, None)

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _watch_bytes(self) -> None:
        while self._most_bytes:
            await asyncio.sleep(LOOK_S)
            for view in await self._look():
                held = self._most_bytes.get(view.id)
                if held is None or held.limit.value is None:
                    continue
                if view.stdin_bytes + view.stdout_bytes + view.stderr_bytes > held.limit.value:
                    self._kill(view.id, f"it passed too many bytes ({held.limit}, {held.rule.where})")
