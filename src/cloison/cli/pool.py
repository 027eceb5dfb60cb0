"""``cloison pool``."""

from __future__ import annotations

import click

from cloison.cli.choices import complete_pool
from cloison.cli.command import group, json_option, subcommand
from cloison.cli.create import split_setting
from cloison.cli.session import Session
from cloison.cli.table import Cell, human_bytes
from cloison.client import calls, devicecalls
from cloison.errors import BadRequest

COMMAND = group("pool", examples=(
    ("cloison pool list", "all pools"),
    ("cloison pool add -o dir_path=/srv/qubes big qcow2", "one more"),
))(lambda: None)  # fmt: skip
COMMAND.help = "Show and change storage pools: where the volumes of qubes live."
CHANGEABLE = ("revisions_to_keep", "ephemeral_volatile")
POOL = click.argument("pool", shell_complete=complete_pool)
OPTIONS = click.option("-o", "--option", "options", multiple=True, metavar="NAME=VALUE", help="A setting of it.")


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
@POOL
@json_option
def show_pool(session: Session, pool: str, as_json: bool) -> None:
    """Show the settings of one pool."""
    info = session.do(calls.pool_info(pool))
    if as_json:
        session.show_json(info)
    else:
        session.show_table(("SETTING", "VALUE"), [(Cell(key), Cell(value)) for key, value in info.items()])


@subcommand(COMMAND, "add", examples=(("cloison pool add -o dir_path=/srv/qubes big qcow2", "a directory of files"),))
@POOL
@click.argument("driver")
@OPTIONS
def add_pool(session: Session, pool: str, driver: str, options: tuple[str, ...]) -> None:
    """Add a pool of a driver."""
    session.do(devicecalls.pool_add(pool, driver, dict(split_setting("--option", item) for item in options)))


@subcommand(COMMAND, "remove", examples=(("cloison pool remove big", "if nothing is in it"),))
@POOL
def remove_pool(session: Session, pool: str) -> None:
    """Remove a pool that nothing uses."""
    session.do(devicecalls.pool_remove(pool))


@subcommand(COMMAND, "set", examples=(("cloison pool set -o revisions_to_keep=3 main", "keep three"),))
@POOL
@OPTIONS
def set_options(session: Session, pool: str, options: tuple[str, ...]) -> None:
    """Change settings of a pool."""
    change_settings(session, pool, dict(split_setting("--option", item) for item in options))


def change_settings(session: Session, pool: str, options: dict[str, str]) -> None:
    for key in options:
        if key not in CHANGEABLE:
            raise BadRequest(f"{key} of a pool cannot be changed", hint=f"can be: {', '.join(CHANGEABLE)}")
    for key, value in options.items():
        session.do(devicecalls.pool_set(pool, key, value))


@subcommand(COMMAND, "drivers", examples=(("cloison pool drivers", "and what settings they know"),))
@json_option
def list_drivers(session: Session, as_json: bool) -> None:
    """Show the kinds of pools and their settings."""
    found = session.do(devicecalls.pool_drivers())
    if as_json:
        session.show_json(found)
    else:
        rows = [(Cell(name), Cell(", ".join(options))) for name, options in sorted(found.items())]
        session.show_table(("DRIVER", "OPTIONS"), rows)
