"""How often something may happen: a bucket of permits that fills at a steady rate.

In: a clock. Out: how long to wait. May import: nothing of ours.
"""

from __future__ import annotations

from collections.abc import Callable


class Pace:
    """``rate`` permits a second, at most ``burst`` saved up."""

    def __init__(self, rate: float, burst: float, clock: Callable[[], float]) -> None:
        self._rate, self._burst, self._clock = rate, burst, clock
        self._permits, self._then = burst, clock()

    def spend(self) -> float:
        """Take one permit now; returns the seconds to wait before the next is taken (0: none)."""
        now = self._clock()
        self._permits = min(self._burst, self._permits + (now - self._then) * self._rate) - 1
        self._then = now
        return max(0.0, -self._permits / self._rate)
