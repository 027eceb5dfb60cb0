"""``cloison services``."""

from __future__ import annotations

import click

from cloison.cli.choices import QUBE
from cloison.cli.command import command, json_option
from cloison.cli.session import Session
from cloison.cli.table import Cell
from cloison.client import calls

PREFIX = "service."


@command("services", examples=(
    ("cloison services work", "services that were switched here"),
    ("cloison services work cups on", "switch one on"),
    ("cloison services work cups default", "leave it to the qube"),
))  # fmt: skip
@click.argument("qube", type=QUBE)
@click.argument("service", required=False)
@click.argument("state", required=False, type=click.Choice(["on", "off", "default"]))
@json_option
def COMMAND(session: Session, qube: str, service: str | None, state: str | None, as_json: bool) -> None:
    """Switch services inside a qube on or off. They are the features service.NAME."""
    if service and state == "default":
        session.do(calls.feature_remove(qube, PREFIX + service))
        return
    if service and state:
        session.do(calls.feature_set(qube, PREFIX + service, "1" if state == "on" else ""))
        return
    names = [n for n in sorted(session.do(calls.feature_list(qube))) if n.startswith(PREFIX)]
    found = {n.removeprefix(PREFIX): bool(session.do(calls.feature_get(qube, n))) for n in names}
    if service:
        word = {True: "on", False: "off", None: "default"}[found.get(service)]
        click.echo(f'"{word}"' if as_json else word)
    elif as_json:
        session.show_json(found)
    elif found:
        rows = [(Cell(name), Cell("on", "32") if is_on else Cell("off", "2")) for name, is_on in found.items()]
        session.show_table(("SERVICE", "STATE"), rows)
