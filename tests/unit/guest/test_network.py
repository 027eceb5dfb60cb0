"""The agent's network, in a network namespace of its own: real cards, addresses and routes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

GUEST = Path(__file__).resolve().parents[3] / "guest"
UNSHARE = ("unshare", "--user", "--map-root-user", "--net", "--mount")


def namespaced(script: str) -> str:
    """Output of a Python script that is root of a network namespace of its own."""
    if not (shutil.which("unshare") and shutil.which("ip")):
        pytest.skip("unshare and ip are needed")
    environment = {**os.environ, "PYTHONPATH": str(GUEST)}
    done = subprocess.run([*UNSHARE, sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    if done.returncode and "unshare" in done.stderr:
        pytest.skip("no user namespaces here")
    assert done.returncode == 0, done.stderr
    return done.stdout


PREPARE = """
import json, subprocess
def ip(*words): return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout
ip("link", "add", "eth7", "address", "00:16:3e:5e:6c:00", "type", "veth", "peer", "name", "far")
ip("link", "set", "far", "up")
from cloison.wire.network import Uplink, Downlink, Downlinks
from cloison_agent import network
from cloison_agent.netlink import Netlink
network._write = lambda path, text: None
kernel = Netlink()
def card(mac): return next(card for card in kernel.cards() if card.mac == mac)
"""


def test_an_uplink_is_a_point_to_point_address_and_a_route_through_the_gateway() -> None:
    said = namespaced(
        PREPARE
        + """
uplink = Uplink("00:16:3e:5e:6c:00", "10.137.0.4", "fd09::4", "10.137.0.2", "fd09::2", "fe:ff:ff:00:00:04", (), 9000)
for again in range(2):
    network.set_up_uplink(kernel, card("00:16:3e:5e:6c:00"), uplink)
said = ip("-j", "addr", "show", "eth0"), ip("route"), ip("-6", "route"), ip("neigh", "show", "dev", "eth0")
print(json.dumps(said))
"""
    )
    address, routes, routes6, neighbours = json.loads(said)
    (shown,) = json.loads(address)
    assert shown["mtu"] == 9000 and "UP" in shown["flags"]
    assert [(a["local"], a["prefixlen"]) for a in shown["addr_info"] if a["scope"] == "global"] == [
        ("10.137.0.4", 32),
        ("fd09::4", 128),
    ]
    assert "default via 10.137.0.2 dev eth0 proto static src 10.137.0.4 onlink" in routes
    assert "10.137.0.2 dev eth0 proto static scope link" in routes
    assert "default via fd09::2 dev eth0" in routes6
    assert "10.137.0.2 lladdr fe:ff:ff:00:00:04 PERMANENT" in neighbours
    assert "fd09::2 lladdr fe:ff:ff:00:00:04 PERMANENT" in neighbours


def test_a_downlink_is_named_and_leads_to_its_client_alone() -> None:
    said = namespaced(
        PREPARE
        + """
link = Downlink("vif4", "00:16:3e:5e:6c:00", "work", "10.137.0.4", "", "00:16:3e:00:00:01", "10.137.0.4", "", 9000)
for again in range(2):
    network.set_up_downlink(kernel, card("00:16:3e:5e:6c:00"), link, Downlinks("10.137.0.2", "", (), (link,)))
print(json.dumps([ip("addr", "show", "vif4"), ip("route"), ip("neigh", "show", "dev", "vif4")]))
"""
    )
    address, routes, neighbours = json.loads(said)
    assert "inet 10.137.0.2/32 scope global vif4" in address
    assert "inet6" not in address or Path("/proc/sys/net/ipv6").is_dir()
    assert routes.strip() == "10.137.0.4 dev vif4 proto static scope link src 10.137.0.2"
    assert "10.137.0.4 lladdr 00:16:3e:00:00:01 PERMANENT" in neighbours


def test_a_card_that_comes_later_is_waited_for() -> None:
    said = namespaced(
        PREPARE
        + """
import threading
from cloison_agent.loop import Loop
class Agent: loop = Loop()
answers = []
fields = {"uplink": {"mac": "00:16:3e:00:00:09", "ip": "10.137.0.4", "ip6": "", "gateway": "10.137.0.2",
    "gateway6": "", "gateway_mac": "", "dns": [], "mtu": 1500}}
network.network.configure(Agent, fields, lambda **answer: answers.append(answer))
assert not answers
ip("link", "add", "late", "address", "00:16:3e:00:00:09", "type", "veth", "peer", "name", "late2")
while not answers: Agent.loop.step(5)
print(answers)
network.CARD_TIMEOUT_S = 0.1
fields["uplink"]["mac"] = "00:16:3e:00:00:10"
network.network.configure(Agent, fields, lambda **answer: answers.append(answer))
while len(answers) < 2: Agent.loop.step(5)
print(answers[1])
"""
    )
    assert said.splitlines() == [
        "[{'interface': 'eth0'}]",
        "{'error': 'no network card 00:16:3e:00:00:10 has appeared'}",
    ]


def test_the_rehearsal_loads_a_whole_filter_and_leaves_nothing_of_it() -> None:
    said = namespaced(
        """
import subprocess, sys
sys.stderr = sys.stdout
from cloison_agent import network
loaded = []
run = subprocess.run
def watch(command, **options):
    done = run(command, **options)
    if command[0].endswith("nft"):
        loaded.append(run(["nft", "list", "tables"], capture_output=True, text=True).stdout.count("table"))
    return done
network.subprocess.run = watch
network.rehearse()
print(loaded)
"""
    )
    lines = [line for line in said.splitlines() if "modprobe" not in line]
    if lines[0].startswith("rehearsal: "):
        pytest.skip(f"no packet filter here: {said}")
    assert lines == ["[4, 0]"]
