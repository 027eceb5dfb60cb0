"""work → sys-firewall → sys-net → a peer of the test: cables between real guests, changed and broken while they run."""

from __future__ import annotations

import http.server
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


def cards(system: LiveSystem, qube: str) -> list[str]:
    said = system.run(qube, "ls", "/sys/class/net").stdout.decode().split()
    return sorted(name for name in said if name != "lo")


@contextmanager
def sending(system: LiveSystem, target: str) -> Iterator[None]:
    """net-work sends to an address without pause."""
    flood = system.start(
        "run", "--user", "root", "net-work", "--", "ping", "-i", "0.05", "-W", "1", "-w", "60", target,
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
    with sending(system, "198.51.100.2"):
        system.cloison("kill", "net-wall")
        time.sleep(0.3)
        before = len(chain.frames)
        time.sleep(1)
        assert len(chain.frames) == before, "packets of a qube whose netvm is dead arrived"
        system.cloison("start", "net-wall")
        wait_for_answer(system)
    (row,) = system.json("list", "net-work")
    assert row["state"] == "Running"


def test_cables_outlive_the_daemon(system: LiveSystem, chain: Peer) -> None:
    system.kill_daemon()
    system.cloison("list")
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
