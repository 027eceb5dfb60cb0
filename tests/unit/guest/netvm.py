"""The agent's firewall with a real kernel's nftables and a name server that lies on demand.

Run as ``unshare --user --map-root-user --net python netvm.py``; out: JSON. ``test_packets.py`` says what should be.
"""

from __future__ import annotations

import json
import os
import re
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

TOP = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(TOP / "src"), str(TOP / "guest")]

from cloison.wire.network import Downlink, Downlinks  # noqa: E402
from cloison_agent import firewall, resolver  # noqa: E402
from cloison_agent.firewall import Firewall  # noqa: E402
from cloison_agent.loop import READ, Loop  # noqa: E402

SERVER = "127.0.0.53"
LINK = Downlink("vif1", "fe:ff:ff:00:00:01", "c", "10.137.0.1", "", "00:16:3e:5e:6c:01", "10.137.0.1", "", 1500)
SECOND = LINK._replace(interface="vif2", mac="fe:ff:ff:00:00:02", ip="10.137.0.2", visible_ip="192.168.0.2")


class NameServer:
    """Answers for every name what it was told to; nothing: silence."""

    def __init__(self, loop: Loop) -> None:
        self.addresses: list[str] | None = []
        self._loop = loop
        self.ttl_s, self.asked = 1, 0
        self.by_tcp = False
        self._udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._udp.bind((SERVER, 53))
        self._tcp = socket.socket()
        self._tcp.bind((SERVER, 53))
        self._tcp.listen()
        loop.add(self._udp.fileno(), READ, self._hear)
        loop.add(self._tcp.fileno(), READ, self._accept)

    def _hear(self, _: int) -> None:
        query, peer = self._udp.recvfrom(2000)
        self.asked += 1
        if self.addresses is None:
            return
        forged = self._answer(query, ["6.6.6.6"])
        self._udp.sendto(bytes([forged[0] ^ 1]) + forged[1:], peer)
        self._udp.sendto(self._answer(query, [], 0x8380) if self.by_tcp else self._answer(query, self.addresses), peer)

    def _accept(self, _: int) -> None:
        sock, _address = self._tcp.accept()
        query = bytearray()

        def hear(_: int) -> None:
            piece = sock.recv(2000)
            query.extend(piece)
            if piece and len(query) < 2 + int.from_bytes(query[:2], "big"):
                return  # length and question may come in pieces
            loop.remove(sock.fileno())
            if not piece:
                sock.close()
                return
            answer = self._answer(bytes(query[2:]), self.addresses or [])
            sock.sendall(len(answer).to_bytes(2, "big") + answer)
            sock.close()

        loop = self._loop
        loop.add(sock.fileno(), READ, hear)

    def _answer(self, query: bytes, addresses: list[str], flags: int = 0x8180) -> bytes:
        end = query.index(b"\0", 12) + 5
        kind = int.from_bytes(query[end - 4 : end - 2], "big")
        records = [
            struct.pack("!HHHIH4s", 0xC00C, 1, 1, self.ttl_s, 4, socket.inet_aton(address))
            for address in (addresses if kind == 1 else [])
        ]
        head = query[:2] + struct.pack("!HHHHH", flags, 1, len(records), 0, 0)
        return head + query[12:end] + b"".join(records)


class Netvm:
    def __init__(self, directory: Path) -> None:
        run("ip link set lo up")
        for link in (LINK, SECOND):
            run(f"ip link add name {link.interface} type veth peer name far{link.interface[3:]}")
        firewall.NFT = subprocess.run(["sh", "-c", "command -v nft"], capture_output=True, text=True).stdout.strip()
        resolver.RESOLV_CONF = str(directory / "resolv.conf")
        (directory / "resolv.conf").write_text(f"nameserver {SERVER}\n")
        resolver.LEAST_TTL_S, resolver.RETRY_S, resolver.MAX_RETRY_S = 0.2, 0.2, 0.4
        resolver.ANSWER_TIMEOUT_S = 0.3
        scripts = directory / "qubes-firewall.d"
        scripts.mkdir()
        firewall.SCRIPTS, firewall.USER_SCRIPT = str(scripts), str(directory / "user-script")
        self.directory = directory
        for path in (scripts / "10-first", directory / "user-script"):
            self.add_script(path)
        self.loop = Loop()
        self.names = NameServer(self.loop)
        self.firewall = Firewall(self.loop)

    def add_script(self, path: Path, ending: str = "") -> None:
        path.write_text(f"#!/bin/sh\necho {path.name} >> {self.directory}/ran\n{ending}\n")
        path.chmod(0o755)

    def ran(self) -> list[str]:
        """The scripts that were started since the last question."""
        ran = self.directory / "ran"
        found = ran.read_text().split()
        ran.write_text("")
        return found

    def until(self, condition: Callable[[], bool], timeout_s: float = 5.0) -> bool:
        deadline = time.monotonic() + timeout_s
        while not condition() and time.monotonic() < deadline:
            self.loop.step(0.05)
        return condition()

    def links(self, *links: Downlink, resolvers: tuple[str, ...] = ()) -> str:
        told: list[str] = []
        self.firewall.apply_links(Downlinks("10.137.0.9", "", resolvers, links), told.append)
        self.until(lambda: bool(told))
        return told[0]

    def rules(self, text: str, interface: str = "vif1") -> str:
        told: list[str] = []
        self.firewall.load_rules(interface, text, told.append)
        self.until(lambda: bool(told))
        return told[0]

    def listed(self, interface: str = "vif1") -> str:
        """The rules in the kernel, without what changes from run to run."""
        done = subprocess.run([firewall.NFT, "list", "chain", "inet", "cloison", f"rules-{interface}"],
                              capture_output=True, text=True)  # fmt: skip
        return re.sub(r"0x[0-9a-f]{8}", "MARK", re.sub(r"packets \d+ bytes \d+ ", "", done.stdout))

    def members(self, name: str) -> list[str]:
        done = subprocess.run([firewall.NFT, "list", "set", "inet", "cloison", name], capture_output=True, text=True)
        found = re.search(r"elements = \{ (.*?) \}", done.stdout, re.DOTALL)
        return found[1].split(", ") if found else []


def run(command: str) -> None:
    subprocess.run(command.split(), check=True, capture_output=True, timeout=20)


def tables() -> str:
    return subprocess.run([firewall.NFT, "list", "ruleset"], capture_output=True, text=True).stdout


def names(netvm: Netvm) -> dict[str, Any]:
    """A name's addresses change, fail, come back."""
    server, good = netvm.names, "name0-vif1-4"
    server.addresses = ["9.9.9.9", "10.137.0.5"]
    netvm.rules("action=accept dsthost=a.example proto=tcp dstports=443\n")
    result: dict[str, Any] = {"first": netvm.until(lambda: netvm.members(good) == ["9.9.9.9"])}
    server.addresses = ["9.9.9.8"]
    result["moved"] = netvm.until(lambda: netvm.members(good) == ["9.9.9.8"])
    server.by_tcp, server.addresses = True, ["9.9.9.7"]
    result["by tcp"] = netvm.until(lambda: netvm.members(good) == ["9.9.9.7"])
    server.by_tcp, server.addresses = False, None
    asked = server.asked
    netvm.until(lambda: server.asked > asked + 4)
    result["silence"] = netvm.members(good)
    server.addresses = []
    result["gone"] = netvm.until(lambda: netvm.members(good) == [])
    server.addresses = None
    netvm.rules("action=drop dsthost=b.example proto=tcp\naction=accept\n")
    result["unknown, dropping"] = "meta l4proto tcp counter goto refuse" in netvm.listed()
    server.addresses = ["10.1.1.1"]
    result["known, dropping"] = netvm.until(lambda: netvm.members(good) == ["10.1.1.1"])
    netvm.rules("action=accept\n")
    result["sets left"] = tables().count("set name")
    asked = server.asked
    netvm.until(lambda: False, 0.5)
    result["asks for nothing"] = server.asked == asked
    return result


def together(netvm: Netvm) -> dict[str, Any]:
    """Rules of many clients that come at once."""
    runs: list[str] = []
    start = netvm.firewall._start

    def counting(argv: Any, stdin: str, ended: Any) -> int:
        runs.append(stdin)
        return start(argv, stdin, ended)

    def ask(*wishes: tuple[str, str]) -> list[str]:
        told: dict[int, str] = {}
        runs.clear()
        for number, (interface, text) in enumerate(wishes):
            netvm.firewall.load_rules(interface, text, lambda why, n=number: told.update({n: why}))  # type: ignore[misc]
        netvm.until(lambda: len(told) == len(wishes))
        return [told[number] for number in range(len(wishes))]

    netvm.firewall._start = counting  # type: ignore[method-assign]
    drop, accept = "action=drop\n", "action=accept\n"
    result: dict[str, Any] = {
        "answers": ask(("vif1", drop), ("vif1", drop), ("vif2", drop), ("vif1", accept), ("vif9", accept)),
        "runs": len(runs),
        "the last one holds": "MARK" in netvm.listed("vif1") and "MARK" not in netvm.listed("vif2"),
    }
    third = SECOND._replace(interface="vif3", client_mac="nonsense")
    netvm.links(LINK, SECOND, third, resolvers=("192.0.2.53",))
    answers = ask(("vif1", drop), ("vif3", accept), ("vif2", accept), ("vif1", "action=perhaps\n"))
    result["one that fails"] = [answer.partition(":")[0] for answer in answers]
    result["does not spoil the others"] = "MARK" in netvm.listed("vif2") and "MARK" not in netvm.listed("vif1")
    netvm.links(LINK, SECOND, resolvers=("192.0.2.53",))
    netvm.firewall._start = start  # type: ignore[method-assign]
    return result


def scripts(netvm: Netvm) -> dict[str, Any]:
    """An agent that begins anew runs the user's scripts again, and lets nobody in before they ended well."""
    result: dict[str, Any] = {}
    netvm.ran()
    first = netvm.directory / "qubes-firewall.d" / "10-first"
    netvm.add_script(first, "echo the tunnel has no key >&2; exit 3")
    netvm.firewall = Firewall(netvm.loop)
    result["fails"] = netvm.links(LINK).replace(str(netvm.directory), "")
    result["ran"] = netvm.ran()
    result["loaded"] = "rules-vif1" in tables()
    result["is known as a client's"] = 'downlinks {\n\t\ttype ifname\n\t\telements = { "vif1" }' in tables()
    netvm.add_script(first, "sleep 60")
    firewall.SCRIPT_DEADLINE_S = 0.3
    result["does not end"] = netvm.links(LINK).replace(str(netvm.directory), "")
    netvm.add_script(first)
    netvm.ran()
    result["mended"] = netvm.links(LINK)
    result["ran again"] = netvm.ran()
    result["and once"] = netvm.links(LINK, SECOND) + netvm.links(LINK) + " ".join(netvm.ran())
    result["rules"] = netvm.rules("action=accept\n")
    return result


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        netvm = Netvm(Path(directory))
        result: dict[str, Any] = {
            "rules of no link": netvm.rules("action=accept\n"),
            "links": netvm.links(LINK, SECOND, resolvers=("192.0.2.53",)),
            "scripts": (Path(directory) / "ran").read_text().split(),
            "no rules yet": "rules-vif1" in (listed := tables()) or "in-vif1" in listed,
            "rules": netvm.rules("action=accept proto=tcp\naction=drop\n"),
            "in the kernel": netvm.listed().count("goto refuse"),
            "of the second": netvm.rules("action=accept\n", "vif2"),
            "nonsense": netvm.rules("action=perhaps\n"),
            "after nonsense": netvm.listed(),
        }
        result["together"] = together(netvm)
        end = time.time() + 1.2
        netvm.rules(f"action=accept expire={round(end)}\naction=drop\n")
        result["until it ends"] = "MARK" in netvm.listed()
        result["ended"] = netvm.until(lambda: "MARK" not in netvm.listed())
        result["names"] = names(netvm)
        counted: list[dict[str, Any]] = []
        netvm.firewall.read_counters("vif1", 0, lambda **fields: counted.append(fields))
        netvm.until(lambda: bool(counted))
        result["counters"] = counted[0]
        run("ip link del vif2")
        result["without its card"] = netvm.links(LINK, resolvers=("192.0.2.53",))
        result["left of it"] = "vif2" in tables()
        many = int(sys.argv[1])
        text = "".join(
            f"action=accept proto=tcp dst4=192.0.{n // 250}.{n % 250}/32 dstports=443\n" for n in range(many)
        )
        started = time.monotonic()
        result["many rules"] = netvm.rules(text)
        result["many rules took s"] = time.monotonic() - started
        result["all of them"] = netvm.listed().count("accept comment") == many
        result["after a restart"] = scripts(netvm)
        firewall.NFT = "/nonexistent/nft"
        result["no nft"] = netvm.rules("action=accept\n")
    json.dump(result, sys.stdout)


if __name__ == "__main__":
    os.umask(0o022)
    main()
