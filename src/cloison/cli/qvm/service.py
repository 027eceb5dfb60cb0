"""``qvm-service``."""

from __future__ import annotations

import click

from cloison.cli.choices import QUBE
from cloison.cli.command import command
from cloison.cli.session import Session
from cloison.client import calls
from cloison.client.failures import QubesFeatureNotFoundError

PREFIX = "service."


@command("qvm-service", examples=(
    ("qvm-service work", "services that were switched"),
    ("qvm-service work cups on", "switch one on"),
))  # fmt: skip
@click.argument("name", type=QUBE, metavar="VMNAME")
@click.argument("service", required=False, metavar="SERVICE")
@click.argument("value", required=False, metavar="VALUE")
@click.option("-l", "--list", "listing", is_flag=True, help="Show all services that were switched.")
@click.option("-e", "--enable", "value_wish", flag_value="1", help="Switch it on.")
@click.option("-d", "--disable", "value_wish", flag_value="", help="Switch it off.")
@click.option("-D", "--default", "--delete", "--unset", "unset", is_flag=True, help="Leave it to the qube.")
def service(session: Session, name: str, service: str | None, value: str | None, listing: bool,
            value_wish: str | None, unset: bool) -> None:  # fmt: skip
    """Switch services inside a qube on or off."""
    if service is None or listing:
        names = [f for f in sorted(session.do(calls.feature_list(name))) if f.startswith(PREFIX)]
        states = {f.removeprefix(PREFIX): session.do(calls.feature_get(name, f)) for f in names}
        width = max(map(len, states), default=0)
        for key, text in states.items():
            click.echo(f"{key:{width}}  {'on' if text else 'off'}")
        return
    feature = PREFIX + service
    if value is not None:
        value_wish = "1" if value.lower() in {"1", "on", "yes", "true"} else ""
    try:
        if unset:
            session.do(calls.feature_remove(name, feature))
        elif value_wish is not None:
            session.do(calls.feature_set(name, feature, value_wish))
        else:
            click.echo("on" if session.do(calls.feature_get(name, feature)) else "off")
    except QubesFeatureNotFoundError:
        if not unset:
            raise click.exceptions.Exit(1) from None


COMMANDS = {"qvm-service": service}
