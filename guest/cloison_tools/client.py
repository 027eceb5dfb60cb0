"""Calling a service of another qube: ``qrexec-client-vm``, and the pump that the other tools share."""

import _socket
import posix
import select

from cloison_tools import leg as wire
from cloison_tools.leg import Leg

AGENT_SOCKET = "/run/qubes/qrexec-agent"
TROUBLE, REFUSED, LOST = 125, 126, 255
NOBODY_READS = 141
"""128 and SIGPIPE: as of a local program that writes where nobody reads any more."""
READ_BYTES = 1 << 18

TYPE_CHECKING = False
"""Importing typing or collections.abc takes longer than most calls; the type checker knows this name."""
if TYPE_CHECKING:
    from collections.abc import Iterator

_CONTROLS = frozenset(b"\t\n\r\b\a")
_PLAIN = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.-@:")

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
    """One call of a service. ``connect`` first; then ``pump``. OSError: the agent cannot be reached.

    ``pipe``: standard input to be, if it is a pipe; the agent reads it itself, and ``pump`` is given -1 for it.
    """

    def __init__(
        self, target: str, service: str, *, source: str = "", agent_socket: str = AGENT_SOCKET, pipe: int = -1
    ) -> None:
        self._leg = Leg()
        self._sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
        self._sock.connect(agent_socket)
        request = self._leg.call(_clean(target), _clean(service, "+"), _clean(source))
        if pipe >= 0:
            rights = (_socket.SOL_SOCKET, _socket.SCM_RIGHTS, pipe.to_bytes(4, "little"))
            request = request[self._sock.sendmsg([request], [rights]) :]
        if request:
            self._sock.sendall(request)
        self._events: list[tuple[int, bytes]] = []
        self.output_lost = False
        """Some of the service's output could not be written here."""
        self.reader_gone = False
        """Nobody reads the standard output; whoever ends without the service's exit code ends the call."""

    def connect(self) -> None:
        """Wait for the answer; raises CallRefused."""
        while not self._events:
            self._receive()
        if self._events.pop(0)[0] != wire.ACCEPTED:
            raise CallRefused

    def _receive(self) -> None:
        try:
            data = self._sock.recv(READ_BYTES)
        except ConnectionError:
            data = b""
        self._events += self._leg.receive(data) if data else [(wire.RESET, b"")]

    def pump(
        self,
        stdin: int,
        stdout: int,
        stderr: int,
        *,
        prefix: bytes = b"",
        filters: tuple[bool, bool] = (False, False),
        half_close: bool = False,
    ) -> int:
        """Carry bytes until the service ends; returns its exit code.

        ``stdin``: -1 for none of ours.
        ``filters``: replace escape characters in stdout, stderr. ``half_close``: ``stdout`` is a socket, and is to be
        told when the service's output ends.
        """
        self._outputs = [-1, stdout, stderr]
        self._tables = [None, *(_no_escapes() if wanted else None for wanted in filters)]
        self._half_close = half_close
        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        self._watched, reading = False, stdin >= 0
        while True:
            while self._events:
                kind, payload = self._events.pop(0)
                if kind == wire.EXIT:
                    return wire.exit_code(payload)
                if kind not in (wire.STDOUT, wire.STDERR):
                    return LOST
                self._write_out(kind - wire.STDIN, payload)
                if self.reader_gone and not half_close:
                    return NOBODY_READS
            while prefix and self._leg.window:
                piece = prefix[: min(self._leg.window, wire.MAX_PAYLOAD)]
                prefix = prefix[len(piece) :]
                self._send(self._leg.stdin(piece))
            self._watch(poll, stdin, reading and not prefix and self._leg.window > 0)
            for fd, _ in poll.poll():
                if fd == self._sock.fileno():
                    self._receive()
                else:
                    reading = self._read_in(stdin)

    def feed(self, pieces: "Iterator[bytes]", max_answer_bytes: int) -> tuple[int, bytes]:
        """Send the pieces as stdin until they end or the service answers; returns its exit code and its answer.

        An exception of ``pieces`` passes; the service then sees that its input broke off. stderr goes to ours.
        """
        self._outputs = [-1, -1, 2]
        self._tables = [None, None, _no_escapes() if posix.isatty(2) else None]
        self._half_close = False
        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        answer, held, feeding = b"", b"", True
        while True:
            while self._events:
                kind, payload = self._events.pop(0)
                if kind == wire.EXIT:
                    return wire.exit_code(payload), answer
                if kind == wire.STDOUT:
                    answer += payload
                    if len(answer) > max_answer_bytes:  # whoever says more is not what we called
                        return LOST, b""
                elif kind != wire.STDERR:
                    return LOST, answer
                self._write_out(kind - wire.STDIN, payload)
            if feeding and self._leg.window:
                held = b"" if answer else held or next(pieces, b"")
                feeding = bool(held)
                held = self._send_part(held)
            if not (feeding and self._leg.window) or poll.poll(0):
                self._receive()

    def _send_part(self, piece: bytes) -> bytes:
        """As much as the window takes (of nothing: the end of stdin); what is left over."""
        data = memoryview(piece)
        if not data:
            self._send(self._leg.stdin(b""))
        while data and self._leg.window:
            size = min(self._leg.window, wire.MAX_PAYLOAD)
            self._send(self._leg.stdin(data[:size]))
            data = data[size:]
        return bytes(data)

    def _watch(self, poll: "select.poll", stdin: int, wanted: bool) -> None:
        if wanted != self._watched:
            self._watched = wanted
            if wanted:
                poll.register(stdin, select.POLLIN)
            else:
                poll.unregister(stdin)

    def _send(self, data: bytes) -> None:
        try:
            self._sock.sendall(data)
        except OSError:  # the end has been sent to us already, or the agent is gone: reading will tell
            return

    def _read_in(self, stdin: int) -> bool:
        """One piece of stdin to the service; False at its end."""
        try:
            data = posix.read(stdin, min(self._leg.window, wire.MAX_PAYLOAD))
        except BlockingIOError:
            return True
        except OSError:
            data = b""
        self._send(self._leg.stdin(data))
        return bool(data)

    def _write_out(self, stream: int, payload: bytes) -> None:
        fd, table = self._outputs[stream], self._tables[stream]
        if fd >= 0:
            try:
                if not payload and stream == 1:
                    shut_writing(fd) if self._half_close else let_go(fd)
                write_all(fd, payload.translate(table) if table else payload)
            except OSError as error:
                self._outputs[stream] = -1
                self.output_lost = True
                self.reader_gone = stream == 1 and isinstance(error, BrokenPipeError)
        if credit := self._leg.consumed(stream, len(payload)):
            self._send(credit)


def write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[posix.write(fd, view) :]


def complain(message: str) -> None:
    try:
        write_all(2, f"{message}\n".encode("utf-8", "replace"))
    except OSError:
        return


def let_go(fd: int) -> None:
    """Tell the reader of our own standard output that no more comes, though we go on."""
    if fd == 1:
        nothing = posix.open("/dev/null", posix.O_WRONLY)
        posix.dup2(nothing, fd)
        posix.close(nothing)


def let_go_of_input() -> None:
    """The agent reads it: when that ends, whoever writes must not think that we still might."""
    nothing = posix.open("/dev/null", posix.O_RDONLY)
    posix.dup2(nothing, 0)
    posix.close(nothing)


def shut_writing(fd: int) -> None:
    """Half-close a socket that we know only by its descriptor."""
    duplicate = _socket.socket(fileno=posix.dup(fd))
    try:
        duplicate.shutdown(_socket.SHUT_WR)
    except OSError:
        return
    finally:
        duplicate.close()


def _no_escapes() -> bytes:
    return bytes(b if 0x20 <= b <= 0x7E or b in _CONTROLS else 0x5F for b in range(256))


def _clean(untrusted_text: str, also: str = "") -> str:
    """As qrexec does: characters that no name may have become '_'."""
    return "".join(c if c in _PLAIN or c in also else "_" for c in untrusted_text)


class Options:
    """The command line of qrexec-client-vm; ValueError says what is wrong with it."""

    def __init__(self, arguments: list[str]) -> None:
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
                self.prefix = value.encode("utf-8", "surrogateescape")
            elif name in ("-s", "--source-qube"):
                self.source = value
            elif name == "--agent-socket":
                self.agent_socket = value
        elif name in ("-t", "--no-filter-escape-chars-stdout", "--filter-escape-chars-stdout"):
            self.filters[0] = name == "--filter-escape-chars-stdout"
        elif name in ("-T", "--no-filter-escape-chars-stderr", "--filter-escape-chars-stderr"):
            self.filters[1] = name == "--filter-escape-chars-stderr"
        elif name == "--use-stdin-socket":
            self.use_stdin_socket = True
        else:
            raise ValueError(f"unknown option {name}")


def main(arguments: list[str]) -> int:
    if "--help" in arguments or "-h" in arguments:
        write_all(1, USAGE.encode())
        return 0
    try:
        options = Options(arguments)
    except ValueError as error:
        complain(f"{error}\n{USAGE}")
        return TROUBLE
    plain = not (options.program or options.prefix or options.use_stdin_socket)
    pipe = 0 if plain and is_pipe(0) else -1
    try:
        call = RemoteCall(
            options.target, options.service, source=options.source, agent_socket=options.agent_socket, pipe=pipe
        )
        call.connect()
        return _run(call, options, -1 if pipe == 0 else 0)
    except CallRefused:
        complain("Request refused")
        return REFUSED
    except OSError as error:
        complain(f"qrexec-client-vm: {error}")
        return TROUBLE


def is_pipe(fd: int) -> bool:
    """A pipe that can be read."""
    try:
        return posix.fstat(fd).st_mode & 0o170000 == 0o010000
    except OSError:
        return False


def _run(call: RemoteCall, options: Options, stdin: int) -> int:
    wanted = options.filters
    filters = (posix.isatty(1) if wanted[0] is None else wanted[0], posix.isatty(2) if wanted[1] is None else wanted[1])
    if options.program:
        return _run_program(call, options, (False, filters[1]))
    if options.use_stdin_socket:
        return call.pump(0, 0, 2, prefix=options.prefix, filters=filters, half_close=True)
    if stdin < 0:
        let_go_of_input()
    return call.pump(stdin, 1, 2, prefix=options.prefix, filters=filters)


def _run_program(call: RemoteCall, options: Options, filters: tuple[bool, bool]) -> int:
    """The local program talks to the service; it has the caller's own stdin and stdout as SAVED_FD_0 and _1."""
    import os
    import signal

    to_program, its_input = _socket.socketpair()
    from_program, its_output = _socket.socketpair()  # two: it may end its output and go on reading
    saved = {f"SAVED_FD_{fd}": os.dup(fd) for fd in ((0, 1, 2) if os.environ.get("PASS_LOCAL_STDERR") else (0, 1))}
    pid = os.fork()
    if pid == 0:
        try:
            for fd in saved.values():
                os.set_inheritable(fd, True)
            os.dup2(its_input.fileno(), 0)
            os.dup2(its_output.fileno(), 1)
            signal.signal(signal.SIGPIPE, signal.SIG_DFL)
            os.environ["QREXEC_AGENT_PID"] = str(os.getppid())
            os.environ.update({name: str(fd) for name, fd in saved.items()})
            os.execvp(options.program[0], options.program)
        except OSError as error:
            complain(f"{options.program[0]}: {error.strerror}")
        os._exit(TROUBLE)
    its_input.close()
    its_output.close()
    remote = call.pump(
        from_program.fileno(), to_program.fileno(), 2, prefix=options.prefix, filters=filters, half_close=True
    )
    to_program.close()
    from_program.close()
    for fd in saved.values():
        os.close(fd)
    local = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return remote or (local if local >= 0 else 128 - local)
