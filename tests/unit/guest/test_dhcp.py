"""Leases: what the network beyond a card says, as far as it makes sense, and what becomes of it in a real kernel."""

from __future__ import annotations

import json
import stat
import subprocess
from pathlib import Path

import pytest

from cloison_agent.dhcp import PROGRAM, Lease, parse_lease

from .test_network import PREPARE, namespaced

SCRIPT = Path(__file__).resolve().parents[3] / "guest/files/usr/lib/cloison/tell-lease"
WHOLE = Lease("192.0.2.15", 24, "192.0.2.2", ("192.0.2.3", "192.0.2.4"))


def told(event: str, **variables: str) -> str:
    """What the script says when udhcpc calls it."""
    done = subprocess.run([SCRIPT, event], env=variables, capture_output=True, text=True, check=True)
    return done.stdout.removesuffix("\n")


@pytest.mark.parametrize("event", ["bound", "renew"])
def test_the_script_tells_a_lease_in_one_line(event: str) -> None:
    line = told(event, ip="192.0.2.15", mask="24", router="192.0.2.2", dns="192.0.2.3 192.0.2.4", lease="3600")
    assert parse_lease(line) == WHOLE


def test_a_network_without_a_way_on_has_neither_gateway_nor_resolver() -> None:
    assert parse_lease(told("bound", ip="192.0.2.15", mask="24")) == Lease("192.0.2.15", 24, "", ())


def test_a_lease_that_ends_is_told_and_other_events_are_not() -> None:
    assert parse_lease(told("deconfig", interface="eth0")) is None
    assert told("leasefail") == "" and told("nak", message="go away") == ""


def test_the_agent_calls_the_script_that_is_in_the_guest() -> None:
    assert PROGRAM[PROGRAM.index("-s") + 1] == "/usr/lib/cloison/tell-lease"
    assert SCRIPT.stat().st_mode & stat.S_IXUSR


@pytest.mark.parametrize(
    "line",
    [
        "lease", "lease\tbound", "lease\tbound\t192.0.2.15\t24\t192.0.2.2", "leased\tbound\t192.0.2.15\t24\t\t",
        "lease\tbound\t\t24\t\t", "lease\tbound\t192.0.2.15\t0\t\t", "lease\tbound\t192.0.2.15\t33\t\t",
        "lease\tbound\t192.0.2.15\t\t\t", "lease\tbound\t127.0.0.1\t8\t\t", "lease\tbound\t0.0.0.0\t8\t\t",
        "lease\tbound\t224.0.0.1\t8\t\t", "lease\tbound\t192.0.2.15\t24\tgateway\t",
        "lease\tbound\t192.0.2.15\t24\t192.0.2.2\t192.0.2.3 options", "lease\tbound\t192.0.2.15\t24\t\tfe80::1",
        "lease\tbound\t192.0.2.15; reboot\t24\t\t", "lease\tbound\t192.0.2.15\t24\t\t\tmore",
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_no_lease(line: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        parse_lease(line)


def test_leases_come_change_and_go(tmp_path: Path) -> None:
    """The agent's own code with a program in udhcpc's place that tells what the test wishes."""
    program = tmp_path / "program"
    program.write_text(
        "#!/bin/sh\n"
        "echo unrelated\n"
        "printf 'lease\\tbound\\t192.0.2.15\\t24\\t192.0.2.2\\t192.0.2.3\\n'; read _ < go1\n"
        "printf 'lease\\trenew\\t192.0.2.15\\t24\\t192.0.2.2\\t192.0.2.3\\n'\n"
        "printf 'lease\\tbound\\tnonsense\\t24\\t\\t\\n'\n"
        "printf 'lease\\tbound\\t198.51.100.7\\t25\\t\\t\\n'; read _ < go2\n"
        "printf 'lease\\tdeconfig\\t\\t\\t\\t\\n'; read _ < go3\n"
    )
    program.chmod(0o755)
    said = namespaced(
        PREPARE
        + f"""
import os
os.chdir({str(tmp_path)!r})
for count in (1, 2, 3): os.mkfifo(f"go{{count}}")
from cloison_agent import dhcp
from cloison_agent.loop import Loop
class Agent: loop = Loop()
dhcp.PROGRAM = ({str(program)!r},)
written, answers, applied = [], [], []
network._write = lambda path, text: path == network.RESOLV_CONF and written.append(text)
network.is_behind = lambda card, port: card.name in ("eth7", "eth0") and port == "0000:00:10.3"
it = network.network
class Firewall:
    def apply_links(self, links, then): applied.append(list(links.resolvers))
it._firewall = Firewall()
it._told_downlinks = Downlinks("10.137.0.2", "", (), ())
for again in range(2):
    it.configure(Agent, {{"uplink": {{"port": "0000:00:10.3"}}}}, lambda **answer: answers.append(answer))
shown = []
def step(count):
    while len(written) < count: Agent.loop.step(5)
    shown.append([ip("-o", "-4", "address", "show", "eth0"), ip("route")])
for count in (1, 2, 3):
    step(count)
    with open(f"go{{count}}", "w") as go: go.write("on\\n")
it.configure(Agent, {{"uplink": None}}, lambda **answer: answers.append(answer))
assert it._client is None
print(json.dumps([answers, written, applied, shown]))
"""
    )
    answers, written, applied, shown = json.loads(said)
    assert answers == [{"interface": "eth0"}, {"interface": "eth0"}, {}]
    assert written == ["nameserver 192.0.2.3\n", "", "", ""]
    assert applied == [["192.0.2.3"], [], []]
    (first, first_routes), (second, second_routes), (third, third_routes) = shown
    assert "inet 192.0.2.15/24" in first
    assert "default via 192.0.2.2 dev eth0 proto static src 192.0.2.15 onlink" in first_routes
    assert "inet 198.51.100.7/25" in second and "192.0.2.15" not in second and "default" not in second_routes
    assert third == "" and third_routes == ""


def test_a_card_is_found_by_the_port_that_it_is_behind(tmp_path: Path) -> None:
    from cloison_agent import network
    from cloison_agent.netlink import Card

    behind = tmp_path / "pci0000:00/0000:00:10.3/0000:04:00.0/virtio1"
    behind.mkdir(parents=True)
    (tmp_path / "cards/eth5").mkdir(parents=True)
    (tmp_path / "cards/eth5/device").symlink_to(behind)
    before, network.CARDS = network.CARDS, str(tmp_path / "cards")
    try:
        card = Card(5, "eth5", "52:54:00:12:34:56", False)
        assert network.is_behind(card, "0000:00:10.3")
        assert not network.is_behind(card, "0000:00:10.2")
        assert not network.is_behind(card._replace(name="vif4"), "0000:00:10.3")
    finally:
        network.CARDS = before
