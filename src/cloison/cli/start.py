"""``cloison start``."""

from __future__ import annotations

import click

from cloison.cli.command import command
from cloison.cli.power import all_option, at_once, chosen, qubes_argument
from cloison.cli.session import Session
from cloison.client import calls


@command("start", examples=(
    ("cloison start work", "start a qube and wait until it can run commands"),
    ("cloison start work personal", "both at once"),
    ("cloison start --skip-if-running work", "no matter if it runs already"),
))  # fmt: skip
@qubes_argument
@all_option
@click.option("--skip-if-running", is_flag=True, help="A qube that runs already is no error.")
def COMMAND(session: Session, qubes: tuple[str, ...], everything: bool, exclude: tuple[str, ...],
            skip_if_running: bool) -> None:  # fmt: skip
    """Start qubes.

    A qube whose template has a fork point starts in a fraction of a second; others boot.
    """
    names = chosen(session, qubes, everything, exclude, frozenset({"Halted", "Crashed"}))

    def start(qube: str) -> None:
        if not skip_if_running and not everything and session.do(calls.state_of(qube)).state == "Running":
            session.say(f"{qube} is running already")
            return
        session.do(calls.power("Start", qube))
        session.say(f"{session.palette.bold(qube)} is running")

    if len(names) == 1 and session.is_talking:
        session.wait(calls.state_of(names[0]), f"starting {names[0]}")
    at_once(session, names, start)
