"""``qvm-pool``."""

from __future__ import annotations

import click

from cloison.cli import pool as twin
from cloison.cli.choices import complete_pool
from cloison.cli.command import group, subcommand
from cloison.cli.create import split_setting
from cloison.cli.session import Session
from cloison.cli.table import Cell
from cloison.client import calls, devicecalls

POOL = click.argument("pool", metavar="POOL_NAME", shell_complete=complete_pool)
OPTIONS = click.option("-o", "--option", "options", multiple=True, metavar="OPTION=VALUE", help="A setting of it.")

qvm_pool = group("qvm-pool", examples=(
    ("qvm-pool list", "all pools"),
    ("qvm-pool add -o dir_path=/srv/qubes big qcow2", "one more"),
))(lambda: None)  # fmt: skip
qvm_pool.help = "Show and change storage pools."


def _settings(options: tuple[str, ...]) -> dict[str, str]:
    return dict(split_setting("--option", item) for words in options for item in words.split(","))


@subcommand(qvm_pool, "list", examples=(("qvm-pool list", "names and drivers"),))
def list_pools(session: Session) -> None:
    """List all pools."""
    found = {name: session.do(calls.pool_info(name)) for name in session.do(calls.pool_list())}
    rows = [(Cell(name), Cell(info.get("driver", "-"))) for name, info in sorted(found.items())]
    session.show_table(("NAME", "DRIVER"), rows)


@subcommand(qvm_pool, "info", examples=(("qvm-pool info main", "its settings"),))
@POOL
def show_pool(session: Session, pool: str) -> None:
    """Show all about a pool."""
    info = session.do(calls.pool_info(pool))
    width = max(map(len, info), default=0)
    for key, value in sorted(info.items()):
        click.echo(f"{key:{width}}  {value}".rstrip())


@subcommand(qvm_pool, "add", examples=(("qvm-pool add -o dir_path=/srv/qubes big qcow2", "a directory of files"),))
@POOL
@click.argument("driver", metavar="DRIVER")
@OPTIONS
def add_pool(session: Session, pool: str, driver: str, options: tuple[str, ...]) -> None:
    """Add a pool."""
    session.do(devicecalls.pool_add(pool, driver, _settings(options)))


@subcommand(qvm_pool, "remove", examples=(("qvm-pool remove big", "if nothing is in it"),))
@click.argument("pools", nargs=-1, required=True, metavar="POOL_NAME...", shell_complete=complete_pool)
def remove_pools(session: Session, pools: tuple[str, ...]) -> None:
    """Remove pools that nothing uses."""
    session.each(pools, lambda pool: session.do(devicecalls.pool_remove(pool)))


@subcommand(qvm_pool, "set", examples=(("qvm-pool set -o revisions_to_keep=3 main", "keep three"),))
@POOL
@OPTIONS
def change_pool(session: Session, pool: str, options: tuple[str, ...]) -> None:
    """Change settings of a pool."""
    twin.change_settings(session, pool, _settings(options))


@subcommand(qvm_pool, "drivers", examples=(("qvm-pool drivers", "and what settings they know"),))
def list_drivers(session: Session) -> None:
    """List the kinds of pools."""
    found = session.do(devicecalls.pool_drivers())
    rows = [(Cell(name), Cell(", ".join(options))) for name, options in sorted(found.items())]
    session.show_table(("DRIVER", "OPTIONS"), rows)


SPELLINGS = {"list": "ls l", "info": "i", "add": "a", "remove": "rm r", "set": "s", "drivers": "d"}
for _name, _spellings in SPELLINGS.items():
    for _spelling in _spellings.split():
        qvm_pool.add_command(qvm_pool.commands[_name], _spelling)

COMMANDS = {"qvm-pool": qvm_pool}
