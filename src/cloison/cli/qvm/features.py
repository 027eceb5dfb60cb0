"""``qvm-features``."""

from __future__ import annotations

import click

from cloison.cli.choices import QUBE
from cloison.cli.command import command
from cloison.cli.session import Session
from cloison.client import calls
from cloison.client.failures import QubesFeatureNotFoundError


@command("qvm-features", examples=(
    ("qvm-features work", "all that are set"),
    ("qvm-features work internal 1", "set one"),
    ("qvm-features --unset work internal", "remove one"),
))  # fmt: skip
@click.argument("name", type=QUBE, metavar="VMNAME")
@click.argument("feature", required=False, metavar="FEATURE")
@click.argument("value", required=False, metavar="VALUE")
@click.option("-D", "--unset", "--default", "--delete", "unset", is_flag=True, help="Remove the feature.")
def features(session: Session, name: str, feature: str | None, value: str | None, unset: bool) -> None:
    """Show or change the features of a qube."""
    if feature is None:
        if unset:
            raise click.UsageError("--unset needs a feature")
        found = {f: session.do(calls.feature_get(name, f)) for f in sorted(session.do(calls.feature_list(name)))}
        width = max(map(len, found), default=0)
        for key, text in found.items():
            click.echo(f"{key:{width}}  {text}")
    elif unset:
        try:
            session.do(calls.feature_remove(name, feature))
        except QubesFeatureNotFoundError:
            pass  # as it shall be
    elif value is not None:
        session.do(calls.feature_set(name, feature, value))
    else:
        try:
            click.echo(session.do(calls.feature_get(name, feature)))
        except QubesFeatureNotFoundError:
            raise click.exceptions.Exit(1) from None


COMMANDS = {"qvm-features": features}
