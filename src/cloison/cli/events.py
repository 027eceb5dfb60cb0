"""``cloison events``."""

from __future__ import annotations

import fnmatch
import time

import click

from cloison.cli.choices import QUBE
from cloison.cli.colours import STATE_STYLES
from cloison.cli.command import command
from cloison.cli.session import Session
from cloison.client.framing import Event, printable


@command("events", examples=(
    ("cloison events", "everything, until Ctrl-C"),
    ("cloison events work", "only what happens to one qube"),
    ("cloison events --only 'domain-*' --json", "one JSON object per line"),
    ("cloison events --until domain-shutdown work", "wait until it is off"),
    ("cloison events --stats --json", "what running qubes use"),
))  # fmt: skip
@click.argument("qube", required=False, type=QUBE)
@click.option("--only", "patterns", multiple=True, metavar="PATTERN", help="Only events of this name (with * and ?).")
@click.option("--until", "last", metavar="PATTERN", help="End after the first event of this name.")
@click.option("--stats", is_flag=True, help="Memory and processor time of running qubes instead, every few seconds.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per line.")
def COMMAND(session: Session, qube: str | None, patterns: tuple[str, ...], last: str | None, stats: bool,
            as_json: bool) -> None:  # fmt: skip
    """Show what happens, as it happens."""
    for event in session.client.events(qube or "dom0", method="admin.vm.Stats" if stats else "admin.Events"):
        is_last = last is not None and fnmatch.fnmatchcase(event.name, last)
        if is_last or not patterns or any(fnmatch.fnmatchcase(event.name, pattern) for pattern in patterns):
            _show(session, event, as_json)
        if is_last:
            return


def _show(session: Session, event: Event, as_json: bool) -> None:
    if as_json:
        import json

        line = json.dumps(
            {"time": round(time.time(), 3), "subject": event.subject, "event": event.name, "args": event.fields}
        )
    else:
        fields = " ".join(f"{key}={printable(value)}" for key, value in event.fields.items())
        subject = session.palette.bold(printable(event.subject) or "system")
        name = session.palette.style(printable(event.name), _style(event.name))
        line = f"{session.palette.dim(time.strftime('%H:%M:%S'))} {subject} {name} {fields}".rstrip()
    click.echo(line, color=True)


def _style(name: str) -> str:
    if name.endswith("-failed"):
        return "31"
    return {"domain-start": STATE_STYLES["Running"], "domain-paused": STATE_STYLES["Paused"]}.get(name, "")
