"""A netvm, two clients and the world as network namespaces of this kernel, in which real frames are sent.

Run as ``unshare --user --map-root-user --net python lab.py``: an ordinary user may. One process holds sockets in all of
them. Out: JSON, what happened in each case. ``tests/unit/guest/test_packets.py`` says what should have.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import select
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

TOP = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(TOP), str(TOP / "src")]

from tests.unit.guest import frames as f  # noqa: E402
from tests.unit.guest.attacks import Aim, attacks  # noqa: E402

from cloison.wire.firewall import Rule, parse_rules  # noqa: E402
from cloison.wire.network import Downlink, Downlinks  # noqa: E402
from cloison.wire.nftables import MAX_CONNECTIONS, link_text, names_text, removal_text, whole_text  # noqa: E402

A, A6, B, B6 = "10.137.0.11", "fd09:24ef:4179::a89:b", "10.137.0.12", "fd09:24ef:4179::a89:c"
A_LOCAL, B_LOCAL = "fe80::216:3eff:fe5e:6c0b", "fe80::216:3eff:fe5e:6c0c"
A_MAC, B_MAC = "00:16:3e:5e:6c:0b", "00:16:3e:5e:6c:0c"
GATE, GATE6 = "10.137.0.9", "fd09:24ef:4179::a89:9"
GATE_MACS = {11: "fe:ff:ff:00:00:0b", 12: "fe:ff:ff:00:00:0c"}
WORLD, RESOLVER, NETVM_OUT = "192.0.2.80", "192.0.2.53", "192.0.2.1"
TRUE_WORLD = "9.9.9.9"
"""In the lab it is next door: an address that is not of documentation or private networks."""
WORLD6, NETVM_OUT6 = "2001:db8:1::80", "2001:db8:1::1"
AIM = Aim(A, A6, A_MAC, B, B6, B_MAC, GATE, GATE6, GATE_MACS[11], NETVM_OUT, WORLD, WORLD6)
CLONE_NEWNET = 0x40000000
QUIET_S = 0.05
"""A frame through two virtual cables takes some tens of microseconds."""
RULES = f"""\
action=accept specialtarget=dns
action=drop proto=udp dst4={WORLD} dstports=666
action=accept proto=udp dsthost={WORLD}
action=accept proto=tcp dst4=192.0.2.0/24 dstports=80-81
action=accept proto=icmp dst4={WORLD}
action=accept dst6={WORLD6}/128
"""
_libc = ctypes.CDLL(None, use_errno=True)


class Space:
    """A network namespace, kept by a descriptor."""

    def __init__(self, *, own: bool = False) -> None:
        before = os.open("/proc/self/ns/net", os.O_RDONLY)
        if not own and _libc.unshare(CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "unshare")
        self.fd = os.open("/proc/self/ns/net", os.O_RDONLY)
        run("ip", "link", "set", "lo", "up")
        _enter(before)
        os.close(before)

    @contextmanager
    def inside(self) -> Iterator[None]:
        before = os.open("/proc/self/ns/net", os.O_RDONLY)
        _enter(self.fd)
        try:
            yield
        finally:
            _enter(before)
            os.close(before)

    def run(self, *argv: str, stdin: str = "") -> str:
        with self.inside():
            return run(*argv, stdin=stdin)

    def capture(self, interface: str) -> socket.socket:
        with self.inside():
            sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.htons(3))
            sock.bind((interface, 3))
        return sock

    def socket(self, kind: int, address: tuple[str, int] | None = None, family: int = socket.AF_INET) -> socket.socket:
        with self.inside():
            sock = socket.socket(family, kind)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.settimeout(0.4)
        if address:
            sock.bind(address)
        return sock

    def sysctl(self, **values: int) -> None:
        with self.inside():
            for name, value in values.items():
                Path("/proc/sys/net", *name.split("__")).write_text(f"{value}\n")


def _enter(fd: int) -> None:
    if _libc.setns(fd, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


def run(*argv: str, stdin: str = "") -> str:
    done = subprocess.run(argv, input=stdin, text=True, capture_output=True, timeout=60)
    if done.returncode:
        raise SystemExit(f"{' '.join(argv)}: {done.stderr[:2000]}")
    return done.stdout


def link(number: int, address: str, address6: str, mac: str, **changes: Any) -> Downlink:
    fields = {
        "interface": f"vif{number}", "mac": GATE_MACS[number], "client": "client", "ip": address, "ip6": address6,
        "client_mac": mac, "visible_ip": address, "visible_gateway": GATE, "mtu": 1500,
    }  # fmt: skip
    return Downlink(**{**fields, **changes})


class Lab:
    def __init__(self) -> None:
        self.netvm, self.a, self.b, self.world = Space(own=True), Space(), Space(), Space()
        self.netvm.sysctl(ipv4__ip_forward=1, ipv6__conf__all__forwarding=1, ipv6__conf__default__accept_dad=0)
        for space in (self.a, self.b, self.world):
            space.sysctl(ipv6__conf__default__accept_dad=0)
        self.links = (link(11, A, A6, A_MAC), link(12, B, B6, B_MAC))
        self._cable(self.a, self.links[0])
        self._cable(self.b, self.links[1])
        self._way_out()
        self.mark = 0x100
        self.at_b, self.at_world, self.at_a = self.b.capture("eth0"), self.world.capture("w0"), self.a.capture("eth0")
        self.at_netvm = self.netvm.socket(socket.SOCK_DGRAM, ("0.0.0.0", 7777))
        self.at_world_udp = [self.world.socket(socket.SOCK_DGRAM, (WORLD, port)) for port in (53, 666, 9000)]
        self.at_world_udp.append(self.world.socket(socket.SOCK_DGRAM, (TRUE_WORLD, 9000)))

    def _cable(self, space: Space, at: Downlink) -> None:
        there = f"name eth0 address {at.client_mac} netns /proc/{os.getpid()}/fd/{space.fd}"
        self.netvm.run(*f"ip link add name {at.interface} address {at.mac} type veth peer {there}".split())
        for command in (f"link set {at.interface} up", f"addr add {GATE}/32 dev {at.interface}",
                        f"route add {at.ip}/32 dev {at.interface}", f"addr add {GATE6}/128 dev {at.interface}",
                        f"route add {at.ip6}/128 dev {at.interface}"):  # fmt: skip
            self.netvm.run("ip", *command.split())
        for command in ("link set eth0 up", f"addr add {at.visible_ip}/32 dev eth0", f"addr add {at.ip6}/128 dev eth0",
                        f"route add {GATE}/32 dev eth0", f"route add default via {GATE} dev eth0",
                        f"route add {GATE6}/128 dev eth0", f"route add default via {GATE6} dev eth0"):  # fmt: skip
            space.run("ip", *command.split())

    def _way_out(self) -> None:
        there = f"/proc/{os.getpid()}/fd/{self.world.fd}"
        self.netvm.run(*f"ip link add name up0 type veth peer name w0 netns {there}".split())
        for command in ("link set up0 up", f"addr add {NETVM_OUT}/24 dev up0", f"addr add {NETVM_OUT6}/64 dev up0",
                        f"route add default via {WORLD} dev up0",
                        f"-6 route add default via {WORLD6} dev up0"):  # fmt: skip
            self.netvm.run("ip", *command.split())
        for command in ("link set w0 up", f"addr add {WORLD}/24 dev w0", f"addr add {RESOLVER}/24 dev w0",
                        f"addr add {TRUE_WORLD}/32 dev w0",
                        f"addr add {WORLD6}/64 dev w0", f"route add 10.137.0.0/16 via {NETVM_OUT} dev w0",
                        f"-6 route add fd09:24ef:4179::/48 via {NETVM_OUT6} dev w0"):  # fmt: skip
            self.world.run("ip", *command.split())

    def downlinks(self) -> Downlinks:
        return Downlinks(GATE, GATE6, (RESOLVER,), self.links)

    def load(self, rules: str, names: dict[str, list[str] | None] | None = None) -> None:
        parsed = parse_rules(rules)
        units = [(at, self.unit(at, parsed, names or {})) for at in self.links]
        self.netvm.run("nft", "-f", "-", stdin=whole_text(self.downlinks(), units))

    def unit(self, at: Downlink, rules: tuple[Rule, ...], names: dict[str, list[str] | None]) -> str:
        self.mark += 1
        return link_text(at, GATE, GATE6, rules, names, self.mark)

    def change(self, rules: str) -> None:
        self.netvm.run("nft", "-f", "-", stdin=self.unit(self.links[0], parse_rules(rules), {}))

    # -- hostile frames

    def poisoned(self) -> list[str]:
        """What the netvm believes of its neighbours that is not so."""
        text = self.netvm.run("ip", "-4", "neigh", "show") + self.netvm.run("ip", "-6", "neigh", "show")
        rows = [line.split() for line in text.splitlines() if "lladdr" in line]
        true = {"vif11": (A_MAC, {A, A6, A_LOCAL}), "vif12": (B_MAC, {B, B6, B_LOCAL})}
        return sorted(
            f"{row[0]} {row[2]} {row[4]}"
            for row in rows
            if row[2] in true and (row[4] != true[row[2]][0] or row[0] not in true[row[2]][1])
        )

    def routes(self) -> str:
        return self.netvm.run("ip", "route") + self.netvm.run("ip", "-6", "route")

    def throw(self, token: bytes, *thrown: bytes) -> dict[str, Any]:
        """Send frames from A; where did a frame with the token turn up?"""
        routes = self.routes()
        for sock in (self.at_b, self.at_world):
            drain(sock)
        with self.a.inside():
            sender = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
        sender.bind(("eth0", 0))
        for frame in thrown:
            with suppress(OSError):  # longer than the cable takes
                sender.send(frame)
        sender.close()
        found = set()
        deadline = time.monotonic() + QUIET_S
        while (left := deadline - time.monotonic()) > 0:
            sockets = {self.at_b: "b", self.at_world: "world", self.at_netvm: "netvm"}
            for ready in select.select(list(sockets), [], [], left)[0]:
                data = ready.recv(70000)
                if token in data or self._is_strange(sockets[ready], data):
                    found.add(sockets[ready])
        return {"arrived": sorted(found), "poisoned": self.poisoned(), "rerouted": self.routes() != routes}

    def throw_all(self) -> dict[str, Any]:
        """Every attack, each with a token of its own."""
        return {
            name: self.throw(token, *attacks(token, AIM)[name])
            for number, name in enumerate(attacks(b"", AIM))
            if (token := b"<hostile %03d>" % number)
        }

    def _is_strange(self, place: str, data: bytes) -> bool:
        """B hears nothing but its own conversations with the gateway; tokens do not fit into ARP."""
        return place == "b" and data[6:12] not in (f.mac(B_MAC), f.mac(GATE_MACS[12]))

    # -- honest traffic

    def asks(self, port: int, text: bytes, to: str = WORLD, via: socket.socket | None = None) -> str:
        """A sends a datagram to the world and waits for the answer."""
        sock = via or self.a.socket(socket.SOCK_DGRAM)
        sock.sendto(text, (to, port))
        return self.answers(sock, text)

    def b_socket(self) -> socket.socket:
        return self.b.socket(socket.SOCK_DGRAM)

    def answers(self, sock: socket.socket, text: bytes) -> str:
        deadline = time.monotonic() + 0.4
        while time.monotonic() < deadline:
            ready, _, _ = select.select([sock, *self.at_world_udp], [], [], 0.1)
            for one in ready:
                try:
                    data, peer = one.recvfrom(2000)
                except OSError as error:
                    return f"refused: {error.strerror}"
                if one is sock:
                    return "answered" if data == b"re:" + text else "strange"
                one.sendto(b"re:" + data, peer)
        return "silence"

    def connects(self, port: int, to: str = WORLD, family: int = socket.AF_INET) -> str:
        server = self.world.socket(socket.SOCK_STREAM, (to, port), family)
        server.listen()
        client = self.a.socket(socket.SOCK_STREAM, family=family)
        try:
            client.connect((to, port))
            peer, address = server.accept()
            peer.sendall(b"hello")
            return f"{client.recv(10).decode()} from {address[0]}"
        except OSError as error:
            return f"refused: {error.strerror}" if error.errno else "silence"
        finally:
            server.close()
            client.close()


def drain(sock: socket.socket) -> None:
    while select.select([sock], [], [], 0)[0]:
        sock.recv(70000)


def good_frame(token: bytes) -> bytes:
    inside = f.udp(A, WORLD, 5, 9000, token)
    return f.ether(GATE_MACS[11], A_MAC, f.IPV4, f.ip4(A, WORLD, f.UDP, inside))


def honest(lab: Lab) -> dict[str, Any]:
    """What must go on working."""
    return {
        "a frame made by hand": lab.throw(b"good", good_frame(b"good"))["arrived"],
        "udp": lab.asks(9000, b"one"),
        "udp refused": lab.asks(666, b"two"),
        "dns": lab.asks(53, b"three", "10.139.1.1") if lab.at_world_udp.append(_resolver(lab)) is None else "",
        "tcp": lab.connects(80),
        "tcp refused": lab.connects(82),
        "tcp over ipv6": lab.connects(80, WORLD6, socket.AF_INET6),
        "ping of the gateway": _ping(lab, GATE),
        "ping of the world": _ping(lab, WORLD),
        "ping of the other client": _ping(lab, B),
    }


def _resolver(lab: Lab) -> socket.socket:
    return lab.world.socket(socket.SOCK_DGRAM, (RESOLVER, 53))


def _ping(lab: Lab, to: str) -> bool:
    with lab.a.inside():
        sock = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    sock.settimeout(0.4)
    sock.sendto(f.icmp(8, b"ping"), (to, 0))
    deadline = time.monotonic() + 0.4
    while time.monotonic() < deadline:
        try:
            data = sock.recv(2000)
        except TimeoutError:
            return False
        if data[20] == 0:
            return True
    return False


def changes(lab: Lab) -> dict[str, Any]:
    """Rules change while a connection is open."""
    talk = lab.a.socket(socket.SOCK_DGRAM)
    result = {"before": lab.asks(9000, b"1", via=talk)}
    lab.change(f"action=accept proto=udp dst4={WORLD} dstports=9000\n")
    result["another rule that accepts it"] = lab.asks(9000, b"2", via=talk)
    world = lab.at_world_udp[2]
    talk.sendto(b"3", (WORLD, 9000))
    peer = world.recvfrom(100)[1]
    lab.change(f"action=accept proto=udp dst4={WORLD} dstports=9000\naction=drop\n")
    world.sendto(b"late", peer)
    result["an answer after a change"] = talk.recv(100).decode()
    lab.change("action=drop\n")
    world.sendto(b"later", peer)
    result["an answer after its rule went"] = lab.answers(talk, b"later")
    result["a question after its rule went"] = lab.asks(9000, b"4", via=talk)
    lab.change("action=accept\n")
    lab.netvm.run("nft", "-f", "-", stdin=removal_text(lab.links[0]))
    result["a client that was taken away"] = lab.asks(9000, b"5")
    return result


def flood(lab: Lab) -> dict[str, Any]:
    """One client opens connections without end."""
    lab.load("action=accept\n")
    with lab.a.inside():
        sender = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    sender.bind(("eth0", 0))
    for port in range(10_000, 10_000 + MAX_CONNECTIONS + 400):
        inside = f.udp(A, WORLD, port, 9999, b"flood")
        sender.send(f.ether(GATE_MACS[11], A_MAC, f.IPV4, f.ip4(A, WORLD, f.UDP, inside)))
    sender.close()
    drain(lab.at_world)
    result = {"its own next": lab.asks(9000, b"a"), "the other client": lab.asks(9000, b"b", via=lab.b_socket())}
    counted = lab.netvm.run("nft", "list", "chain", "inet", "cloison", "from-vif11")
    result["refused"] = "over" if re.search(r"ct count over \d+ counter packets [1-9]", counted) else counted
    lab.netvm.run("nft", "flush", "ruleset")
    return result


def hooks(lab: Lab) -> dict[str, Any]:
    """The user's own chains, spelled as in Qubes's documentation."""
    lab.load(RULES)

    def nft(*words: str) -> str:
        return lab.netvm.run("nft", *words)

    server = lab.netvm.socket(socket.SOCK_STREAM, (GATE, 2222))
    server.listen()
    client = lab.a.socket(socket.SOCK_STREAM)
    result = {"input before": client.connect_ex((GATE, 2222)) == 0}
    nft("add", "rule", "ip", "qubes", "custom-input", "tcp", "dport", "2222", "accept")
    client = lab.a.socket(socket.SOCK_STREAM)
    result["input after"] = client.connect_ex((GATE, 2222)) == 0
    result["forward before"] = _ping(lab, B)
    nft("add", "rule", "ip", "qubes", "custom-forward", "ip", "saddr", A, "ip", "daddr", B, "accept")
    nft("add", "rule", "ip", "qubes", "custom-forward", "ip", "saddr", B, "ip", "daddr", A, "accept")
    result["forward after"] = _ping(lab, B)
    lab.load(RULES)
    result["forward after a reload"] = _ping(lab, B)
    nft("insert", "rule", "ip", "qubes", "custom-forward", "oifname", "up0", "drop")
    result["a chain that drops"] = lab.asks(9000, b"x")
    nft("flush", "chain", "ip", "qubes", "custom-forward")
    nft("flush", "chain", "ip", "qubes", "custom-input")
    return result


def names(lab: Lab) -> dict[str, Any]:
    """Rules with names of hosts."""
    result = {}
    for title, known in (("known", [WORLD]), ("elsewhere", ["198.51.100.1"]), ("unknown", None)):
        lab.load("action=drop dsthost=bad.example\naction=accept\n", {"bad.example": known})
        result[f"drop, {title}"] = lab.asks(9000, b"n")
    lab.load("action=accept dsthost=good.example\n", {"good.example": [WORLD]})  # documentation's, not the world's
    result["accept an inside address"] = lab.asks(9000, b"n")
    lab.load("action=accept dsthost=good.example\n", {"good.example": [WORLD, TRUE_WORLD]})
    result["accept an address of the world"] = lab.asks(9000, b"n", TRUE_WORLD)
    result["accept another address"] = lab.asks(9000, b"n", "9.9.9.10")
    rules = parse_rules("action=accept dsthost=good.example\n")
    lab.netvm.run("nft", "-f", "-", stdin=names_text("vif11", rules, {"good.example": ["9.9.9.10"]}, "good.example"))
    result["after the name moved"] = lab.asks(9000, b"n", TRUE_WORLD)
    return result


def translated(lab: Lab) -> dict[str, Any]:
    """A client that takes another address for its own."""
    lab.links = (lab.links[0]._replace(visible_ip="192.168.77.5", visible_gateway="192.168.77.1"), lab.links[1])
    lab.load(RULES)
    for command in (f"addr del {A}/32 dev eth0", "addr add 192.168.77.5/32 dev eth0",
                    "route replace 192.168.77.1/32 dev eth0",
                    "route replace default via 192.168.77.1 dev eth0 src 192.168.77.5",
                    f"neigh replace 192.168.77.1 lladdr {GATE_MACS[11]} dev eth0 nud permanent"):  # fmt: skip
        lab.a.run("ip", *command.split())
    lab.netvm.run("ip", *f"neigh replace {A} lladdr {A_MAC} dev vif11 nud permanent".split())
    return {
        "udp": lab.asks(9000, b"t"),
        "tcp": lab.connects(81),
        "its true address": lab.throw(b"true", good_frame(b"true"))["arrived"],
    }


def main() -> None:
    lab = Lab()
    without = lab.throw_all()
    for sock in (*lab.at_world_udp, lab.at_netvm):
        drain(sock)
    lab.netvm.run("ip", "neigh", "flush", "all")
    lab.load(RULES)
    result = {
        "honest": honest(lab),
        "attacks": lab.throw_all(),
        "without": without,
        "changes": changes(lab),
        "flood": flood(lab),
        "hooks": hooks(lab),
        "names": names(lab),
        "translated": translated(lab),
    }
    json.dump(result, sys.stdout)


if __name__ == "__main__":
    main()
