"""Firewall rules: one canonical spelling, and what each says about a connection."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloison.wire.firewall import Flow, Rule, RuleError, find_rule, may_open, parse_rule, parse_rules


@pytest.mark.parametrize(
    ("given_line", "canonical"),
    [
        ("action=accept", "action=accept"),
        ("proto=tcp action=drop dstports=80", "action=drop proto=tcp dstports=80-80"),
        ("action=accept dsthost=1.2.3.4", "action=accept dst4=1.2.3.4/32"),
        ("action=accept dst4=1.2.3.77/24", "action=accept dst4=1.2.3.0/24"),
        ("action=accept dsthost=2001:DB8::1", "action=accept dst6=2001:db8::1/128"),
        ("action=accept dstname=a.example", "action=accept dsthost=a.example"),
        ("action=accept comment=a b=c: [x]", None),
        ("action=accept comment=a b: [x]", "action=accept comment=a b: [x]"),
        ("action=accept comment=", "action=accept comment="),
        ("action=accept expire=0099", "action=accept expire=99"),
        ("action=accept proto=icmp icmptype=08", "action=accept proto=icmp icmptype=8"),
        ("specialtarget=dns action=accept", "action=accept specialtarget=dns"),
        ("action=drop expire=5 dst6=::/0 proto=udp dstports=1-2 comment=x",
         "action=drop expire=5 dst6=::/0 proto=udp dstports=1-2 comment=x"),
        ("", None), ("proto=tcp", None), ("action=allow", None), ("action=accept action=accept", None),
        ("action=accept proto=sctp", None), ("action=accept dstports=80", None), ("action=accept icmptype=8", None),
        ("action=accept proto=tcp dstports=9-8", None), ("action=accept proto=tcp dstports=65536", None),
        ("action=accept proto=tcp dstports=-1", None), ("action=accept proto=tcp dstports=", None),
        ("action=accept proto=icmp icmptype=256", None), ("action=accept dst4=::1", None),
        ("action=accept dst6=1.2.3.4", None), ("action=accept dst4=a.example", None),
        ("action=accept dsthost=A.example", None), ("action=accept dsthost=a;b", None),
        ("action=accept dsthost=", None),
        ("action=accept dst4=1.2.3.4 dsthost=a", None), ("action=accept dst6=fe80::1%eth0", None),
        ("action=accept dsthost=fe80::1%eth0", None), ("action=accept expire=-1", None),
        ("action=accept expire=1e3", None), ("action=accept  proto=tcp", None), ("action=accept surprise=1", None),
        ("action=accept proto=\uff15", None), ("action=accept\x00", None), ("action", None),
    ],
)  # fmt: skip
def test_one_spelling(given_line: str, canonical: str | None) -> None:
    if canonical is None:
        with pytest.raises(RuleError):
            parse_rule(given_line)
    else:
        assert str(parse_rule(given_line)) == canonical
        assert str(parse_rule(canonical)) == canonical


def test_a_wrong_line_is_named() -> None:
    with pytest.raises(RuleError, match=r"firewall rule 3 \('action=perhaps'\): action must be accept or drop"):
        parse_rules("action=drop\n\naction=perhaps\n")


_hosts = st.from_regex(r"[a-z][a-z0-9._-]{0,40}", fullmatch=True).filter(lambda h: not h.startswith("fe"))
_ports = st.tuples(st.integers(0, 65535), st.integers(0, 65535)).map(lambda p: (min(p), max(p)))


@st.composite
def rules(draw: st.DrawFn) -> Rule:
    proto = draw(st.sampled_from(["", "tcp", "udp", "icmp"]))
    where = draw(st.sampled_from(["", "dst4", "dst6", "dsthost"]))
    destination = {
        "": st.just(""),
        "dst4": st.ip_addresses(v=4).map(lambda a: f"{a}/32"),
        "dst6": st.ip_addresses(v=6).map(lambda a: f"{a}/128"),
        "dsthost": _hosts,
    }[where]
    rule = Rule(
        draw(st.sampled_from(["accept", "drop"])),
        expire=draw(st.none() | st.integers(0, 10**12)),
        proto=proto,
        specialtarget=draw(st.sampled_from(["", "dns"])),
        dstports=draw(st.none() | _ports) if proto in ("tcp", "udp") else None,
        icmptype=draw(st.none() | st.integers(0, 255)) if proto == "icmp" else None,
        comment=draw(st.none() | st.from_regex(r"[A-Za-z0-9:;,./_\-\[\] ]{0,30}", fullmatch=True)),
    )
    return rule._replace(**{where: draw(destination)}) if where else rule


@given(rules())
def test_every_rule_survives_being_written_and_read(rule: Rule) -> None:
    assert parse_rule(str(rule)) == rule


@given(st.text(max_size=200) | st.from_regex(r"(action|proto|dst4|dsthost|dstports|comment)=.{0,20}( .*)?"))
def test_any_text_is_rules_or_a_rule_error(text: str) -> None:
    try:
        parsed = parse_rules(text)
    except RuleError:
        return
    assert parse_rules("".join(f"{rule}\n" for rule in parsed)) == parsed


NAMES = {"good.example": ["9.9.9.9", "10.137.0.5"], "bad.example": ["10.0.0.1"], "unheard.example": None}


@pytest.mark.parametrize(
    ("text", "flow", "decides"),
    [
        ("action=accept", Flow(ip_address("9.9.9.9"), "tcp", 80), 0),
        ("action=drop proto=udp\naction=accept", Flow(ip_address("9.9.9.9"), "tcp", 80), 1),
        ("action=accept proto=tcp dstports=443", Flow(ip_address("9.9.9.9"), "tcp", 80), None),
        ("action=accept proto=tcp dstports=80-443", Flow(ip_address("9.9.9.9"), "tcp", 80), 0),
        ("action=accept dst4=9.9.9.0/24", Flow(ip_address("2001:db8::1"), "tcp", 80), None),
        ("action=accept dst6=2001:db8::/32", Flow(ip_address("2001:db8::1"), "tcp", 80), 0),
        ("action=accept specialtarget=dns", Flow(ip_address("10.139.1.2"), "udp", 53), 0),
        ("action=accept specialtarget=dns", Flow(ip_address("10.139.1.2"), "udp", 54), None),
        ("action=accept specialtarget=dns", Flow(ip_address("9.9.9.9"), "udp", 53), None),
        ("action=accept dsthost=good.example", Flow(ip_address("9.9.9.9"), "tcp", 80), 0),
        ("action=accept dsthost=good.example", Flow(ip_address("10.137.0.5"), "tcp", 80), None),
        ("action=accept dsthost=other.example", Flow(ip_address("9.9.9.9"), "tcp", 80), None),
        ("action=drop dsthost=bad.example\naction=accept", Flow(ip_address("10.0.0.1"), "tcp", 80), 0),
        ("action=drop dsthost=bad.example\naction=accept", Flow(ip_address("9.9.9.9"), "tcp", 80), 1),
        ("action=drop dsthost=unheard.example\naction=accept", Flow(ip_address("9.9.9.9"), "tcp", 80), 0),
        ("action=accept dsthost=unheard.example", Flow(ip_address("9.9.9.9"), "tcp", 80), None),
        ("action=accept dsthost=x.example", Flow(ip_address("9.9.9.9"), "tcp", 80, host="x.example"), 0),
    ],
)
def test_the_first_rule_that_fits_decides(text: str, flow: Flow, decides: int | None) -> None:
    assert find_rule(parse_rules(text), flow, NAMES) == decides


@pytest.mark.parametrize(
    ("address", "may"),
    [
        ("9.9.9.9", True), ("2606:2800:220:1::1", True), ("10.137.0.5", False), ("10.138.1.5", False),
        ("192.168.1.1", False), ("172.16.0.1", False), ("127.0.0.1", False), ("169.254.1.1", False), ("0.0.0.0", False),
        ("224.0.0.1", False), ("255.255.255.255", False), ("100.64.0.1", False), ("::1", False), ("::", False),
        ("fd09:24ef:4179::a89:5", False), ("fe80::1", False), ("ff02::1", False), ("::ffff:10.137.0.5", False),
        ("::ffff:9.9.9.9", True), ("2002:0a89:0005::1", False),
    ],
)  # fmt: skip
def test_a_name_opens_addresses_of_the_world_only(address: str, may: bool) -> None:
    assert may_open(ip_address(address)) is may
