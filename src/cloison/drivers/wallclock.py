"""The computer's clock, watched for jumps: somebody set it, or the computer slept.

In: nothing. Out: a wait that ends when CLOCK_REALTIME has moved against the clock that counts on. May import: nothing
of ours.

The kernel tells of it (timerfd with TFD_TIMER_CANCEL_ON_SET): nothing is polled.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import os
import time

MINIMUM_JUMP_S = 1.0
"""Time services correct by fractions of a second, which guests may keep to themselves."""
_TFD_NONBLOCK, _TFD_CLOEXEC = os.O_NONBLOCK, os.O_CLOEXEC
_ABSTIME_CANCEL_ON_SET = 1 | 2
_FAR_AHEAD_S = 2**40


class _Timespec(ctypes.Structure):
    _fields_ = (("tv_sec", ctypes.c_long), ("tv_nsec", ctypes.c_long))


class _Itimerspec(ctypes.Structure):
    _fields_ = (("it_interval", _Timespec), ("it_value", _Timespec))


def _offset_ns() -> int:
    """Wall clock less the time since the start that the computer was awake: a jump, or a sleep, changes it."""
    return time.time_ns() - time.monotonic_ns()


class WallClock:
    """Made by whoever waits; ``close`` it."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._fd = self._libc.timerfd_create(time.CLOCK_REALTIME, _TFD_NONBLOCK | _TFD_CLOEXEC)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")
        self._offset_ns = _offset_ns()

    async def wait_jump(self) -> float:
        """Returns by how many seconds, once it moved by at least ``MINIMUM_JUMP_S`` since the last return."""
        while True:
            self._arm()
            moved_s = (_offset_ns() - self._offset_ns) / 1e9
            if abs(moved_s) >= MINIMUM_JUMP_S:
                self._offset_ns = _offset_ns()
                return moved_s
            await self._cancelled()

    def _arm(self) -> None:
        wish = _Itimerspec(_Timespec(0, 0), _Timespec(_FAR_AHEAD_S, 0))
        if self._libc.timerfd_settime(self._fd, _ABSTIME_CANCEL_ON_SET, ctypes.byref(wish), None) != 0:
            raise OSError(ctypes.get_errno(), "timerfd_settime")

    async def _cancelled(self) -> None:
        loop = asyncio.get_running_loop()
        readable: asyncio.Future[None] = loop.create_future()

        def wake() -> None:
            if not readable.done():
                readable.set_result(None)

        loop.add_reader(self._fd, wake)
        try:
            await readable
        finally:
            loop.remove_reader(self._fd)
        try:
            os.read(self._fd, 8)
        except OSError as error:
            if error.errno not in (errno.ECANCELED, errno.EAGAIN):
                raise

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
