"""The program: finds the command, runs it, turns whatever goes wrong into one line and an exit code.

In: arguments. Out: an exit code. May import: cli; commands' files are imported by name when they are used.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import click

from cloison import __version__
from cloison.cli.command import HELP_OPTIONS, talk_options, write_examples
from cloison.cli.exitcodes import ExitCode, exit_code_for
from cloison.cli.session import Session
from cloison.errors import CloisonError

SECTIONS: dict[str, tuple[str, ...]] = {
    "Use qubes": ("run", "copy", "apps", "list", "start", "shutdown", "restart", "kill", "pause", "unpause", "console"),
    "Make and change qubes": (
        "create",
        "clone",
        "rename",
        "remove",
        "prefs",
        "features",
        "services",
        "tags",
        "notes",
        "autostart",
        "standalone",
    ),
    "The network": ("firewall", "net", "pci"),
    "A whole system as a file": ("export", "plan", "apply"),
    "Templates and storage": ("template", "update", "forkpoint", "volume", "pool", "device"),
    "Who may call whom": ("policy", "limits", "calls", "ask-agent", "audit"),
    "The system": ("system-prefs", "label", "events", "clock", "suspend-hooks", "daemon", "doctor", "compat", "bench"),
    "Help": ("help", "completion", "version"),
}
"""Commands by section, in the order of the help. ``NAME`` lives in ``cloison.cli.NAME`` (``-`` written ``_``)."""
ALIASES = {"ls": "list", "rm": "remove", "mv": "rename", "cp": "clone", "stop": "shutdown", "doc": "doctor"}
FILES = {"list": "listing", "help": "helping"}
"""Files whose name would hide something of Python's."""

EXAMPLES = (
    ("cloison list", "all qubes and what they are doing"),
    ("cloison run work -- ls -l", "a command in a qube, started if need be"),
    ("cloison run --dispvm -- file -", "a command in a fresh disposable"),
    ("cloison create --label blue work", "a new app qube on the default template"),
)


class ProgramGroup(click.Group):
    """Commands are found by name and imported late."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for names in SECTIONS.values() for name in names]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        name = ALIASES.get(cmd_name, cmd_name)
        if name not in self.list_commands(ctx):
            return None
        module = importlib.import_module(f"cloison.cli.{FILES.get(name, name.replace('-', '_'))}")
        found = module.COMMAND
        assert isinstance(found, click.Command)
        return found

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and self.get_command(ctx, args[0]) is None and not args[0].startswith("-"):
            raise click.UsageError(f"there is no command {args[0]!a}{_guess(args[0], self.list_commands(ctx))}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, names in SECTIONS.items():
            rows = []
            for name in names:
                try:
                    found = self.get_command(ctx, name)
                except ModuleNotFoundError:
                    continue
                if found is not None:
                    rows.append((name, found.get_short_help_str(formatter.width - 18)))
            with formatter.section(title):
                formatter.write_dl(rows)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        write_examples(EXAMPLES, formatter)
        formatter.write_paragraph()
        formatter.write_text("`cloison COMMAND --help` says more; `cloison help exit-codes` lists the exit codes.")


def _guess(word: str, known: Sequence[str]) -> str:
    from difflib import get_close_matches

    close = get_close_matches(word, [*known, *ALIASES], n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _use_root(ctx: click.Context, _: click.Parameter, value: str | None) -> None:
    if value:
        os.environ["CLOISON_ROOT"] = str(Path(value).absolute())


def _set_colour(ctx: click.Context, _: click.Parameter, value: str | None) -> None:
    if value:
        ctx.ensure_object(Session).colour = value


@click.command(cls=ProgramGroup, context_settings=HELP_OPTIONS)
@click.version_option(__version__, prog_name="cloison", message="%(prog)s %(version)s")
@click.option("--root", metavar="DIR", expose_value=False, is_eager=True, callback=_use_root,
              help="The system under DIR (as CLOISON_ROOT=DIR).")  # fmt: skip
@click.option("--color", "--colour", type=click.Choice(["auto", "always", "never"]), expose_value=False,
              callback=_set_colour, help="When to use colours.")  # fmt: skip
@talk_options
def program() -> None:
    """Cloison: your machine divided into qubes that cannot reach each other except through one guarded door."""


def run_program(arguments: Sequence[str] | None = None) -> int:
    """Run one command line; the exit code."""
    if "_CLOISON_COMPLETE" in os.environ:
        importlib.import_module("cloison.cli.completion")  # it knows how bash splits words
        program.main(prog_name="cloison", complete_var="_CLOISON_COMPLETE")
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words:
        words = ["--help"]
    return run_command(program, "cloison", words, Session())


def run_command(command: click.Command, name: str, words: list[str], session: Session, *,
                code_of: Callable[[CloisonError], int] = exit_code_for) -> int:  # fmt: skip
    """Run a click command as a whole program: no traceback leaves, whatever happens."""
    _fill_closed_descriptors()
    try:
        try:
            with command.make_context(name, words, obj=session) as ctx:
                command.invoke(ctx)
            sys.stdout.flush()
            return ExitCode.DONE
        except click.exceptions.Exit as ending:
            sys.stdout.flush()
            return ending.exit_code
        except click.UsageError as error:
            return _complain_of_use(error, session)
        except click.ClickException as error:
            session.complain(CloisonError(error.format_message()))
            return ExitCode.FAILED
        except CloisonError as error:
            session.complain(error)
            return int(code_of(error))
    except (KeyboardInterrupt, click.Abort):
        return _interrupted()
    except BrokenPipeError:
        _abandon_output()
        return ExitCode.BROKEN_PIPE
    except RecursionError as error:
        session.complain(CloisonError(f"too deep: {error}"))
        return ExitCode.FAILED
    except OSError as error:
        _abandon_output()
        session.complain(CloisonError(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}"))
        return ExitCode.FAILED


def _fill_closed_descriptors() -> None:
    """A caller may have closed standard input or output; a socket of ours must never take their place."""
    for descriptor, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(descriptor)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)  # the lowest free number: this one
            assert opened == descriptor
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(descriptor, mode, closefd=False))


def _complain_of_use(error: click.UsageError, session: Session) -> int:
    if isinstance(error, click.exceptions.NoArgsIsHelpError):  # its message is the whole help
        click.echo(error.format_message(), err=True)
        return ExitCode.USAGE
    path = error.ctx.command_path if error.ctx is not None else session.program
    message = error.format_message().rstrip(".")
    session.complain(CloisonError(message[:1].lower() + message[1:], hint=f"{path} --help"))
    return ExitCode.USAGE


def _interrupted() -> int:
    """Ctrl-C: end quietly, and leave no second one a chance to print a traceback."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.stderr.isatty():
        click.echo("", err=True)
    return ExitCode.INTERRUPTED


def _abandon_output() -> None:
    """Our output has no place any more: let Python's last flush go nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)
