"""``qvm-check``: is there such a qube, is it in this state?"""

from __future__ import annotations

import click

from cloison.cli.command import command
from cloison.cli.session import Session
from cloison.client import calls


@command("qvm-check", examples=(
    ("qvm-check work", "exit code 0: it exists"),
    ("qvm-check --running work", "exit code 0: it runs"),
))  # fmt: skip
@click.argument("names", nargs=-1, metavar="VMNAME...")
@click.option("--all", "everything", is_flag=True, help="All qubes.")
@click.option("--exclude", multiple=True, metavar="EXCLUDE", help="With --all: not this one.")
@click.option("--running", "state", flag_value="Running", help="Is it running?")
@click.option("--paused", "state", flag_value="Paused", help="Is it paused?")
@click.option("--template", "is_template", is_flag=True, help="Is it a template?")
@click.option("--networked", is_flag=True, help="Can it reach the network?")
def check(session: Session, names: tuple[str, ...], everything: bool, exclude: tuple[str, ...], state: str | None,
          is_template: bool, networked: bool) -> None:  # fmt: skip
    """Check that qubes exist, or that they are in a given state: exit code 0 if all are."""
    rows = {row.name: row for row in session.do(calls.list_states())}
    wanted = [n for n in rows if n not in exclude] if everything else list(names)
    if not wanted:
        raise click.UsageError("name at least one qube")
    good = []
    for name in wanted:
        row = rows.get(name)
        fits = (
            row is not None and (state is None or row.state == state) and (not is_template or row.klass == "TemplateVM")
        )
        if fits and networked:
            fits = bool(session.do(calls.property_get(name, "netvm")).value)
        if fits:
            good.append(name)
    what = {None: "exists", "Running": "is running", "Paused": "is paused"}[state]
    if not session.quiet:
        for name in good:
            click.echo(f"VM {name} {what}")
    if len(good) < len(wanted):
        if not session.quiet:
            bad = ", ".join(name for name in wanted if name not in good)
            click.echo(f"qvm-check: none of these {what}: {bad}", err=True)
        raise click.exceptions.Exit(1)


COMMANDS = {"qvm-check": check}
