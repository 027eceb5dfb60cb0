"""What a qube's agent is told of its network: three requests of dom0, as immutable values.

In: fields of CONTROL requests. Out: values, or RemoteProtocolError (dom0 and the agent are of different versions). May
import: the standard library, this package. ``to_fields`` and ``parse_...`` are each other's opposites.

``network``    to any qube: its own way out, or that it has none
``downlinks``  to a netvm: all of its clients' links, the complete list each time; those not named are gone
``rules``      to a netvm: the firewall rules of one link, in one or more parts
``counters``   to a netvm: what the rules of the link ``interface`` decided, from the rule numbered ``first`` on

**Rules are in** exactly when the answer to the last part of ``rules`` was ok. Until then dom0 keeps the link down in
the netvm's own hardware, so an agent that fails or dies leaves it closed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from cloison.wire.errors import RemoteProtocolError
from cloison.wire.fields import Check, boolean, integer, text

NETWORK, DOWNLINKS, RULES, COUNTERS = "network", "downlinks", "rules", "counters"
"""The verbs."""
MAX_LINKS = 256
"""Links of one netvm: more than it has places for."""
RULES_PART = 24 * 1024
"""Characters of rules in one request: written as JSON, with room to spare, they fit into a CONTROL frame."""


class Uplink(NamedTuple):
    """A qube's own way out: the network card with the hardware address ``mac``. An absent family is empty text."""

    mac: str
    ip: str
    ip6: str
    gateway: str
    """Reached directly through the card, whatever the address (point to point)."""
    gateway6: str
    gateway_mac: str
    """Hardware address of the gateway, so that nobody need ask for it; empty: ask."""
    dns: tuple[str, ...]
    """Resolvers to use, of either family."""
    mtu: int


class HandedCard(NamedTuple):
    """A qube's own way out: a network card of the host that was handed to it. It asks the network for its address."""

    port: str
    """PCI address (``0000:00:10.3``) of the port that it is behind in the qube: the card's own hardware address is
    nothing that dom0 knows."""


class Downlink(NamedTuple):
    """One client of a netvm."""

    interface: str
    """Name that the card gets in the netvm: ``vif`` and the number of the client's record. Identity of the link."""
    mac: str
    """Hardware address of the netvm's card, by which the agent finds it."""
    client: str
    """Name of the client, for people and logs."""
    ip: str
    ip6: str
    client_mac: str
    """The client may send from this address only."""
    visible_ip: str
    """The address that the client takes for its own; different from ``ip``: the netvm translates."""
    visible_gateway: str
    mtu: int


class Downlinks(NamedTuple):
    """All clients of a netvm, and what it is to them."""

    gateway: str
    """The netvm's own address, by which its clients know it."""
    gateway6: str
    resolvers: tuple[str, ...]
    """Where the netvm sends its clients' questions to 10.139.1.1 and .2: its own way out's resolvers, of either family.
    Empty: where its network told it, if it asks one for its address; else nowhere."""
    links: tuple[Downlink, ...]


class Rules(NamedTuple):
    """A part of one link's firewall rules, whole lines, in order. The first part begins anew."""

    interface: str
    text: str
    first: bool
    last: bool


_ADDRESS4 = r"(?:\d{1,3}\.){3}\d{1,3}"
_ADDRESS6 = r"[0-9a-f:]{2,39}"
_IP = text(f"(?:{_ADDRESS4})?")
_IP6 = text(f"(?:{_ADDRESS6})?")
_EITHER = re.compile(f"{_ADDRESS4}|{_ADDRESS6}", re.ASCII)
_MAC = text("(?:[0-9a-f]{2}:){5}[0-9a-f]{2}")
_NO_MAC = text("(?:(?:[0-9a-f]{2}:){5}[0-9a-f]{2})?")
_INTERFACE = text("vif[0-9]{1,9}")
_MTU = integer(1280, 65535)
_PORT = text("[0-9a-f]{4}:[0-9a-f]{2}:[01][0-9a-f][.][0-7]")


def _addresses(value: object) -> bool:
    return isinstance(value, (list, tuple)) and len(value) <= 8 and all(
        isinstance(item, str) and _EITHER.fullmatch(item) for item in value
    )  # fmt: skip


_UPLINK: Mapping[str, Check] = {
    "mac": _MAC, "ip": _IP, "ip6": _IP6, "gateway": _IP, "gateway6": _IP6, "gateway_mac": _NO_MAC, "dns": _addresses,
    "mtu": _MTU,
}  # fmt: skip
_DOWNLINK: Mapping[str, Check] = {
    "interface": _INTERFACE, "mac": _MAC, "client": text(r"[A-Za-z][A-Za-z0-9_.-]{0,30}"), "ip": _IP, "ip6": _IP6,
    "client_mac": _MAC, "visible_ip": _IP, "visible_gateway": _IP, "mtu": _MTU,
}  # fmt: skip
_DOWNLINKS: Mapping[str, Check] = {
    "gateway": _IP, "gateway6": _IP6, "resolvers": _addresses,
    "links": lambda value: isinstance(value, (list, tuple)) and len(value) <= MAX_LINKS,
}  # fmt: skip
_RULES: Mapping[str, Check] = {
    "interface": _INTERFACE, "text": text(rf"[ -~\n]{{0,{RULES_PART}}}"), "first": boolean, "last": boolean,
}  # fmt: skip


def uplink_fields(uplink: Uplink | HandedCard | None) -> dict[str, Any]:
    """Fields of ``network``."""
    return {"uplink": None if uplink is None else uplink._asdict()}


def parse_uplink(fields: Mapping[str, Any]) -> Uplink | HandedCard | None:
    """None: the qube has no network."""
    if fields.keys() != {"uplink"}:
        raise RemoteProtocolError("network needs the field uplink and no other")
    if fields["uplink"] is None:
        return None
    if isinstance(fields["uplink"], Mapping) and "port" in fields["uplink"]:
        return HandedCard(**_checked(fields["uplink"], {"port": _PORT}))
    checked = _checked(fields["uplink"], _UPLINK)
    return Uplink(**{**checked, "dns": tuple(checked["dns"])})


def downlinks_fields(downlinks: Downlinks) -> dict[str, Any]:
    """Fields of ``downlinks``."""
    return {**downlinks._asdict(), "links": [link._asdict() for link in downlinks.links]}


def parse_downlinks(fields: Mapping[str, Any]) -> Downlinks:
    checked = _checked(fields, _DOWNLINKS)
    links = tuple(Downlink(**_checked(link, _DOWNLINK)) for link in checked["links"])
    if len({link.interface for link in links}) != len(links):
        raise RemoteProtocolError("a link is named twice")
    return Downlinks(checked["gateway"], checked["gateway6"], tuple(checked["resolvers"]), links)


def split_rules(interface: str, rules: str) -> Iterator[Rules]:
    """The requests that carry the rules of a link (lines), in order; at least one. A line is shorter than a part."""
    parts = [""]
    for line in rules.splitlines():
        if len(parts[-1]) + len(line) + 1 > RULES_PART:
            parts.append("")
        parts[-1] += f"{line}\n"
    for number, part in enumerate(parts):
        yield Rules(interface, part, first=number == 0, last=number == len(parts) - 1)


def parse_rules(fields: Mapping[str, Any]) -> Rules:
    return Rules(**_checked(fields, _RULES))


def _checked(fields: object, checks: Mapping[str, Check]) -> dict[str, Any]:
    """The fields, all there and nothing else, each of its type and alphabet."""
    if not isinstance(fields, Mapping) or fields.keys() != checks.keys():
        raise RemoteProtocolError(f"the fields must be {', '.join(checks)}")
    for key, value in fields.items():
        if not checks[key](value):
            raise RemoteProtocolError(f"field {key!a} has an illegal value")
    return dict(fields)
