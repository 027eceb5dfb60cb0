"""Showing and changing properties: what ``prefs``, ``system-prefs`` and the ``qvm-*`` twins share.

In: a destination (a qube, or None for the system), names, values. Out: calls, text. May import: client, cli.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence

import click

from cloison.cli.session import Session
from cloison.cli.table import Cell
from cloison.client import calls
from cloison.client.calls import Property
from cloison.client.failures import QubesNoSuchPropertyError


def show_help(session: Session, dest: str | None, names: Sequence[str], as_json: bool) -> None:
    """What each property means."""
    wanted = list(names) or sorted(session.do(calls.property_list(dest)))
    texts = {name: session.do(calls.property_help(dest, name)).strip() for name in wanted}
    if as_json:
        session.show_json(texts)
        return
    formatter = click.HelpFormatter(width=max(40, min(100, shutil.get_terminal_size((100, 24)).columns)))
    formatter.write_dl(list(texts.items()), col_max=24)
    click.echo(formatter.getvalue().rstrip())


def show_all(session: Session, dest: str | None, *, as_json: bool, hide_default: bool) -> None:
    """Every property: its name, whether it is the default (D), set here (-) or without value (U), and its value."""
    found = session.do(calls.property_get_all(dest))
    shown = [found[name] for name in sorted(found) if not (hide_default and found[name].is_default)]
    if as_json:
        session.show_json({p.name: as_json_value(p) for p in shown})
        return
    rows = [(Cell(p.name), Cell(mark(p), "2"), Cell(p.value or "", "2" if p.is_default else "")) for p in shown]
    session.show_table(("PROPERTY", "", "VALUE"), rows)


def mark(prop: Property) -> str:
    if prop.value is None and prop.kind in {"int", "bool"}:
        return "U"
    return "D" if prop.is_default else "-"


def as_json_value(prop: Property) -> dict[str, object]:
    """Value with its own type, and whether it is the default."""
    value: object = prop.value
    if prop.value is not None and prop.kind == "int":
        value = int(prop.value)
    elif prop.value is not None and prop.kind == "bool":
        value = prop.value == "True"
    return {"value": value, "type": prop.kind, "default": prop.is_default}


def show_one(session: Session, dest: str | None, name: str, *, as_json: bool) -> None:
    prop = session.do(calls.property_get(dest, name))
    if as_json:
        session.show_json(as_json_value(prop))
    else:
        click.echo(prop.value or "")


def run(session: Session, dest: str | None, *, name: str | None, value: str | None, reset: bool,
        as_json: bool, hide_default: bool) -> None:  # fmt: skip
    """Show all, show one, set one, or set one back to its default."""
    try:
        if name is None:
            if reset:
                raise click.UsageError("name the property that shall get its default back")
            show_all(session, dest, as_json=as_json, hide_default=hide_default)
        elif reset:
            if value is not None:
                raise click.UsageError("give a value or --default, not both")
            session.do(calls.property_reset(dest, name))
        elif value is None:
            show_one(session, dest, name, as_json=as_json)
        else:
            session.do(calls.property_set(dest, name, value))
    except QubesNoSuchPropertyError as error:
        if error.hint or name is None:
            raise
        raise _explained(session, dest, name) from None


def _explained(session: Session, dest: str | None, name: str) -> QubesNoSuchPropertyError:
    from difflib import get_close_matches

    close = get_close_matches(name, session.do(calls.property_list(dest)), n=1)
    owner = dest or "the system"
    hint = (
        f"did you mean {close[0]}?" if close else f"`cloison {f'prefs {dest}' if dest else 'system-prefs'}` lists them"
    )
    return QubesNoSuchPropertyError(f"{owner} has no property {name!r}", hint=hint)
