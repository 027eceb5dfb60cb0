"""``cloison console``."""

from __future__ import annotations

import os
import select
import socket
import stat
import sys
from pathlib import Path

import click

from cloison.cli.choices import QUBE
from cloison.cli.command import command
from cloison.cli.rawterminal import LeftTerminal, TypedSource, raw_terminal
from cloison.cli.session import Session
from cloison.client import calls
from cloison.client.streams import SAFE_CONTROLS, StringDropper, TerminalSink
from cloison.errors import CloisonError


@command("console", examples=(
    ("cloison console work", "attach; Ctrl-] three times lets go"),
    ("cloison console --log work", "what it has printed since it started"),
))  # fmt: skip
@click.argument("qube", type=QUBE)
@click.option("--log", "only_log", is_flag=True, help="Print the kept log of the console instead of attaching.")
def COMMAND(session: Session, qube: str, only_log: bool) -> None:
    """Attach to the serial console of a running qube.

    It works without our agent in the qube: for systems that do not start, and for imported ones.
    """
    if only_log:
        text = session.do(calls.console_log(qube))["text"]
        click.echo(safe_text(text) if sys.stdout.isatty() else text, nl=not text.endswith("\n"))
        return
    path = session.do(calls.console(qube))
    line = open_console(path)
    try:
        session.say(f"attached to {qube}; press Enter, and Ctrl-] three times to let go")
        raw = os.isatty(0)
        if raw:
            with raw_terminal(0):
                attach(line, TypedSource(0))
            session.say(f"let go of {qube}")
        else:
            attach(line, TypedSource(0))
    finally:
        os.close(line)


def safe_text(text: str) -> str:
    """Text of a qube, for a terminal."""
    return "".join(c if c.isprintable() or c in SAFE_CONTROLS else "_" for c in text)


def open_console(path: str) -> int:
    """A descriptor of the console: a unix socket, or a terminal device."""
    try:
        if stat.S_ISSOCK(Path(path).stat().st_mode):
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            connection.connect(path)
            return connection.detach()
        return os.open(path, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError as error:
        raise CloisonError(f"cannot open the console {path}: {error.strerror}") from None


def attach(line: int, typed: TypedSource) -> None:
    """Carry bytes between the terminal and the console until one of them ends."""
    screen = TerminalSink(1, StringDropper().clean) if os.isatty(1) else None
    poll = select.poll()
    poll.register(line, select.POLLIN)
    poll.register(typed.fileno(), select.POLLIN)
    while True:
        for descriptor, _ in poll.poll():
            if descriptor == line:
                data = os.read(line, 65536)
                if not data:
                    return
                if screen is None:
                    _write_all(1, data)
                else:
                    screen.put(data)
                    screen.flush()
                continue
            try:
                data = typed.read(4096)
            except LeftTerminal:
                return
            if not data:
                poll.unregister(typed.fileno())
                continue
            _write_all(line, data)


def _write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]
