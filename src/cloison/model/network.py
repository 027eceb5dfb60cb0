"""Who reaches the network through whom: pure questions to the picture of the system.

In: an inventory. Out: paths, loops, addresses of links. May import: wire. Rules: Admin API notes, section 9.
"""

from __future__ import annotations

import re
from enum import Enum
from pathlib import PurePosixPath
from typing import NamedTuple

from cloison.errors import BadRequest
from cloison.model import addresses
from cloison.model.inventory import Inventory
from cloison.model.names import QubeName
from cloison.model.qube import Qube
from cloison.wire.network import Downlink, Downlinks, Uplink

UPLINK_FEATURE = "uplink"
"""Of a netvm that is itself without a netvm: what is at the far end of the chain (``parse_way_out``)."""
HOST_PORTS_FEATURE = "uplink-host-ports"
"""TCP ports of the host's loopback that qubes may reach through passt, blank-separated; none by default."""
IPV6_FEATURE = "ipv6"
PCI_ADDRESS = re.compile(r"[0-9a-f]{4}:[0-9a-f]{2}:[01][0-9a-f]\.[0-7]", re.ASCII)
WIDE_MTU = 65520
"""Of links between qubes: nothing on the way needs small packets, and each packet costs the same."""


class WayOut(Enum):
    """What a qube without a netvm that provides network has instead of one."""

    PASST = "passt"
    """The host's own network through passt, which needs no privileges. The default."""
    NONE = "none"
    JOIN = "join"
    """A socket of somebody else: another Cloison system, a test's peer."""
    PCI = "pci"
    """A network card of the host, handed over: the machine has it from its start to its end."""


class Exit(NamedTuple):
    """The end of a chain."""

    kind: WayOut
    socket: PurePosixPath | None = None
    """Of ``join``: speaks QEMU's stream framing (each packet after its length, four bytes, big-endian)."""
    host_ports: tuple[int, ...] = ()
    device: str = ""
    """Of ``pci``: the card's address on the host, ``0000:02:00.0``."""


def parse_way_out(untrusted_text: str, untrusted_ports: str = "") -> Exit:
    """The value of the feature ``uplink``: ``passt`` (also if empty), ``none``, ``join:/PATH`` or ``pci:ADDRESS``."""
    kind, _, where = untrusted_text.partition(":")
    if kind == "join" and where.startswith("/"):
        return Exit(WayOut.JOIN, socket=PurePosixPath(where))
    if kind == "pci":
        return Exit(WayOut.PCI, device=parse_pci_address(where))
    if where or kind not in ("", "passt", "none"):
        raise BadRequest(f"uplink {untrusted_text[:60]!a} is none of passt, none, join:/PATH, pci:ADDRESS")
    ports = untrusted_ports.split()
    if not all(port.isdecimal() and 0 < int(port) < 65536 for port in ports):
        raise BadRequest(f"{HOST_PORTS_FEATURE} {untrusted_ports[:60]!a} must be port numbers separated by blanks")
    return Exit(WayOut(kind or "passt"), host_ports=tuple(int(port) for port in ports))


def parse_pci_address(untrusted_text: str) -> str:
    """``DDDD:BB:DD.F`` in small letters; the domain may be left out when it is 0000."""
    address = untrusted_text.lower()
    if address.count(":") == 1:
        address = f"0000:{address}"
    if not PCI_ADDRESS.fullmatch(address):
        raise BadRequest(
            f"{untrusted_text[:40]!a} is no PCI address such as 0000:02:00.0", hint="`cloison pci list` shows them"
        )
    return address


def find_exit(inventory: Inventory, name: str) -> Exit | None:
    """The way out of a qube that is the end of its chain; None for every other."""
    if netvm_of(inventory, name) is not None or not inventory.flag(name, "provides_network"):
        return None
    return parse_way_out(
        inventory.feature(name, UPLINK_FEATURE) or "", inventory.feature(name, HOST_PORTS_FEATURE) or ""
    )


def handed_devices(inventory: Inventory, name: str) -> tuple[str, ...]:
    """Addresses of the host's PCI devices that the qube is to have from its start on."""
    try:
        exit = find_exit(inventory, name)
    except BadRequest:
        return ()  # nobody knows what is meant; that is told when the way out is opened
    return (exit.device,) if exit is not None and exit.kind is WayOut.PCI else ()


def netvm_of(inventory: Inventory, name: str) -> Qube | None:
    """The qube's netvm, if it has one that is a machine."""
    netvm = inventory.peer(name, "netvm")
    return netvm if netvm is not None and netvm.is_machine else None


def path_out(inventory: Inventory, name: str) -> tuple[QubeName, ...]:
    """The qube, its netvm, and so on to the end."""
    return tuple(qube.name for qube in inventory.chain(name, "netvm"))


def find_loop(inventory: Inventory, name: str, netvm: str) -> tuple[QubeName, ...]:
    """The circle that would arise if ``netvm`` became the netvm of ``name``; empty: none would."""
    path = path_out(inventory, netvm)
    if QubeName(name) not in path:
        return ()
    return (QubeName(name), *path[: path.index(QubeName(name)) + 1])


def clients_of(inventory: Inventory, name: str) -> tuple[Qube, ...]:
    """Qubes whose netvm this one is, running or not."""
    return tuple(qube for qube in inventory.users(name, "netvm") if qube.is_machine)


def behind(inventory: Inventory, name: str) -> tuple[QubeName, ...]:
    """Everybody who reaches the network through this qube, the nearest first."""
    found = [client.name for client in clients_of(inventory, name)]
    for each in found:
        found += [client.name for client in clients_of(inventory, each) if client.name not in found]
    return tuple(found)


def interface_of(client: Qube) -> str:
    """Name of the client's interface in its netvm."""
    return f"vif{client.qid}"


def downlink_mac(client: Qube) -> str:
    """Hardware address of the netvm's card for this client: different for each client of the system."""
    high, middle, low = client.qid.to_bytes(3, "big")
    return f"fe:ff:ff:{high:02x}:{middle:02x}:{low:02x}"


def uplink_of(inventory: Inventory, name: str) -> Uplink | None:
    """What the qube's agent is told of its card towards its netvm; None: it has no netvm."""
    if netvm_of(inventory, name) is None:
        return None
    return Uplink(
        mac=inventory.text(name, "mac"),
        ip=inventory.text(name, "visible_ip"),
        ip6=inventory.text(name, "visible_ip6"),
        gateway=inventory.text(name, "visible_gateway"),
        gateway6=inventory.text(name, "visible_gateway6") if inventory.text(name, "visible_ip6") else "",
        gateway_mac=downlink_mac(inventory.qube(name)),
        dns=tuple(inventory.text(name, "dns").split()),
        mtu=WIDE_MTU,
    )


def downlinks_of(inventory: Inventory, name: str, joined: frozenset[QubeName],
                 resolvers: tuple[str, ...]) -> Downlinks:  # fmt: skip
    """What the agent of a netvm is told of its clients, those among ``joined``.

    ``resolvers``: what the netvm itself asks (10.139.1.1 and .2, unless it is the end of the chain).
    """
    links = tuple(
        Downlink(
            interface=interface_of(client),
            mac=downlink_mac(client),
            client=client.name,
            ip=inventory.text(client.name, "ip"),
            ip6=inventory.text(client.name, "ip6"),
            client_mac=inventory.text(client.name, "mac"),
            visible_ip=inventory.text(client.name, "visible_ip"),
            visible_gateway=inventory.text(client.name, "visible_gateway"),
            mtu=WIDE_MTU,
        )
        for client in clients_of(inventory, name)
        if client.name in joined
    )
    return Downlinks(inventory.text(name, "gateway"), inventory.text(name, "gateway6"), resolvers, links)


def inner_resolvers(inventory: Inventory, name: str) -> tuple[str, ...]:
    """What a netvm with a netvm of its own asks."""
    return addresses.DNS if netvm_of(inventory, name) is not None else ()
