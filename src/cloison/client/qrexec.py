"""A call from this host into a qube: three streams, signals, an exit code, as of a local command.

In: what to call, descriptors. Out: how it ended. May import: wire, client, layout.

The broker answers on ``layout.qrexec_socket``; one connection is one call. Bytes go both ways at the same time and
nothing blocks the other direction: what the local side cannot take now is not read from the qube (credit).
"""

from __future__ import annotations

import os
import select
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from cloison.client.failures import DaemonUnreachable
from cloison.client.peer import require_own_peer
from cloison.client.streams import Sink, WindowSource, is_drained
from cloison.layout import Layout
from cloison.wire import (
    LEG_SESSION,
    Accepted,
    Call,
    Connection,
    Credit,
    CreditCounter,
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
)

RECEIVE_BYTES = 1 << 18
CONNECT_TIMEOUT_S = 10.0
FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
"""Signals that the remote command gets in our stead; a second SIGINT or SIGTERM ends us."""
WAIT_NOTE_S = 0.7
"""A fork takes less; a person who waits longer wants to know for what."""
TERM_GRACE_S = 5.0
"""How long a command may take to end after SIGTERM, before its caller ends without it."""
LOST = 255
REFUSED = 125


@dataclass(frozen=True)
class Ending:
    """How a call ended: the command's exit code, and what to tell a person if it was not the command that ended it."""

    code: int
    note: str = ""


class OutputClosed(BrokenPipeError):
    """Nobody reads our standard output any more."""


def connect(layout: Layout, *, start: bool = True) -> socket.socket:
    """A connection to the broker; starts the daemon if nobody answers and ``start``. Raises DaemonUnreachable."""
    path = str(layout.qrexec_socket)
    deadline = time.monotonic() + CONNECT_TIMEOUT_S
    started = not start
    while True:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.connect(path)
            require_own_peer(connection, path)
            return connection
        except (FileNotFoundError, ConnectionRefusedError):
            connection.close()
        except DaemonUnreachable:
            connection.close()
            raise
        except OSError as error:
            connection.close()
            raise DaemonUnreachable(f"cannot connect to {path}: {error.strerror or error}") from None
        if not started:
            from cloison.client.spawn import start_daemon

            start_daemon(layout, also=layout.qrexec_socket)
            started = True
            continue
        if not start or time.monotonic() > deadline:
            raise DaemonUnreachable(f"no daemon listens on {path}", hint="start it with `cloison daemon start`")
        time.sleep(0.02)


class HostCall:
    """One call. ``run`` pumps until it is over.

    ``source``: descriptor of standard input, or None for none. Signals are forwarded while ``run`` runs, if
    ``forward_signals`` (main thread only). With ``terminal`` (a descriptor) its window size is told to the qube.
    ``on_wait`` is called with True when the call was not accepted within ``WAIT_NOTE_S``, and with False afterwards;
    ``on_accepted`` once, when the other end is there.
    """

    def __init__(self, connection: socket.socket, call: Call, source: WindowSource | None, sinks: tuple[Sink, Sink], *,
                 terminal: int | None = None, forward_signals: bool = False,
                 on_wait: Callable[[bool], None] | None = None,
                 on_accepted: Callable[[], None] | None = None) -> None:  # fmt: skip
        self._socket = connection
        self._wire = Connection(Role.LEG_CALLER)
        self._call = call
        self._source = source
        self._sinks = {int(Stream.STDOUT): sinks[0], int(Stream.STDERR): sinks[1]}
        self._counters = {int(Stream.STDOUT): CreditCounter(), int(Stream.STDERR): CreditCounter()}
        self._terminal = terminal
        self._forward_signals = forward_signals
        self._outgoing = bytearray()
        self._accepted = False
        self._ending: Ending | None = None
        self._signals: list[int] = []
        self._interrupts = 0
        self._over = False
        self._give_up_at: float | None = None
        self._on_wait = on_wait
        self._on_accepted = on_accepted
        self._note_at = time.monotonic() + WAIT_NOTE_S if on_wait else None
        self._is_noted = False
        self._ended: set[int] = set()

    def run(self) -> Ending:
        """Carry the call through. Raises OutputClosed if standard output's reader goes away (the call is reset)."""
        with self._socket, self._catch_signals() as wakeup:
            self._socket.setblocking(False)
            self._outgoing += self._wire.send(self._call)
            while not self._is_over():
                self._step(wakeup)
        assert self._ending is not None
        return self._ending

    def _is_over(self) -> bool:
        return self._ending is not None and (self._over or all(is_drained(s) for s in self._sinks.values()))

    def _step(self, wakeup: int) -> None:
        poll = select.poll()
        if wakeup >= 0:
            poll.register(wakeup, select.POLLIN)
        if self._ending is None:
            poll.register(self._socket, select.POLLIN | (select.POLLOUT if self._outgoing else 0))
            if (source := self._readable_source()) is not None:
                poll.register(source.fileno(), select.POLLIN)
        for sink in self._sinks.values():
            if not is_drained(sink) and sink.fileno() >= 0:
                poll.register(sink.fileno(), select.POLLOUT)
        ready = dict(poll.poll(self._patience_ms()))
        if wakeup in ready:
            os.read(wakeup, 512)
        self._handle_signals()
        self._keep_time()
        for stream, sink in self._sinks.items():
            if sink.fileno() in ready:
                self._give_credit(stream, self._flush(stream, sink))
        if self._ending is not None:
            return
        source = self._readable_source()
        if source is not None and source.fileno() in ready:
            self._pump_in(source)
        happened = ready.get(self._socket.fileno(), 0)
        if happened & ~select.POLLOUT:
            self._receive()
            self._keep_time()
        self._send()

    def _patience_ms(self) -> int | None:
        """Until when something must be done even if nothing happens."""
        times = [at for at in (self._give_up_at, self._note_at) if at is not None]
        return max(0, round((min(times) - time.monotonic()) * 1000)) if times else None

    def _keep_time(self) -> None:
        """What falls due: a note that the call takes long, the end of patience with a command told to end."""
        now = time.monotonic()
        if self._note_at is not None and (self._accepted or self._ending is not None or now >= self._note_at):
            self._note_at = None
            if not self._accepted and self._ending is None and self._on_wait is not None:
                self._is_noted = True
                self._on_wait(True)
        if self._is_noted and (self._accepted or self._ending is not None) and self._on_wait is not None:
            self._is_noted = False
            self._on_wait(False)
        if self._give_up_at is not None and now >= self._give_up_at and self._ending is None:
            self._give_up("the caller was told to end")
            self._ending = Ending(128 + signal.SIGTERM)

    def _readable_source(self) -> WindowSource | None:
        """Where input may be read from now: there is one, the call runs, and the qube takes more."""
        if self._source is None or not self._accepted or len(self._outgoing) > RECEIVE_BYTES:
            return None
        return self._source if self._wire.window(LEG_SESSION, Stream.STDIN) > 0 else None

    def _pump_in(self, source: WindowSource) -> None:
        data = source.read(min(RECEIVE_BYTES, self._wire.window(LEG_SESSION, Stream.STDIN)))
        for start in range(0, len(data), 65536):
            self._outgoing += self._wire.send(Data(LEG_SESSION, Stream.STDIN, data[start : start + 65536]))
        if not data:
            self._outgoing += self._wire.send(Data(LEG_SESSION, Stream.STDIN, b""))
            self._source = None

    def _receive(self) -> None:
        try:
            data = self._socket.recv(RECEIVE_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            self._end(LOST, f"the connection to the daemon was lost: {error.strerror}")
            return
        if not data:
            self._end(LOST, "the connection to the qube was lost")
            return
        try:
            events = self._wire.receive_data(data)
        except RemoteProtocolError as error:
            self._end(LOST, f"the daemon broke the protocol: {error}")
            return
        for event in events:
            self._handle(event)
        self._outgoing += self._wire.data_to_send()

    def _handle(self, event: Event) -> None:
        match event:
            case Data():
                sink = self._sinks[event.stream]
                sink.put(event.payload)
                if not len(event.payload):
                    self._ended.add(event.stream)
                self._give_credit(event.stream, self._flush(event.stream, sink))
            case Accepted():
                self._accepted = True
                if self._on_accepted is not None:
                    self._on_accepted()
                if self._source is None:
                    self._outgoing += self._wire.send(Data(LEG_SESSION, Stream.STDIN, b""))
            case Exit():
                self._end(event.code & 0xFF if event.code >= 0 else LOST)
            case Refused():
                self._end(REFUSED, event.reason or "refused")
            case Reset():
                self._end(LOST, f"the connection to the qube was lost{': ' + event.reason if event.reason else ''}")
            case _:
                pass  # credit: counted by the wire

    def _flush(self, stream: int, sink: Sink) -> int:
        try:
            done = sink.flush()
            if stream in self._ended and is_drained(sink):
                sink.end()
            return done
        except BrokenPipeError:
            if stream == Stream.STDERR:
                return sink.discard()
            self._give_up("nobody reads the output")
            raise OutputClosed from None

    def _give_credit(self, stream: int, size_bytes: int) -> None:
        if size_bytes and (credit := self._counters[stream].consumed(size_bytes)) and self._ending is None:
            self._outgoing += self._wire.send(Credit(LEG_SESSION, stream, credit))

    def _send(self) -> None:
        try:
            while self._outgoing:
                del self._outgoing[: self._socket.send(self._outgoing)]
        except BlockingIOError:
            return
        except OSError:
            self._outgoing.clear()  # what it said last is read next

    def _end(self, code: int, note: str = "") -> None:
        if self._ending is None:
            self._ending = Ending(code, note)
            self._outgoing += self._wire.data_to_send()
            self._send()

    def _give_up(self, why: str) -> None:
        """Tell the other side that we are gone, as far as it can be told at once."""
        self._outgoing += self._wire.send(Reset(LEG_SESSION, why))
        self._send()
        self._over = True

    # Signals

    @contextmanager
    def _catch_signals(self) -> Iterator[int]:
        """While the call runs, signals are noted and wake the pump; yields the descriptor that becomes readable."""
        if not self._forward_signals:
            yield -1
            return
        reading, writing = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        caught = [*FORWARDED, *([signal.SIGWINCH] if self._terminal is not None else [])]
        before = {number: signal.signal(number, self._note_signal) for number in caught}
        old_wakeup = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        try:
            yield reading
        finally:
            signal.set_wakeup_fd(old_wakeup)
            for number, handler in before.items():
                signal.signal(number, handler)
            os.close(reading)
            os.close(writing)

    def _note_signal(self, number: int, _frame: object) -> None:
        self._signals.append(number)

    def _handle_signals(self) -> None:
        while self._signals:
            number = self._signals.pop(0)
            if number == signal.SIGWINCH:
                self._tell_window_size()
                continue
            self._interrupts += number in (signal.SIGINT, signal.SIGTERM)
            if not self._accepted or self._interrupts > 1 or number == signal.SIGHUP:
                self._give_up("the caller was interrupted")
                self._ending = self._ending or Ending(128 + number)
            elif self._ending is None:
                self._outgoing += self._wire.send(Signal(LEG_SESSION, number))
                if number == signal.SIGTERM:
                    self._give_up_at = time.monotonic() + TERM_GRACE_S

    def _tell_window_size(self) -> None:
        if self._terminal is not None and self._accepted:
            cols, rows = os.get_terminal_size(self._terminal)
            self._outgoing += self._wire.send(WindowSize(LEG_SESSION, rows, cols))


def run_captured(layout: Layout, call: Call, *, stdin: bytes = b"") -> tuple[Ending, bytes, bytes]:
    """A whole call with input and output in memory."""
    from cloison.client.streams import MemorySink, MemorySource

    out, err = MemorySink(), MemorySink()
    with MemorySource(stdin) as source:
        ending = HostCall(connect(layout), call, source, (out, err)).run()
    return ending, bytes(out.data), bytes(err.data)
