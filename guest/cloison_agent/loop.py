"""The event loop: descriptors, timers and processes that end.

What brings more bytes for the host (*producers*: services' output, local clients) is not listened to while the port is
full; everything else goes on.
"""

from __future__ import annotations

import heapq
import os
import select
import time
from collections.abc import Callable
from itertools import count

READ, WRITE, HANGUP = select.EPOLLIN, select.EPOLLOUT, select.EPOLLHUP | select.EPOLLERR
EDGE = select.EPOLLET
Handler = Callable[[int], None]


class Loop:
    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._handlers: dict[int, Handler] = {}
        self._producing: dict[int, int] = {}
        """Producers and what they wait for."""
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._ticket = count()
        self._paused = False
        self.after_each: Callable[[], None] = lambda: None

    def add(self, fd: int, mask: int, handler: Handler, *, producer: bool = False) -> None:
        if not (producer and self._paused):
            self._epoll.register(fd, mask)
        if producer:
            self._producing[fd] = mask
        self._handlers[fd] = handler

    def change(self, fd: int, mask: int) -> None:
        if fd in self._producing:
            self._producing[fd] = mask
        if not (self._paused and fd in self._producing):
            self._epoll.modify(fd, mask)

    def remove(self, fd: int) -> None:
        """Forget a descriptor (before closing it). Idempotent."""
        if self._handlers.pop(fd, None) is None:
            return
        if self._producing.pop(fd, None) is None or not self._paused:
            self._epoll.unregister(fd)

    def has(self, fd: int) -> bool:
        return fd in self._handlers

    def pause_producers(self, paused: bool) -> None:
        if paused != self._paused:
            self._paused = paused
            for fd, mask in self._producing.items():
                if paused:
                    self._epoll.unregister(fd)
                else:
                    self._epoll.register(fd, mask)

    def later(self, delay_s: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._timers, (time.monotonic() + delay_s, next(self._ticket), action))

    def watch_exit(self, pid: int, ended: Callable[[int], None]) -> None:
        """Call ``ended(exit code)`` once the child is gone: its own code, or 128 + the signal that killed it."""
        pidfd = os.pidfd_open(pid)

        def reap(_: int) -> None:
            self.remove(pidfd)
            os.close(pidfd)
            _, status = os.waitpid(pid, 0)
            code = os.waitstatus_to_exitcode(status)
            ended(code if code >= 0 else 128 - code)

        self.add(pidfd, READ, reap)

    def run(self) -> None:
        """Until KeyboardInterrupt or SystemExit."""
        while True:
            self.step()

    def step(self, timeout_s: float = -1) -> None:
        if self._timers:
            left = max(0.0, self._timers[0][0] - time.monotonic())
            timeout_s = left if timeout_s < 0 else min(timeout_s, left)
        handlers = self._handlers
        for fd, mask in self._epoll.poll(timeout_s):
            if handler := handlers.get(fd):
                handler(mask)
        while self._timers and self._timers[0][0] <= time.monotonic():
            heapq.heappop(self._timers)[2]()
        self.after_each()
