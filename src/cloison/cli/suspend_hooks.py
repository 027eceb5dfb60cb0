"""``cloison suspend-hooks``."""

from __future__ import annotations

import click

from cloison.cli.command import command
from cloison.cli.session import Session
from cloison.client import calls


@command("suspend-hooks", examples=(
    ("cloison suspend-hooks pre", "before the computer sleeps"),
    ("cloison suspend-hooks post", "after it has woken"),
))  # fmt: skip
@click.argument("when", type=click.Choice(["pre", "post"]))
def COMMAND(session: Session, when: str) -> None:
    """Tell running qubes that the computer is about to sleep, or has slept.

    For the scripts that the host runs around its sleep. Before it, qubes.SuspendPreAll runs in every running qube, and
    qubes with PCI devices run qubes.SuspendPre and are paused. After it they go on, every running qube gets the time,
    and qubes.SuspendPost and qubes.SuspendPostAll run. A qube that does not answer holds it up for a minute at most.
    """
    session.wait(calls.host_sleep(when), "telling running qubes")
