"""``cloison tags``."""

from __future__ import annotations

import click

from cloison.cli.choices import QUBE
from cloison.cli.command import group, json_option, subcommand
from cloison.cli.session import Session
from cloison.client import calls

COMMAND = group("tags", examples=(("cloison tags list work", "all tags of a qube"),))(lambda: None)
COMMAND.help = """Show or change tags: words that policy rules speak of.

Examples of rules: `@tag:office @tag:office allow`.
"""
TAGS = click.argument("tags", nargs=-1, required=True, metavar="TAG...")
QUBE_ARGUMENT = click.argument("qube", type=QUBE)


@subcommand(COMMAND, "list", examples=(("cloison tags list work", "one per line"),))
@QUBE_ARGUMENT
@json_option
def list_tags(session: Session, qube: str, as_json: bool) -> None:
    """Show all tags of a qube."""
    found = session.do(calls.tag_list(qube))
    if as_json:
        session.show_json(found)
    elif found:
        click.echo("\n".join(found))


@subcommand(COMMAND, "add", examples=(("cloison tags add work office", "`work` is now part of @tag:office"),))
@QUBE_ARGUMENT
@TAGS
def add_tags(session: Session, qube: str, tags: tuple[str, ...]) -> None:
    """Add tags."""
    for tag in tags:
        session.do(calls.tag_set(qube, tag))


@subcommand(COMMAND, "del", examples=(("cloison tags del work office", "no longer"),))
@QUBE_ARGUMENT
@TAGS
def delete_tags(session: Session, qube: str, tags: tuple[str, ...]) -> None:
    """Take tags away."""
    for tag in tags:
        session.do(calls.tag_remove(qube, tag))


@subcommand(COMMAND, "has", examples=(("cloison tags has work office", "exit code 0: yes, 1: no"),))
@QUBE_ARGUMENT
@click.argument("tag")
def has_tag(session: Session, qube: str, tag: str) -> None:
    """Tell by the exit code whether the qube has the tag."""
    if not session.do(calls.tag_get(qube, tag)):
        session.say("no")
        raise click.exceptions.Exit(1)
    session.say("yes")
