"""``cloison forkpoint``."""

from __future__ import annotations

import time
from typing import Any

import click

from cloison.cli.choices import QUBE
from cloison.cli.command import group, json_option, subcommand
from cloison.cli.session import Session
from cloison.cli.table import Cell, human_bytes, human_seconds
from cloison.client import calls

COMMAND = group("forkpoint", examples=(
    ("cloison forkpoint list", "which there are and what they cost"),
    ("cloison forkpoint make debian-13", "make it now instead of in the background"),
))(lambda: None)  # fmt: skip
COMMAND.help = """Show, make and drop fork points. From them qubes start at once.

A fork point is the saved running state of a template. They are made by themselves after each commit, for each shape
(memory, processors, kernel) that a qube asks for. Dropping one costs nothing but the time to make it again; running
qubes do not need it.
"""
STATES = {"ready": "32", "making": "36", "stale": "33", "failed": "31"}


@subcommand(COMMAND, "list", examples=(("cloison forkpoint list --json", "for scripts"),))
@json_option
def list_forkpoints(session: Session, as_json: bool) -> None:
    """Show all fork points."""
    found = session.do(calls.forkpoint_list())
    if as_json:
        session.show_json(found)
        return
    headings = ("TEMPLATE", "STATE", "MEMORY", "DISK", "AGE", "USED BY", "KEY")
    session.show_table(headings, [_row(point) for point in found])


def _row(point: dict[str, Any]) -> tuple[Cell, ...]:
    made, state = point.get("made_at"), str(point.get("state") or "-")
    return (
        Cell(str(point.get("template") or point.get("qube") or "-"), "1"),
        Cell(state, STATES.get(state, "")),
        Cell(human_bytes(point.get("memory_bytes") or None), "", True),
        Cell(human_bytes(point.get("disk_bytes") or None), "", True),
        Cell(human_seconds(max(0.0, time.time() - made)) if made else "-", "", True),
        Cell(" ".join(point.get("users") or ()) or "-"),
        Cell(str(point.get("key") or "-"), "2"),
    )


@subcommand(COMMAND, "make", examples=(
    ("cloison forkpoint make debian-13", "for the template's default shape"),
    ("cloison forkpoint make work", "for the shape of this qube"),
))  # fmt: skip
@click.argument("qube", type=QUBE)
def make_forkpoint(session: Session, qube: str) -> None:
    """Make the fork point that a qube needs, now."""
    session.carry_out(calls.forkpoint_make(qube), f"making the fork point of {qube}")


@subcommand(COMMAND, "drop", examples=(
    ("cloison forkpoint drop debian-13", "all of a template"),
    ("cloison forkpoint drop --key 0123456789abcdef0123456789abcdef", "one"),
    ("cloison forkpoint drop --all", "all there are"),
))  # fmt: skip
@click.argument("template", required=False, type=QUBE)
@click.option("--key", metavar="KEY", help="The one with this key.")
@click.option("--all", "everything", is_flag=True, help="All fork points.")
def drop_forkpoint(session: Session, template: str | None, key: str | None, everything: bool) -> None:
    """Drop fork points; the next start boots, or waits until a new one is made."""
    if sum((template is not None, key is not None, everything)) != 1:
        raise click.UsageError("name a template, or give --key, or give --all")
    if template is not None:
        session.do(calls.state_of(template))
    which = {"template": template} if template else {"key": key} if key else {}
    done = session.do(calls.forkpoint_drop(**{k: v for k, v in which.items() if v})) or {}
    session.say(f"dropped {len(done.get('dropped') or ())}")
