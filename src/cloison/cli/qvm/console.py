"""``qvm-console-dispvm``."""

from __future__ import annotations

import click

from cloison.cli import console as twin
from cloison.cli.choices import QUBE
from cloison.cli.command import command
from cloison.cli.session import Session
from cloison.client import calls


@command("qvm-console-dispvm", examples=(("qvm-console-dispvm work", "Ctrl-] three times lets go"),))
@click.argument("name", type=QUBE, metavar="VMNAME")
@click.option("--autostart", is_flag=True, help="Start the qube if it does not run.")
@click.pass_context
def console(ctx: click.Context, session: Session, name: str, autostart: bool) -> None:
    """Attach to the serial console of a qube.

    It shows in this terminal, without the control strings that set titles or reach the clipboard; no disposable is
    needed for that.
    """
    if autostart:
        session.wait(calls.power("Start", name), f"starting {name}")
    ctx.invoke(twin.COMMAND, qube=name, only_log=False)


COMMANDS = {"qvm-console-dispvm": console}
