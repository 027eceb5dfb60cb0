"""Drives that come and go: disks and discs that are attached to a machine, besides the fixed disks of its volumes.

In: the contract's ``Drive``, a way to send commands. Out: arguments of a command line, or commands. May import: the
contract, nics, places, unplug, errors.

QEMU itself knows what is attached, so nothing is remembered here: a drive's label travels as the remark of its
descriptor, and a later daemon asks and finds the same. The drive ``xvdi`` is the device ``drive-xvdi`` (for a disc,
that is its controller), which the guest knows by that name too: as the disk's serial number or the disc's product name.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable, Mapping
from typing import Any

from cloison.drivers.hypervisor.base import Drive, DriveKind, Place
from cloison.drivers.hypervisor.nics import SendDescriptor
from cloison.drivers.hypervisor.places import find_free_place
from cloison.drivers.hypervisor.unplug import Execute, Unplugging
from cloison.errors import BackendFailed

DEVICE, CONTENT, DISC = "drive-", "content-", "disc-"
FIRST_TO_BOOT = 0
"""A disc that is there from the start is booted before the root disk, which has 1."""


def plan_content(drive: Drive, descriptor_set: int) -> dict[str, object]:
    """The image behind a drive. Always raw: a guest must not choose what a host's file is read as."""
    protocol = {
        "driver": "host_device" if drive.is_block_node else "file",
        "filename": f"/dev/fdset/{descriptor_set}",
        "locking": "off",
        "discard": "unmap",
        "read-only": drive.read_only,
    }
    return {"driver": "raw", "node-name": CONTENT + drive.name, "read-only": drive.read_only, "discard": "unmap",
            "file": protocol}  # fmt: skip


def plan_devices(drive: Drive, bus: str, address: str) -> list[dict[str, object]]:
    """What is plugged in, in this order."""
    device, content = DEVICE + drive.name, CONTENT + drive.name
    place = {"bus": bus, "addr": address}
    match drive.kind:
        case DriveKind.DISK:
            return [{"driver": "virtio-blk-pci-non-transitional", "id": device, "drive": content,
                     "serial": drive.name, **place}]  # fmt: skip
        case DriveKind.DISC:
            return [
                {"driver": "virtio-scsi-pci-non-transitional", "id": device, **place},
                {"driver": "scsi-cd", "id": DISC + drive.name, "bus": f"{device}.0", "drive": content,
                 "product": drive.name},
            ]  # fmt: skip


def plan_arguments(drives: tuple[Drive, ...]) -> list[str]:
    """For a machine that has them from its start."""
    arguments: list[str] = []
    for slot, drive in enumerate(drives, 1):
        remark = _remark(drive).replace(",", ",,")
        content = plan_content(drive, drive.descriptor)
        arguments += ["-add-fd", f"fd={drive.descriptor},set={drive.descriptor},opaque={remark}"]
        arguments += ["-blockdev", json.dumps(content)]
        devices = plan_devices(drive, "bridge0", f"{slot:02x}.0")
        if drive.kind is DriveKind.DISC:
            devices[-1]["bootindex"] = FIRST_TO_BOOT
        for device in devices:
            arguments += ["-device", json.dumps(device)]
    return arguments


def _remark(drive: Drive) -> str:
    return json.dumps({"drive": drive.name, "label": drive.label})


class Drives:
    """The drives of one machine."""

    def __init__(self, name: str, execute: Execute, send_descriptor: SendDescriptor) -> None:
        self._name = name
        self._execute = execute
        self._send_descriptor = send_descriptor
        self._turn = asyncio.Lock()
        self._unplugging = Unplugging(DEVICE, execute)
        self.on_gone: Callable[[str], None] = lambda _: None
        """Told the name of a drive that left without being asked to now."""

    async def add(self, drive: Drive) -> None:
        """See Machine.add_drive. Nothing half attached stays."""
        async with self._turn:
            if drive.name in await self._unplugging.plugged():
                raise BackendFailed(f"{self._name} has a drive {drive.name} already")
            await self._sweep(drive.name)
            bus, address = find_free_place(
                await self._execute("query-pci", {}), Place.BRIDGE, self._name, "drive"
            )  # fmt: skip
            self._send_descriptor(drive.descriptor)
            try:
                added: Any = await self._execute("add-fd", {"opaque": _remark(drive)})
                await self._execute("blockdev-add", plan_content(drive, int(added["fdset-id"])))
                for device in plan_devices(drive, bus, address):
                    await self._execute("device_add", device)
            except BackendFailed:
                await self._take_back(drive.name)
                raise

    async def remove(self, name: str) -> None:
        """See Machine.remove_drive."""
        async with self._turn:
            try:
                await self._unplugging.remove(name)
            except TimeoutError:
                raise BackendFailed(
                    f"the guest of {self._name} does not let go of {name}",
                    hint="unmount it there first; it goes at the latest when the qube stops",
                ) from None
            await self._sweep(name)

    async def all(self) -> Mapping[str, str]:
        """See Machine.drives. Images that a dead daemon, or a guest that let go late, left behind are given up."""
        async with self._turn:
            devices, found = set(await self._unplugging.plugged()), await self._sets()
            for name in found.keys() - devices:
                await self._sweep(name)
            return {name: label for name, (_, label) in found.items() if name in devices}

    def note_gone(self, device: object) -> None:
        """QEMU says that a device is gone."""
        if (name := self._unplugging.note_gone(str(device))) is not None:
            self.on_gone(name)

    async def _sets(self) -> dict[str, tuple[int, str]]:
        """Drives by name: the number of the descriptor's set, and the label."""
        sets: Any = await self._execute("query-fdsets", {})
        found = {}
        for each in sets:
            for descriptor in each["fds"]:
                with contextlib.suppress(ValueError, KeyError, TypeError):
                    remark = json.loads(descriptor["opaque"])
                    found[str(remark["drive"])] = int(each["fdset-id"]), str(remark["label"])
        return found

    async def _take_back(self, name: str) -> None:
        """What was plugged in a moment ago, and no guest has used."""
        with contextlib.suppress(BackendFailed):
            await self._execute("device_del", {"id": DEVICE + name})
        await self._sweep(name)

    async def _sweep(self, name: str) -> None:
        """Give up the image behind a drive that is not plugged in (any more)."""
        with contextlib.suppress(BackendFailed):  # there is none, or it is given up already
            await self._execute("blockdev-del", {"node-name": CONTENT + name})
        if (found := (await self._sets()).get(name)) is not None:
            with contextlib.suppress(BackendFailed):
                await self._execute("remove-fd", {"fdset-id": found[0]})
