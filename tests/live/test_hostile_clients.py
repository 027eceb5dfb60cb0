"""Two clients of one netvm, joined by real cables: one throws everything it has, and everywhere somebody listens.

What the filter does in a kernel, frame by frame, with it and without: tests/unit/guest/test_packets.py.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from tests.live.peer import HELLO, Peer
from tests.unit.guest import frames as f
from tests.unit.guest.attacks import Aim, attacks

from cloison.client import Client, Refused, calls
from cloison.wire.nftables import link_local

if TYPE_CHECKING:
    from tests.live.conftest import LiveSystem

TEMPLATE = "debian-13"
EVIL, GOOD, WALL = "hc-evil", "hc-good", "hc-wall"
WORLD, WORLD6, OUT = "198.51.100.80", "2001:db8:1::80", "10.139.2.2"
LIMIT_S = 60
OFF_LIMITS = ("udp", "666"), ("tcp", "82")
"""Ports of the world that the hostile client's own rules close; everything else is open to it."""

SEND = """
import socket, sys
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW); s.bind(("eth0", 0))
for line in sys.stdin:
    try: s.send(bytes.fromhex(line))
    except OSError as error: print(len(line) // 2, error, file=sys.stderr)
"""
LISTEN = """
import json, select, socket, sys
if sys.argv[1] == "card":
    ears = [socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))]
    ears[0].bind(("eth0", 3))
else:
    ears = [socket.socket(family, socket.SOCK_DGRAM) for family in (socket.AF_INET, socket.AF_INET6)]
    ears[1].setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    ears[0].bind(("0.0.0.0", 7777)); ears[1].bind(("::", 7777))
heard, ending = [], False
print("listening", flush=True)
while ready := select.select([*ears, *([] if ending else [sys.stdin])], [], [], 1 if ending else None)[0]:
    for one in ready:
        if one is sys.stdin: ending = True
        else: heard.append(one.recv(70000).hex())
print(json.dumps(heard))
"""
FETCH = """
import socket, sys
s = socket.create_connection((sys.argv[1], 80), 10); s.sendall(b"x"); print(s.recv(99).decode())
"""


class Place(NamedTuple):
    system: LiveSystem
    peer: Peer
    aim: Aim

    def neighbours(self, qube: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self.system.run(qube, "ip", "-j", "neigh", user="root").stdout)
        return found

    def routes(self, qube: str) -> bytes:
        return self.system.run(
            qube, "sh", "-c", "ip route; ip -6 route; ip -br address | sed 's/@.*//'", user="root"
        ).stdout

    def send(self, frames: list[bytes]) -> None:
        lines = "".join(f"{frame.hex()}\n" for frame in frames).encode()
        self.system.run(EVIL, "python3", "-c", SEND, user="root", stdin=lines)

    def answers(self, qube: str, target: str, *options: str) -> bool:
        done = self.system.run(qube, "ping", "-c", "1", "-W", "3", *options, target, user="root", expect=None)
        return done.returncode == 0

    def wait_for_answer(self, qube: str, target: str = WORLD) -> None:
        deadline = time.monotonic() + LIMIT_S
        while not self.answers(qube, target):
            assert time.monotonic() < deadline, f"{target} did not answer {qube} within {LIMIT_S} s"


@pytest.fixture(scope="module")
def place(system: LiveSystem) -> Iterator[Place]:
    def get(name: str, property: str) -> str:
        return system.cloison("prefs", name, property).stdout.decode().strip()

    create = ("create", "--template", TEMPLATE, "--label", "red", "--prop")
    system.cloison(*create, "netvm=", "--prop", "provides_network=True", WALL)
    system.cloison("features", WALL, "ipv6", "1")
    for name in (EVIL, GOOD):
        system.cloison(*create, f"netvm={WALL}", name)
    system.cloison("prefs", GOOD, "mac", "00:16:3e:5e:6c:77")  # all have the same one otherwise
    for proto, port in OFF_LIMITS:
        system.cloison("firewall", "add", EVIL, "drop", proto, port, "--before", "0")
    with Peer(system.root / "hc-peer") as peer:
        system.cloison("features", WALL, "uplink", f"join:{peer.path}")
        system.cloison("start", EVIL)
        system.cloison("start", GOOD)
        cards = json.loads(system.run(EVIL, "ip", "-j", "neigh", user="root").stdout)
        gate = get(EVIL, "visible_gateway")
        (gate_mac,) = {row["lladdr"] for row in cards if row["dst"] == gate}
        ip, ip6, mac = (get(EVIL, each) for each in ("ip", "ip6", "mac"))
        other, other6, other_mac = (get(GOOD, each) for each in ("ip", "ip6", "mac"))
        gate6 = get(EVIL, "visible_gateway6")
        aim = Aim(ip, ip6, mac, other, other6, other_mac, gate, gate6, gate_mac, OUT, WORLD, WORLD6)
        place = Place(system, peer, aim)
        for name in (EVIL, GOOD):
            place.wait_for_answer(name)
        yield place
        for name in (EVIL, GOOD, WALL):
            system.cloison("kill", name, expect=None)
            system.cloison("remove", "--yes", name, expect=None)


@contextmanager
def listening(system: LiveSystem, qube: str, where: str) -> Iterator[list[bytes]]:
    """What arrives there meanwhile is in the list afterwards."""
    heard: list[bytes] = []
    ears = system.start(
        "run", "--user", "root", qube, "--", "python3", "-c", LISTEN, where,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert ears.stdout is not None and ears.stdout.readline() == b"listening\n"
        yield heard
        said, _ = ears.communicate(timeout=LIMIT_S)
        heard += [bytes.fromhex(frame) for frame in json.loads(said)]
    finally:
        ears.kill()
        ears.wait()


def test_ipv6_reaches_the_world_when_its_feature_is_set(place: Place) -> None:
    for name in (EVIL, GOOD):
        assert place.answers(name, WORLD6)
    said = place.system.run(EVIL, "python3", "-c", FETCH, WORLD6).stdout
    assert said.strip() == HELLO
    assert {source for source, target in place.peer.packets6() if target == WORLD6} == {"fd09:24ef:4179:2::2"}


def test_nothing_hostile_arrives_anywhere(place: Place) -> None:
    system, aim = place.system, place.aim
    before = place.routes(WALL), place.routes(GOOD)
    thrown = {
        name: attacks(b"<hostile %03d>" % number, aim)[name]
        for number, name in enumerate(attacks(b"", aim))
        if name != "jumbo"  # an honest one among them
    }
    sent_before = len(place.peer.frames)
    with listening(system, GOOD, "card") as at_good, listening(system, WALL, "port") as at_wall:
        place.send([frame for frames in thrown.values() for frame in frames])
        honest = f.ip4(aim.ip, WORLD, f.UDP, f.udp(aim.ip, WORLD, 5, 9000, b"<honest>"))
        place.send([f.ether(aim.gate_mac, aim.mac, f.IPV4, honest)])
        say = "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'<own>', ('127.0.0.1', 7777))"
        system.run(WALL, "python3", "-c", say)
        assert place.answers(GOOD, WORLD) and place.answers(EVIL, WORLD)
    at_world = place.peer.frames[sent_before:]
    assert [1 for frame in at_world if b"<honest>" in frame], "the world's ears are deaf"
    assert at_wall == [b"<own>"]
    arrived = {
        (name, where)
        for number, name in enumerate(attacks(b"", aim))
        for where, frames in (("the other client", at_good), ("the world", at_world))
        if any(b"<hostile %03d>" % number in frame for frame in frames)
    }
    assert not arrived
    assert at_good, "the other client's ears are deaf"
    cards = {frame[6:12] for frame in at_good}
    (gate_mac,) = {row["lladdr"] for row in place.neighbours(GOOD) if row["dst"] == aim.gate}
    assert cards <= {f.mac(aim.other_mac), f.mac(gate_mac)}, "somebody else's frames arrived"
    assert (place.routes(WALL), place.routes(GOOD)) == before
    true = {aim.ip, aim.ip6, link_local(aim.mac)}
    believed = [*place.neighbours(WALL), *place.neighbours(GOOD)]
    assert [row for row in believed if row.get("lladdr") == aim.mac and row["dst"] not in true] == []
    others = {row.get("lladdr") for row in believed if row["dst"] in (aim.other, aim.other6)}
    assert others <= {aim.other_mac}
    counted = json.loads(system.cloison("firewall", "list", "--counters", "--json", EVIL).stdout)
    assert counted["spoofed"] > 30


def test_two_clients_do_not_reach_each_other_by_the_kernels_own_means(place: Place) -> None:
    aim = place.aim
    with listening(place.system, GOOD, "card") as at_good:
        for target in (aim.other, aim.other6, f"{link_local(aim.other_mac)}%eth0", "224.0.0.1", "255.255.255.255"):
            assert not place.answers(EVIL, target, "-W", "1", *(("-b",) if "." in target else ())), f"{target} answered"
        place.answers(EVIL, "ff02::1%eth0", "-W", "1")  # oneself answers
        assert place.answers(GOOD, aim.gate)
    strangers = [frame for frame in at_good if f.packed(aim.ip) in frame or f.packed(aim.ip6) in frame]
    assert at_good and not strangers


def test_packets_as_large_as_the_cable_leave_in_pieces_that_the_world_takes(place: Place) -> None:
    before = len(place.peer.frames)
    place.system.run(EVIL, "ping", "-c", "2", "-W", "2", "-s", "30000", "-M", "dont", WORLD, user="root", expect=None)
    deadline = time.monotonic() + LIMIT_S
    while sum(len(frame) for frame in place.peer.frames[before:]) < 60_000:
        assert time.monotonic() < deadline, "the large packets did not arrive"
        time.sleep(0.1)
    assert max(len(frame) for frame in place.peer.frames) <= 1514


def test_a_flood_leaves_the_other_client_its_network(place: Place) -> None:
    flood = place.system.start(
        "run", "--user", "root", EVIL, "--", "ping", "-f", "-w", "60", "-s", "1000", WORLD,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        before = len(place.peer.frames)
        deadline = time.monotonic() + LIMIT_S
        while len(place.peer.frames) < before + 100:
            assert time.monotonic() < deadline, "it floods nothing"
            time.sleep(0.05)
        place.wait_for_answer(GOOD)
        assert flood.poll() is None, "the flood was over before"
    finally:
        flood.kill()
        flood.wait()
        place.system.run(EVIL, "pkill", "ping", user="root", expect=None)


def test_as_many_rules_as_a_request_holds_are_in_force_in_order(place: Place) -> None:
    last, accept = "198.51.100.82", "action=accept proto=tcp dst4=192.0.2.{}/32 dstports=443-443"
    rules = [accept.format(number % 256) for number in range(1000)]
    client = Client(place.system.layout)
    client.do(calls.firewall_set(EVIL, [*rules, f"action=drop dst4={last}/32", "action=accept"]))
    deadline = time.monotonic() + LIMIT_S
    while place.answers(EVIL, last):
        assert time.monotonic() < deadline, "the last but one rule does not hold"
    assert place.answers(EVIL, WORLD)
    with pytest.raises(Refused):
        client.do(calls.firewall_set(EVIL, [*rules * 10, "action=drop"]))
    assert place.answers(EVIL, WORLD), "rules that were refused are in force"
    place.system.cloison("firewall", "reset", EVIL)


def test_clients_that_come_at_once_are_all_let_in(place: Place) -> None:
    names = [f"hc-{number}" for number in range(3)]
    client = Client(place.system.layout)
    try:
        for name in names:
            client.do(calls.clone(GOOD, name))
        starting = [place.system.start("start", name) for name in names]
        assert [one.wait(LIMIT_S * 2) for one in starting] == [0] * len(names)
        for name in names:
            place.wait_for_answer(name)
        rows = {row["name"]: row for row in place.system.json("list")}
        assert not any(rows[name]["network_trouble"] for name in (*names, EVIL, GOOD))
        others = [place.system.cloison("prefs", name, "ip").stdout.decode().strip() for name in names]
        assert len(set(others)) == len(names) and not place.answers(names[0], others[1], "-W", "1")
    finally:
        for name in names:
            with suppress(Refused):
                client.do(calls.power("Kill", name))
            client.do(calls.remove(name))


def test_a_rule_that_ends_ends_an_open_connection(place: Place) -> None:
    system, world = place.system, "198.51.100.81"
    system.cloison("firewall", "add", EVIL, "drop", world, "--before", "0")
    system.cloison("firewall", "add", EVIL, "accept", world, "expire=+7s", "--before", "0")
    talk = system.start(
        "run", "--user", "root", EVIL, "--", "ping", "-i", "0.2", "-c", "1000", world,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip

    def heard() -> int:
        return sum(target == world for _, target in place.peer.packets())

    try:
        deadline = time.monotonic() + LIMIT_S
        while heard() < 3:
            assert time.monotonic() < deadline, "the rule that accepts it let nothing pass"
            time.sleep(0.1)
        while True:
            before = heard()
            time.sleep(2)
            if heard() == before:
                break
            assert time.monotonic() < deadline, "the connection outlived its rule"
        assert talk.poll() is None
    finally:
        talk.kill()
        talk.wait()
        system.run(EVIL, "pkill", "ping", user="root", expect=None)
    assert place.answers(EVIL, WORLD)
