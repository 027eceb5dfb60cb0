"""work → sys-firewall → sys-net → a peer of the test: cables between real guests, changed and broken while they run."""

from __future__ import annotations

import http.server
import json
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.live.peer import Peer

if TYPE_CHECKING:
    from tests.live.conftest import LiveSystem

WORLD = "10.139.2.1"
TEMPLATE = "debian-13"
QUBES = {
    "net-work": ("blue", "netvm=net-wall"),
    "net-wall": ("orange", "netvm=net-door", "provides_network=True"),
    "net-door": ("red", "netvm=", "provides_network=True"),
}
ANSWER_LIMIT_S = 30
FETCH = (
    "import socket, sys; s = socket.create_connection((sys.argv[1], int(sys.argv[2])), 4); "
    "s.sendall(b'GET / HTTP/1.0\\r\\n\\r\\n'); print(s.recv(999))"
)


@pytest.fixture(scope="module")
def chain(system: LiveSystem) -> Iterator[Peer]:
    """The three qubes, halted at the end and gone; net-door is joined to the peer that the fixture gives."""
    for name, (label, *properties) in reversed(QUBES.items()):
        options = [word for text in properties for word in ("--prop", text)]
        system.cloison("create", "--template", TEMPLATE, "--label", label, *options, name)
    with Peer(system.root / "peer") as peer:
        system.cloison("features", "net-door", "uplink", f"join:{peer.path}")
        system.cloison("start", "net-work")
        yield peer
        for name in QUBES:
            system.cloison("kill", name, expect=None)
            system.cloison("remove", "--yes", name, expect=None)


def ping(system: LiveSystem, target: str = WORLD, *, count: int = 1) -> bool:
    done = system.run(
        "net-work", "ping", "-c", str(count), "-i", "0.2", "-W", "2", target, user="root", expect=None
    )  # fmt: skip
    return done.returncode == 0


def wait_for_answer(system: LiveSystem, target: str = WORLD) -> None:
    deadline = time.monotonic() + ANSWER_LIMIT_S
    while not ping(system, target):
        assert time.monotonic() < deadline, f"{target} did not answer net-work within {ANSWER_LIMIT_S} s"


def until_silent(system: LiveSystem, target: str = WORLD) -> None:
    deadline = time.monotonic() + ANSWER_LIMIT_S
    while ping(system, target):
        assert time.monotonic() < deadline, f"{target} answered net-work for {ANSWER_LIMIT_S} s more"


def cards(system: LiveSystem, qube: str) -> list[str]:
    said = system.run(qube, "ls", "/sys/class/net").stdout.decode().split()
    return sorted(name for name in said if name != "lo")


@contextmanager
def sending(system: LiveSystem, target: str, *options: str) -> Iterator[None]:
    """net-work sends to an address without pause (no deadline: with one, ping would end at the first refusal)."""
    flood = system.start(
        "run", "--user", "root", "net-work", "--", "ping", "-i", "0.05", "-W", "1", "-c", "9999", *options, target,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        yield
    finally:
        flood.kill()
        flood.wait()
        system.run("net-work", "pkill", "ping", user="root", expect=None)


def test_a_qube_reaches_the_world_through_its_chain(system: LiveSystem, chain: Peer) -> None:
    wait_for_answer(system)
    assert {source for source, target in chain.packets() if target == WORLD} == {"10.139.2.2"}
    assert cards(system, "net-work") == ["eth0"]
    assert len(cards(system, "net-wall")) == 2
    rows = {row["name"]: row for row in system.json("list")}
    assert not any(rows[name]["network_trouble"] for name in QUBES)


def test_a_netvm_in_use_is_not_shut_down_and_a_loop_is_named(system: LiveSystem, chain: Peer) -> None:
    said = system.cloison("shutdown", "net-wall", expect=None)
    assert said.returncode != 0 and b"net-work" in said.stderr
    said = system.cloison("prefs", "net-door", "netvm", "net-wall", expect=None)
    assert b"net-door -> net-wall -> net-door" in said.stderr


def test_a_netvm_is_changed_and_taken_away_while_the_qube_runs(system: LiveSystem, chain: Peer) -> None:
    with sending(system, "198.51.100.1"):
        system.cloison("prefs", "net-work", "netvm", "")
        assert cards(system, "net-work") == []
        time.sleep(0.5)
        before = len(chain.frames)
        time.sleep(1)
        assert len(chain.frames) == before, "packets of a qube without a netvm arrived"
        system.cloison("prefs", "net-work", "netvm", "net-door")
        wait_for_answer(system)
        assert len(cards(system, "net-wall")) == 1
        system.cloison("prefs", "net-work", "netvm", "net-wall")
        wait_for_answer(system)
        assert len(cards(system, "net-door")) == 2


def test_a_killed_netvm_finds_its_clients_again_and_nothing_leaks_meanwhile(system: LiveSystem, chain: Peer) -> None:
    with sending(system, "198.51.100.2", "-i", "0.005", "-s", "1400"):
        system.cloison("kill", "net-wall")
        time.sleep(0.3)
        before = len(chain.frames)
        time.sleep(1)
        assert len(chain.frames) == before, "packets of a qube whose netvm is dead arrived"
        system.cloison("start", "net-wall")
        wait_for_answer(system)
    (row,) = system.json("list", "net-work")
    assert row["state"] == "Running"


def test_a_netvms_agent_that_is_killed_is_told_its_clients_and_their_rules_again(
    system: LiveSystem, chain: Peer
) -> None:
    refused = "198.51.100.66"
    system.cloison("firewall", "add", "net-work", "drop", refused, "--before", "0")
    until_silent(system, refused)
    before = len(chain.packets())
    with sending(system, refused):
        system.run("net-wall", "systemctl", "kill", "-s", "KILL", "cloison-agent", user="root", expect=None)
        deadline = time.monotonic() + ANSWER_LIMIT_S
        while system.run("net-wall", "true", expect=None).returncode:
            assert time.monotonic() < deadline, "no other agent took over"
        wait_for_answer(system)
        system.cloison("firewall", "add", "net-work", "drop", WORLD, "--before", "0")
        until_silent(system)
        system.cloison("firewall", "remove", "net-work", "0")
        wait_for_answer(system)
    assert refused not in {target for _, target in chain.packets()[before:]}
    system.cloison("firewall", "reset", "net-work")


def test_cables_outlive_the_daemon(system: LiveSystem, chain: Peer) -> None:
    system.kill_daemon()
    system.cloison("list")
    wait_for_answer(system)


def test_rules_hold_at_once_are_counted_and_end_in_time(system: LiveSystem, chain: Peer) -> None:
    wait_for_answer(system)
    system.cloison("firewall", "add", "net-work", "drop", WORLD, "icmp", "--before", "0")
    until_silent(system)
    counted = json.loads(system.cloison("firewall", "list", "--counters", "--json", "net-work").stdout)
    assert counted["rules"][0]["packets"] > 0 and counted["rules"][1]["action"] == "accept"
    assert ping(system, "198.51.100.9"), "only that address is refused"
    said = system.cloison("net", "check", "--proto", "icmp", "net-work", WORLD, expect=1).stdout
    assert b"net-work -> net-wall: rule 0" in said
    system.cloison("firewall", "remove", "net-work", "0")
    wait_for_answer(system)
    system.cloison("firewall", "add", "net-work", "drop", "expire=+8s", "--before", "0")
    until_silent(system)
    wait_for_answer(system)
    system.cloison("firewall", "reset", "net-work")


def test_a_rule_with_a_name_follows_its_addresses_but_not_inside(system: LiveSystem, chain: Peer) -> None:
    here, there, name = "9.9.9.9", "9.9.9.10", "moving.example"
    chain.names[name] = (here, WORLD)
    system.cloison("firewall", "add", "net-work", "drop", "--before", "0")
    for words in (("dns",), (name, "icmp")):
        system.cloison("firewall", "add", "net-work", "accept", *words, "--before", "0")
    wait_for_answer(system, here)
    assert here.encode() in system.run("net-work", "getent", "ahostsv4", name).stdout
    assert ("10.139.2.2", "10.139.2.3") in chain.packets(), "nobody asked the resolver of the way out"
    assert not ping(system, WORLD), "a name opened an address inside"
    assert not ping(system, there)
    chain.names[name] = (there,)
    wait_for_answer(system, there)
    assert not ping(system, here)
    system.cloison("firewall", "reset", "net-work")
    wait_for_answer(system)


def test_a_disposables_first_command_finds_its_network(system: LiveSystem, chain: Peer) -> None:
    system.cloison("prefs", "net-work", "template_for_dispvms", "True")
    system.run("--dispvm=net-work", "ping", "-c", "1", "-W", "10", WORLD, user="root")


def test_the_netvms_own_rules_bind_its_clients_too(system: LiveSystem, chain: Peer) -> None:
    system.cloison("firewall", "add", "net-wall", "drop", WORLD, "--before", "0")
    until_silent(system)
    system.cloison("firewall", "reset", "net-wall")
    wait_for_answer(system)


def test_spoofed_packets_stop_at_the_netvm(system: LiveSystem, chain: Peer) -> None:
    program = (
        "import socket, struct; s = socket.socket(17, 3); s.bind(('eth0', 0)); "
        "own = open('/sys/class/net/eth0/address').read().strip(); m = lambda t: bytes.fromhex(t.replace(':', '')); "
        "gate = open('/proc/net/arp').read().split()[-3]; "
        "a = bytes([10, 137, 9, 9, 198, 51, 100, 77]); h = struct.pack('!BBHHHBBH8s', 69, 0, 28, 7, 0, 64, 17, 0, a); "
        "c = sum(struct.unpack('!10H', h)); c = (c & 65535) + (c >> 16); c = ~((c & 65535) + (c >> 16)) & 65535; "
        "p = h[:10] + struct.pack('!H', c) + h[12:] + struct.pack('!HHHH', 5, 9, 8, 0); "
        "[s.send(m(gate) + m(own) + b'\\x08\\x00' + p) for _ in range(20)]; "
        "[s.send(m(gate) + b'\\x02' * 6 + b'\\x08\\x00' + p) for _ in range(20)]"
    )
    system.run("net-work", "python3", "-c", program, user="root")
    wait_for_answer(system)
    assert not [1 for _, target in chain.packets() if target == "198.51.100.77"]
    counted = json.loads(system.cloison("firewall", "list", "--counters", "--json", "net-work").stdout)
    assert counted["spoofed"] >= 40


def test_rules_that_cannot_be_loaded_close_the_cable_and_say_so(system: LiveSystem, chain: Peer) -> None:
    system.run("net-wall", "mv", "/usr/sbin/nft", "/usr/sbin/nft.away", user="root")
    system.cloison("firewall", "add", "net-work", "accept", "tcp", "80")
    until_silent(system)
    (row,) = system.json("list", "net-work")
    assert "nft" in row["network_trouble"]
    system.run("net-wall", "mv", "/usr/sbin/nft.away", "/usr/sbin/nft", user="root")
    system.cloison("firewall", "reset", "net-work")
    wait_for_answer(system)


class _Hello(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"hello")

    def log_message(self, format: str, *args: object) -> None: ...


def test_the_hosts_loopback_is_reached_by_a_named_port_alone(system: LiveSystem, chain: Peer) -> None:
    servers = [http.server.HTTPServer(("127.0.0.1", 0), _Hello) for _ in range(2)]
    for server in servers:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    named, other = (str(server.server_address[1]) for server in servers)

    def fetch(address: str, port: str) -> bytes:
        return system.run("net-work", "python3", "-c", FETCH, address, port, expect=None).stdout

    try:
        system.cloison("features", "net-door", "uplink-host-ports", named)
        system.cloison("features", "net-door", "uplink", "passt")
        deadline = time.monotonic() + ANSWER_LIMIT_S
        while b"hello" not in fetch(WORLD, named):
            assert time.monotonic() < deadline, f"the named port did not answer within {ANSWER_LIMIT_S} s"
        assert fetch(WORLD, other) == b""
        assert Path("/usr/bin/passt").exists()
    finally:
        for server in servers:
            server.shutdown()
