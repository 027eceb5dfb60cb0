"""``cloison system-prefs``."""

from __future__ import annotations

import click

from cloison.cli import settings
from cloison.cli.choices import PROPERTY
from cloison.cli.command import command, json_option
from cloison.cli.session import Session


@command("system-prefs", examples=(
    ("cloison system-prefs", "all properties of the system"),
    ("cloison system-prefs default_template debian-13", "set one"),
    ("cloison system-prefs --default default_netvm", "back to its default"),
    ("cloison system-prefs --help-properties", "what they all mean"),
))  # fmt: skip
@click.argument("name", required=False, type=PROPERTY, metavar="[PROPERTY]")
@click.argument("value", required=False)
@click.option("-D", "--default", "reset", is_flag=True, help="Give the property its default back.")
@click.option("--help-properties", is_flag=True, help="Say what each property means.")
@click.option("--hide-default", is_flag=True, help="Show only what was set.")
@json_option
def COMMAND(session: Session, name: str | None, value: str | None, reset: bool, help_properties: bool,
            hide_default: bool, as_json: bool) -> None:  # fmt: skip
    """Show or change properties of the system. Qubes inherit many of them."""
    if help_properties:
        settings.show_help(session, None, [name] if name else [], as_json)
        return
    settings.run(session, None, name=name, value=value, reset=reset, as_json=as_json, hide_default=hide_default)
