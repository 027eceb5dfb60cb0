"""``qvm-run``."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import click

from cloison.cli.command import ExampleCommand, command
from cloison.cli.run import ANY_DISPOSABLE, Wishes, call_qube
from cloison.cli.session import Session
from cloison.client import calls


class QvmRunCommand(ExampleCommand):
    """``--dispvm`` takes an optional value; options end where the command begins."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, _with_equals(args))


def _with_equals(args: Sequence[str]) -> list[str]:
    """``--dispvm`` alone becomes ``--dispvm=``, so that it never eats the command."""
    words = list(args)
    end = words.index("--") if "--" in words else len(words)
    return ["--dispvm=" if w == "--dispvm" and i < end else w for i, w in enumerate(words)]


@command("qvm-run", cls=QvmRunCommand, context_settings={"allow_interspersed_args": False}, examples=(
    ("qvm-run work xterm", "start a program, show nothing of it"),
    ("qvm-run -p work 'ls -l'", "with its input and output"),
    ("qvm-run -p --dispvm=default-dvm id", "in a fresh disposable"),
    ("qvm-run -p --service work qubes.GetDate", "a service"),
))  # fmt: skip
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="[VMNAME] COMMAND [ARG...]")
@click.option("-u", "--user", default="", metavar="USER", help="As this user.")
@click.option(
    "-a",
    "--autostart/--no-autostart",
    "--auto/--no-auto",
    default=True,
    help="Start the qube if need be (the default).",
)
@click.option("-n", "no_autostart", is_flag=True, hidden=True)
@click.option("-p", "--pass-io", is_flag=True, help="Connect its input, output and error to ours.")
@click.option("--localcmd", metavar="COMMAND", help="With --pass-io: connect it to this local command instead.")
@click.option(
    "-g/-G", "--gui/--no-gui", " /--nogui", "gui", default=True, help="Wait for the qube's graphical session."
)
@click.option("--colour-output", "--color-output", metavar="COLOUR", help="Accepted.")
@click.option("--colour-stderr", "--color-stderr", metavar="COLOUR", help="Accepted.")
@click.option("--no-colour-output", "--no-color-output", is_flag=True, help="Accepted.")
@click.option("--no-colour-stderr", "--no-color-stderr", is_flag=True, help="Accepted.")
@click.option("--filter-escape-chars/--no-filter-escape-chars", default=True, help="Mask control sequences.")
@click.option("--service", is_flag=True, help="COMMAND is the name of a service.")
@click.option("--no-shell", is_flag=True, help="COMMAND and its arguments, exactly, without a shell.")
@click.option("--dispvm", metavar="[=BASE_APPVM]", help="In a fresh disposable; give no VMNAME.")
@click.option("--all", "everything", is_flag=True, help="In all running qubes; give no VMNAME.")
@click.option("--exclude", multiple=True, metavar="EXCLUDE", help="With --all: not this one.")
def run(session: Session, words: tuple[str, ...], user: str, autostart: bool, no_autostart: bool, pass_io: bool,
        localcmd: str | None, gui: bool, filter_escape_chars: bool, service: bool, no_shell: bool,
        dispvm: str | None, everything: bool, exclude: tuple[str, ...], **_: Any) -> None:  # fmt: skip
    """Run a command or a service in a qube."""
    rest = list(words)
    if dispvm is not None:
        targets = [f"{ANY_DISPOSABLE}:{dispvm}" if dispvm else ANY_DISPOSABLE]
    elif everything:
        rows = session.do(calls.list_states())
        targets = [r.name for r in rows if r.state == "Running" and r.klass != "AdminVM" and r.name not in exclude]
    elif rest:
        targets = [rest.pop(0)]
    else:
        raise click.UsageError("name a qube")
    if rest and rest[0] == "--":
        rest.pop(0)
    if not rest:
        raise click.UsageError("which command?")
    line = rest if no_shell or service else [" ".join(rest)]
    wishes = Wishes(user, False, not gui, autostart and not no_autostart, pass_io, filter_escape_chars,
                    alone=len(targets) == 1)  # fmt: skip
    code = 0
    for target in targets:
        if wishes.autostart and not target.startswith(ANY_DISPOSABLE):
            _let_go_on(session, target)
        if localcmd:
            code = max(code, _with_local_command(session, localcmd, target, line, service, user))
        elif pass_io:
            code = max(code, call_qube(session, target, line, service=service, wishes=wishes))
        else:
            if not session.quiet:
                click.echo(f"Running '{' '.join(rest)}' on {target}", err=True)
            code = max(code, _silently(session, target, line, service, wishes))
    raise click.exceptions.Exit(code)


def _let_go_on(session: Session, target: str) -> None:
    """A paused qube is unpaused, as the tool of Qubes does."""
    if session.do(calls.state_of(target)).state == "Paused":
        session.do(calls.power("Unpause", target))


def _silently(session: Session, target: str, line: Sequence[str], service: bool, wishes: Wishes) -> int:
    """Without our streams: output is thrown away."""
    return call_qube(session, target, line, service=service, wishes=wishes, discard_output=True)


def _with_local_command(
    session: Session, local: str, target: str, line: Sequence[str], service: bool, user: str
) -> int:
    """The call's streams are joined to those of a local shell command; the call's exit code."""
    words = [sys.executable, "-m", "cloison.cli", "run", "--user", user, *(["--service"] if service else [])]
    place = [f"--dispvm={target.partition(':')[2]}"] if target.startswith(ANY_DISPOSABLE) else [target]
    remote = subprocess.Popen([*words, *place, "--", *line], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with subprocess.Popen(local, shell=True, stdin=remote.stdout, stdout=remote.stdin) as process:
        for pipe in (remote.stdin, remote.stdout):
            if pipe is not None:
                pipe.close()
        process.wait()
    return remote.wait()


COMMANDS = {"qvm-run": run}
