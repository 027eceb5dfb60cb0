"""``cloison pool``."""

from __future__ import annotations

import click

from cloison.cli.command import group, json_option, subcommand
from cloison.cli.session import Session
from cloison.cli.table import Cell, human_bytes
from cloison.client import calls

COMMAND = group("pool", examples=(("cloison pool list", "all pools"),))(lambda: None)
COMMAND.help = "Show storage pools: where the volumes of qubes live."


def _bytes(info: dict[str, str], key: str) -> str:
    return human_bytes(int(info[key])) if info.get(key, "").isdecimal() else "-"


@subcommand(COMMAND, "list", examples=(("cloison pool list", "names, drivers, how full they are"),))
@json_option
def list_pools(session: Session, as_json: bool) -> None:
    """Show all pools."""
    found = {name: session.do(calls.pool_info(name)) for name in session.do(calls.pool_list())}
    if as_json:
        session.show_json(found)
        return
    rows = [
        (
            Cell(name),
            Cell(info.get("driver", "-")),
            Cell(_bytes(info, "usage"), "", True),
            Cell(_bytes(info, "size"), "", True),
        )
        for name, info in found.items()
    ]
    session.show_table(("POOL", "DRIVER", "USED", "SIZE"), rows)


@subcommand(COMMAND, "info", examples=(("cloison pool info main", "its settings"),))
@click.argument("pool")
@json_option
def show_pool(session: Session, pool: str, as_json: bool) -> None:
    """Show the settings of one pool."""
    info = session.do(calls.pool_info(pool))
    if as_json:
        session.show_json(info)
    else:
        session.show_table(("SETTING", "VALUE"), [(Cell(key), Cell(value)) for key, value in info.items()])
