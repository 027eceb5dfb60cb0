"""Ethernet frames, good and bad, made by hand."""

from __future__ import annotations

import ipaddress
import struct

BROADCAST = "ff:ff:ff:ff:ff:ff"
ARP, IPV4, IPV6, VLAN = 0x0806, 0x0800, 0x86DD, 0x8100
ICMP, TCP, UDP, ICMPV6 = 1, 6, 17, 58


def mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def packed(address: str) -> bytes:
    return ipaddress.ip_address(address).packed


def solicited_node(address: str) -> str:
    """The multicast address at which a neighbour with this IPv6 address is asked for."""
    return str(ipaddress.IPv6Address(bytes.fromhex("ff0200000000000000000001ff") + packed(address)[13:]))


def multicast_mac(address: str) -> str:
    return "33:33:" + packed(address)[12:].hex(":")


def checksum(data: bytes) -> int:
    total: int = sum(struct.unpack(f"!{(len(data) + 1) // 2}H", data + b"\0" * (len(data) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def ether(to: str, source: str, kind: int, payload: bytes, *, tag: int | None = None) -> bytes:
    tagged = b"" if tag is None else struct.pack("!HH", VLAN, tag)
    return mac(to) + mac(source) + tagged + struct.pack("!H", kind) + payload


def arp(operation: int, source_mac: str, source: str, to_mac: str, to: str) -> bytes:
    head = struct.pack("!HHBBH", 1, IPV4, 6, 4, operation)
    return head + mac(source_mac) + packed(source) + mac(to_mac) + packed(to)


def ip4(source: str, to: str, proto: int, payload: bytes, *, fragment: int = 0, options: bytes = b"",
        version: int = 4) -> bytes:  # fmt: skip
    words = 5 + len(options) // 4
    head = struct.pack("!BBHHHBBH4s4s", version << 4 | words, 0, 4 * words + len(payload), 7, fragment, 64, proto, 0,
                       packed(source), packed(to))  # fmt: skip
    head = head[:10] + struct.pack("!H", checksum(head + options)) + head[12:]
    return head + options + payload


def ip6(source: str, to: str, proto: int, payload: bytes, *, hops: int = 64) -> bytes:
    return struct.pack("!IHBB16s16s", 6 << 28, len(payload), proto, hops, packed(source), packed(to)) + payload


def _pseudo(source: str, to: str, proto: int, length: int) -> bytes:
    if ":" in source:
        return packed(source) + packed(to) + struct.pack("!II", length, proto)
    return packed(source) + packed(to) + struct.pack("!BBH", 0, proto, length)


def udp(source: str, to: str, sport: int, dport: int, payload: bytes) -> bytes:
    head = struct.pack("!HHHH", sport, dport, 8 + len(payload), 0)
    total = checksum(_pseudo(source, to, UDP, 8 + len(payload)) + head + payload) or 0xFFFF
    return head[:6] + struct.pack("!H", total) + payload


def tcp(source: str, to: str, sport: int, dport: int, payload: bytes, *, flags: int = 2) -> bytes:
    head = struct.pack("!HHIIBBHHH", sport, dport, 1000, 0, 5 << 4, flags, 8192, 0, 0)
    total = checksum(_pseudo(source, to, TCP, 20 + len(payload)) + head + payload)
    return head[:16] + struct.pack("!H", total) + head[18:] + payload


def icmp(kind: int, payload: bytes, code: int = 0) -> bytes:
    head = struct.pack("!BBHI", kind, code, 0, 1)
    return struct.pack("!BBHI", kind, code, checksum(head + payload), 1) + payload


def icmp6(source: str, to: str, kind: int, payload: bytes) -> bytes:
    """``payload``: what comes after type, code and checksum."""
    body = struct.pack("!BBH", kind, 0, 0) + payload
    total = checksum(_pseudo(source, to, ICMPV6, len(body)) + body)
    return struct.pack("!BBH", kind, 0, total) + payload


def advertisement(target: str, own_mac: str) -> bytes:
    """Body of a neighbour advertisement: solicited, override."""
    return struct.pack("!I", 0x60000000) + packed(target) + b"\x02\x01" + mac(own_mac)


def router(own_mac: str) -> bytes:
    """Body of a router advertisement: default router for half an hour, a prefix for addresses."""
    prefix = struct.pack("!BBBBIII16s", 3, 4, 64, 0xC0, 1800, 1800, 0, packed("2001:db8:bad::"))
    return struct.pack("!BBHII", 64, 0, 1800, 0, 0) + b"\x01\x01" + mac(own_mac) + prefix
