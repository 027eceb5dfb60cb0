"""Network addresses that follow from a qube's number (rule: Admin API notes, section 9)."""

from __future__ import annotations

import ipaddress

from cloison.errors import BadPropertyValue

DNS = ("10.139.1.1", "10.139.1.2")
NETMASK = "255.255.255.255"
MAC = "00:16:3e:5e:6c:00"


def _halves(number: int) -> tuple[int, int]:
    """Third and fourth byte: plain below 255, above it the last byte is never 0 or 255."""
    if number < 255:
        return number >> 8, number & 255
    return (number - 1) // 254, (number - 1) % 254 + 1


def qube_ip(qid: int) -> str:
    high, low = _halves(qid)
    return f"10.137.{high}.{low}"


def disposable_ip(dispid: int) -> str:
    high, low = _halves(dispid)
    return f"10.138.{high}.{low}"


def qube_ip6(qid: int) -> str:
    return f"fd09:24ef:4179::a89:{qid:x}"


def disposable_ip6(dispid: int) -> str:
    return f"fd09:24ef:4179::a8a:{dispid:x}"


def parse_ip4(untrusted_text: str) -> str:
    try:
        return str(ipaddress.IPv4Address(untrusted_text))
    except ValueError:
        raise BadPropertyValue(f"{untrusted_text[:50]!a} is not an IPv4 address") from None


def parse_ip6(untrusted_text: str) -> str:
    try:
        return str(ipaddress.IPv6Address(untrusted_text))
    except ValueError:
        raise BadPropertyValue(f"{untrusted_text[:50]!a} is not an IPv6 address") from None
