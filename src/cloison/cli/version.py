"""``cloison version``."""

from __future__ import annotations

import platform
import sys

import click

from cloison import __version__
from cloison.cli.command import command, json_option
from cloison.cli.session import Session
from cloison.client import calls
from cloison.client.connection import Client
from cloison.errors import CloisonError


@command("version", examples=(("cloison version --json", "for bug reports"),))
@json_option
def COMMAND(session: Session, as_json: bool) -> None:
    """Show the versions of program and daemon."""
    found = {"cloison": __version__, "python": platform.python_version(), "system": str(session.layout.data)}
    try:
        status = Client(session.layout, start_daemon=False).do(calls.daemon_status(), timeout_s=2.0)
        found["daemon"] = str(status.get("version", "?"))
        if status.get("hypervisor"):
            found["hypervisor"] = str(status["hypervisor"])
    except CloisonError:
        found["daemon"] = "not running"
    if as_json:
        session.show_json({**found, "executable": sys.executable})
    else:
        click.echo("\n".join(f"{key}: {value}" for key, value in found.items()))
