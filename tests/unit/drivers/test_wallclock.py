"""Jumps of the computer's clock. (Nobody sets the real one here.)"""

from __future__ import annotations

import asyncio
import errno
import os

import pytest

from cloison.drivers import wallclock
from cloison.drivers.wallclock import WallClock


async def test_a_jump_is_told_once_and_small_steps_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    offset = [0]
    monkeypatch.setattr(wallclock, "_offset_ns", lambda: offset[0])
    clock = WallClock()
    try:
        offset[0] = 3600 * 10**9
        assert await clock.wait_jump() == 3600
        waiting = asyncio.ensure_future(clock.wait_jump())
        await asyncio.sleep(0.05)
        assert not waiting.done()
        offset[0] -= 10**8  # as a time service would correct it
        waiting.cancel()
        await asyncio.wait({waiting})
        offset[0] -= 7200 * 10**9
        assert round(await clock.wait_jump()) == -7200
    finally:
        clock.close()


async def test_the_kernels_word_wakes_the_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """The timer is replaced by a pipe: what the kernel would cancel, the test makes readable."""
    offset = [0]
    monkeypatch.setattr(wallclock, "_offset_ns", lambda: offset[0])
    clock = WallClock()
    reading, writing = os.pipe2(os.O_NONBLOCK)
    os.dup2(reading, clock._fd)
    monkeypatch.setattr(clock, "_arm", lambda: None)
    waiting = asyncio.ensure_future(clock.wait_jump())
    try:
        for step in (0, 10**8, 5 * 10**9):
            assert not waiting.done()
            offset[0] += step
            os.write(writing, b"12345678")
            await asyncio.sleep(0.02)
        assert await asyncio.wait_for(waiting, 5) == 5.1
    finally:
        waiting.cancel()
        clock.close()
        os.close(reading)
        os.close(writing)


def test_the_kernel_knows_the_timer() -> None:
    clock = WallClock()
    clock._arm()
    with pytest.raises(OSError) as error:
        os.read(clock._fd, 8)
    assert error.value.errno == errno.EAGAIN
    clock.close()
    clock.close()
