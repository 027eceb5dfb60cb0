"""How often something may happen: a bucket of permits that fills at a steady rate.

In: a clock. Out: how long to wait, whether to write it down. May import: nothing of ours.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

DENIALS_PER_SECOND, DENIAL_BURST = 5.0, 100
"""Refusals of one qube with a line of their own in the audit log: more than people cause, less than fills a disk."""
SUMMARY_DELAY_S = 1.0


class Pace:
    """``rate`` permits a second, at most ``burst`` saved up."""

    def __init__(self, rate: float, burst: float, clock: Callable[[], float]) -> None:
        self._rate, self._burst, self._clock = rate, burst, clock
        self._permits, self._then = burst, clock()

    def spend(self) -> float:
        """Take one permit now; returns the seconds to wait before the next is taken (0: none)."""
        self._fill()
        self._permits -= 1
        return max(0.0, -self._permits / self._rate)

    def has_permit(self) -> bool:
        self._fill()
        return self._permits >= 1

    def is_full(self) -> bool:
        self._fill()
        return self._permits >= self._burst

    def _fill(self) -> None:
        now = self._clock()
        self._permits = min(self._burst, self._permits + (now - self._then) * self._rate)
        self._then = now


class Repeats:
    """Refusals of a qube that calls without end are counted instead of written; ``tell(source, count)`` sums up."""

    def __init__(self, tell: Callable[[str, int], None]) -> None:
        self._tell = tell
        self._paces: dict[str, Pace] = {}
        self._counts: dict[str, int] = {}
        self._timer: asyncio.TimerHandle | None = None

    def may_write(self, source: str) -> bool:
        """Whether this refusal gets its own line; if not, it is counted."""
        loop = asyncio.get_running_loop()
        pace = self._paces.setdefault(source, Pace(DENIALS_PER_SECOND, DENIAL_BURST, loop.time))
        if pace.has_permit():
            pace.spend()
            return True
        self._counts[source] = self._counts.get(source, 0) + 1
        if self._timer is None:
            self._timer = loop.call_later(SUMMARY_DELAY_S, self._sum_up)
        return False

    def close(self) -> None:
        """Write what was counted so far."""
        if self._timer is not None:
            self._timer.cancel()
            self._sum_up()

    def _sum_up(self) -> None:
        self._timer = None
        counts, self._counts = self._counts, {}
        self._paces = {source: pace for source, pace in self._paces.items() if not pace.is_full()}
        for source, count in counts.items():
            self._tell(source, count)
