"""Local programs of this qube that call services elsewhere: each is a leg joined to a session of the port."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable

from cloison.wire import (
    LEG_SESSION,
    Accepted,
    Call,
    Connection,
    Credit,
    Data,
    Event,
    Exit,
    Refused,
    RemoteProtocolError,
    Reset,
    Role,
    Signal,
    WindowSize,
    renumbered,
)
from cloison_agent.loop import READ, WRITE, Loop

READ_BYTES = 128 * 1024
MAX_WAITING_CALLS = 1000
"""Calls of local programs at once; more are refused here, where it hurts only this qube."""


class Caller:
    """One local client. ``forward`` sends to the port; the session number is given by ``new_call``."""

    def __init__(
        self,
        loop: Loop,
        sock: socket.socket,
        forward: Callable[[Event], None],
        new_call: Callable[[Caller], int],
        on_end: Callable[[int], None],
    ) -> None:
        sock.setblocking(False)
        self._loop, self._sock, self._forward = loop, sock, forward
        self._new_call, self._on_end = new_call, on_end
        self._leg = Connection(Role.LEG_SERVICE)
        self._out = bytearray()
        self._number = 0
        self._over = False
        self._closing = False
        self._fd = sock.fileno()
        loop.add(self._fd, READ, self._readable, producer=True)

    def _readable(self, _: int) -> None:
        try:
            data = os.read(self._fd, READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        try:
            events = self._leg.receive_data(data) if data else []
        except RemoteProtocolError:
            data, events = b"", []
        for event in events:
            self._from_client(event)
        if data:
            self._out += self._leg.data_to_send()
            return
        if self._number and not self._over:
            self._forward(Reset(self._number, "the caller went away"))
            self._on_end(self._number)
        self._close()

    def _from_client(self, event: Event) -> None:
        if isinstance(event, Call):
            self._number = self._new_call(self)
            if not self._number:
                self.receive(Refused(LEG_SESSION))
                return
            self._forward(Call(self._number, event.target, event.service, event.source))
        elif isinstance(event, (Data, Credit, Signal, WindowSize)):
            self._forward(renumbered(event, self._number))
        elif isinstance(event, Reset):
            self._over = True
            self._forward(renumbered(event, self._number))
            self._on_end(self._number)

    def receive(self, event: Accepted | Refused | Data | Credit | Exit | Reset) -> None:
        """Something from the port for this client."""
        self._out += self._leg.send(renumbered(event, LEG_SESSION))
        if isinstance(event, (Refused, Exit, Reset)):
            self._over = self._closing = True
            if self._number:
                self._on_end(self._number)
        self._flush(0)

    def _flush(self, _: int) -> None:
        """Write; the read side stays with the producers, so writing goes through a duplicate descriptor."""
        try:
            while self._out:
                written = self._sock.send(memoryview(self._out)[: 1 << 18])
                del self._out[:written]
        except BlockingIOError:
            self._wait_writable(True)
            return
        except OSError:
            self._out.clear()
        self._wait_writable(False)
        if self._closing:
            self._close()

    def _wait_writable(self, wanted: bool) -> None:
        if wanted and not self._writer:
            self._writer = os.dup(self._fd)
            self._loop.add(self._writer, WRITE, self._flush)
        elif not wanted and self._writer:
            self._loop.remove(self._writer)
            os.close(self._writer)
            self._writer = 0

    _writer = 0

    def _close(self) -> None:
        if self._fd >= 0:
            self._wait_writable(False)
            self._loop.remove(self._fd)
            self._sock.close()
            self._fd = -1
