"""``cloison plan``."""

from __future__ import annotations

from pathlib import Path

import click

from cloison.cli.command import command, json_option
from cloison.cli.declarative import FILE, plan_from, prune_option, show_plan
from cloison.cli.session import Session
from cloison.client.declare.plan import describe

DIFFERS = 2
"""Exit code of ``plan --check`` when something would change, as ``diff`` and others do it; 1 is trouble."""


@command("plan", examples=(
    ("cloison plan system.toml", "what `cloison apply` would change"),
    ("cloison plan --check system.toml", "for scripts: exit code 2 if anything would"),
))  # fmt: skip
@FILE
@prune_option
@click.option("--check", is_flag=True, help=f"Exit code {DIFFERS} when something would change.")
@json_option
def COMMAND(session: Session, file: Path, prune: bool, check: bool, as_json: bool) -> None:
    """Show what would have to change for the system to become what a file says. Changes nothing."""
    plan = plan_from(session, file, prune)
    if as_json:
        session.show_json({"steps": describe(plan), "problems": list(plan.problems), "unnamed": list(plan.unnamed)})
    else:
        show_plan(session, plan)
    if plan.problems:
        raise click.exceptions.Exit(1)
    if check and plan.steps:
        raise click.exceptions.Exit(DIFFERS)
