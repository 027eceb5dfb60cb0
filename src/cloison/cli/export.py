"""``cloison export``."""

from __future__ import annotations

import click

from cloison.cli.command import command
from cloison.cli.declarative import present_document
from cloison.cli.session import Session
from cloison.client.declare.document import Document, without_announced
from cloison.client.declare.text import write_document
from cloison.errors import BadRequest


@command("export", examples=(
    ("cloison export > system.toml", "the whole system"),
    ("cloison export --qube work --qube vault", "some qubes only"),
))  # fmt: skip
@click.option("--qube", "qubes", multiple=True, metavar="QUBE", help="Only these qubes, and nothing of the system.")
def COMMAND(session: Session, qubes: tuple[str, ...]) -> None:
    """Write the system as a TOML file: qubes, properties, features, tags, firewalls, labels, policy.

    What is in the qubes' volumes is not in it: that is for backups. `cloison plan` and `cloison apply` read it.
    """
    found = without_announced(present_document(session))
    if qubes:
        if missing := [name for name in qubes if name not in found.qubes]:
            raise BadRequest(f"there is no qube {missing[0]!a} that could be exported")
        found = Document(qubes={name: found.qubes[name] for name in qubes})
    click.echo(write_document(found), nl=False)
