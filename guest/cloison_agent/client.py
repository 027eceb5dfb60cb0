"""Calling a service of another qube: ``qrexec-client-vm``, and the pump that the other tools share."""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
from collections.abc import Callable, Sequence

from cloison.wire import (
    LEG_SESSION,
    MAX_PAYLOAD,
    Accepted,
    Call,
    Connection,
    Credit,
    CreditCounter,
    Data,
    Event,
    Exit,
    LocalProtocolError,
    Refused,
    RemoteProtocolError,
    Reset,
    Role,
)

AGENT_SOCKET = "/run/qubes/qrexec-agent"
REFUSED, TROUBLE, LOST = 126, 125, 255
READ_BYTES = 1 << 18
_KEPT_CONTROLS = frozenset(b"\t\n\r\b\a")
_NO_ESCAPES = bytes(b if 0x20 <= b <= 0x7E or b in _KEPT_CONTROLS else ord("_") for b in range(256))
_NAME_CHARACTERS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.-@:")

USAGE = """usage: qrexec-client-vm [options] TARGET SERVICE[+ARGUMENT] [PROGRAM [ARGUMENTS...]]
Call a service of another qube. TARGET '' or @default: let the policy choose.
Without PROGRAM the service talks to this program's stdin and stdout, else to PROGRAM's.
  -t, --no-filter-escape-chars-stdout   do not replace escape characters even on a terminal
  -T, --no-filter-escape-chars-stderr
      --filter-escape-chars-stdout      replace them even if it is no terminal
      --filter-escape-chars-stderr
  -p, --prefix-data=DATA                sent before stdin
      --use-stdin-socket                stdin is a socket: use it for both directions
      --buffer-size=BYTES               accepted and ignored
      --agent-socket=PATH               where the agent listens
  -s, --source-qube=QUBE                call on behalf of a remote qube (relays)
"""


class CallRefused(Exception):
    """The policy, or the user, said no."""


class RemoteCall:
    """One call of a service. ``connect`` first; then ``pump``."""

    def __init__(self, target: str, service: str, *, source: str = "", agent_socket: str = AGENT_SOCKET) -> None:
        self._leg = Connection(Role.LEG_CALLER)
        self._sock = socket.socket(socket.AF_UNIX)
        self._sock.connect(agent_socket)
        self._sock.sendall(self._leg.send(Call(LEG_SESSION, _clean(target), _clean(service, "+"), _clean(source))))
        self._counters = {1: CreditCounter(), 2: CreditCounter()}
        self._early: list[Event] = []

    def connect(self) -> None:
        """Wait for the answer; raises CallRefused."""
        while not self._early:
            self._early = self._receive()
        first = self._early.pop(0)
        if not isinstance(first, Accepted):
            raise CallRefused

    def _receive(self) -> list[Event]:
        data = self._sock.recv(READ_BYTES)
        if not data:
            return [Reset(LEG_SESSION, "the connection was lost")]
        events = self._leg.receive_data(data)
        if answers := self._leg.data_to_send():
            try:
                self._sock.sendall(answers)
            except OSError:
                pass
        return events

    def pump(
        self,
        stdin: int,
        stdout: int,
        stderr: int,
        *,
        prefix: bytes = b"",
        filters: tuple[bool, bool] = (False, False),
        on_stdout_end: Callable[[], None] = lambda: None,
    ) -> int:
        """Carry bytes until the service ends; returns its exit code. ``filters``: clean stdout, stderr."""
        self._on_stdout_end = on_stdout_end
        tables = {1: _NO_ESCAPES if filters[0] else None, 2: _NO_ESCAPES if filters[1] else None}
        outputs = {1: stdout, 2: stderr}
        reading = True
        events, self._early = self._early, []
        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        waiting = prefix
        watched = False
        while True:
            for event in events:
                if isinstance(event, Data):
                    self._write_out(outputs, event, tables[event.stream])
                elif isinstance(event, Exit):
                    return event.code & 0xFF if 0 <= event.code <= 255 else LOST
                elif isinstance(event, (Reset, Refused)):
                    return LOST
            while waiting and (window := self._leg.window(LEG_SESSION, 0)):
                piece, waiting = waiting[: min(window, MAX_PAYLOAD)], waiting[min(window, MAX_PAYLOAD) :]
                self._send(Data(LEG_SESSION, 0, piece))
            wanted = reading and not waiting and self._leg.window(LEG_SESSION, 0) > 0
            if wanted != watched:
                poll.register(stdin, select.POLLIN) if wanted else poll.unregister(stdin)
                watched = wanted
            events = []
            for fd, _ in poll.poll():
                if fd == stdin and watched:
                    reading = self._read_in(stdin)
                elif fd == self._sock.fileno():
                    events = self._receive()

    def _send(self, event: Event) -> None:
        try:
            self._sock.sendall(self._leg.send(event))
        except OSError:
            return

    def _read_in(self, stdin: int) -> bool:
        """One piece of stdin to the service; False at its end."""
        try:
            data = os.read(stdin, min(self._leg.window(LEG_SESSION, 0), MAX_PAYLOAD))
        except BlockingIOError:
            return True
        except OSError:
            data = b""
        self._send(Data(LEG_SESSION, 0, data))
        return bool(data)

    def _write_out(self, outputs: dict[int, int], event: Data, table: bytes | None) -> None:
        fd, size_bytes = outputs[event.stream], len(event.payload)
        if fd >= 0:
            data = memoryview(bytes(event.payload).translate(table) if table else event.payload)
            try:
                while data:
                    data = data[os.write(fd, data) :]
                if not size_bytes and event.stream == 1:
                    self._on_stdout_end()
            except OSError:
                outputs[event.stream] = -1
        if size_bytes and (credit := self._counters[event.stream].consumed(size_bytes)):
            self._send(Credit(LEG_SESSION, event.stream, credit))


def _clean(untrusted_text: str, also: str = "") -> str:
    """As qrexec does: characters that no name may have become '_'."""
    return "".join(c if c in _NAME_CHARACTERS or c in also else "_" for c in untrusted_text)


class Options:
    """The command line of qrexec-client-vm."""

    def __init__(self, arguments: Sequence[str]) -> None:
        self.prefix, self.source, self.agent_socket, self.use_stdin_socket = b"", "", AGENT_SOCKET, False
        self.filters: list[bool | None] = [None, None]
        words = list(arguments)
        while words and words[0].startswith("-") and words[0] != "-":
            word = words.pop(0)
            if word == "--":
                break
            self._take(word, words)
        if len(words) < 2:
            raise ValueError("TARGET and SERVICE are needed")
        self.target, self.service, self.program = words[0].replace("$", "@"), words[1], words[2:]

    def _take(self, word: str, words: list[str]) -> None:
        name, sign, value = word.partition("=")
        if name in ("-p", "--prefix-data", "-s", "--source-qube", "--buffer-size", "--agent-socket"):
            if not sign:
                if not words:
                    raise ValueError(f"{name} needs a value")
                value = words.pop(0)
            if name in ("-p", "--prefix-data"):
                self.prefix = os.fsencode(value)
            elif name in ("-s", "--source-qube"):
                self.source = value
            elif name == "--agent-socket":
                self.agent_socket = value
        elif name in ("-t", "-T", "--filter-escape-chars-stdout", "--filter-escape-chars-stderr"):
            self.filters[name in ("-T", "--filter-escape-chars-stderr")] = name.startswith("--")
        elif name in ("--no-filter-escape-chars-stdout", "--no-filter-escape-chars-stderr"):
            self.filters[name.endswith("stderr")] = False
        elif name == "--use-stdin-socket":
            self.use_stdin_socket = True
        else:
            raise ValueError(f"unknown option {name}")


def main(arguments: Sequence[str]) -> int:
    if "--help" in arguments or "-h" in arguments:
        sys.stdout.write(USAGE)
        return 0
    try:
        options = Options(arguments)
    except ValueError as error:
        sys.stderr.write(f"{error}\n{USAGE}")
        return TROUBLE
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    try:
        call = RemoteCall(options.target, options.service, source=options.source, agent_socket=options.agent_socket)
        call.connect()
        return _run(call, options)
    except CallRefused:
        sys.stderr.write("Request refused\n")
        return REFUSED
    except (OSError, LocalProtocolError, RemoteProtocolError) as error:
        sys.stderr.write(f"qrexec-client-vm: {error}\n")
        return TROUBLE


def _run(call: RemoteCall, options: Options) -> int:
    wanted = options.filters
    filters = (os.isatty(1) if wanted[0] is None else wanted[0], os.isatty(2) if wanted[1] is None else wanted[1])
    if options.program:
        return _run_program(call, options, (False, filters[1]))
    stdout = 0 if options.use_stdin_socket else 1
    return call.pump(0, stdout, 2, prefix=options.prefix, filters=filters)


def _run_program(call: RemoteCall, options: Options, filters: tuple[bool, bool]) -> int:
    """The local program talks to the service; it has the caller's own stdin and stdout as SAVED_FD_0 and _1."""
    ours, theirs = socket.socketpair()
    saved = {f"SAVED_FD_{fd}": os.dup(fd) for fd in ((0, 1, 2) if os.environ.get("PASS_LOCAL_STDERR") else (0, 1))}
    pid = os.fork()
    if pid == 0:
        try:
            for fd in saved.values():
                os.set_inheritable(fd, True)
            os.dup2(theirs.fileno(), 0)
            os.dup2(theirs.fileno(), 1)
            signal.signal(signal.SIGPIPE, signal.SIG_DFL)
            os.environ["QREXEC_AGENT_PID"] = str(os.getppid())
            os.environ.update({name: str(fd) for name, fd in saved.items()})
            os.execvp(options.program[0], options.program)
        except OSError as error:
            sys.stderr.write(f"{options.program[0]}: {error.strerror}\n")
            sys.stderr.flush()
        os._exit(TROUBLE)
    theirs.close()

    def end_input() -> None:
        try:
            ours.shutdown(socket.SHUT_WR)
        except OSError:
            return

    remote = call.pump(ours.fileno(), ours.fileno(), 2, prefix=options.prefix, filters=filters, on_stdout_end=end_input)
    ours.close()
    _, status = os.waitpid(pid, 0)
    local = os.waitstatus_to_exitcode(status)
    return remote or (local if local >= 0 else 128 - local)
