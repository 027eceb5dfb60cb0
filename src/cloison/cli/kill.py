"""``cloison kill``."""

from __future__ import annotations

from cloison.cli.command import command
from cloison.cli.power import all_option, at_once, chosen, qubes_argument
from cloison.cli.session import Session
from cloison.client import calls


@command("kill", examples=(
    ("cloison kill untrusted", "end it now"),
    ("cloison kill --all", "every qube it applies to"),
))  # fmt: skip
@qubes_argument
@all_option
def COMMAND(session: Session, qubes: tuple[str, ...], everything: bool, exclude: tuple[str, ...]) -> None:
    """End qubes at once, as if their power was cut.

    What was not yet on disk is lost. Try `cloison shutdown` first.
    """
    names = chosen(
        session, qubes, everything, exclude, frozenset({"Running", "Paused", "Transient", "Halting", "Crashed"})
    )

    def kill(qube: str) -> None:
        session.do(calls.power("Kill", qube))
        session.say(f"{session.palette.bold(qube)} is off")

    at_once(session, names, kill)
