"""``cloison features``."""

from __future__ import annotations

import click

from cloison.cli.choices import QUBE
from cloison.cli.command import command, json_option
from cloison.cli.session import Session
from cloison.cli.table import Cell
from cloison.client import calls


@command("features", examples=(
    ("cloison features work", "all features that were set on it"),
    ("cloison features work internal 1", "set one (an empty value means false)"),
    ("cloison features --inherit work os", "read one, asking its template too"),
    ("cloison features --unset work internal", "remove one"),
))  # fmt: skip
@click.argument("qube", type=QUBE)
@click.argument("feature", required=False)
@click.argument("value", required=False)
@click.option("-D", "--unset", "--default", "unset", is_flag=True, help="Remove the feature.")
@click.option("--inherit", is_flag=True, help="If it is not set here, ask the template.")
@json_option
def COMMAND(session: Session, qube: str, feature: str | None, value: str | None, unset: bool, inherit: bool,
            as_json: bool) -> None:  # fmt: skip
    """Show or change features. They are free-form notes that tools and services read."""
    if feature is None:
        if unset:
            raise click.UsageError("name the feature that shall be removed")
        show_features(session, qube, as_json)
    elif unset:
        session.do(calls.feature_remove(qube, feature))
    elif value is not None:
        session.do(calls.feature_set(qube, feature, value))
    else:
        found = session.do(calls.feature_get(qube, feature, through_template=inherit))
        if as_json:
            session.show_json(found)
        else:
            click.echo(found)


def show_features(session: Session, qube: str, as_json: bool) -> None:
    names = sorted(session.do(calls.feature_list(qube)))
    found = {name: session.do(calls.feature_get(qube, name)) for name in names}
    if as_json:
        session.show_json(found)
    elif found:
        session.show_table(("FEATURE", "VALUE"), [(Cell(name), Cell(value)) for name, value in found.items()])
