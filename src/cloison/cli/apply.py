"""``cloison apply``."""

from __future__ import annotations

from pathlib import Path

import click

from cloison.cli.command import command, yes_option
from cloison.cli.declarative import FILE, carry_out_step, plan_from, prune_option, show_plan
from cloison.cli.session import Session
from cloison.errors import CloisonError


@command("apply", examples=(
    ("cloison apply system.toml", "shows the plan and asks"),
    ("cloison apply --yes --prune system.toml", "and removes the qubes that the file does not name"),
))  # fmt: skip
@FILE
@prune_option
@yes_option
def COMMAND(session: Session, file: Path, prune: bool, yes: bool) -> None:
    """Make the system what a file says.

    Each step is all or nothing. The first one that fails ends it; mend the reason and apply again: only what is still
    missing is done.
    """
    plan = plan_from(session, file, prune)
    if plan.problems:
        for problem in plan.problems:
            session.complain(CloisonError(problem))
        raise click.exceptions.Exit(1)
    if not plan.steps:
        session.say("nothing is to be done")
        return
    if not yes:
        show_plan(session, plan)
    session.confirm(f"Do these {len(plan.steps)} steps?", assume_yes=yes)
    for number, step in enumerate(plan.steps, 1):
        try:
            carry_out_step(session, step, f"[{number}/{len(plan.steps)}]")
        except CloisonError as error:
            left = len(plan.steps) - number
            raise CloisonError(
                f"step {number} of {len(plan.steps)} failed ({step.about}: {step.text}): {error.message}",
                hint=error.hint or f"{number - 1} steps are done, {left} were not tried; apply again when it is mended",
            ) from None
    session.say(f"{len(plan.steps)} steps done")
