"""``cloison unpause``."""

from __future__ import annotations

from cloison.cli.command import command
from cloison.cli.power import all_option, at_once, chosen, qubes_argument
from cloison.cli.session import Session
from cloison.client import calls


@command("unpause", examples=(
    ("cloison unpause work", "it goes on where it was"),
    ("cloison unpause --all", "every qube it applies to"),
))  # fmt: skip
@qubes_argument
@all_option
def COMMAND(session: Session, qubes: tuple[str, ...], everything: bool, exclude: tuple[str, ...]) -> None:
    """Let paused or suspended qubes go on."""
    names = chosen(session, qubes, everything, exclude, frozenset({"Paused", "Suspended"}))

    def unpause(qube: str) -> None:
        suspended = session.do(calls.state_of(qube)).state == "Suspended"
        session.do(calls.power("Resume" if suspended else "Unpause", qube))
        session.say(f"{session.palette.bold(qube)} is running")

    at_once(session, names, unpause)
