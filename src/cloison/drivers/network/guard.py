"""Runs in the jail of a way out: starts passt and stands between it and the netvm's machine.

passt 2023 connects to the host's own loopback if a guest sends a packet to 127.0.0.1, and any passt reaches services of
the host by the host's own addresses. So only ARP, IPv4 and IPv6 pass towards passt, and nothing that is addressed to
the host itself; the gateway's address leads to the host's loopback for the named TCP and UDP ports alone. The other
direction passes as it is.

A program of its own: standard library, no import of ours. Arguments: number of the machine's descriptor, the gateway's
address, named ports (blank-separated), then passt's own command line, to which the descriptor is added.
"""

from __future__ import annotations

import ipaddress
import os
import re
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable

MAX_FRAME = 65535 + 64
REFRESH_S = 2.0
"""How long the host's list of its own addresses is believed."""
_ARP, _IP4, _IP6 = b"\x08\x06", b"\x08\x00", b"\x86\xdd"
_TCP_UDP = (6, 17)
_MAPPED = bytes(10) + b"\xff\xff"
"""Beginning of IPv6 addresses that mean IPv4 ones."""


class Gate:
    """Which packets of the netvm may go to passt."""

    def __init__(
        self, gateway: str, ports: frozenset[int], own: Callable[[], frozenset[bytes]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._gateway = ipaddress.ip_address(gateway).packed
        self._ports = ports
        self._own = own
        self._clock = clock
        self._known: frozenset[bytes] = frozenset()
        self._known_until = float("-inf")

    def admits(self, untrusted_frame: bytes) -> bool:
        kind = untrusted_frame[12:14]
        if kind == _ARP:
            return True
        packet = untrusted_frame[14:]
        if kind == _IP4 and len(packet) >= 20:
            return self._admits4(packet)
        if kind == _IP6 and len(packet) >= 40:
            return self._admits_target(packet[24:40])
        return False

    def _admits4(self, packet: bytes) -> bool:
        target = packet[16:20]
        if target != self._gateway:
            return self._admits_target(target)
        start = (packet[0] & 15) * 4
        is_fragment = bool(int.from_bytes(packet[6:8], "big") & 0x3FFF)
        if start < 20 or packet[9] not in _TCP_UDP or is_fragment or len(packet) < start + 4:
            return False
        return int.from_bytes(packet[start + 2 : start + 4], "big") in self._ports

    def _admits_target(self, target: bytes) -> bool:
        if len(target) == 4:
            return target[0] not in (0, 127) and target not in self._host_addresses()
        if target[:15] == bytes(15) or target[:12] == _MAPPED or target[:12] == bytes(12):
            return False
        return target not in self._host_addresses()

    def _host_addresses(self) -> frozenset[bytes]:
        now = self._clock()
        if now >= self._known_until:
            self._known, self._known_until = self._own(), now + REFRESH_S
        return self._known


def host_addresses(fib: str, inet6: str) -> frozenset[bytes]:
    """The host's own addresses, from the texts of /proc/net/fib_trie and /proc/net/if_inet6."""
    found = {socket.inet_aton(a) for a in re.findall(r"\|-- ([0-9.]+)\n +/32 host LOCAL", fib)}
    return frozenset(found | {bytes.fromhex(line.split()[0]) for line in inet6.splitlines() if line})


def _read(path: str) -> str:
    try:
        with open(path) as file:
            return file.read()
    except FileNotFoundError:
        return ""  # this host has no IPv6


def _own_addresses() -> frozenset[bytes]:
    return host_addresses(_read("/proc/net/fib_trie"), _read("/proc/net/if_inet6"))


def to_passt(machine: socket.socket, passt: socket.socket, gate: Gate) -> None:
    """Frames from the machine until one of the two ends."""
    stream = machine.makefile("rb", buffering=1 << 18)
    while len(head := stream.read(4)) == 4:
        (length,) = struct.unpack("!I", head)
        if length > MAX_FRAME:
            return
        frame = stream.read(length)
        if len(frame) < length:
            return
        if gate.admits(frame):
            passt.sendall(head + frame)


def from_passt(passt: socket.socket, machine: socket.socket) -> None:
    while data := passt.recv(1 << 18):
        machine.sendall(data)


def main(arguments: list[str]) -> int:
    descriptor, gateway, ports, *command = arguments
    machine = socket.socket(fileno=int(descriptor))
    machine.setblocking(True)
    near, far = socket.socketpair()
    passt = subprocess.Popen([*command, "--fd", str(far.fileno())], pass_fds=(far.fileno(),), stdin=subprocess.DEVNULL)
    far.close()
    gate = Gate(gateway, frozenset(int(port) for port in ports.split()), _own_addresses)

    def run(work: Callable[[], None]) -> None:
        try:
            work()
        except OSError as error:
            sys.stderr.write(f"way out: {error}\n")
        os._exit(0)  # the jail's other processes end with this one

    threading.Thread(target=run, args=(lambda: to_passt(machine, near, gate),), daemon=True).start()
    threading.Thread(target=run, args=(lambda: from_passt(near, machine),), daemon=True).start()
    return passt.wait()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
