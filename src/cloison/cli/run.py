"""``cloison run``.

In: a qube, a command, our own streams. Out: the command's streams and exit code. May import: client, wire, cli.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from cloison.cli.choices import DISPOSABLE_TEMPLATE, QUBE
from cloison.cli.command import ExampleCommand, command
from cloison.cli.exitcodes import ExitCode
from cloison.cli.session import Session
from cloison.client.failures import DaemonUnreachable
from cloison.errors import CloisonError

if TYPE_CHECKING:
    from cloison.client.qrexec import Ending
    from cloison.wire import Call, Tty

ANY_DISPOSABLE = "@dispvm"
LONG_COMMAND = 4096
"""Who meets a limit with a command longer than this meant to run a script."""


class RunCommand(ExampleCommand):
    """Options may stand before and behind the qube's name, and end where the command begins."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, self._sorted(args))

    def _sorted(self, args: Sequence[str]) -> list[str]:
        """Options first, then ``--``, the qube's name (if one is needed) and the command untouched."""
        takes_value = {name for p in self.params if isinstance(p, click.Option) and not p.is_flag and not p.count
                       for name in p.opts if name != "--dispvm"}  # fmt: skip
        options: list[str] = []
        qube: list[str] = []
        rest = list(args)
        disposable = False
        while rest:
            word = rest.pop(0)
            if word == "--":
                break
            if word == "--dispvm" or word.startswith("--dispvm="):
                disposable = True
                options.append(word if "=" in word else "--dispvm=")
            elif word.startswith("-") and word != "-":
                options.append(word)
                if word in takes_value and rest:
                    options.append(rest.pop(0))
            elif not qube and not disposable:
                qube.append(word)
            else:
                rest.insert(0, word)
                break
        if not qube and not disposable and rest:
            qube.append(rest.pop(0))
        if qube and disposable:
            options.append(f"--of={qube.pop()}")
        return [*options, "--", *qube, *rest]


def _complete_qube(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The first word is a qube; what follows is the qube's own business."""
    return [] if ctx.params.get("words") or ctx.params.get("dispvm") else QUBE.shell_complete(ctx, param, incomplete)


@dataclass(frozen=True)
class Wishes:
    """What the options ask for, apart from what to run and where."""

    user: str
    tty: bool
    nogui: bool
    autostart: bool
    use_stdin: bool
    filter_output: bool
    alone: bool = True
    """Nothing follows this call's output on our standard output."""


@command("run", cls=RunCommand, examples=(
    ("cloison run work -- ls -l 'my file'", "several words: exactly these arguments"),
    ("cloison run work 'ls *.pdf | wc -l'", "one word: a line for the qube's shell"),
    ("cloison run -t work bash", "a terminal in the qube"),
    ("cloison run work", "the same, with the user's own shell"),
    ("cloison run --user root work -- apt update", "as another user"),
    ("cloison run --dispvm -- pdftotext - - < a.pdf", "in a fresh disposable, gone afterwards"),
    ("cloison run --dispvm=my-dvm -- id", "in one made from this template"),
    ("cloison run --service work qubes.GetDate", "a service instead of a command"),
))  # fmt: skip
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="[QUBE] [--] [COMMAND...]",
                shell_complete=_complete_qube)  # fmt: skip
@click.option("--dispvm", metavar="[=TEMPLATE]", shell_complete=DISPOSABLE_TEMPLATE.shell_complete,
              help="In a fresh disposable (of TEMPLATE); give no QUBE or one whose disposables are meant.")  # fmt: skip
@click.option("--of", "owner", type=QUBE, hidden=True)
@click.option("-u", "--user", default="", metavar="USER", help="As this user of the qube; default: default_user.")
@click.option(
    "-t", "--tty", is_flag=True, help="Give the command a terminal. Press Ctrl-] three times to let go of it."
)
@click.option("--service", is_flag=True, help="COMMAND is the name of a service: NAME or NAME+ARGUMENT.")
@click.option("-n", "--no-stdin", is_flag=True, help="Give the command no input.")
@click.option("--no-gui", "nogui", is_flag=True, help="Do not wait for the qube's graphical session.")
@click.option("--no-autostart", is_flag=True, help="Fail if the qube does not run.")
@click.option("--no-filter", is_flag=True, help="Let escape sequences of the qube reach your terminal.")
def COMMAND(session: Session, words: tuple[str, ...], dispvm: str | None, owner: str | None, user: str, tty: bool,
            service: bool, no_stdin: bool, nogui: bool, no_autostart: bool, no_filter: bool) -> None:  # fmt: skip
    """Run a command in a qube as if it were here.

    Streams, exit code and signals are the command's. The qube is started if need be. When output goes to your terminal,
    control sequences in it are masked, because they come from the qube; with --tty only those that set titles or the
    clipboard are left out.
    """
    target, rest = _target(session, list(words), dispvm, owner)
    interactive = sys.stdin.isatty() and sys.stdout.isatty()
    if not rest and not interactive:
        raise click.UsageError("which command shall run?")
    wishes = Wishes(user, tty or not rest, nogui, not no_autostart, not no_stdin, not no_filter)
    raise click.exceptions.Exit(call_qube(session, target, rest, service=service, wishes=wishes))


def _target(session: Session, words: list[str], dispvm: str | None, owner: str | None) -> tuple[str, list[str]]:
    """Whom to call, and what remains of the words. ``owner``: the qube named together with ``--dispvm``."""
    if owner and dispvm:
        raise click.UsageError("name a qube, or the template after --dispvm=, not both")
    if owner:
        return f"{ANY_DISPOSABLE}:{_disposable_template_of(session, owner)}", words
    if dispvm is None:
        if not words:
            raise click.UsageError("in which qube? Name one, or give --dispvm")
        name = words.pop(0)
        return (name if name.startswith(ANY_DISPOSABLE) else QUBE.convert(name, None, None)), words
    if dispvm:
        return f"{ANY_DISPOSABLE}:{QUBE.convert(dispvm, None, None)}", words
    return ANY_DISPOSABLE, words


def _disposable_template_of(session: Session, qube: str) -> str:
    """The qube itself if disposables are made from it, else its default_dispvm."""
    from cloison.client import calls
    from cloison.client.failures import QubesNoSuchPropertyError

    try:
        if session.do(calls.property_get(qube, "template_for_dispvms")).value == "True":
            return qube
    except QubesNoSuchPropertyError:
        pass  # a class that can be no template for disposables
    found = session.do(calls.property_get(qube, "default_dispvm")).value
    if not found:
        raise CloisonError(f"{qube} has no default_dispvm", hint=f"cloison prefs {qube} default_dispvm TEMPLATE")
    return found


def call_qube(session: Session, target: str, words: Sequence[str], *, service: bool, wishes: Wishes,
              discard_output: bool = False) -> int:  # fmt: skip
    """Make the call with our own streams; the exit code."""
    from cloison.client import qrexec
    from cloison.wire import LEG_SESSION, Call, LocalProtocolError

    fields: dict[str, Any] = {"user": wishes.user, "nogui": wishes.nogui, "autostart": wishes.autostart}
    if service:
        if len(words) != 1:
            raise click.UsageError("--service takes one word: NAME or NAME+ARGUMENT")
        fields["service"] = words[0]
    else:
        fields["command"] = command_line(words)
    if wishes.tty:
        fields["tty"] = _our_tty()
    try:
        call = Call(LEG_SESSION, target, **fields)
        ending = _pump(session, call, wishes, discard_output)
    except DaemonUnreachable as error:
        session.complain(error)
        return ExitCode.QREXEC_FAILED
    except LocalProtocolError as error:
        hint = f"{session.program} run {target} sh < SCRIPT" if len(fields.get("command", "")) > LONG_COMMAND else ""
        session.complain(CloisonError(f"this call cannot be made: {error}", hint=hint))
        return ExitCode.QREXEC_FAILED
    if ending.note:
        session.complain(CloisonError(ending.note))
    if ending.code == qrexec.REFUSED and "policy" in ending.note:
        return ExitCode.REFUSED_BY_POLICY
    return ending.code


def _note_waiting(target: str, waits: bool) -> None:
    """On the terminal, while a qube starts; wiped out as soon as it has."""
    sys.stderr.write(f"starting {target}…" if waits else "\r\x1b[K")
    sys.stderr.flush()


def command_line(words: Sequence[str]) -> str:
    """One word is a line of shell; several are exactly these arguments; none is the user's shell."""
    import shlex

    if not words:
        return 'exec "${SHELL:-/bin/sh}" -l'
    return words[0] if len(words) == 1 else shlex.join(words)


def _our_tty() -> Tty:
    from cloison.wire import Tty

    cols, rows = 80, 24
    for descriptor in (1, 0, 2):
        with contextlib.suppress(OSError):
            cols, rows = os.get_terminal_size(descriptor)
            break
    return Tty(os.environ.get("TERM") or "dumb", rows, cols)


def _pump(session: Session, call: Call, wishes: Wishes, discard_output: bool) -> Ending:
    from cloison.cli.rawterminal import LeftTerminal, TypedSource, raw_terminal
    from cloison.client.qrexec import Ending, HostCall, connect
    from cloison.client.streams import (
        DescriptorSink,
        DescriptorSource,
        NullSink,
        Sink,
        StringDropper,
        TerminalSink,
        WindowSource,
        mask_controls,
    )

    def sink(descriptor: int) -> Sink:
        if discard_output:
            return NullSink()
        if not wishes.filter_output or not os.isatty(descriptor):
            return DescriptorSink(descriptor, closing=wishes.alone and descriptor == 1)
        return TerminalSink(descriptor, StringDropper().clean if wishes.tty else mask_controls)

    raw = wishes.tty and wishes.use_stdin and os.isatty(0)
    source: WindowSource | None = None
    if wishes.use_stdin:
        source = TypedSource(0) if raw else DescriptorSource(0)
    connection = connect(session.layout)
    terminal = 1 if wishes.tty and os.isatty(1) else None
    note = partial(_note_waiting, call.target) if session.is_talking else None
    running = HostCall(
        connection, call, source, (sink(1), sink(2)), terminal=terminal, forward_signals=True, on_wait=note
    )
    with raw_terminal(0) if raw else contextlib.nullcontext():
        try:
            return running.run()
        except LeftTerminal:
            return Ending(ExitCode.CONNECTION_LOST, "let go of the terminal; the command was told to end")
