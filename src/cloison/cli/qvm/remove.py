"""``qvm-remove``."""

from __future__ import annotations

import click

from cloison.cli.choices import QUBE
from cloison.cli.command import command
from cloison.cli.session import Session
from cloison.client import calls


@command("qvm-remove", examples=(("qvm-remove old-work", "asks first"), ("qvm-remove -f old-work", "does not ask")))
@click.argument("names", nargs=-1, required=True, type=QUBE, metavar="VMNAME...")
@click.option("-f", "--force", is_flag=True, help="Do not ask.")
def remove(session: Session, names: tuple[str, ...], force: bool) -> None:
    """Remove qubes with all their data."""
    if not force and not session.quiet:
        question = f"This will completely remove the selected VM(s) ({', '.join(names)}). Are you sure?"
        session.confirm(question, assume_yes=False, option="--force")
    session.each(names, lambda name: session.do(calls.remove(name)))


COMMANDS = {"qvm-remove": remove}
