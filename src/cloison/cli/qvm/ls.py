"""``qvm-ls``."""

from __future__ import annotations

import click

from cloison.cli import listing
from cloison.cli.command import command
from cloison.cli.listing import Row
from cloison.cli.session import Session
from cloison.cli.table import Cell

FORMATS = {
    "simple": ("name", "state", "class", "label", "template", "netvm"),
    "network": ("name", "state", "netvm", "ip", "ipback", "gateway"),
    "kernel": ("name", "state", "class", "template", "kernel", "kernelopts"),
    "full": ("name", "state", "class", "label", "qid", "xid", "uuid"),
    "disk": ("name", "state", "disk", "priv-curr", "priv-max", "priv-used", "root-curr", "root-max", "root-used"),
    "prefs": ("name", "label", "template", "netvm", "vcpus", "memory", "maxmem", "virt_mode"),
}
SPELLINGS = {"ipback": "gateway", "initialmem": "memory", "status": "state"}
MIB = 1 << 20


def _show_formats(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        click.echo("\n".join(f"{name:8}  {' '.join(f.upper() for f in fields)}" for name, fields in FORMATS.items()))
        ctx.exit()


def _show_columns(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        click.echo("\n".join(sorted({f.upper() for fields in FORMATS.values() for f in fields})))
        click.echo("... and every property of a qube")
        ctx.exit()


@command("qvm-ls", examples=(
    ("qvm-ls", "all qubes"),
    ("qvm-ls --running --raw-list", "names of the running ones"),
    ("qvm-ls -n", "netvms and addresses"),
    ("qvm-ls --raw-data --fields NAME,STATE,NETVM", "for scripts"),
))  # fmt: skip
@click.argument("names", nargs=-1, metavar="[VMNAME...]")
@click.option("--all", "everything", is_flag=True, help="All qubes (what it does without names anyway).")
@click.option("--exclude", multiple=True, metavar="EXCLUDE", help="Leave this one out.")
@click.option("-o", "--format", "layout", type=click.Choice(list(FORMATS)), default="simple", metavar="FORMAT")
@click.option("-n", "--network", "layout", flag_value="network", help="As --format network: netvm, addresses.")
@click.option("-O", "--fields", metavar="FIELD,...", help="Columns.")
@click.option("-d", "--raw-data", is_flag=True, help="No heading, fields separated by |.")
@click.option("--raw-list", is_flag=True, help="Names only.")
@click.option("-t", "--tree", is_flag=True, help="The tree of networks.")
@click.option("--running", is_flag=True, help="Only running qubes.")
@click.option("--paused", is_flag=True, help="Only paused qubes.")
@click.option("--halted", is_flag=True, help="Only halted qubes.")
@click.option("--tags", multiple=True, metavar="TAG", help="Only qubes with these tags.")
@click.option("--internal", type=click.Choice(["y", "n", "both"]), default="both", hidden=True)
@click.option("--spinner/--no-spinner", default=False, hidden=True)
@click.option("--help-formats", is_flag=True, is_eager=True, expose_value=False, callback=_show_formats)
@click.option("--help-columns", is_flag=True, is_eager=True, expose_value=False, callback=_show_columns)
def ls(session: Session, names: tuple[str, ...], everything: bool, exclude: tuple[str, ...], layout: str,
       fields: str | None, raw_data: bool, raw_list: bool, tree: bool, running: bool, paused: bool, halted: bool,
       tags: tuple[str, ...], internal: str, spinner: bool) -> None:  # fmt: skip
    """List qubes and their properties."""
    columns = [f.strip().lower() for f in fields.split(",") if f.strip()] if fields else list(FORMATS[layout])
    asked = [SPELLINGS.get(column, column) for column in columns]
    states = {s for s, wanted in (("Running", running), ("Paused", paused), ("Halted", halted)) if wanted}

    def keep(row: Row) -> bool:
        return (not states or row["state"] in states) and set(tags) <= set(row["tags"]) and row["name"] not in exclude

    rows = listing.choose(listing.fetch(session, asked), () if everything else names, keep)
    if raw_list:
        table = [[row["name"]] for row in rows]
    else:
        ordered = listing.draw_tree(rows, "netvm") if tree else [(row["name"], row) for row in rows]
        table = [[name if f == "name" else _text(row, f) for f in asked] for name, row in ordered]
    if raw_data or raw_list:
        for line in table:
            click.echo("|".join(line))
    else:
        session.show_table([c.upper() for c in columns], [[Cell(text) for text in line] for line in table])


def _text(row: Row, field: str) -> str:
    """One column; sizes as whole MiB, as scripts expect them."""
    volumes = row.get("volumes") or {}
    if field == "disk":
        return str(sum(v.get("usage") or 0 for v in volumes.values()) // MIB)
    if field in listing.SIZES:
        volume, key = listing.SIZES[field]
        size = volumes.get(volume, {}).get(key)
        return "-" if size is None else str(size // MIB)
    if field.endswith("-used"):
        volume = volumes.get({"priv": "private", "root": "root"}.get(field.removesuffix("-used"), ""), {})
        return f"{(volume.get('usage') or 0) * 100 // volume['size']}%" if volume.get("size") else "-"
    return listing.field_text(row, field)


COMMANDS = {"qvm-ls": ls}
