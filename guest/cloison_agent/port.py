"""The agent's end of the virtio-serial port.

The port is edge-triggered in epoll: while no host is connected the kernel reports a hang-up all the time, and only an
edge tells that one came. Frames of one turn of the loop leave together, since each write costs an exit to the emulator.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable

from cloison.wire import Connection, Event, Hello, Restarted, Role
from cloison_agent.loop import EDGE, HANGUP, READ, WRITE, Loop

MAX_WRITE = 32 * 1024
"""Bytes that a virtio-serial port takes at once."""
READ_BYTES = 64 * 1024
READS_PER_BATCH = 64
"""The kernel returns at most one page per read; 64 pages are parsed together."""
FULL = 256 * 1024
"""Bytes waiting for the host above which producers are paused."""


class Port:
    def __init__(self, loop: Loop, fd: int, on_event: Callable[[Event], None], software: str) -> None:
        os.set_blocking(fd, False)
        self.connection = Connection(Role.AGENT, software=software)
        self._loop, self._fd, self._on_event = loop, fd, on_event
        self._new: list[bytes] = []
        self._waiting: deque[memoryview] = deque()
        self._waiting_bytes = 0
        loop.add(fd, READ | WRITE | EDGE, self._ready)
        loop.after_each = self.flush

    def send(self, event: Event) -> None:
        """Queue an event; it leaves at the end of this turn of the loop."""
        self._new.append(self.connection.send(event))

    def _ready(self, mask: int) -> None:
        if mask & (READ | HANGUP):
            self._read_all()
        if mask & HANGUP and self.connection.connected and not self._host_is_there():
            self.connection.restart()
            self._drop_output()
            self._on_event(Restarted("the host hung up"))

    def _host_is_there(self) -> bool:
        """A read of a port without host returns nothing at once instead of 'would block'."""
        try:
            data = os.read(self._fd, 4096)
        except BlockingIOError:
            return True
        except OSError:
            return False
        self._receive(data)
        return bool(data)

    def _read_all(self) -> None:
        while True:
            pieces = []
            try:
                for _ in range(READS_PER_BATCH):
                    piece = os.read(self._fd, READ_BYTES)
                    if not piece:
                        break
                    pieces.append(piece)
                    if len(piece) < 4096:
                        # Short of a page: most likely the end, but only "would block" proves it.
                        continue
            except OSError:
                piece = b""
            if pieces:
                self._receive(pieces[0] if len(pieces) == 1 else b"".join(pieces))
            if not piece:
                return

    def _receive(self, data: bytes) -> None:
        connection = self.connection
        for event in connection.receive_data(data):
            if isinstance(event, (Hello, Restarted)):
                self._drop_output()
            self._on_event(event)
        answer = connection.data_to_send()
        if answer:
            self._new.append(answer)

    def _drop_output(self) -> None:
        """What was meant for a host that is gone. (Part of a frame may be out already: the next host skips it.)"""
        self._new.clear()
        self._waiting.clear()
        self._waiting_bytes = 0

    def flush(self) -> None:
        """Write what can be written; pause producers while too much waits."""
        if self._new:
            data = self._new[0] if len(self._new) == 1 else b"".join(self._new)
            self._new.clear()
            if data:
                self._waiting.append(memoryview(data))
                self._waiting_bytes += len(data)
        waiting = self._waiting
        while waiting:
            piece = waiting[0]
            try:
                written = os.write(self._fd, piece[:MAX_WRITE])
            except BlockingIOError:
                break
            except OSError:
                self._drop_output()
                break
            self._waiting_bytes -= written
            if written == len(piece):
                waiting.popleft()
            else:
                waiting[0] = piece[written:]
        self._loop.pause_producers(self._waiting_bytes >= FULL)
