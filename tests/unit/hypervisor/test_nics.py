"""Network cards by QMP: the order of commands, and nothing half plugged after a failure."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from cloison.drivers.hypervisor import unplug
from cloison.drivers.hypervisor.base import Framing, Nic, Place
from cloison.drivers.hypervisor.nics import Nics
from cloison.drivers.hypervisor.plan import BRIDGE_SLOTS, BRIDGES
from cloison.errors import BackendFailed

UPLINK = Nic("uplink", "c0ffee", "00:16:3e:5e:6c:00", 65520, 7)


class Qemu:
    """Keeps backends and devices as QEMU does; unplugs when its guest agrees."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.descriptors: list[int] = []
        self.names: set[str] = set()
        self.backends: dict[str, bool] = {}
        self.devices: dict[str, tuple[str, str, str]] = {}
        self.fail = ""
        self.guest_agrees = True
        self.nics = Nics("work", self.execute, self.descriptors.append)

    async def execute(self, command: str, arguments: dict[str, object]) -> Any:
        self.said.append(command)
        if command == self.fail:
            raise BackendFailed(f"QEMU refused {command}")
        handler: Callable[[Any], Any] = getattr(self, command.replace("-", "_"))
        return handler(arguments)

    def query_pci(self, _: Any) -> Any:
        behind: dict[str, list[Any]] = {}
        for bus, address, _link in self.devices.values():
            behind.setdefault(bus, []).append({"slot": int(address.partition(".")[0], 16)})
        return [{"devices": [{"qdev_id": bus, "pci_bridge": {"devices": found}} for bus, found in behind.items()]}]

    def getfd(self, arguments: Any) -> None:
        self.descriptors.pop()
        self.names.add(arguments["fdname"])

    def closefd(self, arguments: Any) -> None:
        self.names.remove(arguments["fdname"])

    def netdev_add(self, arguments: Any) -> None:
        self.names.remove(arguments["local"]["str"] if "local" in arguments else arguments["fd"])
        self.backends[arguments["id"]] = True

    def netdev_del(self, arguments: Any) -> None:
        if self.backends.pop(arguments["id"], None) is None:
            raise BackendFailed("Device not found")

    def set_link(self, arguments: Any) -> None:
        self.backends[arguments["name"]] = arguments["up"]

    def device_add(self, arguments: Any) -> None:
        if arguments["id"] in self.devices:
            raise BackendFailed("Duplicate ID")
        self.devices[arguments["id"]] = arguments["bus"], arguments["addr"], arguments["netdev"]

    def device_del(self, arguments: Any) -> None:
        if self.guest_agrees:
            asyncio.get_running_loop().call_soon(self.unplug, arguments["id"])

    def unplug(self, device: str) -> None:
        del self.devices[device]
        self.nics.note_gone(device)

    def qom_list(self, _: Any) -> Any:
        return [{"name": name} for name in ("port0", *self.devices)]

    def qom_get(self, arguments: Any) -> str:
        return self.devices[arguments["path"].rpartition("/")[2]][2]


async def test_a_card_is_plugged_in_behind_its_cable() -> None:
    qemu = Qemu()
    await qemu.nics.add(UPLINK)
    assert qemu.said == ["query-pci", "getfd", "netdev_add", "device_add"]
    assert qemu.devices == {"nic-uplink": ("port0", "00.0", "net-c0ffee")}
    assert await qemu.nics.all() == {"uplink": "c0ffee"}


async def test_a_closed_card_is_closed_before_the_guest_can_see_it() -> None:
    qemu = Qemu()
    await qemu.nics.add(Nic("vif4", "c0ffee", "fe:ff:ff:00:00:04", 65520, 7, Place.BRIDGE, open=False))
    assert qemu.said.index("set_link") < qemu.said.index("device_add")
    assert qemu.backends == {"net-c0ffee": False}
    await qemu.nics.open("vif4", open=True)
    assert qemu.backends == {"net-c0ffee": True}


@pytest.mark.parametrize("fail", ["getfd", "netdev_add", "set_link", "device_add"])
async def test_what_fails_leaves_nothing(fail: str) -> None:
    qemu = Qemu()
    qemu.fail = fail
    with pytest.raises(BackendFailed):
        await qemu.nics.add(Nic("vif4", "c0ffee", "fe:ff:ff:00:00:04", 1500, 7, framing=Framing.STREAM, open=False))
    assert (qemu.names, qemu.backends, qemu.devices) == (set(), {}, {})


async def test_a_removed_card_is_cut_first_and_gone_afterwards() -> None:
    qemu = Qemu()
    await qemu.nics.add(UPLINK)
    await qemu.nics.remove("uplink")
    assert qemu.said.index("netdev_del") < qemu.said.index("device_del")
    assert await qemu.nics.all() == {}
    await qemu.nics.remove("uplink")


async def test_a_guest_that_keeps_its_card_has_a_cut_cable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unplug, "UNPLUG_TIMEOUT_S", 0.01)
    qemu = Qemu()
    qemu.guest_agrees = False
    await qemu.nics.add(UPLINK)
    with pytest.raises(BackendFailed, match="does not let go"):
        await qemu.nics.remove("uplink")
    assert qemu.backends == {}


async def test_a_netvm_has_a_place_for_more_than_fifty_clients_and_says_when_there_is_none_left() -> None:
    qemu = Qemu()
    for number in range(BRIDGES * len(BRIDGE_SLOTS)):
        await qemu.nics.add(Nic(f"vif{number}", f"l{number}", "fe:ff:ff:00:00:04", 1500, 7, Place.BRIDGE))
    assert len({(bus, address) for bus, address, _ in qemu.devices.values()}) == len(qemu.devices) > 50
    with pytest.raises(BackendFailed, match="no free place"):
        await qemu.nics.add(Nic("vif999", "l999", "fe:ff:ff:00:00:04", 1500, 7, Place.BRIDGE))
    await qemu.nics.remove("vif7")
    await qemu.nics.add(Nic("vif999", "l999", "fe:ff:ff:00:00:04", 1500, 7, Place.BRIDGE))
