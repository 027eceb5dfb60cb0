"""``cloison label``."""

from __future__ import annotations

import click

from cloison.cli.choices import LABEL
from cloison.cli.colours import LABEL_STYLES
from cloison.cli.command import group, json_option, subcommand
from cloison.cli.session import Session
from cloison.cli.table import Cell
from cloison.client import calls

COMMAND = group("label", examples=(("cloison label list", "all labels"),))(lambda: None)
COMMAND.help = "Show, create and remove labels. They are colours that say how far you trust a qube."


@subcommand(COMMAND, "list", examples=(("cloison label list --json", "with numbers and colours"),))
@json_option
def list_labels(session: Session, as_json: bool) -> None:
    """Show all labels."""
    names = session.do(calls.label_list())
    found = [(n, session.do(calls.label_index(n)), session.do(calls.label_colour(n)).strip()) for n in names]
    if as_json:
        session.show_json([{"name": name, "index": index, "colour": colour} for name, index, colour in found])
        return
    rows = [
        (Cell(str(index), right=True), Cell(name, _style(name, colour)), Cell(colour)) for name, index, colour in found
    ]
    session.show_table(("INDEX", "LABEL", "COLOUR"), rows)


def _style(name: str, colour: str) -> str:
    if name in LABEL_STYLES:
        return LABEL_STYLES[name]
    try:
        value = int(colour, 16)
    except ValueError:
        return ""
    return f"38;2;{value >> 16 & 255};{value >> 8 & 255};{value & 255}"


@subcommand(COMMAND, "create", examples=(("cloison label create pink 0xff88aa", "one of your own"),))
@click.argument("label")
@click.argument("colour", metavar="0xRRGGBB")
def create_label(session: Session, label: str, colour: str) -> None:
    """Create a label."""
    session.do(calls.label_create(label, "0x" + colour.lower().removeprefix("#").removeprefix("0x")))


@subcommand(COMMAND, "remove", examples=(("cloison label remove pink", "refused while a qube carries it"),))
@click.argument("label", type=LABEL)
def remove_label(session: Session, label: str) -> None:
    """Remove a label of your own."""
    session.do(calls.label_remove(label))
