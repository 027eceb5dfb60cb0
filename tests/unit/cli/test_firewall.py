"""`cloison firewall`, `qvm-firewall` and `cloison net`: what they send, show, and say would stop a connection."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cloison.cli import reaching
from cloison.cli.firewall import build_rule, find_same, insert_rule, take_out
from cloison.cli.qvm import run as run_qvm
from cloison.errors import BadRequest
from cloison.wire.firewall import parse_rule, parse_rules


@pytest.mark.parametrize(
    ("words", "rule"),
    [
        ("accept", "action=accept"),
        ("drop 192.0.2.0/24", "action=drop dst4=192.0.2.0/24"),
        ("accept example.com tcp 443", "action=accept dsthost=example.com proto=tcp dstports=443-443"),
        ("accept tcp 80-90", "action=accept proto=tcp dstports=80-90"),
        ("accept 192.0.2.1 icmp 8", "action=accept dst4=192.0.2.1/32 proto=icmp icmptype=8"),
        ("accept dns", "action=accept specialtarget=dns"),
        ("action=accept dsthost=a.example proto=udp", "action=accept dsthost=a.example proto=udp"),
        ("accept comment=x", "action=accept comment=x"),
        ("accept a.example b.example", None),
        ("perhaps", None),
        ("accept tcp udp", None),
    ],
)
def test_rules_are_written_as_people_do(words: str, rule: str | None) -> None:
    if rule is None:
        with pytest.raises(BadRequest):
            build_rule(words.split())
    else:
        assert str(build_rule(words.split())) == rule


def test_an_end_may_be_a_time_from_now(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cloison.cli.firewall.time.time", lambda: 1000.5)
    assert build_rule(["accept", "expire=+2h"]).expire == 8200


def test_places_of_rules() -> None:
    rules = list(parse_rules("action=accept proto=tcp\naction=drop comment=last\n"))
    new = parse_rule("action=accept proto=udp")
    assert insert_rule(rules, new, None)[2] == new and insert_rule(rules, new, 0)[0] == new
    assert take_out(rules, 0) == rules[1:] and find_same(rules, parse_rule("action=drop")) == 1
    for wrong in (lambda: insert_rule(rules, new, 2), lambda: take_out(rules, 2), lambda: take_out(rules[:1], 0),
                  lambda: find_same(rules, new)):  # fmt: skip
        with pytest.raises(BadRequest):
            wrong()


def test_listing_and_changing(daemon: Any, cloison: Any) -> None:
    daemon.table["admin.vm.firewall.Get", "work"] = daemon.ok("action=accept dst4=192.0.2.0/24 comment=a b\n")
    daemon.table["cloison.firewall.Counters", "work"] = daemon.ok(
        {"rules": {"0": [3, 180]}, "refused": 2, "spoofed": 1}
    )
    daemon.table["admin.vm.firewall.Set", "work"] = daemon.ok()
    done = cloison("firewall", "list", "--counters", "--json", "work")
    assert done.code == 0 and json.loads(done.out) == {
        "rules": [{"number": 0, "action": "accept", "dst4": "192.0.2.0/24", "comment": "a b",
                   "packets": 3, "bytes": 180}],
        "refused": 2, "spoofed": 1,
    }  # fmt: skip
    done = cloison("firewall", "list", "work")
    assert done.code == 0 and done.out.splitlines()[1].split() == [
        "0",
        "accept",
        "192.0.2.0/24",
        "any",
        "-",
        "-",
        "a",
        "b",
    ]
    assert cloison("firewall", "add", "work", "drop", "--before", "0").code == 0
    assert daemon.asked[-1][3] == b"action=drop\naction=accept dst4=192.0.2.0/24 comment=a b\n"
    assert cloison("firewall", "reset", "work").code == 0
    assert daemon.asked[-1][3] == b"action=accept\n"


def test_qvm_firewall(daemon: Any, capfd: pytest.CaptureFixture[str]) -> None:
    daemon.table["admin.vm.firewall.Get", "work"] = daemon.ok("action=accept proto=tcp dstports=80-80\naction=drop\n")
    daemon.table["admin.vm.firewall.Set", "work"] = daemon.ok()
    assert run_qvm("qvm-firewall", ["work", "list"]) == 0
    assert [line.split() for line in capfd.readouterr().out.splitlines()] == [
        ["NO", "ACTION", "HOST", "PROTOCOL", "PORT(S)", "SPECIAL", "TARGET", "ICMP", "TYPE", "EXPIRE", "COMMENT"],
        ["0", "accept", "-", "tcp", "80", "-", "-", "-", "-"],
        ["1", "drop", "-", "-", "-", "-", "-", "-", "-"],
    ]
    assert run_qvm("qvm-firewall", ["work", "del", "--rule-no", "0"]) == 0
    assert daemon.asked[-1][3] == b"action=drop\n"


def row(name: str, netvm: str | None, ip: str = "", provides: bool = False) -> dict[str, Any]:
    values = {"ip": ip, "ip6": "", "provides_network": provides}
    return {"name": name, "netvm": netvm, "state": "Halted", "colour": "0x00cc00",
            "properties": {key: {"value": value} for key, value in values.items()}}  # fmt: skip


ROWS = {
    each["name"]: each
    for each in (
        row("sys-net", None, "10.137.0.5", True), row("sys-firewall", "sys-net", "10.137.0.6", True),
        row("work", "sys-firewall", "10.137.0.7"), row("web", "sys-firewall", "10.137.0.8"),
        row("raw", "sys-net", "10.137.0.9"), row("vault", None),
    )
}  # fmt: skip
RULES = {"work": "action=accept dsthost=good.example proto=tcp dstports=443\naction=drop dst4=203.0.113.0/24\n"
         "action=accept proto=tcp dstports=80\n"}  # fmt: skip


@pytest.mark.parametrize(
    ("source", "to", "proto", "port", "stopped_by"),
    [
        ("work", "good.example", "tcp", 443, None),
        ("work", "9.9.9.9", "tcp", 80, None),
        ("work", "203.0.113.5", "tcp", 80, ("sys-firewall", 1)),
        ("work", "9.9.9.9", "udp", 80, ("sys-firewall", None)),
        ("work", "web", "tcp", 80, ("sys-firewall", None)),
        ("work", "10.137.0.8", "tcp", 80, ("sys-firewall", None)),
        ("work", "raw", "tcp", 80, ("sys-net", None)),
        ("web", "sys-firewall", "tcp", 22, ("sys-firewall", None)),
        ("web", "sys-firewall", "icmp", None, None),
        ("web", "vault", "tcp", 1, ("sys-net", None)),
        ("vault", "9.9.9.9", "tcp", 80, ("", None)),
        ("sys-net", "9.9.9.9", "tcp", 80, None),
    ],
)
def test_what_would_stop_a_connection(source: str, to: str, proto: str, port: int | None, stopped_by: Any) -> None:
    hops = reaching.check(ROWS, lambda n: parse_rules(RULES.get(n, "action=accept\n")), source, to, proto, port)
    assert [hop.passes for hop in hops[:-1]] == [True] * (len(hops) - 1)
    assert (None if hops[-1].passes else (hops[-1].netvm, hops[-1].rule)) == stopped_by


def test_what_dom0_cannot_know_is_said() -> None:
    for to in ("other.example", "9.9.9.9"):
        with pytest.raises(BadRequest):
            reaching.check(ROWS, lambda n: parse_rules(RULES.get(n, "action=accept\n")), "work", to, "tcp",
                           443 if to == "9.9.9.9" else 80)  # fmt: skip


def test_the_tree() -> None:
    assert list(reaching.draw_text(ROWS)) == [
        "sys-net",
        "├─ raw",
        "└─ sys-firewall",
        "   ├─ web",
        "   └─ work",
        "no network: vault",
    ]
    assert '  "work" -> "sys-firewall";' in list(reaching.draw_dot(ROWS))
    assert "".join(reaching.draw_svg(ROWS)).count("<rect") == 6
