"""Network cards, addresses, routes and neighbours by the kernel's own messages (rtnetlink).

A program such as ``ip`` costs an emulated guest more than all that it does. In: a ``Netlink``. Out: changes in the
kernel, or OSError with the kernel's number.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from typing import NamedTuple

NEWLINK, DELLINK, GETLINK, SETLINK = 16, 17, 18, 19
_NEWADDR, _DELADDR, _GETADDR = 20, 21, 22
_NEWROUTE, _DELROUTE = 24, 25
_NEWNEIGH = 28
_ERROR, _DONE = 2, 3
_REQUEST, _ACK, _DUMP, _REPLACE, _CREATE = 1, 4, 0x300, 0x100, 0x400
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU = 1, 3, 4
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PREFSRC = 1, 4, 5, 7
_NDA_DST, _NDA_LLADDR = 1, 2
IFF_UP = 1
_ONLINK = 4
_PERMANENT = 0x80
_GROUP_LINK = 1
_IFA_F_NODAD = 0x02
_MAIN, _PROTO_STATIC, _UNICAST, _SCOPE_LINK, _SCOPE_GLOBAL = 254, 4, 1, 253, 0

_HEADER = struct.Struct("=IHHII")
_LINK = struct.Struct("=BxHiII")
_ADDRESS = struct.Struct("=BBBBI")
_ROUTE = struct.Struct("=BBBBBBBBI")
_NEIGHBOUR = struct.Struct("=BxxxiHBB")
_ATTRIBUTE = struct.Struct("=HH")


class Card(NamedTuple):
    """A network card as the kernel describes it."""

    number: int
    name: str
    mac: str
    is_up: bool


class Netlink:
    """One conversation with the kernel."""

    def __init__(self, *, follow_links: bool = False) -> None:
        self.socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        self.socket.bind((0, _GROUP_LINK if follow_links else 0))
        self._number = 0

    def fileno(self) -> int:
        return self.socket.fileno()

    def close(self) -> None:
        self.socket.close()

    def cards(self) -> list[Card]:
        """All network cards."""
        self._send(GETLINK, _DUMP, _LINK.pack(socket.AF_UNSPEC, 0, 0, 0, 0))
        return [card for kind, body in self._answers() if kind == NEWLINK and (card := parse_card(body))]

    def set_link(self, index: int, *, up: bool | None = None, name: str = "", mtu: int = 0) -> None:
        attributes = (_attribute(_IFLA_IFNAME, name.encode() + b"\0") if name else b"") + (
            _attribute(_IFLA_MTU, struct.pack("=I", mtu)) if mtu else b""
        )
        flags, change = (IFF_UP if up else 0, IFF_UP) if up is not None else (0, 0)
        self._ask(SETLINK, 0, _LINK.pack(socket.AF_UNSPEC, 0, index, flags, change) + attributes)

    def add_address(self, index: int, address: str, *, prefix: int | None = None) -> None:
        """The address alone, or with a network around it that is reached directly."""
        family, packed = _pack(address)
        length = len(packed) * 8 if prefix is None else prefix
        body = _ADDRESS.pack(family, length, _IFA_F_NODAD if family == socket.AF_INET6 else 0, 0, index)
        self._ask(
            _NEWADDR, _CREATE | _REPLACE, body + _attribute(_IFA_LOCAL, packed) + _attribute(_IFA_ADDRESS, packed)
        )

    def flush_addresses(self, index: int) -> None:
        self._send(_GETADDR, _DUMP, _ADDRESS.pack(socket.AF_UNSPEC, 0, 0, 0, 0))
        found = [body for kind, body in self._answers() if kind == _NEWADDR and _ADDRESS.unpack_from(body)[4] == index]
        for body in found:
            self._ask(_DELADDR, 0, body)

    def add_route(self, index: int, target: str, *, gateway: str = "", source: str = "") -> None:
        """To one address (``target``) or, if that is ``default4`` or ``default6``, to everything else."""
        if target.startswith("default"):
            family, length, attributes = socket.AF_INET if target == "default4" else socket.AF_INET6, 0, b""
        else:
            family, packed = _pack(target)
            length, attributes = len(packed) * 8, _attribute(_RTA_DST, packed)
        if gateway:
            attributes += _attribute(_RTA_GATEWAY, _pack(gateway)[1])
        if source:
            attributes += _attribute(_RTA_PREFSRC, _pack(source)[1])
        scope = _SCOPE_GLOBAL if gateway or family == socket.AF_INET6 else _SCOPE_LINK
        flags = _ONLINK if gateway else 0
        body = _ROUTE.pack(family, length, 0, 0, _MAIN, _PROTO_STATIC, scope, _UNICAST, flags)
        self._ask(_NEWROUTE, _CREATE | _REPLACE, body + attributes + _attribute(_RTA_OIF, struct.pack("=I", index)))

    def add_neighbour(self, index: int, address: str, mac: str) -> None:
        """Nobody need ask who has this address."""
        family, packed = _pack(address)
        body = _NEIGHBOUR.pack(family, index, _PERMANENT, 0, 0)
        attributes = _attribute(_NDA_DST, packed) + _attribute(_NDA_LLADDR, bytes.fromhex(mac.replace(":", "")))
        self._ask(_NEWNEIGH, _CREATE | _REPLACE, body + attributes)

    def drain(self) -> None:
        """Read away what is waiting; whoever follows links looks at all of them afterwards."""
        while True:
            try:
                self.socket.recv(65536, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except OSError:  # more was told than fits: nothing is lost for one who looks anew
                continue

    def _ask(self, kind: int, flags: int, body: bytes) -> None:
        self._send(kind, flags | _ACK, body)
        for _ in self._answers():
            pass

    def _send(self, kind: int, flags: int, body: bytes) -> None:
        self._number += 1
        self.socket.send(_HEADER.pack(_HEADER.size + len(body), kind, flags | _REQUEST, self._number, 0) + body)

    def _answers(self) -> Iterator[tuple[int, bytes]]:
        """Messages that answer the last request, until the one that says it is done."""
        while True:
            data = self.socket.recv(1 << 17)
            for kind, number, body in split(data):
                if number != self._number:
                    continue
                if kind == _ERROR:
                    code = -struct.unpack_from("=i", body)[0]
                    if code:
                        raise OSError(code, os.strerror(code), "netlink")
                    return
                if kind == _DONE:
                    return
                yield kind, body


def split(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Kind, number and body of each message."""
    at = 0
    while at + _HEADER.size <= len(data):
        length, kind, _, number, _ = _HEADER.unpack_from(data, at)
        if length < _HEADER.size:
            return
        yield kind, number, data[at + _HEADER.size : at + length]
        at += (length + 3) & ~3


def parse_card(body: bytes) -> Card | None:
    """From the body of a message about a link; None: it has no name."""
    _, _, index, flags, _ = _LINK.unpack_from(body)
    name, mac = "", ""
    at = _LINK.size
    while at + _ATTRIBUTE.size <= len(body):
        length, kind = _ATTRIBUTE.unpack_from(body, at)
        if length < _ATTRIBUTE.size:
            break
        value = body[at + _ATTRIBUTE.size : at + length]
        if kind == _IFLA_IFNAME:
            name = value.rstrip(b"\0").decode(errors="replace")
        elif kind == _IFLA_ADDRESS:
            mac = value.hex(":")
        at += (length + 3) & ~3
    return Card(index, name, mac, bool(flags & IFF_UP)) if name else None


def _attribute(kind: int, value: bytes) -> bytes:
    length = _ATTRIBUTE.size + len(value)
    return _ATTRIBUTE.pack(length, kind) + value + b"\0" * (-length % 4)


def _pack(address: str) -> tuple[socket.AddressFamily, bytes]:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return family, socket.inet_pton(family, address)
