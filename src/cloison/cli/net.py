"""``cloison net``."""

from __future__ import annotations

from typing import Any

import click

from cloison.cli import reaching
from cloison.cli.choices import QUBE
from cloison.cli.command import group, json_option, subcommand
from cloison.cli.firewall import read_rules
from cloison.cli.session import Session
from cloison.client import calls


@group("net", invoke_without_command=True, examples=(
    ("cloison net", "who reaches the network through whom"),
    ("cloison net check work example.com 443", "which hop and rule would stop it"),
))  # fmt: skip
@click.pass_context
def COMMAND(ctx: click.Context) -> None:
    if ctx.invoked_subcommand is None:
        ctx.invoke(show_tree)


COMMAND.help = "Show who reaches what through whom; without a command: the tree."


def _rows(session: Session) -> dict[str, dict[str, Any]]:
    rows = session.do(calls.list_qubes(["ip", "ip6", "provides_network"]))
    return {row["name"]: row for row in rows if row["class"] not in ("AdminVM", "RemoteVM")}


@subcommand(COMMAND, "tree", examples=(
    ("cloison net tree", "as text"),
    ("cloison net tree --svg > network.svg", "as a picture"),
    ("cloison net tree --dot | dot -Tpdf -o network.pdf", "through Graphviz"),
))  # fmt: skip
@click.option("--dot", "form", flag_value="dot", help="Print Graphviz's language.")
@click.option("--svg", "form", flag_value="svg", help="Print a picture.")
@json_option
def show_tree(session: Session, form: str | None, as_json: bool) -> None:
    """Draw the tree of netvms and their clients."""
    rows = _rows(session)
    if as_json:
        session.show_json([
            {"name": name, "netvm": reaching.netvm_of(rows, name) or None, "path": reaching.path_out(rows, name),
             "state": rows[name]["state"], "trouble": rows[name].get("network_trouble", "")}
            for _, name in reaching.tree(rows)
        ])  # fmt: skip
        return

    def note(name: str) -> str:
        trouble = rows[name].get("network_trouble")
        state = "" if rows[name]["state"] == "Halted" else f" ({rows[name]['state'].lower()})"
        return f"{state}: {trouble}" if trouble else state

    lines = {"dot": reaching.draw_dot, "svg": reaching.draw_svg}.get(form or "")
    click.echo("\n".join(lines(rows) if lines else reaching.draw_text(rows, note)))


@subcommand(COMMAND, "check", examples=(
    ("cloison net check work example.com 443", "a name: rules that speak of it"),
    ("cloison net check work 10.137.0.9 22", "another qube"),
    ("cloison net check --proto icmp work sys-firewall", "a ping"),
))  # fmt: skip
@click.argument("source", type=QUBE, metavar="FROM")
@click.argument("to", metavar="TO")
@click.argument("port", required=False, type=click.IntRange(0, 65535), metavar="[PORT]")
@click.option("--proto", type=click.Choice(["tcp", "udp", "icmp"]), default="tcp", help="The protocol (default: tcp).")
@json_option
def check_path(session: Session, source: str, to: str, port: int | None, proto: str, as_json: bool) -> None:
    """Say which hop and rule would stop a connection, without sending anything.

    TO is a qube, an address, or the name of a host. The exit code is 1 if something would stop it.
    """
    if port is None and proto != "icmp":
        raise click.UsageError("which port?")
    hops = reaching.check(_rows(session), lambda name: read_rules(session, name), source, to, proto, port)
    passes = all(hop.passes for hop in hops)
    if as_json:
        session.show_json({"passes": passes, "hops": [hop.as_json() for hop in hops]})
    else:
        for hop in hops:
            where = f"{hop.client} -> {hop.netvm}" if hop.netvm else hop.client
            click.echo(f"{session.palette.style('passes' if hop.passes else 'stops ', '32' if hop.passes else '31')}  "
                       f"{where}: {hop.why}", color=True)  # fmt: skip
    if not passes:
        raise click.exceptions.Exit(1)
