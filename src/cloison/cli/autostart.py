"""``cloison autostart``."""

from __future__ import annotations

import click

from cloison.cli.choices import QUBE
from cloison.cli.command import command, json_option
from cloison.cli.listing import property_value
from cloison.cli.power import at_once
from cloison.cli.session import Session
from cloison.client import calls


@command("autostart", examples=(
    ("cloison autostart", "which qubes start with the system"),
    ("cloison autostart work", "start it with the system"),
    ("cloison autostart --off work", "no longer"),
    ("cloison autostart --now", "start them all now"),
))  # fmt: skip
@click.argument("qubes", nargs=-1, type=QUBE, metavar="[QUBE...]")
@click.option("--off", is_flag=True, help="Do not start them with the system any more.")
@click.option("--now", is_flag=True, help="Start all of them now.")
@json_option
def COMMAND(session: Session, qubes: tuple[str, ...], off: bool, now: bool, as_json: bool) -> None:
    """Show or choose the qubes that start with the system."""
    for qube in qubes:
        session.do(calls.property_set(qube, "autostart", str(not off)))
    if qubes and not now:
        return
    rows = session.do(calls.list_qubes(["autostart"]))
    names = [row["name"] for row in rows if str(property_value(row, "autostart")) == "True"]
    if now:
        at_once(session, names, lambda qube: session.do(calls.power("Start", qube)))
    elif as_json:
        session.show_json(names)
    elif names:
        click.echo("\n".join(names))
