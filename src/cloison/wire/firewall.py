"""Firewall rules of a qube, one per line, and what they say about a connection (format: Admin API notes, section 4.6).

In: lines of blank-separated ``key=value``. Out: ``Rule`` values, the same in one canonical spelling, or ``RuleError``.
May import: the standard library. No clock and no names are looked up here; the guest's agent, dom0 and the command
line share it.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

DEFAULT_RULES = "action=accept\n"
DNS_ADDRESSES = ("10.139.1.1", "10.139.1.2")
"""What every qube takes for its resolvers; netvms pass questions to them on."""
DNS_PORT = 53

_HOST = re.compile(r"[a-z0-9._-]{1,253}", re.ASCII)
_COMMENT = re.compile(r"[A-Za-z0-9:;,./_\-\[\] ]*", re.ASCII)
_NUMBER = re.compile(r"[0-9]{1,13}", re.ASCII)

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Names = Mapping[str, Sequence[str] | None]
"""Host name -> its addresses as they are known now; None: nobody could say yet."""


class RuleError(ValueError):
    """A line is no rule; the text says why."""


class Rule(NamedTuple):
    """One rule; an absent part says nothing about the connection, so it fits all. Text parts are canonical."""

    action: str
    """``accept`` or ``drop``."""
    expire: int | None = None
    """Seconds since the epoch at which the rule is over."""
    dst4: str = ""
    dst6: str = ""
    dsthost: str = ""
    proto: str = ""
    """``tcp``, ``udp`` or ``icmp`` (which is ICMPv6 too)."""
    specialtarget: str = ""
    """``dns``: questions to the resolvers that every qube is given."""
    dstports: tuple[int, int] | None = None
    icmptype: int | None = None
    comment: str | None = None

    def __str__(self) -> str:
        """The canonical line; ``parse_rule`` is its opposite."""
        parts = []
        for key, value in self._asdict().items():
            if key == "dstports" and value is not None:
                parts.append(f"dstports={value[0]}-{value[1]}")
            elif value is not None and (value != "" or key == "comment"):
                parts.append(f"{key}={value}")
        return " ".join(parts)

    def has_expired(self, now: float) -> bool:
        return self.expire is not None and self.expire <= now


class Flow(NamedTuple):
    """What is asked about one connection. ``host``: the name by which it was looked up, if it was."""

    address: Address
    proto: str
    port: int | None = None
    host: str = ""


def parse_rules(untrusted_text: str) -> tuple[Rule, ...]:
    """The rules of a text, blank lines skipped; RuleError naming the line that is wrong."""
    rules = []
    for number, line in enumerate(untrusted_text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            rules.append(parse_rule(line.strip()))
        except RuleError as error:
            raise RuleError(f"firewall rule {number} ({line[:80]!a}): {error}") from None
    return tuple(rules)


def parse_rule(line: str) -> Rule:
    """One line, or RuleError."""
    given: dict[str, str | int | tuple[int, int]] = {}
    for untrusted_key, untrusted_value in _fields(line):
        key, value = _parse_field(untrusted_key, untrusted_value)
        if key in given:
            raise RuleError(f"{key} is given twice")
        given[key] = value
    if "action" not in given:
        raise RuleError("there is no action")
    if sum(key in given for key in ("dst4", "dst6", "dsthost")) > 1:
        raise RuleError("there is more than one destination")
    if "dstports" in given and given.get("proto") not in ("tcp", "udp"):
        raise RuleError("dstports needs proto=tcp or proto=udp")
    if "icmptype" in given and given.get("proto") != "icmp":
        raise RuleError("icmptype needs proto=icmp")
    return Rule(**given)  # type: ignore[arg-type]


def _fields(line: str) -> Iterator[tuple[str, str]]:
    rest = line
    while rest:
        key, equals, tail = rest.partition("=")
        if not equals:
            raise RuleError(f"{key[:40]!a} is no key=value")
        if key == "comment":
            yield key, tail
            return
        value, _, rest = tail.partition(" ")
        yield key, value


def _parse_field(key: str, value: str) -> tuple[str, str | int | tuple[int, int]]:
    match key:
        case "action":
            return key, _one_of(key, value, ("accept", "drop"))
        case "proto":
            return key, _one_of(key, value, ("tcp", "udp", "icmp"))
        case "specialtarget":
            return key, _one_of(key, value, ("dns",))
        case "dst4" | "dst6" | "dsthost" | "dstname":
            return _parse_destination(key, value)
        case "dstports":
            return key, _parse_ports(value)
        case "icmptype":
            return key, _number(key, value, 255)
        case "expire":
            return key, _number(key, value, 10**12)
        case "comment":
            if not _COMMENT.fullmatch(value):
                raise RuleError("the comment holds characters that are not allowed")
            return key, value
        case _:
            raise RuleError(f"there is no key {key[:40]!a}")


def _one_of(key: str, value: str, words: tuple[str, ...]) -> str:
    if value not in words:
        raise RuleError(f"{key} must be {' or '.join(words)}")
    return value


def _number(key: str, value: str, highest: int) -> int:
    if not _NUMBER.fullmatch(value) or int(value) > highest:
        raise RuleError(f"{key} must be a number from 0 to {highest}")
    return int(value)


def _parse_destination(key: str, value: str) -> tuple[str, str]:
    try:
        if "%" in value:
            raise ValueError("a zone means nothing elsewhere")
        network = ipaddress.ip_network(value, strict=False)
    except ValueError:
        if key not in ("dsthost", "dstname"):
            raise RuleError(f"{key} must be an address, with or without a prefix length") from None
        if not _HOST.fullmatch(value):
            raise RuleError("dsthost must be lower-case letters, digits, '.', '_' or '-'") from None
        return "dsthost", value
    found = f"dst{network.version}"
    if key in ("dst4", "dst6") and key != found:
        raise RuleError(f"{value} is no {key} address")
    return found, str(network)


def _parse_ports(value: str) -> tuple[int, int]:
    first, dash, last = value.partition("-")
    low = _number("dstports", first, 65535)
    high = _number("dstports", last, 65535) if dash else low
    if low > high:
        raise RuleError("dstports must not run backwards")
    return low, high


# -- meaning ---------------------------------------------------------------------------------------------------------


def may_open(address: Address) -> bool:
    """Whether a DNS name may open this address: only addresses of the world outside.

    Whoever answers for a name must not be able to open other qubes, the local network or a netvm itself.
    """
    if isinstance(address, ipaddress.IPv6Address) and (inner := address.ipv4_mapped or address.sixtofour):
        return may_open(inner)
    return address.is_global and not address.is_multicast


def find_rule(rules: Sequence[Rule], flow: Flow, names: Names) -> int | None:
    """Index of the rule that decides about the connection; None: no rule fits, which is a drop.

    A name without a known address fits nothing when it accepts and everything when it drops: nothing may slip past a
    rule because nobody has answered yet. So it is in the netvm.
    """
    return next((number for number, rule in enumerate(rules) if _fits(rule, flow, names)), None)


def _fits(rule: Rule, flow: Flow, names: Names) -> bool:
    if rule.proto and rule.proto != flow.proto:
        return False
    if rule.dstports and (flow.port is None or not rule.dstports[0] <= flow.port <= rule.dstports[1]):
        return False
    network = rule.dst4 or rule.dst6
    if network and flow.address not in ipaddress.ip_network(network):
        return False
    if rule.specialtarget == "dns" and not (
        str(flow.address) in DNS_ADDRESSES and flow.proto in ("tcp", "udp") and flow.port == DNS_PORT
    ):
        return False
    return not rule.dsthost or _fits_name(rule, flow, names)


def _fits_name(rule: Rule, flow: Flow, names: Names) -> bool:
    if flow.host == rule.dsthost:
        return rule.action == "drop" or may_open(flow.address)
    known = names.get(rule.dsthost)
    if known is None:
        return rule.action == "drop"
    return str(flow.address) in known and (rule.action == "drop" or may_open(flow.address))
