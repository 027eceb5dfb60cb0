"""Firewall rules of a qube: from untrusted text to canonical text (format: Admin API notes, section 4.6).

In: lines of blank-separated ``key=value``. Out: the same rules in one canonical spelling. No clock: expired rules are
dropped by ``unexpired``, which is told the time.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator

from cloison.errors import BadRequest

DEFAULT_RULES = "action=accept\n"
ORDER = ("action", "expire", "dst4", "dst6", "dsthost", "proto", "specialtarget", "dstports", "icmptype", "comment")
_DESTINATIONS = ("dst4", "dst6", "dsthost")
_HOST = re.compile(r"[a-z0-9._-]{1,253}", re.ASCII)
_COMMENT = re.compile(r"[A-Za-z0-9:;,./_\-\[\] ]*", re.ASCII)


def parse_rules(untrusted_text: str) -> str:
    """Canonical rules, one per line; BadRequest naming the line that is wrong."""
    lines = []
    for number, line in enumerate(untrusted_text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            lines.append(_format(_parse_rule(line.strip())))
        except BadRequest as error:
            raise BadRequest(f"firewall rule {number} ({line[:80]!a}): {error.message}") from None
    if not lines:
        raise BadRequest("a firewall needs at least one rule", hint="action=accept allows everything")
    return "".join(f"{line}\n" for line in lines)


def unexpired(rules: str, now: float) -> str:
    """The rules that still hold at ``now`` (seconds since the epoch)."""
    return "".join(f"{line}\n" for line in rules.splitlines() if not _has_expired(line, now))


def _has_expired(line: str, now: float) -> bool:
    found = re.search(r"(?:^| )expire=([0-9]+)", line.partition(" comment=")[0])
    return found is not None and int(found[1]) <= now


def _parse_rule(line: str) -> dict[str, str]:
    rule: dict[str, str] = {}
    for key, value in _fields(line):
        key, value = _parse_field(key, value)
        if key in rule:
            raise BadRequest(f"{key} is given twice")
        rule[key] = value
    if "action" not in rule:
        raise BadRequest("there is no action")
    if sum(key in rule for key in _DESTINATIONS) > 1:
        raise BadRequest("there is more than one destination")
    if "dstports" in rule and rule.get("proto") not in ("tcp", "udp"):
        raise BadRequest("dstports needs proto=tcp or proto=udp")
    if "icmptype" in rule and rule.get("proto") != "icmp":
        raise BadRequest("icmptype needs proto=icmp")
    return rule


def _fields(line: str) -> Iterator[tuple[str, str]]:
    rest = line
    while rest:
        key, equals, tail = rest.partition("=")
        if not equals:
            raise BadRequest(f"{key[:40]!a} is no key=value")
        if key == "comment":
            yield key, tail
            return
        value, _, rest = tail.partition(" ")
        yield key, value


def _parse_field(key: str, value: str) -> tuple[str, str]:
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
            return key, str(_number(key, value, 255))
        case "expire":
            return key, str(_number(key, value, 10**12))
        case "comment":
            if not _COMMENT.fullmatch(value):
                raise BadRequest("the comment holds characters that are not allowed")
            return key, value
        case _:
            raise BadRequest(f"there is no key {key[:40]!a}")


def _one_of(key: str, value: str, words: tuple[str, ...]) -> str:
    if value not in words:
        raise BadRequest(f"{key} must be {' or '.join(words)}")
    return value


def _number(key: str, value: str, highest: int) -> int:
    if not re.fullmatch(r"[0-9]{1,13}", value) or int(value) > highest:
        raise BadRequest(f"{key} must be a number from 0 to {highest}")
    return int(value)


def _parse_destination(key: str, value: str) -> tuple[str, str]:
    try:
        network = ipaddress.ip_network(value, strict=False)
    except ValueError:
        if key not in ("dsthost", "dstname"):
            raise BadRequest(f"{key} must be an address, with or without a prefix length") from None
        if not _HOST.fullmatch(value):
            raise BadRequest("dsthost must be lower-case letters, digits, '.', '_' or '-'") from None
        return "dsthost", value
    found = f"dst{network.version}"
    if key in ("dst4", "dst6") and key != found:
        raise BadRequest(f"{value} is no {key} address")
    return found, str(network)


def _parse_ports(value: str) -> str:
    first, dash, last = value.partition("-")
    low = _number("dstports", first, 65535)
    high = _number("dstports", last, 65535) if dash else low
    if low > high:
        raise BadRequest("dstports must not run backwards")
    return f"{low}-{high}"


def _format(rule: dict[str, str]) -> str:
    return " ".join(f"{key}={rule[key]}" for key in ORDER if key in rule)
