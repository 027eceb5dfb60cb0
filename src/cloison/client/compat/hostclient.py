"""The host's RPC client program, as ``/usr/lib/qubes/qrexec-client``: one call from dom0 into a qube.

In: arguments (notes on qrexec, D7), our streams. Out: the call's streams and exit code. May import: client, wire.

    qrexec-client -d QUBE [-t] [-T] [-l PROGRAM | -e] [-p DATA] [-w SECONDS] USER:COMMAND
    qrexec-client -d QUBE ... "USER:QUBESRPC SERVICE+ARGUMENT dom0"
"""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack

from cloison.client.failures import DaemonUnreachable
from cloison.client.qrexec import LOST, REFUSED, Ending, HostCall, OutputClosed, connect
from cloison.client.streams import DescriptorSink, DescriptorSource, NullSink, Sink, TerminalSink, WindowSource
from cloison.layout import Layout
from cloison.wire import LEG_SESSION, Call, LocalProtocolError

REFUSED_BY_POLICY = 126
RPC = "QUBESRPC"
DEFAULT_USER = "DEFAULT"
HEADLESS = "nogui:"


class PrefixedSource:
    """Some bytes, then what comes from another source."""

    def __init__(self, prefix: bytes, after: WindowSource | None) -> None:
        self._prefix = prefix
        self._after = after
        self._always = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        """Always readable."""

    def fileno(self) -> int:
        return self._always if self._prefix or self._after is None else self._after.fileno()

    def read(self, limit: int) -> bytes:
        if self._prefix:
            data, self._prefix = self._prefix[:limit], self._prefix[limit:]
            return data
        return self._after.read(limit) if self._after is not None else b""


def parse_command(target: str, text: str) -> Call:
    """``[nogui:]USER:COMMAND``, or ``USER:QUBESRPC SERVICE[+ARGUMENT] SOURCE``. Raises ValueError."""
    nogui = text.startswith(HEADLESS)
    user, colon, command = text.removeprefix(HEADLESS).partition(":")
    if not colon or not command:
        raise ValueError(f"{text!a} is not USER:COMMAND")
    user = "" if user == DEFAULT_USER else user
    word, _, rest = command.partition(" ")
    if word != RPC:
        return Call(LEG_SESSION, target, command=command, user=user, nogui=nogui)
    service = rest.split(" ")[0]
    if not service.removesuffix("+"):
        raise ValueError(f"{text!a} names no service")
    service = service.removesuffix("+") if service.count("+") == 1 else service
    return Call(LEG_SESSION, target, service=service, user=user, nogui=nogui)


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="qrexec-client", description="Run a command or a service in a qube.")
    parser.add_argument("-d", dest="target", metavar="QUBE", required=True, help="where")
    joined = parser.add_mutually_exclusive_group()
    joined.add_argument("-l", dest="local", metavar="PROGRAM", help="join its streams to this local program")
    joined.add_argument("-e", dest="detached", action="store_true", help="do not wait for it, nor join its streams")
    parser.add_argument("-t", dest="filter_out", action="store_true", help="replace control characters in its output")
    parser.add_argument("-T", dest="filter_err", action="store_true", help="the same for its error output")
    parser.add_argument("-p", dest="prefix", metavar="DATA", default="", help="send this before standard input")
    parser.add_argument("-w", dest="wait_s", metavar="SECONDS", type=float, default=0, help="how long to wait for it")
    parser.add_argument("-W", "-E", dest="ignored", action="store_true", help="accepted")
    parser.add_argument("-k", dest="kill", action="store_true", help="kill the qube when the call is over")
    parser.add_argument("command", metavar="USER:COMMAND")
    return parser


def main(words: Sequence[str] | None = None) -> int:
    parser = _options()
    asked = parser.parse_args(words)
    try:
        call = parse_command(asked.target, asked.command)
        code = _detached(asked, call) if asked.detached else _joined(asked, call)
    except ValueError as error:
        parser.error(str(error))
    except (DaemonUnreachable, LocalProtocolError) as error:
        return _complain(str(error))
    except OutputClosed:
        return 128 + 13
    if asked.kill:
        _kill(asked.target)
    return code


def _complain(text: str) -> int:
    print(f"qrexec-client: {text}", file=sys.stderr)  # noqa: T201
    return REFUSED


def _joined(asked: argparse.Namespace, call: Call) -> int:
    with ExitStack() as stack:
        source, out, process = 0, 1, None
        if asked.local:
            to_local, from_local = os.pipe2(os.O_CLOEXEC), os.pipe2(os.O_CLOEXEC)
            process = stack.enter_context(
                subprocess.Popen(["/bin/sh", "-c", asked.local], stdin=to_local[0], stdout=from_local[1])
            )
            os.close(to_local[0])
            os.close(from_local[1])
            source, out = from_local[0], to_local[1]
            stack.callback(os.close, source)
        sinks = (
            DescriptorSink(out, closing=True) if process else _sink(out, asked.filter_out),
            _sink(2, asked.filter_err),
        )
        ending = _call(asked, call, DescriptorSource(source), sinks, forward_signals=True)
        if process is not None:
            sinks[0].end()  # also if the qube went away in the middle
            os.close(out)
    return _code(ending)


def _sink(descriptor: int, filtered: bool) -> Sink:
    return TerminalSink(descriptor) if filtered else DescriptorSink(descriptor)


def _detached(asked: argparse.Namespace, call: Call) -> int:
    """The call goes on in a process of its own; we end as soon as the other end is there (or cannot be)."""
    reading, writing = os.pipe()
    if os.fork():
        os.close(writing)
        told = os.read(reading, 1)
        return told[0] if told else LOST
    os.close(reading)
    os.setsid()
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 0)
    os.dup2(nowhere, 1)  # whoever reads our output must not wait for the call

    def accepted() -> None:
        os.dup2(nowhere, 2)
        _tell(writing, 0)

    code = LOST
    try:
        ending = _call(asked, call, None, (NullSink(), NullSink()), on_accepted=accepted)
        code = _code(ending)
    except DaemonUnreachable as error:
        code = _complain(str(error))
    finally:
        _tell(writing, code)
        os._exit(0)


def _tell(descriptor: int, code: int) -> None:
    """The first byte is what the waiting process ends with; later ones nobody reads."""
    try:
        os.write(descriptor, bytes([code]))
    except BrokenPipeError:
        pass


def _call(asked: argparse.Namespace, call: Call, source: WindowSource | None, sinks: tuple[Sink, Sink], *,
          forward_signals: bool = False, on_accepted: Callable[[], None] = lambda: None) -> Ending:  # fmt: skip
    connection = connect(Layout.from_environment(), start=False)
    if asked.prefix:
        source = PrefixedSource(os.fsencode(asked.prefix), source)
    timer = threading.Timer(asked.wait_s, connection.shutdown, (socket.SHUT_RDWR,)) if asked.wait_s > 0 else None

    def accepted() -> None:
        if timer is not None:
            timer.cancel()
        on_accepted()

    if timer is not None:
        timer.daemon = True
        timer.start()
    try:
        return HostCall(connection, call, source, sinks, forward_signals=forward_signals, on_accepted=accepted).run()
    finally:
        if timer is not None:
            timer.cancel()


def _code(ending: Ending) -> int:
    if ending.note:
        _complain(ending.note)
    return REFUSED_BY_POLICY if ending.code == REFUSED and "policy" in ending.note else ending.code


def _kill(target: str) -> None:
    from cloison.client import Client, calls
    from cloison.errors import CloisonError

    try:
        Client(start_daemon=False).do(calls.power("Kill", target))
    except CloisonError as error:
        _complain(str(error))


if __name__ == "__main__":
    sys.exit(main())
