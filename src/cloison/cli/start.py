"""``cloison start``."""

from __future__ import annotations

from cloison.cli.command import command
from cloison.cli.power import all_option, at_once, chosen, qubes_argument
from cloison.cli.session import Session
from cloison.cli.starting import ForOnce, drive_options, start_qube
from cloison.client import calls


@command("start", examples=(
    ("cloison start work", "start a qube and wait until it can run commands"),
    ("cloison start work personal", "both at once"),
    ("cloison start --cdrom dom0:/home/me/debian.iso lab", "from this disc, once"),
))  # fmt: skip
@qubes_argument
@all_option
@drive_options
def COMMAND(session: Session, qubes: tuple[str, ...], everything: bool, exclude: tuple[str, ...],
            for_once: ForOnce | None) -> None:  # fmt: skip
    """Start qubes; one that runs already is no error.

    A qube whose template has a fork point starts in a fraction of a second; others boot.
    """
    names = chosen(session, qubes, everything, exclude, frozenset({"Halted", "Crashed"}))

    def begin(qube: str) -> None:
        if len(names) == 1:
            session.wait(calls.power("Start", qube), f"starting {qube}")
        else:
            session.do(calls.power("Start", qube))

    def start(qube: str) -> None:
        start_qube(session, qube, for_once, lambda: begin(qube))
        session.say(f"{session.palette.bold(qube)} is running")

    at_once(session, names, start)
