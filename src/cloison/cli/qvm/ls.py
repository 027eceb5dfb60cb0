"""``qvm-ls``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import click

from cloison.cli import listing
from cloison.cli.choices import LABEL, QUBE
from cloison.cli.command import command
from cloison.cli.create import split_setting
from cloison.cli.listing import Row
from cloison.cli.session import Session
from cloison.cli.table import Cell
from cloison.client import calls
from cloison.client.failures import QubesFeatureNotFoundError

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
YES_NO = click.Choice(["y", "n", "both"])


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
@click.option("-d", "--disk", "layout", flag_value="disk", help="As --format disk.")
@click.option("-k", "--kernel", "layout", flag_value="kernel", help="As --format kernel.")
@click.option("--raw-data", is_flag=True, help="No heading, fields separated by |.")
@click.option("--raw-list", is_flag=True, help="Names only.")
@click.option("-t", "--tree", is_flag=True, help="The tree of networks.")
@click.option("--running", is_flag=True, help="Only running qubes.")
@click.option("--paused", is_flag=True, help="Only paused qubes.")
@click.option("--halted", is_flag=True, help="Only halted qubes.")
@click.option("--tags", multiple=True, metavar="TAG", help="Only qubes with this tag (several: one of them).")
@click.option("--class", "classes", multiple=True, metavar="CLASS", help="Only qubes of this class.")
@click.option("--label", "labels", multiple=True, type=LABEL, metavar="LABEL", help="Only qubes of this label.")
@click.option("--template-source", "templates", multiple=True, type=QUBE, metavar="TEMPLATE", help="Only qubes on it.")
@click.option("--netvm-is", "netvms", multiple=True, type=QUBE, metavar="NETVM", help="Only qubes behind it.")
@click.option("--features", multiple=True, metavar="FEATURE=VALUE", help="Only qubes with this feature (empty: unset).")
@click.option("--prefs", multiple=True, metavar="PROPERTY=VALUE", help="Only qubes with this property.")
@click.option(
    "--internal", type=YES_NO, default="both", help="Only qubes that are internal, or only those that are not."
)
@click.option("--servicevm", type=YES_NO, default="both", help="Only service qubes, or only those that are not.")
@click.option("--sort", metavar="COLUMN", help="By this column; NAME leaves the order of names.")
@click.option("--reverse", is_flag=True, help="Backwards.")
@click.option("--spinner/--no-spinner", default=False, hidden=True)
@click.option("--help-formats", is_flag=True, is_eager=True, expose_value=False, callback=_show_formats)
@click.option("--help-columns", is_flag=True, is_eager=True, expose_value=False, callback=_show_columns)
def ls(session: Session, names: tuple[str, ...], everything: bool, exclude: tuple[str, ...], layout: str,
       fields: str | None, raw_data: bool, raw_list: bool, tree: bool, sort: str | None, reverse: bool,
       spinner: bool, **wishes: Any) -> None:  # fmt: skip
    """List qubes and their properties."""
    columns = [f.strip().lower() for f in fields.split(",") if f.strip()] if fields else list(FORMATS[layout])
    asked = [SPELLINGS.get(column, column) for column in columns]
    order = SPELLINGS.get((sort or "name").lower(), (sort or "name").lower())
    wanted = dict(split_setting("--prefs", item) for item in wishes["prefs"])
    features = dict(split_setting("--features", item) for item in wishes["features"])
    keep = partial(_is_wanted, session, wishes, wanted, features, exclude)
    rows = listing.choose(listing.fetch(session, [*asked, order, *wanted]), () if everything else names, keep)
    if sort:
        rows.sort(key=lambda row: _order(_text(row, order)))
    if reverse:
        rows.reverse()
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


def _is_wanted(session: Session, wishes: Mapping[str, Any], properties: Mapping[str, str],
               features: Mapping[str, str], exclude: Sequence[str], row: Row) -> bool:  # fmt: skip
    """Whether the qube passes every filter; of several values of one filter, one is enough."""
    states = [state for state in ("Running", "Paused", "Halted") if wishes[state.lower()]]
    for column, allowed in (("state", states), ("class", wishes["classes"]), ("label", wishes["labels"]),
                            ("template", wishes["templates"]), ("netvm", wishes["netvms"])):  # fmt: skip
        if allowed and row.get(column) not in allowed:
            return False
    if row["name"] in exclude or (wishes["tags"] and not set(wishes["tags"]) & set(row["tags"])):
        return False
    if any(_text(row, key) != (value or "-") for key, value in properties.items()):
        return False
    if any(_feature(session, row, key) != value for key, value in features.items()):
        return False
    flags = (("internal", wishes["internal"]), ("servicevm", wishes["servicevm"]))
    return all(bool(_feature(session, row, key)) is (wish == "y") for key, wish in flags if wish != "both")


def _feature(session: Session, row: Row, name: str) -> str:
    try:
        return session.do(calls.feature_get(row["name"], name))
    except QubesFeatureNotFoundError:
        return ""


def _order(text: str) -> tuple[bool, int, str]:
    """Numbers by value, before words."""
    return (False, int(text), "") if text.isdecimal() else (True, 0, text.lower())


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
