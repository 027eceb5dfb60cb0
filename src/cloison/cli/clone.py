"""``cloison clone``."""

from __future__ import annotations

import click

from cloison.cli.choices import LABEL, QUBE
from cloison.cli.command import command
from cloison.cli.create import CLASSES
from cloison.cli.session import Session
from cloison.client import calls


@command("clone", examples=(
    ("cloison clone work work-2", "the same qube again, with a copy of its data"),
    ("cloison clone debian-13 debian-13-dev", "a template to try things in"),
    ("cloison clone --class StandaloneVM debian-13 lab", "a qube with a root of its own"),
))  # fmt: skip
@click.argument("source", type=QUBE)
@click.argument("name", type=QUBE, metavar="NEW-NAME")
@click.option("-C", "--class", "klass", type=click.Choice(CLASSES), help="Another class than the source's.")
@click.option("-l", "--label", type=LABEL, help="Another label than the source's.")
@click.option("-P", "--pool", metavar="POOL", help="Where the copy lives.")
def COMMAND(session: Session, source: str, name: str, klass: str | None, label: str | None, pool: str | None) -> None:
    """Copy a qube: properties, features, tags, notes and volumes.

    Data are shared with the source on disk until one of the two changes them.
    """
    session.carry_out(calls.clone(source, name, klass=klass, label=label, pool=pool), f"cloning {source} to {name}")
    session.say(f"{session.palette.bold(name)} is there")
