"""Drives by QMP: what QEMU is told, what it remembers for a later daemon, and nothing half attached after a failure."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from cloison.drivers.hypervisor import unplug
from cloison.drivers.hypervisor.base import Drive, DriveKind
from cloison.drivers.hypervisor.drives import Drives, plan_arguments
from cloison.errors import BackendFailed

DISK = Drive("xvdi", DriveKind.DISK, 7, read_only=False, is_block_node=False, label='{"port": "a, b"}')
DISC = Drive("xvdj", DriveKind.DISC, 8, read_only=True, is_block_node=True, label="disc")


class Qemu:
    """Keeps descriptors, images and devices as QEMU does; a device goes when its guest agrees."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.sent: list[int] = []
        self.sets: dict[int, str] = {}
        self.images: dict[str, dict[str, Any]] = {}
        self.devices: dict[str, dict[str, Any]] = {}
        self.fail = ""
        self.guest_agrees = True
        self.drives = self.new_daemon()

    def new_daemon(self) -> Drives:
        self.drives = Drives("work", self.execute, self.sent.append)
        return self.drives

    async def execute(self, command: str, arguments: dict[str, object]) -> Any:
        await asyncio.sleep(0)
        self.said.append(command)
        if command == self.fail:
            raise BackendFailed(f"QEMU refused {command}")
        handler: Callable[[Any], Any] = getattr(self, command.replace("-", "_"))
        return handler(arguments)

    def query_pci(self, _: Any) -> Any:
        taken = [{"slot": int(d["addr"][:2], 16)} for d in self.devices.values() if d.get("bus") == "bridge0"]
        return [{"devices": [{"qdev_id": "bridge0", "pci_bridge": {"devices": taken}}]}]

    def add_fd(self, arguments: Any) -> Any:
        number = max(self.sets, default=0) + 1
        self.sent.pop()
        self.sets[number] = arguments["opaque"]
        return {"fdset-id": number, "fd": 30 + number}

    def query_fdsets(self, _: Any) -> Any:
        named = [{"fdset-id": n, "fds": [{"fd": 1, "opaque": text}]} for n, text in self.sets.items()]
        return [*named, {"fdset-id": 99, "fds": [{"fd": 2}]}, {"fdset-id": 98, "fds": [{"fd": 3, "opaque": "root"}]}]

    def remove_fd(self, arguments: Any) -> None:
        used = [image["file"]["filename"] for image in self.images.values()]
        assert f"/dev/fdset/{arguments['fdset-id']}" not in used
        del self.sets[arguments["fdset-id"]]

    def blockdev_add(self, arguments: Any) -> None:
        assert arguments["file"]["filename"].removeprefix("/dev/fdset/") in map(str, self.sets)
        self.images[arguments["node-name"]] = arguments

    def blockdev_del(self, arguments: Any) -> None:
        name = arguments["node-name"]
        if name not in self.images or any(device.get("drive") == name for device in self.devices.values()):
            raise BackendFailed("no such node, or it is in use")
        del self.images[name]

    def device_add(self, arguments: Any) -> None:
        if self.fail == arguments["driver"] or arguments["id"] in self.devices:
            raise BackendFailed("Duplicate ID")
        assert "drive" not in arguments or arguments["drive"] in self.images
        self.devices[arguments["id"]] = arguments

    def device_del(self, arguments: Any) -> None:
        if arguments["id"] not in self.devices:
            raise BackendFailed("Device not found")
        if self.guest_agrees:
            asyncio.get_running_loop().call_soon(self.unplug, arguments["id"])

    def unplug(self, name: str) -> None:
        for below in [each for each, device in self.devices.items() if device["bus"] == f"{name}.0"]:
            del self.devices[below]
            self.drives.note_gone(below)
        del self.devices[name]
        self.drives.note_gone(name)

    def qom_list(self, _: Any) -> Any:
        return [{"name": name} for name in ("port0", "disk-root", *self.devices)]

    @property
    def rests(self) -> tuple[Any, ...]:
        return self.sets, self.images, self.devices


async def test_a_disk_is_the_descriptor_and_has_its_name_as_serial() -> None:
    qemu = Qemu()
    await qemu.drives.add(DISK)
    image = qemu.images["content-xvdi"]
    assert (image["driver"], image["read-only"], image["file"]["driver"]) == ("raw", False, "file")
    device = qemu.devices["drive-xvdi"]
    assert (device["driver"], device["serial"], device["bus"]) == ("virtio-blk-pci-non-transitional", "xvdi", "bridge0")


async def test_a_disc_comes_with_its_own_controller_and_goes_with_it() -> None:
    qemu = Qemu()
    await qemu.drives.add(DISC)
    assert [device["driver"] for device in qemu.devices.values()] == ["virtio-scsi-pci-non-transitional", "scsi-cd"]
    assert qemu.images["content-xvdj"]["file"]["driver"] == "host_device"
    await qemu.drives.remove("xvdj")
    assert qemu.rests == ({}, {}, {})


async def test_a_later_daemon_finds_what_is_there() -> None:
    qemu = Qemu()
    await qemu.drives.add(DISK)
    await qemu.drives.add(DISC)
    assert await qemu.new_daemon().all() == {"xvdi": DISK.label, "xvdj": "disc"}
    await qemu.drives.remove("xvdi")
    assert await qemu.drives.all() == {"xvdj": "disc"}
    await qemu.drives.remove("xvdi")


@pytest.mark.parametrize(
    "fail", ["add-fd", "blockdev-add", "device_add", "virtio-scsi-pci-non-transitional", "scsi-cd"]
)
async def test_what_fails_leaves_nothing(fail: str) -> None:
    qemu = Qemu()
    qemu.fail = fail
    with pytest.raises(BackendFailed):
        await qemu.drives.add(DISC)
    assert qemu.rests == ({}, {}, {}) or (fail == "scsi-cd" and not qemu.images)


async def test_a_second_drive_of_a_name_is_refused() -> None:
    qemu = Qemu()
    await qemu.drives.add(DISK)
    with pytest.raises(BackendFailed, match="already"):
        await qemu.drives.add(replace(DISC, name="xvdi"))
    assert list(qemu.devices) == ["drive-xvdi"]


async def test_a_guest_that_keeps_its_drive_has_it_until_it_lets_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unplug, "UNPLUG_TIMEOUT_S", 0.01)
    qemu = Qemu()
    await qemu.drives.add(DISK)
    qemu.guest_agrees = False
    with pytest.raises(BackendFailed, match="does not let go"):
        await qemu.drives.remove("xvdi")
    assert await qemu.drives.all() == {"xvdi": DISK.label}
    told: list[str] = []
    qemu.drives.on_gone = told.append
    qemu.unplug("drive-xvdi")
    assert told == ["xvdi"]
    await qemu.drives.remove("xvdi")
    assert qemu.rests == ({}, {}, {})


async def test_an_image_left_behind_by_a_dead_daemon_is_no_obstacle() -> None:
    """The guest let go while no daemon was there."""
    qemu = Qemu()
    await qemu.drives.add(DISK)
    del qemu.devices["drive-xvdi"]
    assert await qemu.new_daemon().all() == {}
    assert qemu.rests == ({}, {}, {})
    await qemu.drives.add(DISK)
    del qemu.devices["drive-xvdi"]
    await qemu.new_daemon().add(DISK)
    assert len(qemu.sets) == len(qemu.images) == 1


async def test_all_places_can_be_used() -> None:
    qemu = Qemu()
    for number in range(31):
        await qemu.drives.add(replace(DISK, name=f"xvd{number}"))
    assert len({device["addr"] for device in qemu.devices.values()}) == 31


def test_drives_that_are_there_from_the_start_are_on_the_command_line() -> None:
    words = plan_arguments((DISK, DISC))
    given = [words[at + 1] for at, word in enumerate(words) if word == "-add-fd"]
    assert given[0] == 'fd=7,set=7,opaque={"drive": "xvdi",, "label": "{\\"port\\": \\"a,, b\\"}"}'
    devices = [json.loads(words[at + 1]) for at, word in enumerate(words) if word == "-device"]
    assert [(d["driver"], d.get("bootindex")) for d in devices] == [
        ("virtio-blk-pci-non-transitional", None), ("virtio-scsi-pci-non-transitional", None), ("scsi-cd", 0),
    ]  # fmt: skip
    assert [d["addr"] for d in devices if "addr" in d] == ["01.0", "02.0"]
