"""A VPN and Tor in qubes of their own, with the scripts of docs/network.md: what leaves is listened to all the time."""

from __future__ import annotations

import re
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.live.peer import HELLO, MAC, UDP, Peer, ip4

if TYPE_CHECKING:
    from tests.live.conftest import LiveSystem

TEMPLATE = "debian-13"
APP, MIDDLE, DOOR, PROVIDER = "vt-app", "vt-middle", "vt-door", "vt-provider"
MADE = (DOOR, MIDDLE, APP, PROVIDER)
DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "network.md"
SCRIPT, CONFIG = "/rw/config/qubes-firewall-user-script", "/rw/config/wg0.conf"
ENDPOINT, PORT = "198.51.100.20", 51820
BEHIND = "192.0.2.55"
"""Only the provider has it; without a tunnel the peer would answer."""
RESOLVER = "10.139.1.1"
NETVM, PROVIDER_SEES = "10.139.2.2", "10.139.2.9"
LIMIT_S = 90
ASK = """
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(3)
for _ in range(5):
    s.sendto(b"who?", (sys.argv[1], int(sys.argv[2])))
    try: print(s.recv(99).decode()); break
    except TimeoutError: pass
"""
RESOLVE = """
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(("10.64.0.1", 53))
while True: q, peer = s.recvfrom(99); s.sendto(b"the provider's resolver", peer)
"""
CONNECT = """
import socket, sys
s = socket.create_connection((sys.argv[1], int(sys.argv[2])), 5); s.sendall(b"x"); print(s.recv(99).decode())
"""
STAND_IN = """
import socket, struct, threading
names = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); names.bind(("0.0.0.0", 5300))
def resolve():
    while True: q, peer = names.recvfrom(99); names.sendto(b"tor resolves", peer)
threading.Thread(target=resolve, daemon=True).start()
server = socket.create_server(("0.0.0.0", 9040))
while True:
    port, peer = server.accept()
    _, to, host = struct.unpack_from("!HH4s", port.getsockopt(socket.SOL_IP, 80, 16))
    port.sendall(b"tor for %s:%d" % (socket.inet_ntoa(host).encode(), to)); port.close()
"""
UNIT = "[Service]\nUser=debian-tor\nExecStart=/usr/bin/python3 /run/stand-in\n"


def documented(heading: str, beginning: str) -> str:
    """The block of the document's chapter that begins so."""
    chapter = DOCUMENT.read_text().partition(f"## {heading}\n")[2].partition("\n## ")[0]
    blocks: list[str] = re.findall(r"```\n(.*?)```", chapter, re.DOTALL)
    (found,) = [text for text in blocks if text.startswith(beginning)]
    return found


class Way:
    """app → middle → door → a peer that answers for the whole world, and passes WireGuard's packets to the provider."""

    def __init__(self, system: LiveSystem) -> None:
        self.system = system
        self.door = Peer(system.root / "vt-door-peer", self._from_door)
        self.provider = Peer(system.root / "vt-provider-peer", self._from_provider)
        self._card = b""

    def _from_door(self, frame: bytes) -> None:
        if is_tunnel(frame):
            self._card = frame[6:12]
            self.provider.send(rewritten(frame, PROVIDER_SEES, NETVM, self._card))
        else:
            self.door.answer(frame)

    def _from_provider(self, frame: bytes) -> None:
        if frame[12:14] == b"\x08\x00" and frame[30:34] == socket.inet_aton(PROVIDER_SEES):
            self.door.send(rewritten(frame, ENDPOINT, NETVM, self._card))
        else:
            self.provider.answer(frame)

    def root(self, qube: str, *command: str, stdin: str = "", expect: int | None = 0) -> str:
        done = self.system.run(qube, *command, user="root", stdin=stdin.encode(), expect=expect)
        return done.stdout.decode().strip()

    def write(self, qube: str, path: str, text: str) -> None:
        self.root(qube, "sh", "-c", f"cat >{path} && chmod 755 {path}", stdin=text)

    def answers(self, target: str) -> bool:
        done = self.system.run(APP, "ping", "-c", "1", "-W", "2", target, user="root", expect=None)
        return done.returncode == 0

    def wait_for_answer(self, target: str = BEHIND) -> None:
        deadline = time.monotonic() + LIMIT_S
        while not self.answers(target):
            assert time.monotonic() < deadline, f"{target} did not answer within {LIMIT_S} s"

    def trouble(self) -> str:
        (row,) = self.system.json("list", APP)
        return str(row["network_trouble"])

    def restart_middle(self) -> None:
        self.root(MIDDLE, "sync")
        self.system.cloison("kill", MIDDLE)
        self.system.cloison("start", MIDDLE)

    @contextmanager
    def sending(self) -> Iterator[None]:
        """The app sends all the time, whatever it hears: pings, a datagram, a name's question, a connection."""
        program = (
            "while sleep 0.5; do for t in {0} 198.51.100.99 2001:db8::9; do ping -c 1 -W 1 $t; done; "
            "echo x >/dev/udp/{0}/9; echo x >/dev/udp/{1}/53; timeout 1 bash -c 'echo x >/dev/tcp/{0}/80'; done"
        )
        app = self.system.start(
            "run", "--user", "root", APP, "--", "bash", "-c", program.format(BEHIND, RESOLVER),
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            yield
            assert app.poll() is None
        finally:
            app.kill()
            app.wait()

    def in_clear(self) -> set[str]:
        """Targets of all packets that left by the door and are not the tunnel's."""
        return {
            f"{frame[23]} to {socket.inet_ntoa(frame[30:34])}" if frame[12:14] == b"\x08\x00" else frame[12:60].hex()
            for frame in list(self.door.frames)
            if not is_tunnel(frame) and frame[12:14] != b"\x08\x06"
        }


def is_tunnel(frame: bytes) -> bool:
    return (
        frame[12:14] == b"\x08\x00" and frame[23] == UDP and frame[30:34] == socket.inet_aton(ENDPOINT)
        and frame[36:38] == struct.pack("!H", PORT)
    )  # fmt: skip


def rewritten(frame: bytes, source: str, target: str, card: bytes) -> bytes:
    """Both netvms have the same address at their uplinks: each sees the other under another one."""
    datagram = frame[34:40] + b"\0\0" + frame[42 : 14 + int.from_bytes(frame[16:18], "big")]  # no checksum
    return card + MAC + b"\x08\x00" + ip4(socket.inet_aton(source), socket.inet_aton(target), UDP, datagram)


@pytest.fixture(scope="module")
def way(system: LiveSystem) -> Iterator[Way]:
    create = ("create", "--template", TEMPLATE, "--label", "green", "--prop")
    way = Way(system)
    for name, netvm in ((DOOR, ""), (MIDDLE, DOOR), (PROVIDER, "")):
        system.cloison(*create, f"netvm={netvm}", "--prop", "provides_network=True", name)
    system.cloison(*create, f"netvm={MIDDLE}", APP)
    with way.door, way.provider:
        system.cloison("features", DOOR, "uplink", f"join:{way.door.path}")
        system.cloison("features", PROVIDER, "uplink", f"join:{way.provider.path}")
        yield way
        for name in reversed(MADE):
            system.cloison("kill", name, expect=None)
            system.cloison("remove", "--yes", name, expect=None)


@pytest.fixture(scope="module")
def tunnel(way: Way) -> Way:
    """A provider, and the VPN's qube as the document says."""
    for name in (PROVIDER, MIDDLE):
        way.system.cloison("start", name)
    keys = {name: way.root(name, "wg", "genkey") for name in (PROVIDER, MIDDLE)}
    public = {name: way.root(name, "wg", "pubkey", stdin=key) for name, key in keys.items()}
    way.root(PROVIDER, "sh", "-e", stdin=f"""
        ip link add wg0 mtu 1380 type wireguard
        echo {keys[PROVIDER]} >/run/key
        wg set wg0 listen-port {PORT} private-key /run/key peer {public[MIDDLE]} allowed-ips 10.64.0.2/32
        ip address add 10.64.0.1/24 dev wg0
        ip address add {BEHIND}/32 dev lo
        ip link set wg0 up
    """)  # fmt: skip
    way.root(PROVIDER, "sh", "-c", "cat >/run/resolve; setsid python3 /run/resolve >/dev/null 2>&1 &", stdin=RESOLVE)
    config = documented("A VPN in a qube of its own", "[Interface]")
    config = config.replace("YOUR-PRIVATE-KEY", keys[MIDDLE]).replace("PUBLIC-KEY-OF-THE-PROVIDER", public[PROVIDER])
    way.write(MIDDLE, CONFIG, config)
    way.write(MIDDLE, SCRIPT, documented("A VPN in a qube of its own", "#!/bin/sh"))
    way.system.cloison("start", APP)
    return way


def test_clients_leave_through_the_tunnel_and_by_no_other_way(tunnel: Way) -> None:
    tunnel.wait_for_answer()
    with tunnel.sending():
        said = tunnel.root(APP, "python3", "-c", ASK, RESOLVER, "53")
        tunnel.wait_for_answer()
    assert said == "the provider's resolver"
    assert [frame for frame in tunnel.door.frames if is_tunnel(frame)]
    assert tunnel.in_clear() == set()


def test_a_tunnel_that_is_down_or_comes_back_lets_nothing_out_in_clear(tunnel: Way) -> None:
    with tunnel.sending():
        tunnel.root(MIDDLE, "ip", "link", "del", "wg0")
        for _ in range(2):
            assert not tunnel.answers(BEHIND) and not tunnel.answers("198.51.100.99")
        tunnel.root(MIDDLE, "ping", "-c", "1", "-W", "1", "198.51.100.98", expect=None)
        tunnel.root(MIDDLE, SCRIPT)
        tunnel.wait_for_answer()
    assert tunnel.in_clear() == set()


def test_a_script_that_fails_lets_nobody_in_and_says_so(tunnel: Way) -> None:
    tunnel.root(MIDDLE, "sed", "-i", "s/^nft -f/false; nft -f/", SCRIPT)
    with tunnel.sending():
        tunnel.restart_middle()
        deadline = time.monotonic() + LIMIT_S
        while "qubes-firewall-user-script ended with 1" not in tunnel.trouble():
            assert time.monotonic() < deadline, f"the trouble is {tunnel.trouble()!r}"
            time.sleep(0.2)
        assert not tunnel.answers(BEHIND)
        tunnel.root(MIDDLE, "sed", "-i", "s/^false; nft/nft/", SCRIPT)
        tunnel.system.cloison("firewall", "reset", APP)  # it would be tried again anyway
        tunnel.wait_for_answer()
    assert not tunnel.trouble()
    assert tunnel.in_clear() == set()


def test_tor_gets_what_clients_send_and_nothing_else_leaves(way: Way) -> None:
    for name in (APP, MIDDLE, PROVIDER):
        way.system.cloison("kill", name, expect=None)
    way.system.cloison("start", MIDDLE)
    way.root(MIDDLE, "useradd", "--system", "debian-tor")
    way.write(MIDDLE, "/run/stand-in", STAND_IN)
    way.write(MIDDLE, "/etc/systemd/system/tor@.service", UNIT)
    way.write(MIDDLE, SCRIPT, documented("Tor in a qube of its own", "#!/bin/sh"))
    way.door.frames.clear()
    way.system.cloison("start", APP)
    with way.sending():
        deadline = time.monotonic() + LIMIT_S
        while way.root(APP, "python3", "-c", CONNECT, BEHIND, "80", expect=None) != f"tor for {BEHIND}:80":
            assert time.monotonic() < deadline, "Tor did not get the connection"
        assert way.root(APP, "python3", "-c", ASK, RESOLVER, "53") == "tor resolves"
        assert not way.answers("198.51.100.99")
        way.root(MIDDLE, "ping", "-c", "1", "-W", "1", "198.51.100.98", expect=None)
        way.root(MIDDLE, "systemctl", "stop", "tor@default")
        assert way.root(APP, "python3", "-c", CONNECT, BEHIND, "80", expect=None) == ""
    assert way.in_clear() == set()
    as_tor = ("setpriv", "--reuid=debian-tor", "--clear-groups", "python3", "-c", CONNECT, "198.51.100.97", "80")
    assert way.root(MIDDLE, *as_tor) == HELLO.decode()
    assert way.in_clear() == {"6 to 198.51.100.97"}, "the ears are deaf"
