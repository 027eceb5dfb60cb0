"""``qvm-prefs`` and ``qubes-prefs``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from cloison.cli.choices import QUBE
from cloison.cli.command import command
from cloison.cli.session import Session
from cloison.cli.settings import mark
from cloison.client import calls
from cloison.client.failures import QubesNoSuchPropertyError


def _options(function: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.argument("value", required=False, metavar="VALUE"),
        click.argument("prop", required=False, metavar="PROPERTY"),
        click.option("--help-properties", is_flag=True, help="Say what each property means."),
        click.option("--hide-default", is_flag=True, help="Show only what was set."),
        click.option("-g", "--get", "reading", is_flag=True, help="Accepted."),
        click.option("-s", "--set", "setting", is_flag=True, help="Accepted."),
        click.option("-D", "--unset", "--default", "--delete", "reset", is_flag=True, help="Back to the default."),
    ):
        function = option(function)
    return function


def _run(session: Session, dest: str | None, prop: str | None, value: str | None, reset: bool,
         hide_default: bool, help_properties: bool) -> None:  # fmt: skip
    if help_properties:
        for name in sorted(session.do(calls.property_list(dest))):
            click.echo(f"{name:24}  {session.do(calls.property_help(dest, name)).strip()}")
        return
    try:
        if prop is None:
            _show_all(session, dest, hide_default)
        elif reset:
            session.do(calls.property_reset(dest, prop))
        elif value is not None:
            session.do(calls.property_set(dest, prop, value))
        else:
            click.echo(session.do(calls.property_get(dest, prop)).value or "")
    except QubesNoSuchPropertyError:
        raise QubesNoSuchPropertyError(f"no such property: {prop!r}") from None


def _show_all(session: Session, dest: str | None, hide_default: bool) -> None:
    found = session.do(calls.property_get_all(dest))
    width = max(map(len, found), default=0)
    for name in sorted(found):
        if not (hide_default and found[name].is_default):
            click.echo(f"{name:{width}}  {mark(found[name])}  {found[name].value or ''}".rstrip())


@command("qvm-prefs", examples=(
    ("qvm-prefs work", "all properties"),
    ("qvm-prefs work memory 800", "set one"),
    ("qvm-prefs --default work memory", "back to its default"),
))  # fmt: skip
@click.argument("name", type=QUBE, metavar="VMNAME")
@_options
def qvm_prefs(session: Session, name: str, prop: str | None, value: str | None, reset: bool, setting: bool,
              reading: bool, hide_default: bool, help_properties: bool) -> None:  # fmt: skip
    """Show or change the properties of a qube."""
    _run(session, name, prop, value, reset, hide_default, help_properties)


@command("qubes-prefs", examples=(
    ("qubes-prefs", "all properties"),
    ("qubes-prefs default_template debian-13", "set one"),
))  # fmt: skip
@_options
def qubes_prefs(session: Session, prop: str | None, value: str | None, reset: bool, setting: bool,
                reading: bool, hide_default: bool, help_properties: bool) -> None:  # fmt: skip
    """Show or change the properties of the system."""
    _run(session, None, prop, value, reset, hide_default, help_properties)


COMMANDS = {"qvm-prefs": qvm_prefs, "qubes-prefs": qubes_prefs}
