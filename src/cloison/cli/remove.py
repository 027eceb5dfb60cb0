"""``cloison remove``."""

from __future__ import annotations

import click

from cloison.cli.choices import QUBE
from cloison.cli.command import command, yes_option
from cloison.cli.session import Session
from cloison.client import calls
from cloison.client.failures import QubesVMNotStartedError


@command("remove", examples=(
    ("cloison remove old-work", "asks first"),
    ("cloison remove --yes old-work older-work", "does not ask"),
    ("cloison remove --kill --yes untrusted", "even if it runs"),
))  # fmt: skip
@click.argument("qubes", nargs=-1, required=True, type=QUBE, metavar="QUBE...")
@yes_option
@click.option("-f", "--force", "yes_too", is_flag=True, hidden=True)
@click.option("--kill", is_flag=True, help="End it first if it runs.")
def COMMAND(session: Session, qubes: tuple[str, ...], yes: bool, yes_too: bool, kill: bool) -> None:
    """Remove qubes with all their data, for ever.

    Refused while anything depends on one: qubes based on it, properties that name it.
    """
    for qube in qubes:
        session.do(calls.state_of(qube))
    names = ", ".join(qubes)
    session.confirm(f"Remove {names} with all data?", assume_yes=yes or yes_too)

    def remove(qube: str) -> None:
        if kill:
            try:
                session.do(calls.power("Kill", qube))
            except QubesVMNotStartedError:
                pass  # it was off
        session.wait(calls.remove(qube), f"removing {qube}")
        session.say(f"{qube} is gone")

    session.each(qubes, remove)
