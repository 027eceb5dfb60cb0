"""``cloison help``."""

from __future__ import annotations

from collections.abc import Callable

import click
from click.shell_completion import CompletionItem

from cloison.cli.command import command
from cloison.cli.exitcodes import MEANINGS
from cloison.cli.session import Session

ENVIRONMENT = {
    "CLOISON_ROOT": "a directory that holds a whole system (state, sockets, configuration); many can live side by side",
    "CLOISON_CACHE": "where built images and fork points are kept; systems may share it",
    "NO_COLOR": "set: no colours",
    "XDG_DATA_HOME, XDG_CONFIG_HOME, XDG_CACHE_HOME, XDG_RUNTIME_DIR": "where things are without CLOISON_ROOT",
}
NAMES = """A qube's name is a letter followed by letters, digits, '_', '.' or '-', at most 31 characters.
dom0 is this host. @dispvm is a fresh disposable, @dispvm:NAME one made from NAME.
A volume is written QUBE:VOLUME, for example work:private."""


def _exit_codes() -> str:
    lines = [f"{int(code):>4}  {meaning}" for code, meaning in MEANINGS.items()]
    return "\n".join([*lines, "", "`run` otherwise ends with the command's own code, or 128 + N if signal N ended it."])


def _environment() -> str:
    return "\n".join(f"{name}\n    {meaning}" for name, meaning in ENVIRONMENT.items())


TOPICS: dict[str, Callable[[], str]] = {"exit-codes": _exit_codes, "environment": _environment, "names": lambda: NAMES}


def _complete_topic(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
    from cloison.cli.entry import program

    if ctx.params.get("topic"):
        return []
    return [CompletionItem(name) for name in (*program.list_commands(ctx), *TOPICS) if name.startswith(incomplete)]


@command("help", examples=(
    ("cloison help", "all commands"),
    ("cloison help run", "one command"),
    ("cloison help exit-codes", "what the exit codes mean"),
    ("cloison help environment", "which variables are read"),
    ("cloison help names", "how qubes and volumes are named"),
))  # fmt: skip
@click.argument("topic", nargs=-1, shell_complete=_complete_topic)
@click.pass_context
def COMMAND(ctx: click.Context, session: Session, topic: tuple[str, ...]) -> None:
    """Show help for a command or a topic. Topics: exit-codes, environment, names."""
    if topic and topic[0] in TOPICS:
        click.echo(TOPICS[topic[0]]())
        return
    from cloison.cli.entry import program, run_program

    if not topic:
        root = ctx.find_root()
        click.echo(program.get_help(root))
        return
    code = run_program([*topic, "--help"])
    if code:
        raise click.exceptions.Exit(code)
