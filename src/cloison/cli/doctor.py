"""``cloison doctor``."""

from __future__ import annotations

import sys
import textwrap

import click

from cloison.cli.colours import terminal_width
from cloison.cli.command import command, json_option
from cloison.cli.session import Session

SIGNS = {"ok": ("✓", "32"), "note": ("·", "36"), "warning": ("!", "33"), "failed": ("✗", "31;1")}


@command("doctor", examples=(
    ("cloison doctor", "look at this machine and say what is missing"),
    ("cloison doctor --json", "for scripts"),
))  # fmt: skip
@json_option
def COMMAND(session: Session, as_json: bool) -> None:
    """Check this machine, and say how to mend what cannot work.

    Exit code 1 if something that is needed is missing.
    """
    from cloison.doctor import run_checks

    results = run_checks(session.layout)
    if as_json:
        session.show_json([result.as_json() for result in results])
    else:
        for result in results:
            status = str(getattr(result.status, "value", result.status))
            sign, style = SIGNS.get(status, ("?", ""))
            found = _fold(f"{result.name}: {result.found}", "  ").removeprefix(result.name)
            click.echo(f"{session.palette.style(sign, style)} {session.palette.bold(result.name)}{found}", color=True)
            if result.mend:
                click.echo(f"    {session.palette.dim('→')} {_fold(result.mend, '      ')}", color=True)
    if any(str(getattr(r.status, "value", r.status)) == "failed" for r in results):
        raise click.exceptions.Exit(1)


def _fold(text: str, indent: str) -> str:
    """On a terminal, lines between words, indented from the second on; elsewhere one line, for who searches."""
    if not sys.stdout.isatty():
        return text
    folded = textwrap.fill(
        text,
        max(40, terminal_width() or 80),
        initial_indent=indent,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return folded.removeprefix(indent)
