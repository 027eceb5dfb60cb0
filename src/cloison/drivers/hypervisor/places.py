"""Places where a running machine can get another device, and which are free.

In: QEMU's answer to ``query-pci``. Out: a bus and an address. May import: the contract, plan, errors.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from cloison.drivers.hypervisor.base import Place
from cloison.drivers.hypervisor.plan import BRIDGE_SLOTS, BRIDGES, HOTPLUG_PORTS
from cloison.errors import BackendFailed


def find_free_place(buses: Any, place: Place, name: str, what: str) -> tuple[str, str]:
    """Bus and address for another ``what`` in the machine ``name``; BackendFailed if there is none."""
    taken = set(_taken(buses))
    for bus, slot in _places(place):
        if (bus, slot) not in taken:
            return bus, f"{slot:02x}.0"
    raise BackendFailed(f"{name} has no free place for another {what}")


def _places(place: Place) -> Iterator[tuple[str, int]]:
    match place:
        case Place.PORT:
            yield from ((f"port{index}", 0) for index in range(HOTPLUG_PORTS))
        case Place.BRIDGE:
            yield from ((f"bridge{index}", slot) for index in range(BRIDGES) for slot in BRIDGE_SLOTS)


def _taken(buses: Any) -> Iterator[tuple[str, int]]:
    """Bus and slot of each device behind a port or bridge."""
    for bus in buses:
        for device in bus["devices"]:
            for behind in device.get("pci_bridge", {}).get("devices", ()):
                yield str(device["qdev_id"]), int(behind["slot"])
