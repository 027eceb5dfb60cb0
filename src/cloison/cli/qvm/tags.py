"""``qvm-tags``."""

from __future__ import annotations

import click

from cloison.cli.choices import QUBE
from cloison.cli.command import command
from cloison.cli.session import Session
from cloison.client import calls

VERBS = {"list": "list", "ls": "list", "l": "list", "add": "add", "a": "add", "set": "add", "s": "add",
         "del": "del", "d": "del", "unset": "del", "u": "del"}  # fmt: skip


@command("qvm-tags", examples=(
    ("qvm-tags work", "all tags"),
    ("qvm-tags work add office", "add one"),
    ("qvm-tags work list office", "exit code 0: it has it"),
))  # fmt: skip
@click.argument("name", type=QUBE, metavar="VMNAME")
@click.argument("verb", default="list", type=click.Choice(list(VERBS)), metavar="list|add|del")
@click.argument("tags", nargs=-1, metavar="[TAG...]")
def qvm_tags(session: Session, name: str, verb: str, tags: tuple[str, ...]) -> None:
    """Show or change the tags of a qube."""
    act = VERBS[verb]
    if act != "list":
        if not tags:
            raise click.UsageError("which tag?")
        for tag in tags:
            session.do(calls.tag_set(name, tag) if act == "add" else calls.tag_remove(name, tag))
    elif tags:
        if not all(session.do(calls.tag_get(name, tag)) for tag in tags):
            raise click.exceptions.Exit(1)
        click.echo("\n".join(tags))
    elif found := session.do(calls.tag_list(name)):
        click.echo("\n".join(found))


COMMANDS = {"qvm-tags": qvm_tags}
