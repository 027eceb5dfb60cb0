"""``qvm-remove``."""

from __future__ import annotations

import click

from cloison.cli.choices import QUBE
from cloison.cli.command import command
from cloison.cli.power import chosen
from cloison.cli.qvm.power import OFF
from cloison.cli.session import Session
from cloison.client import calls


@command("qvm-remove", examples=(("qvm-remove old-work", "asks first"), ("qvm-remove -f old-work", "does not ask")))
@click.argument("names", nargs=-1, type=QUBE, metavar="VMNAME...")
@click.option("--all", "everything", is_flag=True, help="All qubes that are off.")
@click.option("--exclude", multiple=True, type=QUBE, metavar="EXCLUDE", help="With --all: not this one.")
@click.option("-f", "--force", is_flag=True, help="Do not ask.")
def remove(session: Session, names: tuple[str, ...], everything: bool, exclude: tuple[str, ...], force: bool) -> None:
    """Remove qubes with all their data."""
    names = tuple(chosen(session, names, everything, exclude, OFF))
    if not force and not session.quiet:
        question = f"This will completely remove the selected VM(s) ({', '.join(names)}). Are you sure?"
        session.confirm(question, assume_yes=False, option="--force")
    session.each(names, lambda name: session.do(calls.remove(name)))


COMMANDS = {"qvm-remove": remove}
