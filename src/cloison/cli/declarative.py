"""What ``cloison export``, ``plan`` and ``apply`` share: the present system, plans shown and steps carried out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import click

from cloison.cli.policy import policy_store
from cloison.cli.session import Session
from cloison.client.declare.document import Document
from cloison.client.declare.plan import Effect, Plan, PolicyChange, Step, plan_changes
from cloison.client.declare.present import read_present
from cloison.client.declare.text import read_document

FILE = click.argument("file", type=click.Path(path_type=Path, allow_dash=True), metavar="SYSTEM.toml")
prune_option = click.option("--prune", is_flag=True, help="Remove the qubes that the file does not name.")
SIGN_STYLES = {Effect.ADD: "32", Effect.CHANGE: "33", Effect.DESTROY: "31;1"}


def plan_from(session: Session, file: Path, prune: bool) -> Plan:
    wanted = read_document(Path("/dev/stdin") if str(file) == "-" else file)
    return plan_changes(present_document(session), wanted, prune=prune)


def present_document(session: Session) -> Document:
    return read_present(session.do, _policy_files(session))


def _policy_files(session: Session) -> Mapping[str, str]:
    store = policy_store(session)
    names = [*store.list_files(), *store.list_files(include=True)]
    return {name: store.get(name)[1].decode("utf-8", "surrogateescape") for name in names}


def show_plan(session: Session, plan: Plan) -> None:
    palette = session.palette
    about = ""
    for step in plan.steps:
        if step.about != about:
            about = step.about
            click.echo(palette.bold(about), color=True)
        click.echo(palette.style(f"  {step.effect.value} {step.text}", SIGN_STYLES[step.effect]), color=True)
    for problem in plan.problems:
        click.echo(palette.error(f"! {problem}"), color=True)
    for name in plan.unnamed:
        click.echo(f"  ({name} is not in the file and stays as it is; --prune would remove it)")
    if not plan.steps and not plan.problems:
        session.say("the system is what the file says")


def carry_out_step(session: Session, step: Step, count: str) -> None:
    if isinstance(step.act, PolicyChange):
        _change_policy(session, step.act)
    elif step.is_long:
        session.carry_out(step.act, f"{count} {step.about}: {step.text}")
    else:
        session.do(step.act)
    if not session.quiet:
        click.echo(f"{count} {step.effect.value} {step.about}: {step.text}", err=True)


def _change_policy(session: Session, change: PolicyChange) -> None:
    store = policy_store(session)
    if change.content is None:
        store.remove(change.name, store.get(change.name)[0])
    else:
        there = change.name in store.list_files(include=False) or change.name.startswith("include/")
        store.replace(change.name, change.content.encode("utf-8", "surrogateescape"), "any" if there else "new")
