"""The packet filter as text: golden files, and what a change touches. That the kernel obeys it: test_packets.py."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cloison.wire.firewall import parse_rules
from cloison.wire.network import Downlink, Downlinks
from cloison.wire.nftables import link_local, link_text, names_text, removal_text, set_names, whole_text

GOLDEN = Path(__file__).with_name("golden")
RULES = parse_rules("""\
action=accept specialtarget=dns
action=accept proto=tcp dst4=192.0.2.0/24 dstports=80-443
action=accept dsthost=good.example proto=tcp dstports=443
action=drop dsthost=bad.example
action=drop dsthost=unheard.example proto=udp
action=accept proto=icmp icmptype=8
action=accept proto=icmp dst6=2001:db8::/32 icmptype=128
action=accept proto=icmp dst4=192.0.2.1
action=accept proto=tcp specialtarget=dns dstports=50-60
action=accept proto=icmp specialtarget=dns
action=drop comment=the rest
""")
NAMES = {"good.example": ["9.9.9.9", "10.137.0.7", "2606:2800:220:1::1"], "bad.example": ["10.0.0.1"],
         "unheard.example": None}  # fmt: skip
PLAIN = Downlink("vif7", "fe:ff:ff:00:00:07", "work", "10.137.0.7", "", "00:16:3e:5e:6c:07", "10.137.0.7", "", 65520)
SIX = PLAIN._replace(ip6="fd09:24ef:4179::a89:7", visible_gateway="10.137.0.2")
HIDDEN = PLAIN._replace(visible_ip="192.168.1.5", visible_gateway="192.168.1.1")
GATEWAYS = ("10.137.0.2", "fd09:24ef:4179::a89:2")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("base", whole_text(Downlinks(*GATEWAYS, ("192.0.2.53", "2001:db8::53", "192.0.2.54"), ()), ())),
        ("inner-netvm", whole_text(Downlinks(*GATEWAYS, ("10.139.1.1", "10.139.1.2"), (PLAIN,)), ())),
        ("client", link_text(PLAIN, *GATEWAYS, RULES, NAMES, 0x51)),
        ("client-ipv6", link_text(SIX, *GATEWAYS, RULES[:1], {}, 0x52, ["name0-vif7-4", "name0-vif7-6"])),
        ("client-translated", link_text(HIDDEN, *GATEWAYS, RULES[-1:], {}, 0x53)),
        ("name-moved", names_text("vif7", RULES, {**NAMES, "good.example": ["9.9.9.8"]}, "good.example")),
        ("removed", removal_text(HIDDEN, set_names("vif7", RULES))),
    ],
)
def test_text_is_the_golden_file(name: str, text: str) -> None:
    file = GOLDEN / f"{name}.nft"
    if os.environ.get("CLOISON_UPDATE_GOLDEN"):
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
    assert text == file.read_text()


def test_what_only_people_need_stays_in_dom0() -> None:
    rules = parse_rules("action=accept comment=the accountant\n")
    text = link_text(PLAIN._replace(client="secretname"), *GATEWAYS, rules, {}, 1)
    assert "accountant" not in text and "secretname" not in text


def test_the_link_local_address_of_a_card() -> None:
    assert link_local("00:16:3e:5e:6c:0b") == "fe80::216:3eff:fe5e:6c0b"
