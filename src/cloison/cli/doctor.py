"""``cloison doctor``."""

from __future__ import annotations

import click

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
            click.echo(
                f"{session.palette.style(sign, style)} {session.palette.bold(result.name)}: {result.found}", color=True
            )
            if result.mend:
                click.echo(f"    {session.palette.dim('→')} {result.mend}", color=True)
    if any(str(getattr(r.status, "value", r.status)) == "failed" for r in results):
        raise click.exceptions.Exit(1)
