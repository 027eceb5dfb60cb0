"""``cloison clock``.

In: names of running qubes. Out: how far their clocks are off, and clocks that are set. May import: client, wire, cli.
"""

from __future__ import annotations

import time

import click

from cloison.cli.choices import QUBE
from cloison.cli.command import group, json_option, subcommand
from cloison.cli.session import Session
from cloison.cli.table import Cell
from cloison.client import calls
from cloison.errors import CloisonError


@group("clock", examples=(
    ("cloison clock show", "how far the clocks of running qubes are off"),
    ("cloison clock sync", "set them all"),
))  # fmt: skip
def COMMAND() -> None:
    """Clocks of running qubes.

    They are set by themselves when a qube starts, when it goes on after a pause, and whenever this computer's clock is
    set or the computer has slept.
    """


def _chosen(session: Session, qubes: tuple[str, ...]) -> list[str]:
    if qubes:
        return list(qubes)
    return [row.name for row in session.do(calls.list_states()) if row.state == "Running" and row.klass != "AdminVM"]


def _offset_s(session: Session, qube: str) -> float:
    """By how much the qube's clock is ahead of ours; the call's duration is taken into account."""
    from cloison.client.qrexec import run_captured
    from cloison.wire import LEG_SESSION, Call, RemoteProtocolError
    from cloison.wire.dates import parse_date

    before = time.time_ns()
    call = Call(LEG_SESSION, qube, service="qubes.GetDate+nanoseconds", autostart=False)
    ending, out, _ = run_captured(session.layout, call)
    after = time.time_ns()
    if ending.code:
        raise CloisonError(f"{qube} did not tell the time: {ending.note or f'exit code {ending.code}'}")
    try:
        return (parse_date(out[:64]) - (before + after) // 2) / 1e9
    except RemoteProtocolError as error:
        raise CloisonError(f"{qube} did not tell the time: {error}") from None


@subcommand(COMMAND, "show", examples=(("cloison clock show work", "of one qube"),))
@click.argument("qubes", nargs=-1, type=QUBE)
@json_option
def show(session: Session, qubes: tuple[str, ...], as_json: bool) -> None:
    """Show by how many seconds clocks are ahead of this computer's."""
    found: dict[str, float] = {}

    def ask(qube: str) -> None:
        found[qube] = round(_offset_s(session, qube), 3)

    session.each(_chosen(session, qubes), ask)
    if as_json:
        session.show_json([{"qube": qube, "ahead_s": ahead} for qube, ahead in found.items()])
    elif found:
        session.show_table(("QUBE", "AHEAD"), [(Cell(qube), Cell(f"{ahead:+.3f} s")) for qube, ahead in found.items()])


@subcommand(COMMAND, "sync", examples=(("cloison clock sync work", "set one qube's clock to this computer's"),))
@click.argument("qubes", nargs=-1, type=QUBE)
def sync(session: Session, qubes: tuple[str, ...]) -> None:
    """Set clocks to this computer's time (all running qubes, or those named)."""
    from cloison.client.qrexec import run_captured
    from cloison.wire import LEG_SESSION, Call
    from cloison.wire.dates import format_date

    def set_one(qube: str) -> None:
        call = Call(LEG_SESSION, qube, service="qubes.SetDateTime", autostart=False)
        ending, _, said = run_captured(session.layout, call, stdin=format_date(time.time_ns(), exact=True))
        if ending.code:
            why = ending.note or said.decode("utf-8", "replace").strip()[-200:] or f"exit code {ending.code}"
            raise CloisonError(f"the clock of {qube} was not set: {why}")

    session.each(_chosen(session, qubes), set_one)
