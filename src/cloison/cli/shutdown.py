"""``cloison shutdown``."""

from __future__ import annotations

import click

from cloison.cli.command import command
from cloison.cli.power import all_option, at_once, chosen, qubes_argument, shut_down_all
from cloison.cli.session import Session
from cloison.client import calls


@command("shutdown", examples=(
    ("cloison shutdown work", "shut it down cleanly and wait until it is off"),
    ("cloison shutdown --all", "every running qube"),
    ("cloison shutdown --timeout 20 --kill work", "end it if it is not off after 20 seconds"),
    ("cloison shutdown --no-wait work", "only ask it to"),
))  # fmt: skip
@qubes_argument
@all_option
@click.option("--force", is_flag=True, help="Even if other running qubes depend on it, or it is paused.")
@click.option("--wait/--no-wait", default=True, help="Wait until it is off (the default).")
@click.option("--timeout", "timeout_s", type=float, metavar="SECONDS", help="Wait so long; default: shutdown_timeout.")
@click.option("--kill", is_flag=True, help="Kill a qube that does not stop in time.")
def COMMAND(session: Session, qubes: tuple[str, ...], everything: bool, exclude: tuple[str, ...], force: bool,
            wait: bool, timeout_s: float | None, kill: bool) -> None:  # fmt: skip
    """Shut qubes down cleanly.

    The changes of a template become its new revision; qubes based on it see them at their next start.
    """
    names = chosen(session, qubes, everything, exclude, frozenset({"Running", "Paused", "Transient", "Halting"}))
    if not wait:
        at_once(session, names, lambda qube: session.do(calls.shutdown(qube, force=force)))
        return
    shut_down_all(session, names, force=force, timeout_s=timeout_s, kill=kill)
    for qube in names:
        session.say(f"{session.palette.bold(qube)} is off")
