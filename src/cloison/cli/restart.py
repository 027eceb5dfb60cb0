"""``cloison restart``."""

from __future__ import annotations

import click

from cloison.cli.command import command
from cloison.cli.power import all_option, chosen, qubes_argument, shut_down
from cloison.cli.session import Session
from cloison.client import calls
from cloison.client.failures import QubesVMNotStartedError


@command("restart", examples=(
    ("cloison restart work", "shut it down, then start it: its root is as new, its home is kept"),
    ("cloison restart --all", "every running qube"),
))  # fmt: skip
@qubes_argument
@all_option
@click.option("--force", is_flag=True, help="Even if other running qubes depend on it.")
@click.option("--timeout", "timeout_s", type=float, metavar="SECONDS", help="Wait so long for the shutdown.")
@click.option("--kill", is_flag=True, help="Kill a qube that does not stop in time.")
def COMMAND(session: Session, qubes: tuple[str, ...], everything: bool, exclude: tuple[str, ...], force: bool,
            timeout_s: float | None, kill: bool) -> None:  # fmt: skip
    """Shut qubes down and start them again. Halted ones are just started."""
    names = chosen(session, qubes, everything, exclude, frozenset({"Running"}))

    def restart(qube: str) -> None:
        try:
            shut_down(session, qube, force=force, timeout_s=timeout_s, kill=kill)
        except QubesVMNotStartedError:
            pass  # halted already
        session.wait(calls.power("Start", qube), f"starting {qube}")
        session.say(f"{session.palette.bold(qube)} is running")

    session.each(names, restart)
