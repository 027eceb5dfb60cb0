"""``cloison prefs``."""

from __future__ import annotations

import click

from cloison.cli import settings
from cloison.cli.choices import PROPERTY, QUBE
from cloison.cli.command import command, json_option
from cloison.cli.session import Session
from cloison.client import calls


@command("prefs", examples=(
    ("cloison prefs work", "all properties (D: default, -: set here)"),
    ("cloison prefs work memory", "one"),
    ("cloison prefs work memory 800", "set it"),
    ("cloison prefs work netvm ''", "none: no network"),
    ("cloison prefs --default work memory", "back to its default"),
    ("cloison prefs --help-properties work", "what they all mean"),
))  # fmt: skip
@click.argument("qube", type=QUBE)
@click.argument("name", required=False, type=PROPERTY, metavar="[PROPERTY]")
@click.argument("value", required=False)
@click.option("-D", "--default", "reset", is_flag=True, help="Give the property its default back.")
@click.option("-g", "--get", "reading", is_flag=True, help="Read the property (what it does without a value anyway).")
@click.option("-s", "--set", "setting", is_flag=True, help="Set the property (what it does with a value anyway).")
@click.option("--help-properties", is_flag=True, help="Say what each property means.")
@click.option("--hide-default", is_flag=True, help="Show only what was set here.")
@json_option
def COMMAND(session: Session, qube: str, name: str | None, value: str | None, reset: bool, reading: bool,
            setting: bool, help_properties: bool, hide_default: bool, as_json: bool) -> None:  # fmt: skip
    """Show or change the properties of a qube.

    For dom0 this shows its own properties and those of the system (see `cloison system-prefs`).
    """
    if setting and value is None:
        raise click.UsageError("--set needs a property and a value")
    if reading and value is not None:
        raise click.UsageError("--get takes no value")
    dest = _destination(session, qube, name)
    if help_properties:
        settings.show_help(session, dest, [name] if name else [], as_json)
        return
    settings.run(session, dest, name=name, value=value, reset=reset, as_json=as_json, hide_default=hide_default)


def _destination(session: Session, qube: str, name: str | None) -> str | None:
    """The qube; for dom0 the system (None), unless the property is one that dom0 itself has."""
    if qube != "dom0":
        return qube
    if name is None:
        return None
    return qube if name in session.do(calls.property_list(qube)) else None
