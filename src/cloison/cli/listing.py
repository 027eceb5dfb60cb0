"""``cloison list``: the qubes as a table, a tree, JSON or raw data.

In: the daemon's listing. Out: text. May import: client, cli.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import click

from cloison.cli.choices import QUBE
from cloison.cli.colours import LABEL_STYLES, STATE_STYLES
from cloison.cli.command import command, json_option
from cloison.cli.session import Session
from cloison.cli.table import Cell, human_bytes
from cloison.client import calls
from cloison.client.failures import QubesVMNotFoundError

Row = dict[str, Any]

FORMATS = {
    "simple": ("name", "state", "class", "label", "template", "netvm", "fork"),
    "network": ("name", "state", "netvm", "ip", "gateway"),
    "disk": ("name", "state", "disk", "priv-curr", "priv-max", "root-curr", "root-max"),
    "memory": ("name", "state", "memory", "maxmem", "mem", "vcpus"),
    "kernel": ("name", "state", "class", "template", "kernel", "kernelopts"),
    "full": ("name", "state", "class", "label", "qid", "uuid", "template", "netvm", "ip", "memory", "vcpus", "fork"),
}
SIZES = {f"{short}-{which}": (volume, key) for short, volume in (("priv", "private"), ("root", "root"))
         for which, key in (("curr", "usage"), ("max", "size"))}  # fmt: skip
MAX_TEMPLATE_CHAIN = 3
"""disposable -> app qube -> template."""
PRELOADED = "Preloaded"
"""Shown as the state of a disposable that waits for its first use."""
NEEDS_VOLUMES = {"disk", *SIZES}
SHAPE = ("start_mode", "memory", "vcpus")
"""What decides, beside the template, whether a qube can be forked from a fork point."""
GIVEN = {
    "name": "name",
    "state": "state",
    "class": "class",
    "klass": "class",
    "uuid": "uuid",
    "label": "label",
    "template": "template",
    "netvm": "netvm",
}


def _size(row: Row, volume: str, key: str) -> str:
    size = (row.get("volumes") or {}).get(volume, {}).get(key)
    return human_bytes(size) if size is not None else "-"


def _disk(row: Row) -> str:
    return human_bytes(sum(volume.get("usage") or 0 for volume in (row.get("volumes") or {}).values()))


def property_value(row: Row, name: str) -> Any:
    """The value of an asked property; None if it has none."""
    return ((row.get("properties") or {}).get(name) or {}).get("value")


COMPUTED: dict[str, Callable[[Row], str]] = {
    "fork": lambda row: row.get("forkpoint") or "-",
    "outdated": lambda row: "outdated" if row.get("outdated") else "-",
    "tags": lambda row: " ".join(row.get("tags") or ()) or "-",
    "mem": lambda row: human_bytes(row["mem_kib"] * 1024) if row.get("mem_kib") else "-",
    "disk": _disk,
    **{field: partial(_size, volume=volume, key=key) for field, (volume, key) in SIZES.items()},
}
"""Columns that are no property."""


def field_text(row: Row, field: str) -> str:
    """The text of one column."""
    if field in COMPUTED:
        return COMPUTED[field](row)
    value = row.get(GIVEN[field]) if field in GIVEN else property_value(row, field)
    return str(value) if value not in (None, "") else "-"


def _cell(row: Row, field: str) -> Cell:
    text = field_text(row, field)
    if field == "state" and row.get("preloaded"):
        return Cell(PRELOADED, STATE_STYLES.get("Halted", ""))
    if field == "state":
        note = " (outdated)" if row.get("outdated") else ""
        note += " (no network)" if row.get("network_trouble") else ""
        if row.get("trouble"):
            return Cell(f"{text} (stands still: {row['trouble']})", STATE_STYLES["Crashed"])
        return Cell(text + note, STATE_STYLES.get(text, ""))
    style = LABEL_STYLES.get(row.get("label") or "", "") if field in {"name", "label"} else ""
    right = field in {"memory", "maxmem", "vcpus", "qid", "mem", *NEEDS_VOLUMES}
    return Cell(text, style, right)


def draw_tree(rows: Sequence[Row], parent: str) -> list[tuple[str, Row]]:
    """(indented name, row) in the order of a tree: every row stands under the row that its ``parent`` field names."""
    known = {row["name"] for row in rows}
    children: dict[str | None, list[Row]] = {}
    for row in rows:
        above = row.get(parent)
        children.setdefault(above if above in known and above != row["name"] else None, []).append(row)
    drawn: list[tuple[str, Row]] = []
    seen: set[str] = set()

    def walk(name: str | None, indent: str) -> None:
        below = children.get(name, [])
        for position, row in enumerate(below):
            if row["name"] in seen:
                continue
            seen.add(row["name"])
            last = position == len(below) - 1
            branch = "" if name is None else ("└─" if last else "├─")
            drawn.append((indent + branch + row["name"], row))
            walk(row["name"], indent + ("" if name is None else "  " if last else "│ "))

    walk(None, "")
    drawn.extend((row["name"], row) for row in rows if row["name"] not in seen)
    return drawn


def fetch(session: Session, fields: Sequence[str]) -> list[Row]:
    """The rows that the fields need: one call, and more only for fork points and volumes."""
    properties = [f for f in fields if f not in GIVEN and f not in COMPUTED]
    if "fork" in fields:
        properties += [name for name in SHAPE if name not in properties]
    rows = session.do(calls.list_qubes(properties))
    if "fork" in fields:
        _add_fork_points(session, rows)
    if "mem" in fields:
        for row in rows:
            if row["state"] in {"Running", "Paused"}:
                row["mem_kib"] = int(session.do(calls.current_state(row["name"])).get("mem", "0"))
    if NEEDS_VOLUMES & set(fields):
        for row in rows:
            row["volumes"] = _volumes(session, row["name"])
    return rows


def _volumes(session: Session, qube: str) -> dict[str, dict[str, int]]:
    """Sizes and usage in bytes of all volumes of a qube."""
    found = {}
    for volume in session.do(calls.volume_list(qube)):
        info = session.do(calls.volume_info(qube, volume))
        found[volume] = {key: int(info[key]) for key in ("size", "usage") if info.get(key, "").isdecimal()}
    return found


def _add_fork_points(session: Session, rows: list[Row]) -> None:
    """The state of the fork points of the template that each qube's root comes from, and that have its shape."""
    points: dict[str, list[Row]] = {}
    for point in session.do(calls.forkpoint_list()):
        points.setdefault(point["template"], []).append(point)
    above = {row["name"]: row.get("template") for row in rows}
    for row in rows:
        owner = row["name"]
        for _ in range(MAX_TEMPLATE_CHAIN):
            owner = above.get(owner) or owner
        found = {point["state"] for point in points.get(owner, ()) if owner == row["name"] or _fits(row, point)}
        row["forkpoint"] = next((state for state in ("ready", "making", *sorted(found)) if state in found), None)


def _fits(row: Row, point: Row) -> bool:
    """Whether the qube could be forked from it; what is still being made does not say its shape."""
    _, memory, vcpus = (property_value(row, name) for name in SHAPE)
    if property_value(row, "start_mode") == "boot":
        return False
    return not point.get("memory_mib") or (memory, vcpus) == (point["memory_mib"], point.get("vcpus"))


def choose(rows: list[Row], names: Sequence[str], keep: Callable[[Row], bool]) -> list[Row]:
    """The wanted rows; Refused if one that was named is not there."""
    known = {row["name"] for row in rows}
    for name in names:
        if name not in known:
            raise QubesVMNotFoundError(f"no qube is named {name!r}", hint="`cloison list` shows them all")
    return [row for row in rows if (not names or row["name"] in names) and keep(row)]


@command("list", examples=(
    ("cloison list", "all qubes"),
    ("cloison list --running", "only those that run"),
    ("cloison list --tree", "under the qube that gives them network"),
    ("cloison list -o name,memory,vcpus", "chosen columns; any property is one"),
    ("cloison list --raw-data -o name,state", "fields separated by |, for scripts"),
    ("cloison list --json work", "all about one qube"),
    ("cloison list --all", "also the disposables that are kept ready"),
))  # fmt: skip
@click.argument("qubes", nargs=-1, type=QUBE)
@click.option("--format", "layout", type=click.Choice(list(FORMATS)), default="simple", help="Which set of columns.")
@click.option("-o", "--fields", metavar="FIELDS", help="Columns, separated by commas: any property, or fork, outdated, "
              "mem, disk, priv-curr, priv-max, root-curr, root-max, tags.")  # fmt: skip
@click.option("--tree", "shape", flag_value="netvm", help="Draw the tree of networks.")
@click.option("--by-template", "shape", flag_value="template", help="Draw the tree of templates.")
@click.option("--all", "everything", is_flag=True, help="Also disposables that are kept ready for their first use.")
@click.option("--running", is_flag=True, help="Only running qubes.")
@click.option("--paused", is_flag=True, help="Only paused qubes.")
@click.option("--halted", is_flag=True, help="Only halted qubes.")
@click.option("--class", "classes", multiple=True, metavar="CLASS", help="Only qubes of this class.")
@click.option("--tag", "tags", multiple=True, metavar="TAG", help="Only qubes with this tag.")
@click.option("--exclude", multiple=True, metavar="QUBE", type=QUBE, help="Leave this one out.")
@click.option("--raw-data", is_flag=True, help="No heading, no padding, fields separated by |.")
@click.option("--raw-list", is_flag=True, help="Names only, one per line.")
@json_option
def COMMAND(session: Session, qubes: tuple[str, ...], layout: str, fields: str | None, shape: str | None,
            everything: bool, running: bool, paused: bool, halted: bool, classes: tuple[str, ...],
            tags: tuple[str, ...], exclude: tuple[str, ...], raw_data: bool, raw_list: bool,
            as_json: bool) -> None:  # fmt: skip
    """List qubes.

    FORK says whether the next start is instant: `ready` (forked in a fraction of a second), `making`, `stale`,
    `failed`, or - (none of this memory and number of processors yet, or start_mode is boot); of a template: whether
    its qubes' starts are. A running qube is `outdated` when its template has changed since it started, and has `no
    network` when its cable is closed although it has a netvm (`--json` says why).
    """
    wanted = {"Running": running, "Paused": paused, "Halted": halted}
    states = {state for state, is_wanted in wanted.items() if is_wanted}
    columns = [f.strip().lower() for f in fields.split(",") if f.strip()] if fields else list(FORMATS[layout])

    def keep(row: Row) -> bool:
        if row.get("preloaded") and not everything and row["name"] not in qubes:
            return False
        return ((not states or row["state"] in states) and (not classes or row["class"] in classes)
                and set(tags) <= set(row.get("tags") or ()) and row["name"] not in exclude)  # fmt: skip

    rows = choose(fetch(session, columns), qubes, keep)
    if as_json:
        session.show_json([_as_json(row, columns if fields else ()) for row in rows])
    elif raw_list:
        _show_lines([row["name"] for row in rows])
    elif raw_data:
        _show_lines(["|".join(field_text(row, field) for field in columns) for row in rows])
    else:
        _show_table(session, rows, columns, shape)


def _as_json(row: Row, columns: Sequence[str]) -> Row:
    """Everything that the daemon said, or the asked columns with values of their own types (sizes in bytes)."""
    if columns:
        return {column: _json_value(row, column) for column in columns}
    return {key: value for key, value in row.items() if key not in {"properties", "volumes"} or value}


def _json_value(row: Row, field: str) -> Any:
    volumes = row.get("volumes") or {}
    if field in SIZES:
        volume, key = SIZES[field]
        return volumes.get(volume, {}).get(key)
    match field:
        case "disk":
            return sum(volume.get("usage") or 0 for volume in volumes.values())
        case "mem":
            return row.get("mem_kib", 0) * 1024
        case "fork":
            return row.get("forkpoint")
        case "tags" | "outdated":
            return row.get(field)
        case _:
            return row.get(GIVEN[field]) if field in GIVEN else property_value(row, field)


def _show_lines(lines: list[str]) -> None:
    if lines:
        click.echo("\n".join(lines))


def _show_table(session: Session, rows: list[Row], columns: Sequence[str], shape: str | None) -> None:
    ordered = draw_tree(rows, shape) if shape else [(row["name"], row) for row in rows]
    table = []
    for shown_name, row in ordered:
        cells = [_cell(row, field) for field in columns]
        table.append([Cell(shown_name, c.style) if f == "name" else c for f, c in zip(columns, cells, strict=True)])
    session.show_table([column.upper() for column in columns], table)
