"""``qvm-firewall``."""

from __future__ import annotations

import click

from cloison.cli import firewall as twin
from cloison.cli.choices import QUBE
from cloison.cli.command import command
from cloison.cli.session import Session
from cloison.client import calls
from cloison.wire.firewall import Rule

VERBS = {"add": "add", "del": "del", "remove": "del", "rm": "del", "list": "list", "reset": "reset"}
HEADINGS = ("NO", "ACTION", "HOST", "PROTOCOL", "PORT(S)", "SPECIAL TARGET", "ICMP TYPE", "EXPIRE", "COMMENT")


@command("qvm-firewall", examples=(
    ("qvm-firewall work", "all rules"),
    ("qvm-firewall work list --raw", "as the Admin API has them"),
    ("qvm-firewall work add accept dsthost=example.com proto=tcp dstports=443", "one more"),
    ("qvm-firewall work del --rule-no 0", "without the first"),
))  # fmt: skip
@click.argument("name", type=QUBE, metavar="VMNAME")
@click.argument("verb", default="list", type=click.Choice(list(VERBS)), metavar="add|del|list|reset")
@click.argument("words", nargs=-1, metavar="[RULE...]")
@click.option("--raw", is_flag=True, help="Rules as the Admin API has them.")
@click.option("-r", "--reload", is_flag=True, help="Apply the rules again.")
@click.option("--before", type=int, metavar="NO", help="Add before that rule.")
@click.option("--rule-no", type=int, metavar="NO", help="Remove that rule.")
def qvm_firewall(session: Session, name: str, verb: str, words: tuple[str, ...], raw: bool, reload: bool,
                 before: int | None, rule_no: int | None) -> None:  # fmt: skip
    """Show or change the firewall rules of a qube."""
    rules = twin.read_rules(session, name)
    match VERBS[verb]:
        case "add":
            twin.write_rules(session, name, twin.insert_rule(rules, twin.build_rule(words), before))
        case "del":
            number = rule_no if rule_no is not None else twin.find_same(rules, twin.build_rule(words))
            twin.write_rules(session, name, twin.take_out(rules, number))
        case "reset":
            twin.write_rules(session, name, [Rule("accept")])
        case _:
            _show(rules, raw=raw)
    if reload:
        session.do(calls.firewall_reload(name))


def _show(rules: list[Rule], *, raw: bool) -> None:
    if raw:
        click.echo("".join(f"{rule}\n" for rule in rules), nl=False)
        return
    rows = [HEADINGS, *(_row(number, rule) for number, rule in enumerate(rules))]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS))]
    for row in rows:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _row(number: int, rule: Rule) -> tuple[str, ...]:
    return (
        str(number),
        rule.action,
        rule.dst4 or rule.dst6 or rule.dsthost or "-",
        rule.proto or "-",
        "-".join(map(str, dict.fromkeys(rule.dstports))) if rule.dstports else "-",
        rule.specialtarget or "-",
        "-" if rule.icmptype is None else str(rule.icmptype),
        "-" if rule.expire is None else str(rule.expire),
        rule.comment or "-",
    )


COMMANDS = {"qvm-firewall": qvm_firewall}
