"""Local programs of this qube that call services elsewhere: each is a leg joined to a session of the port.

A program whose standard input is a pipe may hand that pipe over together with its CALL. It is then read here, straight
into frames of the port, and the bytes need not pass through the program and its leg.
"""

from __future__ import annotations

import array
import fcntl
import os
import socket
import stat
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
    Stream,
    WindowSize,
    renumbered,
)
from cloison_agent.loop import READ, WRITE, Loop
from cloison_agent.sessions import Outlet, Source

READ_BYTES = 128 * 1024
MAX_WAITING_CALLS = 1000
"""Calls of local programs at once; more are refused here, where it hurts only this qube."""


class Caller:
    """One local client. ``outlet`` is the port; the session number is given by ``new_call``."""

    def __init__(
        self,
        loop: Loop,
        sock: socket.socket,
        outlet: Outlet,
        new_call: Callable[[Caller], int],
        on_end: Callable[[int], None],
    ) -> None:
        sock.setblocking(False)
        self._loop, self._sock, self._outlet, self._forward = loop, sock, outlet, outlet.send
        self._new_call, self._on_end = new_call, on_end
        self._leg = Connection(Role.LEG_SERVICE)
        self._out = bytearray()
        self._number = 0
        self._over = False
        self._closing = False
        self._given_pipe = -1
        self._source: Source | None = None
        self._fd = sock.fileno()
        loop.add(self._fd, READ, self._readable, producer=True)

    def _readable(self, _: int) -> None:
        try:
            data = os.read(self._fd, READ_BYTES) if self._number else self._read_first()
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

    def _read_first(self) -> bytes:
        """What comes with the CALL, and the pipe that may come with it."""
        data, ancillary, _, _ = self._sock.recvmsg(READ_BYTES, socket.CMSG_SPACE(4), socket.MSG_CMSG_CLOEXEC)
        for level, kind, content in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                for fd in array.array("i", content):
                    self._let_go_of_pipe()
                    self._given_pipe = open_pipe(fd)
                    os.close(fd)
        return data

    def _from_client(self, event: Event) -> None:
        if isinstance(event, Call):
            self._number = self._new_call(self)
            if not self._number:
                self.receive(Refused(LEG_SESSION))
                return
            self._forward(Call(self._number, event.target, event.service, event.source))
        elif isinstance(event, Data) and self._source is not None:
            return  # its input is the pipe
        elif isinstance(event, (Data, Credit, Signal, WindowSize)):
            self._forward(renumbered(event, self._number))
        elif isinstance(event, Reset):
            self._over = True
            self._let_go_of_pipe()
            self._forward(renumbered(event, self._number))
            self._on_end(self._number)

    def receive(self, event: Accepted | Refused | Data | Credit | Exit | Reset) -> None:
        """Something from the port for this client."""
        if isinstance(event, Credit) and self._source is not None and event.stream == Stream.STDIN:
            self._source.credit_came()
            return
        if isinstance(event, Accepted) and self._given_pipe >= 0:
            pipe, self._given_pipe = self._given_pipe, -1
            self._source = Source(self._loop, self._outlet, self._number, Stream.STDIN, pipe, self._input_ended)
        self._out += self._leg.send(renumbered(event, LEG_SESSION))
        if isinstance(event, (Refused, Exit, Reset)):
            self._over = self._closing = True
            self._let_go_of_pipe()
            if self._number:
                self._on_end(self._number)
        self._flush(0)

    def _input_ended(self, _: bool) -> None:
        if not self._over:
            self._forward(Data(self._number, Stream.STDIN, b""))

    def _let_go_of_pipe(self) -> None:
        if self._source is not None:
            self._source.close()
        if self._given_pipe >= 0:
            os.close(self._given_pipe)
            self._given_pipe = -1

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
        self._let_go_of_pipe()
        if self._fd >= 0:
            self._wait_writable(False)
            self._loop.remove(self._fd)
            self._sock.close()
            self._fd = -1


def open_pipe(fd: int) -> int:
    """The same pipe, opened anew: being told "would block" is a matter of our own, not of all who share it.

    Anything else than a pipe counts as an input that has ended.
    """
    if is_readable_pipe(fd):
        return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    ended, other_end = os.pipe()
    os.close(other_end)
    return ended


def is_readable_pipe(fd: int) -> bool:
    """A pipe that whoever sent it could read: we must not read for others what they may not."""
    access = fcntl.fcntl(fd, fcntl.F_GETFL)
    may_read = not access & os.O_PATH and access & os.O_ACCMODE in (os.O_RDONLY, os.O_RDWR)
    return may_read and stat.S_ISFIFO(os.fstat(fd).st_mode)
