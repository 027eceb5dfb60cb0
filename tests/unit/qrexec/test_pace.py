from __future__ import annotations

import asyncio

from cloison.qrexec.pace import DENIAL_BURST, Pace, Repeats


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_burst_is_free_then_the_rate_counts():
    clock = Clock()
    pace = Pace(10, 3, clock)
    assert [pace.spend() for _ in range(5)] == [0, 0, 0, 0.1, 0.2]
    clock.now = 10
    assert pace.is_full() and pace.has_permit()
    assert [pace.spend() for _ in range(4)] == [0, 0, 0, 0.1]
    assert not pace.has_permit()


def test_a_clock_that_stands_still_gives_nothing():
    pace = Pace(1000, 1, Clock())
    assert pace.spend() == 0
    assert not pace.has_permit()


async def test_refusals_above_the_pace_are_counted_per_qube():
    told = []
    repeats = Repeats(lambda source, count: told.append((source, count)))
    written = sum(repeats.may_write("evil") for _ in range(DENIAL_BURST + 50))
    assert written < DENIAL_BURST + 5
    assert repeats.may_write("other")
    repeats.close()
    assert told == [("evil", DENIAL_BURST + 50 - written)]
    await asyncio.sleep(0)
