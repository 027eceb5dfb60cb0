"""``cloison firewall``."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from typing import Any

import click

from cloison.cli.choices import QUBE
from cloison.cli.command import QubeFirstGroup, group, json_option, subcommand
from cloison.cli.session import Session
from cloison.cli.table import Cell, human_bytes
from cloison.client import calls
from cloison.errors import BadRequest
from cloison.wire.firewall import Rule, RuleError, parse_rule

COMMAND = group("firewall", examples=(
    ("cloison firewall list work", "the rules, in order"),
    ("cloison firewall add work accept example.com tcp 443", "one more at the end"),
    ("cloison firewall add work drop --before 0", "from now on nothing at all"),
), cls=QubeFirstGroup)(lambda: None)  # fmt: skip
COMMAND.help = """Show or change what a qube may reach.

Its netvm keeps the rules: the first that fits decides, and what no rule fits is refused. A qube that was never given
rules may reach everything. Changes hold at once, for open connections too. The qube may come first, too:
`cloison firewall work list`.
"""
QUBE_ARGUMENT = click.argument("qube", type=QUBE)
RULE_ARGUMENT = click.argument("words", nargs=-1, metavar="RULE...")
_UNITS = {"": 1, "s": 1, "min": 60, "h": 3600, "d": 86400}
KEYWORDS = ("action=", "proto=", "dsthost=", "dst4=", "dst6=", "dstports=", "icmptype=", "specialtarget=dns",
            "expire=+1h", "comment=", "accept", "drop", "tcp", "udp", "icmp", "dns")  # fmt: skip
dry_run_option = click.option("--dry-run", is_flag=True, help="Change nothing; show what the netvm would load.")


def read_rules(session: Session, qube: str) -> list[Rule]:
    return [parse_rule(line) for line in session.do(calls.firewall_get(qube))]


def write_rules(session: Session, qube: str, rules: Sequence[Rule], *, dry_run: bool = False) -> None:
    lines = [str(rule) for rule in rules]
    if dry_run:
        click.echo(session.do(calls.firewall_table(qube, lines)), nl=False)
    else:
        session.do(calls.firewall_set(qube, lines))


def build_rule(words: Sequence[str]) -> Rule:
    """A rule from ``key=value`` words, or plain ones in this order: action, destination (or ``dns``), protocol, ports
    or ICMP type."""
    fields: list[str] = []
    comment = ""
    plain = [word for word in words if "=" not in word]
    for word in words:
        if word.startswith("comment="):
            comment = word
        elif "=" in word:
            fields.append(_absolute(word))
    places = iter(("action", "dsthost", "proto", "dstports"))
    for word in plain:
        if word == "dns":
            fields.append("specialtarget=dns")
            continue
        place = next(places, "")
        while place in ("dsthost", "proto") and (word in ("tcp", "udp", "icmp")) != (place == "proto"):
            place = next(places, "")
        if not place:
            raise BadRequest(f"{word!a} is one word too many", hint="write parts of a rule as key=value")
        fields.append(f"{'icmptype' if place == 'dstports' and 'proto=icmp' in fields else place}={word}")
    try:
        return parse_rule(" ".join(filter(None, [*fields, comment])))
    except RuleError as error:
        raise BadRequest(f"this is no rule: {error}", hint="for example: accept example.com tcp 443") from None


def _absolute(word: str) -> str:
    """``expire=+2h`` is a time from now."""
    found = re.fullmatch(r"expire=\+(\d{1,9})(s|min|h|d)?", word)
    return f"expire={int(time.time()) + int(found[1]) * _UNITS[found[2] or '']}" if found else word


def insert_rule(rules: list[Rule], rule: Rule, before: int | None) -> list[Rule]:
    if before is not None and not 0 <= before < len(rules):
        raise BadRequest(f"there is no rule {before}", hint=f"rules are numbered from 0 to {len(rules) - 1}")
    place = len(rules) if before is None else before
    return [*rules[:place], rule, *rules[place:]]


def take_out(rules: list[Rule], number: int) -> list[Rule]:
    if not 0 <= number < len(rules):
        raise BadRequest(f"there is no rule {number}", hint=f"rules are numbered from 0 to {len(rules) - 1}")
    if len(rules) == 1:
        raise BadRequest("that is the last rule", hint="`cloison firewall reset QUBE` allows everything; "
                         "`cloison firewall add QUBE drop --before 0` nothing")  # fmt: skip
    return [*rules[:number], *rules[number + 1 :]]


def complete_rule(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    return [word for word in KEYWORDS if word.startswith(incomplete)]


@subcommand(COMMAND, "list", examples=(
    ("cloison firewall list work", "numbered as they are tried"),
    ("cloison firewall list --counters work", "and what each has decided so far"),
    ("cloison firewall list --dry-run work", "as nftables in the netvm"),
))  # fmt: skip
@QUBE_ARGUMENT
@click.option("--counters", is_flag=True, help="Packets and bytes that each rule decided (first ones of connections).")
@dry_run_option
@json_option
def list_rules(session: Session, qube: str, counters: bool, dry_run: bool, as_json: bool) -> None:
    """Show the rules of a qube."""
    rules = read_rules(session, qube)
    if dry_run:
        write_rules(session, qube, rules, dry_run=True)
        return
    counted: dict[str, Any] = session.do(calls.firewall_counters(qube)) if counters else {}
    decided = counted.get("rules", {})
    if as_json:
        shown = [{"number": n, **_as_json(rule), **_counts(decided, n, counters)} for n, rule in enumerate(rules)]
        rest = {"refused": counted["refused"], "spoofed": counted["spoofed"]} if counters else {}
        session.show_json({"rules": shown, **rest})
        return
    headings = ["NO", "ACTION", "TO", "PROTOCOL", "PORTS", "EXPIRES", "COMMENT"]
    rows = [_row(number, rule) for number, rule in enumerate(rules)]
    if counters:
        headings[6:6] = ["PACKETS", "BYTES"]
        for number, row in enumerate(rows):
            packets, size = decided.get(str(number), (0, 0))
            row[6:6] = [Cell(str(packets), "", True), Cell(human_bytes(size), "", True)]
    session.show_table(headings, rows)
    if counters:
        click.echo(f"refused by no rule's leave: {counted['refused']} packets; "
                   f"not the qube's own address or no plain packet: {counted['spoofed']}")  # fmt: skip


def _counts(decided: dict[str, Any], number: int, wanted: bool) -> dict[str, int]:
    packets, size = decided.get(str(number), (0, 0))
    return {"packets": packets, "bytes": size} if wanted else {}


def _as_json(rule: Rule) -> dict[str, Any]:
    return {key: value for key, value in rule._asdict().items() if value not in ("", None)}


def _row(number: int, rule: Rule) -> list[Cell]:
    ports = "-".join(map(str, dict.fromkeys(rule.dstports))) if rule.dstports else ""
    expires = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(rule.expire)) if rule.expire is not None else "-"
    to = rule.dst4 or rule.dst6 or rule.dsthost or "everywhere"
    icmp = f"type {rule.icmptype}" if rule.icmptype is not None else ""
    return [
        Cell(str(number), "", True),
        Cell(rule.action, "32" if rule.action == "accept" else "31"),
        Cell("the resolvers (dns)" if rule.specialtarget else to),
        Cell(rule.proto or "any"),
        Cell(ports or icmp or "-"),
        Cell(expires),
        Cell(rule.comment or ""),
    ]


@subcommand(COMMAND, "add", examples=(
    ("cloison firewall add work accept example.com tcp 443", "a name is followed as it moves"),
    ("cloison firewall add work accept dst4=192.0.2.0/24 comment='the office'", "parts by name"),
    ("cloison firewall add work accept dns --before 0", "names may be looked up"),
    ("cloison firewall add work accept expire=+1h --before 0", "everything, for an hour"),
))  # fmt: skip
@QUBE_ARGUMENT
@click.argument("words", nargs=-1, required=True, metavar="RULE...", shell_complete=complete_rule)
@click.option("--before", type=int, metavar="NO", help="Try it before that rule (default: after all).")
@dry_run_option
def add_rule(session: Session, qube: str, words: tuple[str, ...], before: int | None, dry_run: bool) -> None:
    """Add a rule."""
    rules = insert_rule(read_rules(session, qube), build_rule(words), before)
    write_rules(session, qube, rules, dry_run=dry_run)


@subcommand(COMMAND, "remove", examples=(
    ("cloison firewall remove work 0", "the rule that is tried first"),
    ("cloison firewall remove work accept example.com tcp 443", "the rule that says that"),
))  # fmt: skip
@QUBE_ARGUMENT
@click.argument("words", nargs=-1, required=True, metavar="NO|RULE...", shell_complete=complete_rule)
@dry_run_option
def remove_rule(session: Session, qube: str, words: tuple[str, ...], dry_run: bool) -> None:
    """Take a rule away, by its number or by what it says."""
    rules = read_rules(session, qube)
    number = int(words[0]) if len(words) == 1 and words[0].isdecimal() else find_same(rules, build_rule(words))
    write_rules(session, qube, take_out(rules, number), dry_run=dry_run)


def find_same(rules: Sequence[Rule], wanted: Rule) -> int:
    """The number of the first rule that says that, whatever its comment."""
    for number, rule in enumerate(rules):
        if rule == wanted or rule._replace(comment=None) == wanted:
            return number
    raise BadRequest(f"there is no rule `{wanted}`", hint="`cloison firewall list QUBE` shows them with numbers")


@subcommand(COMMAND, "reload", examples=(("cloison firewall reload work", "its netvm loads the rules again"),))
@QUBE_ARGUMENT
def reload_rules(session: Session, qube: str) -> None:
    """Have the rules put in force again, with the addresses that names have now."""
    session.do(calls.firewall_reload(qube))


@subcommand(COMMAND, "reset", examples=(("cloison firewall reset work", "it may reach everything again"),))
@QUBE_ARGUMENT
@dry_run_option
def reset_rules(session: Session, qube: str, dry_run: bool) -> None:
    """Forget all rules: the qube may reach everything that its netvm does."""
    write_rules(session, qube, [Rule("accept")], dry_run=dry_run)
