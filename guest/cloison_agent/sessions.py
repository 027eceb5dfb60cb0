"""One running call of this qube as the serving side: a program or a socket joined to a session of the port."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import signal
import socket
import struct
import termios
from collections import deque
from collections.abc import Callable
from typing import Protocol

from cloison.wire import MAX_PAYLOAD, Credit, CreditCounter, Data, Event, Exit, Signal, Stream, Tty, WindowSize
from cloison_agent.launch import Task, kill_session, start_task
from cloison_agent.loop import HANGUP, READ, WRITE, Loop

KILL_AFTER_S = 3.0
"""Between asking a service to go (its caller is gone) and making it go."""
FORWARDED = frozenset(
    {
        signal.SIGHUP,
        signal.SIGINT,
        signal.SIGQUIT,
        signal.SIGUSR1,
        signal.SIGUSR2,
        signal.SIGTERM,
        signal.SIGKILL,
        signal.SIGCONT,
        signal.SIGTSTP,
    }
)
"""Signals that a caller may send to the service that it called."""
F_SETPIPE_SZ = 1031
WIDE_PIPE_BYTES = 256 * 1024
"""A program that fills its pipe gets a wider one: fewer changes between it and us."""
CTRL_D = b"\x04"
ENDS_WAIT_S = 0.003
"""A program's end of output is mostly its own end: so long we wait for the exit code, which says both in one frame."""


class Outlet(Protocol):
    """Where a session's events go: the port."""

    def send(self, event: Event) -> None: ...
    def window(self, session: int, stream: int) -> int: ...
    def pump(self, session: int, stream: int, fd: int) -> int | None: ...


class Source:
    """Reads a descriptor into a stream of the session, as far as the credit goes.

    ``on_end(gone)``: end of file, which its receiver tells the host; ``gone``: the other side closed both directions.
    """

    def __init__(
        self, loop: Loop, outlet: Outlet, session: int, stream: int, fd: int, on_end: Callable[[bool], None]
    ) -> None:
        os.set_blocking(fd, False)
        self._loop, self._outlet, self._session, self._stream = loop, outlet, session, stream
        self._fd, self._on_end = fd, on_end
        self.ended = False
        self._widened = False
        self.copy: Callable[[bytes], None] | None = None
        loop.add(fd, READ, self._ready, producer=True)

    def _ready(self, mask: int) -> None:
        try:
            # Hung up and nothing to read: all writers are gone, and asking once more would tell the same.
            size_bytes = self._move() if mask & READ else 0
        except BlockingIOError:
            return
        except OSError:  # EIO: the last holder of the terminal is gone; ECONNRESET: so is the peer
            size_bytes = 0
        if size_bytes is None:
            self._loop.remove(self._fd)
        elif not size_bytes:
            self.close()
            self._on_end(bool(mask & HANGUP))
        elif size_bytes >= MAX_PAYLOAD - 4096 and not self._widened:
            self._widened = True
            widen_pipe(self._fd)

    def _move(self) -> int | None:
        """As ``Port.pump``."""
        if self.copy is None:
            return self._outlet.pump(self._session, self._stream, self._fd)
        room = self._outlet.window(self._session, self._stream)
        if not room:
            return None
        data = os.read(self._fd, min(room, MAX_PAYLOAD))
        if data:
            self._outlet.send(Data(self._session, self._stream, data))
            self.copy(data)
        return len(data)

    def credit_came(self) -> None:
        if not self.ended and not self._loop.has(self._fd):
            self._loop.add(self._fd, READ, self._ready, producer=True)

    def close(self) -> None:
        if not self.ended:
            self.ended = True
            self._loop.remove(self._fd)
            os.close(self._fd)


class Sink:
    """Writes a session's stdin to a descriptor and returns credit as it goes."""

    def __init__(self, loop: Loop, outlet: Outlet, session: int, fd: int, finish: Callable[[int], None] | None) -> None:
        """``finish(fd)`` says end-of-file in another way than closing."""
        os.set_blocking(fd, False)
        self._loop, self._outlet, self._session, self._fd, self._finish = loop, outlet, session, fd, finish
        self._queue: deque[memoryview] = deque()
        self._counter = CreditCounter()
        self._last = self._widened = False
        self._uncounted = 0
        self.open = True

    def prepend(self, preamble: bytes) -> None:
        """Bytes of our own before any stdin; no credit is returned for them."""
        self._uncounted += len(preamble)
        self.write(preamble)

    def write(self, payload: bytes | memoryview) -> None:
        """More of stdin; empty = its end."""
        if not len(payload):
            self._last = True
            if not self._queue:
                self._end()
            return
        size_bytes, written = len(payload), 0
        if not self.open:
            self._consumed(size_bytes)
            return
        if not self._queue:
            written = self._try_write(payload)
        if written < size_bytes and self.open:
            self._queue.append(memoryview(bytes(payload[written:])))
            if not self._loop.has(self._fd):
                self._loop.add(self._fd, WRITE, self._ready)
            if size_bytes > MAX_PAYLOAD // 2 and not self._widened:
                self._widened = True
                widen_pipe(self._fd)
        elif written < size_bytes:
            self._consumed(size_bytes - written)

    def _try_write(self, payload: bytes | memoryview) -> int:
        try:
            written = os.write(self._fd, payload)
        except BlockingIOError:
            return 0
        except OSError:  # nobody reads any more: swallow what comes
            self.close()
            return 0
        self._consumed(written)
        return written

    def _ready(self, _: int) -> None:
        while self._queue:
            piece = self._queue[0]
            written = self._try_write(piece)
            if not self.open:
                return
            if written < len(piece):
                self._queue[0] = piece[written:]
                return
            self._queue.popleft()
        self._loop.remove(self._fd)
        if self._last:
            self._end()

    def _consumed(self, size_bytes: int) -> None:
        if self._uncounted:
            free = min(self._uncounted, size_bytes)
            self._uncounted -= free
            size_bytes -= free
        if credit := self._counter.consumed(size_bytes):
            self._outlet.send(Credit(self._session, Stream.STDIN, credit))

    def _end(self) -> None:
        if self.open:
            if self._finish is None:
                self.close()
            else:
                self._finish(self._fd)

    def close(self) -> None:
        """Nothing more is written; what waits is dropped and its credit returned."""
        if self.open:
            self.open = False
            self._loop.remove(self._fd)
            os.close(self._fd)
            dropped = sum(map(len, self._queue))
            self._queue.clear()
            if dropped:
                self._consumed(dropped)


class EarlyEvents:
    """What comes for a session before its service has started; credit bounds how much that can be."""

    def __init__(self) -> None:
        self._kept: list[Event] = []

    def keep(self, event: Event) -> None:
        self._kept.append(event._replace(payload=bytes(event.payload)) if isinstance(event, Data) else event)

    def replay(self, receive: Callable[[Event], None]) -> None:
        kept, self._kept = self._kept, []
        for event in kept:
            receive(event)


class ProgramSession:
    """A program with its stdin, stdout and stderr (or a terminal). Ends after both end-of-files and the exit."""

    def __init__(self, loop: Loop, outlet: Outlet, session: int, on_end: Callable[[], None]) -> None:
        self._loop, self._outlet, self._session, self._on_end = loop, outlet, session, on_end
        self._pid = 0
        self._code: int | None = None
        self._sources: dict[int, Source] = {}
        self._sink: Sink | None = None
        self._terminal: int | None = None
        self._abandoned = self._over = self._telling = False
        self._told: set[int] = set()
        """Streams whose end the host knows."""
        self._early = EarlyEvents()

    def start(self, task: Task, tty: Tty | None, copy_stderr: Callable[[bytes], None] | None) -> None:
        if tty is not None:
            self._start_on_terminal(task, tty)
        else:
            self._start_on_pipes(task)
            if copy_stderr is not None:
                self._sources[Stream.STDERR].copy = copy_stderr
        self._loop.watch_exit(self._pid, self._exited)
        self._early.replay(self.receive)

    def _start_on_pipes(self, task: Task) -> None:
        """Pipes, not qrexec's socket pairs: bash takes a socket for rsh and reads ~/.bashrc, and /dev/stdin cannot be
        opened."""
        pipes: list[int] = []
        try:
            for _ in range(3):
                pipes += os.pipe()
            child_in, our_in, our_out, child_out, our_err, child_err = pipes
            self._pid = start_task(task, child_in, child_out, child_err)
        except OSError:
            for fd in pipes:
                os.close(fd)
            raise
        for fd in (child_in, child_out, child_err):
            os.close(fd)
        self._sink = Sink(self._loop, self._outlet, self._session, our_in, None)
        self._add_source(Stream.STDOUT, our_out)
        self._add_source(Stream.STDERR, our_err)

    def _start_on_terminal(self, task: Task, tty: Tty) -> None:
        ours, theirs = pty.openpty()
        try:
            _set_window_size(theirs, tty.rows, tty.cols)
            if os.getuid() == 0:
                os.fchown(theirs, task.user.uid, -1)
            self._pid = start_task(task, theirs, theirs, theirs, terminal=os.ttyname(theirs))
        finally:
            os.close(theirs)
        self._terminal = ours
        self._sink = Sink(self._loop, self._outlet, self._session, os.dup(ours), _type_ctrl_d)
        self._add_source(Stream.STDOUT, ours)

    def _add_source(self, stream: int, fd: int) -> None:
        self._sources[stream] = Source(self._loop, self._outlet, self._session, stream, fd, self._check_end)

    def receive(self, event: Event) -> None:
        if self._sink is None:
            self._early.keep(event)
        elif isinstance(event, Data):
            self._sink.write(event.payload)
        elif isinstance(event, Credit):
            if source := self._sources.get(event.stream):
                source.credit_came()
        elif isinstance(event, Signal):
            self._signal(event.number)
        elif isinstance(event, WindowSize) and self._terminal is not None and not self._sources[1].ended:
            _set_window_size(self._terminal, event.rows, event.cols)

    def _signal(self, number: int) -> None:
        if number not in FORWARDED or self._code is not None:
            return
        group = self._pid
        with contextlib.suppress(OSError):
            if self._terminal is not None and not self._sources[1].ended:
                group = os.tcgetpgrp(self._terminal) or group
        with contextlib.suppress(OSError):
            os.killpg(group, number)

    def abandon(self) -> None:
        """The caller is gone: the service must go too, with all it started."""
        self._abandoned = True
        self._close()
        if self._pid:
            kill_session(self._pid, signal.SIGHUP)
            kill_session(self._pid, signal.SIGTERM)
            kill_session(self._pid, signal.SIGCONT)
            self._loop.later(KILL_AFTER_S, lambda: kill_session(self._pid, signal.SIGKILL))

    def _close(self) -> None:
        for source in self._sources.values():
            source.close()
        if self._sink is not None:
            self._sink.close()

    def _exited(self, code: int) -> None:
        self._code = code
        self._check_end()

    def _check_end(self, _gone: bool = True) -> None:
        if self._abandoned or self._over:
            return
        ended = [stream for stream, source in self._sources.items() if source.ended]
        if self._code is None or len(ended) < len(self._sources):
            if len(ended) > len(self._told) and not self._telling:
                self._telling = True
                self._loop.later(ENDS_WAIT_S, self._tell_ends)
            return
        self._over = True
        self._outlet.send(Exit(self._session, self._code))
        self._close()
        self._on_end()

    def _tell_ends(self) -> None:
        """Output has ended and the program goes on."""
        self._telling = False
        if self._abandoned or self._over:
            return
        for stream, source in self._sources.items():
            if source.ended and stream not in self._told:
                self._told.add(stream)
                self._outlet.send(Data(self._session, stream, b""))


class SocketSession:
    """A service that listens on a socket: no stderr, exit code 0 when it closes."""

    def __init__(self, loop: Loop, outlet: Outlet, session: int, on_end: Callable[[], None]) -> None:
        self._loop, self._outlet, self._session, self._on_end = loop, outlet, session, on_end
        self._source: Source | None = None
        self._sink: Sink | None = None
        self._exit_on_client_eof = self._exit_on_service_eof = self._client_eof = self._over = False
        self._early = EarlyEvents()

    def start(self, connected: socket.socket, descriptor: bytes, *, on_client_eof: bool, on_service_eof: bool) -> None:
        """``connected`` is given away; ``descriptor`` goes first."""
        self._exit_on_client_eof, self._exit_on_service_eof = on_client_eof, on_service_eof
        self._loop.later(ENDS_WAIT_S, self._tell_no_stderr)
        writer = connected.dup()
        self._sink = Sink(self._loop, self._outlet, self._session, writer.detach(), self._client_ended)
        self._source = Source(
            self._loop, self._outlet, self._session, Stream.STDOUT, connected.detach(), self._service_ended
        )
        if descriptor:
            self._sink.prepend(descriptor)
        self._early.replay(self.receive)

    def receive(self, event: Event) -> None:
        if self._sink is None or self._source is None:
            self._early.keep(event)
        elif isinstance(event, Data):
            self._sink.write(event.payload)
        elif isinstance(event, Credit) and event.stream == Stream.STDOUT:
            self._source.credit_came()

    def _tell_no_stderr(self) -> None:
        """Not at once: most answers are quicker, and each frame of its own wakes the host."""
        if not self._over:
            self._outlet.send(Data(self._session, Stream.STDERR, b""))

    def _client_ended(self, fd: int) -> None:
        _shut_writing(fd)
        self._client_eof = True
        if self._exit_on_client_eof or (self._source is not None and self._source.ended):
            self._end()

    def _service_ended(self, gone: bool) -> None:
        if self._exit_on_service_eof or self._client_eof or gone:
            self._end()
        else:
            self._outlet.send(Data(self._session, Stream.STDOUT, b""))

    def _end(self) -> None:
        self.abandon()
        self._outlet.send(Exit(self._session, 0))
        self._on_end()

    def abandon(self) -> None:
        self._over = True
        for end in (self._source, self._sink):
            if end is not None:
                end.close()


def widen_pipe(fd: int) -> None:
    """Fewer changes between a busy program and us (no effect on sockets and terminals)."""
    with contextlib.suppress(OSError):
        fcntl.fcntl(fd, F_SETPIPE_SZ, WIDE_PIPE_BYTES)


def _shut_writing(fd: int) -> None:
    """Half-close a socket that we know only by its descriptor."""
    duplicate = socket.socket(fileno=fd)
    try:
        duplicate.shutdown(socket.SHUT_WR)
    except OSError:
        return
    finally:
        duplicate.detach()


def _type_ctrl_d(fd: int) -> None:
    with contextlib.suppress(OSError):
        os.write(fd, CTRL_D)


def _set_window_size(fd: int, rows: int, cols: int) -> None:
    with contextlib.suppress(OSError):
        fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("<HHHH", rows, cols, 0, 0))
