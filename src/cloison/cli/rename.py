"""``cloison rename``."""

from __future__ import annotations

import click

from cloison.cli.choices import QUBE
from cloison.cli.command import command
from cloison.cli.session import Session
from cloison.client import calls


@command("rename", examples=(("cloison rename work office", "halted qubes only; whatever refers to it follows"),))
@click.argument("qube", type=QUBE)
@click.argument("name", type=QUBE, metavar="NEW-NAME")
def COMMAND(session: Session, qube: str, name: str) -> None:
    """Give a halted qube another name."""
    session.wait(calls.rename(qube, name), f"renaming {qube}")
    session.say(f"{qube} is now {session.palette.bold(name)}")
