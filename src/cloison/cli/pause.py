"""``cloison pause``."""

from __future__ import annotations

import click

from cloison.cli.command import command
from cloison.cli.power import all_option, at_once, chosen, qubes_argument
from cloison.cli.session import Session
from cloison.client import calls


@command("pause", examples=(
    ("cloison pause work", "it stands still"),
    ("cloison pause --all", "every qube it applies to"),
))  # fmt: skip
@qubes_argument
@all_option
@click.option(
    "--suspend", is_flag=True, help="Prepare the qube for a sleep of the host first; it wakes with its clock set."
)
def COMMAND(session: Session, qubes: tuple[str, ...], everything: bool, exclude: tuple[str, ...],
            suspend: bool) -> None:  # fmt: skip
    """Stop qubes where they are. `cloison unpause` lets them go on.

    A paused qube uses no processor time and keeps its memory.
    """
    names = chosen(session, qubes, everything, exclude, frozenset({"Running"}))

    def pause(qube: str) -> None:
        session.do(calls.power("Suspend" if suspend else "Pause", qube))
        session.say(f"{session.palette.bold(qube)} is {'suspended' if suspend else 'paused'}")

    at_once(session, names, pause)
