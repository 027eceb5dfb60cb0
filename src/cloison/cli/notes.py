"""``cloison notes``."""

from __future__ import annotations

import sys

import click

from cloison.cli.choices import QUBE
from cloison.cli.command import command
from cloison.cli.session import Session
from cloison.client import calls


@command("notes", examples=(
    ("cloison notes work", "read them"),
    ("cloison notes --set 'tax papers live here' work", "write them"),
    ("cloison notes --set - work < notes.txt", "from a file"),
))  # fmt: skip
@click.argument("qube", type=QUBE)
@click.option("-s", "--set", "text", metavar="TEXT", help="Replace the notes; - reads standard input.")
def COMMAND(session: Session, qube: str, text: str | None) -> None:
    """Read or write your own notes about a qube."""
    if text is not None:
        session.do(calls.notes_set(qube, sys.stdin.read() if text == "-" else text))
    elif found := session.do(calls.notes_get(qube)):
        click.echo(found.rstrip("\n"))
