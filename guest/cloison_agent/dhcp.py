"""Asking the network beyond a card for an address: busybox's ``udhcpc``, which does it, and what it tells.

In: a card that is up. Out: leases, as they come and go; addresses in them are addresses, whatever the network said.

The program calls a script at each change, the script prints a line, and the line is read here: nothing is polled.
"""

from __future__ import annotations

import ipaddress
import os
import subprocess
import sys
from collections.abc import Callable
from typing import NamedTuple

from cloison_agent.loop import READ, Loop
from cloison_agent.netlink import Card

PROGRAM = ("/bin/busybox", "udhcpc", "-f", "-s", "/usr/lib/cloison/tell-lease", "-t", "3", "-T", "2", "-A", "10")
"""Three questions two seconds apart, then ten seconds' rest, for as long as nobody answers."""
START = "lease"
"""First word of each line of the script's."""
MAX_LINE_BYTES = 4096
MAX_RESOLVERS = 4
RESTART_S = 5.0
"""The program ends only if something is badly wrong: not in a hurry."""


class Lease(NamedTuple):
    """What the network says that we are there."""

    ip: str
    prefix: int
    gateway: str
    """Empty: there is no way on."""
    dns: tuple[str, ...]


def parse_lease(untrusted_line: str) -> Lease | None:
    """A line of the script's, ``lease BOUND ADDRESS PREFIX GATEWAYS RESOLVERS``, its fields parted by tabs.

    None: there is no lease any more. ValueError: it makes no sense.
    """
    fields = untrusted_line.split("\t")
    if fields[:2] == [START, "deconfig"]:
        return None
    if len(fields) != 6 or fields[0] != START:
        raise ValueError("six fields are wanted")
    _, _, ip, prefix, gateways, resolvers = fields
    if not (prefix.isdecimal() and 1 <= int(prefix) <= 32):
        raise ValueError(f"{prefix[:20]!a} is no length of a prefix")
    gateway = gateways.split()[0] if gateways.split() else ""
    servers = tuple(_usable(server) for server in resolvers.split()[:MAX_RESOLVERS])
    return Lease(_usable(ip), int(prefix), gateway and _usable(gateway), servers)


def _usable(untrusted_text: str) -> str:
    address = ipaddress.IPv4Address(untrusted_text)
    if address.is_loopback or address.is_multicast or address.is_unspecified:
        raise ValueError(f"{address} is nobody's address")
    return str(address)


class DhcpClient:
    """Runs the program until ``stop``; ``told`` hears of each lease, and None when there is none any more."""

    def __init__(self, loop: Loop, card: Card, told: Callable[[Lease | None], None]) -> None:
        self.card = card
        self._loop = loop
        self._told = told
        self._process: subprocess.Popen[bytes] | None = None
        self._is_wanted = True
        self._start()

    def stop(self) -> None:
        self._is_wanted = False
        if self._process is not None:
            self._process.kill()

    def _start(self) -> None:
        if not self._is_wanted:
            return
        process = subprocess.Popen(
            [*PROGRAM, "-i", self.card.name], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, env={"PATH": "/bin"}
        )
        assert process.stdout is not None, "asked for"
        self._process = process
        pipe = process.stdout
        os.set_blocking(pipe.fileno(), False)
        pending = b""

        def read(_: int) -> None:
            nonlocal pending
            try:
                chunk = os.read(pipe.fileno(), MAX_LINE_BYTES)
            except BlockingIOError:
                return
            if not chunk:
                self._loop.remove(pipe.fileno())
                return
            *lines, pending = (pending + chunk)[-MAX_LINE_BYTES:].split(b"\n")
            for line in lines:
                self._hear(line.decode(errors="replace"))

        def ended(code: int) -> None:
            self._loop.remove(pipe.fileno())
            pipe.close()
            if self._is_wanted:
                print("udhcpc ended with", code, file=sys.stderr, flush=True)
                self._loop.later(RESTART_S, self._start)

        self._loop.add(pipe.fileno(), READ, read)
        self._loop.watch_exit(process.pid, ended)

    def _hear(self, untrusted_line: str) -> None:
        if not self._is_wanted or not untrusted_line.startswith(START):
            return
        try:
            lease = parse_lease(untrusted_line)
        except ValueError as error:
            print("lease:", error, file=sys.stderr, flush=True)
            return
        self._told(lease)
