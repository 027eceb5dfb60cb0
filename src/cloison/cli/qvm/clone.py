"""``qvm-clone``."""

from __future__ import annotations

import click

from cloison.cli.choices import QUBE
from cloison.cli.command import command
from cloison.cli.create import one_pool, split_setting
from cloison.cli.session import Session
from cloison.client import calls


@command("qvm-clone", examples=(("qvm-clone work work-2", "with a copy of its data"),))
@click.argument("source", type=QUBE, metavar="SRC_NAME")
@click.argument("name", type=QUBE, metavar="NEW_NAME")
@click.option("-C", "--class", "klass", metavar="CLS", help="Another class than the source's.")
@click.option("-p", "--pool", "pools", multiple=True, metavar="VOLUME=POOL", help="Where the copy lives.")
@click.option("-P", "pool", metavar="POOL", help="Where all volumes of the copy live.")
@click.option("--ignore-errors", is_flag=True, help="Accepted; a clone is whole or not there.")
def clone(
    session: Session,
    source: str,
    name: str,
    klass: str | None,
    pools: tuple[str, ...],
    pool: str | None,
    ignore_errors: bool,
) -> None:
    """Clone a qube."""
    pool = pool or one_pool(dict(split_setting("--pool", item) for item in pools)) or None
    session.wait(calls.clone(source, name, klass=klass, pool=pool), f"cloning {source}")


COMMANDS = {"qvm-clone": clone}
