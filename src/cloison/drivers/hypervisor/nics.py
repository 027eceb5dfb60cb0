"""Network cards of a running QEMU: plugged, opened, closed and unplugged by QMP.

In: the contract's ``Nic``, a way to send commands. Out: commands. May import: the contract, places, plan,
unplug, errors.

QEMU itself knows what is plugged, so nothing is remembered here: a later daemon asks and finds the same. A card named
``vif4`` is the device ``nic-vif4``; its cable is the backend ``net-LINK``, and a card remembers which cable it had.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from cloison.drivers.hypervisor.base import Framing, Nic
from cloison.drivers.hypervisor.places import find_free_place
from cloison.drivers.hypervisor.plan import find_handed
from cloison.drivers.hypervisor.unplug import PERIPHERAL, Execute, Unplugging
from cloison.errors import BackendFailed

DEVICE, CABLE = "nic-", "net-"

SendDescriptor = Callable[[int], None]


class Nics:
    """The network cards of one machine."""

    def __init__(self, name: str, execute: Execute, send_descriptor: SendDescriptor) -> None:
        self._name = name
        self._execute = execute
        self._send_descriptor = send_descriptor
        self._turn = asyncio.Lock()
        self._unplugging = Unplugging(DEVICE, execute)

    async def add(self, nic: Nic) -> None:
        """See Machine.add_nic. Nothing half plugged stays."""
        async with self._turn:
            bus, address = find_free_place(await self._execute("query-pci", {}), nic.place, self._name, "network card")
            cable = CABLE + nic.link
            self._send_descriptor(nic.descriptor)
            await self._execute("getfd", {"fdname": cable})
            try:
                await self._execute("netdev_add", _backend(nic, cable))
            except BackendFailed:
                with contextlib.suppress(BackendFailed):
                    await self._execute("closefd", {"fdname": cable})
                raise
            try:
                if not nic.open:
                    await self._execute("set_link", {"name": cable, "up": False})
                await self._execute("device_add", _device(nic, cable, bus, address))
            except BackendFailed:
                with contextlib.suppress(BackendFailed):
                    await self._execute("netdev_del", {"id": cable})
                raise

    async def remove(self, name: str) -> None:
        """See Machine.remove_nic."""
        async with self._turn:
            link = (await self.all()).get(name)
            if link is None:
                return
            with contextlib.suppress(BackendFailed):  # cut already
                await self._execute("netdev_del", {"id": CABLE + link})
            try:
                await self._unplugging.remove(name)
            except TimeoutError:
                raise BackendFailed(
                    f"the guest of {self._name} does not let go of its network card {name}",
                    hint="its cable is cut; the card goes when the qube stops",
                ) from None

    async def open(self, name: str, *, open: bool) -> None:
        """See Machine.open_nic."""
        link = (await self.all()).get(name)
        if link is None:
            raise BackendFailed(f"{self._name} has no network card {name}")
        await self._execute("set_link", {"name": CABLE + link, "up": open})

    async def all(self) -> dict[str, str]:
        """See Machine.nics."""
        found = {}
        for name in await self._unplugging.plugged():
            with contextlib.suppress(BackendFailed):  # it has just gone
                place = f"{PERIPHERAL}/{DEVICE}{name}"
                cable = await self._execute("qom-get", {"path": place, "property": "netdev"})
                found[name] = str(cable).removeprefix(CABLE)
        return found

    async def handed(self) -> dict[str, str]:
        """See Machine.handed_devices."""
        children = await self._execute("qom-list", {"path": PERIPHERAL})
        return dict(found for child in children if (found := find_handed(str(child["name"]))))

    def note_gone(self, device: object) -> None:
        """QEMU says that a device is gone."""
        self._unplugging.note_gone(str(device))


def _backend(nic: Nic, cable: str) -> dict[str, object]:
    match nic.framing:
        case Framing.PACKETS:
            return {"type": "dgram", "id": cable, "local": {"type": "fd", "str": cable}}
        case Framing.STREAM:
            # Not the newer type "stream": in QEMU 7.2 it looks for the descriptor where the monitor's are not known.
            return {"type": "socket", "id": cable, "fd": cable}


def _device(nic: Nic, cable: str, bus: str, address: str) -> dict[str, object]:
    return {
        "driver": "virtio-net-pci-non-transitional",
        "id": DEVICE + nic.name,
        "netdev": cable,
        "mac": nic.mac,
        "bus": bus,
        "addr": address,
        "host_mtu": nic.mtu,
        "romfile": "",
    }
