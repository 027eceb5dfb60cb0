"""Block devices of dom0 in running qubes: real image files and locks; only the machines are fakes, which keep the
descriptors that they are given as QEMU does."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from cloison.drivers.block.images import HostImages
from cloison.drivers.hypervisor.base import Drive, DriveKind
from cloison.engine import events as e
from cloison.engine.blocks import FRONTENDS, BlockDevices
from cloison.engine.devices import Exposed
from cloison.engine.system import System
from cloison.errors import BackendFailed, BadRequest, CloisonError, DeviceInUse, NotNow
from cloison.model.names import DOM0, QubeName
from cloison.model.power import PowerState
from cloison.model.qube import Assignment

from ..model.test_properties import picture, qube

WORK, LAB = QubeName("work"), QubeName("lab")


class Machine:
    def __init__(self) -> None:
        self.held: dict[str, tuple[Drive, int]] = {}
        self.refuse = False
        self.on_gone: Callable[[str], None] = lambda _: None

    async def add_drive(self, drive: Drive) -> None:
        await asyncio.sleep(0)
        if self.refuse:
            raise BackendFailed("no free place")
        assert drive.name not in self.held
        self.held[drive.name] = drive, os.dup(drive.descriptor)

    async def remove_drive(self, name: str) -> None:
        await asyncio.sleep(0)
        if self.refuse:
            raise BackendFailed("the guest does not let go")
        if name in self.held:
            os.close(self.held.pop(name)[1])

    async def drives(self) -> Mapping[str, str]:
        return {name: drive.label for name, (drive, _) in self.held.items()}

    def watch_drives(self, on_gone: Callable[[str], None]) -> None:
        self.on_gone = on_gone

    def end(self) -> None:
        for name in list(self.held):
            os.close(self.held.pop(name)[1])


class Yard:
    """Running qubes, what was said, and the daemon's part, which can be made anew."""

    def __init__(self, tmp: Path) -> None:
        self.tmp = tmp
        self.machines: dict[QubeName, Machine] = {}
        self.lives: dict[QubeName, Any] = {}
        self.assignments: dict[QubeName, tuple[Assignment, ...]] = {}
        self.paused = False
        self.said: list[e.Event] = []
        self.books = SimpleNamespace(say=self.said.append)
        self.tasks: list[asyncio.Task[None]] = []
        self.images = HostImages(tmp / "data/exposed", tmp / "data", block=tmp / "none")
        (tmp / "data").mkdir()
        self.blocks = self.new_daemon()

    def new_daemon(self) -> BlockDevices:
        def inventory() -> Any:
            qubes = [replace(qube(name, number), assignments=self.assignments.get(QubeName(name), ()))
                     for number, name in enumerate(("work", "lab"), 5)]  # fmt: skip
            return picture(*qubes)

        self.blocks = BlockDevices(cast(System, self), inventory, self.images)
        return self.blocks

    def run(self, name: QubeName) -> Machine:
        machine = self.machines[name] = Machine()
        self.lives[name] = SimpleNamespace(machine=machine, facts=SimpleNamespace(name=name))
        return machine

    def running(self) -> frozenset[QubeName]:
        return frozenset(self.lives)

    def find_live(self, name: QubeName) -> Any:
        return self.lives.get(name)

    def live(self, name: QubeName) -> Any:
        return self.lives[name]

    def power_state(self, name: QubeName) -> PowerState:
        return PowerState.PAUSED if self.paused else PowerState.RUNNING

    def own(self, work: Coroutine[Any, Any, None], name: str) -> None:
        self.tasks.append(asyncio.ensure_future(work))

    async def settle(self) -> None:
        await asyncio.gather(*self.tasks)
        self.tasks.clear()

    def disk(self, name: str = "disk") -> Exposed:
        path = self.tmp / name
        path.write_bytes(b"\0" * 4096)
        return self.blocks.expose(path, "", read_only=False)

    def told(self) -> list[str]:
        names = [type(event).__name__ for event in self.said]
        self.said.clear()
        return names


@pytest.fixture
async def yard(tmp_path: Path) -> AsyncIterator[Yard]:
    made = Yard(tmp_path)
    yield made
    await made.settle()
    for machine in made.machines.values():
        machine.end()


def wish(mode: str, port: str = "disk", **options: str) -> Assignment:
    return Assignment("block", DOM0, port, "*", mode, {key.replace("_", "-"): value for key, value in options.items()})


async def test_what_is_exposed_is_told_with_size_and_mode(yard: Yard) -> None:
    device = yard.disk()
    assert device.name == "dom0:disk:image:disk"
    assert device.about["_size"] == "4096"
    assert (device.about["_mode"], device.about["interfaces"]) == ("w", "b******")
    assert yard.said == [e.DeviceAdded(DOM0, "block", device.name), e.DeviceListChanged(DOM0, "block")]
    assert [list(yard.blocks.exposed(*asked)) for asked in ((WORK, "block"), (DOM0, "usb"))] == [[], []]
    yard.said.clear()
    yard.blocks.hide("disk")
    assert yard.said == [e.DeviceRemoved(DOM0, "block", "dom0:disk"), e.DeviceListChanged(DOM0, "block")]


async def test_a_device_goes_in_and_out(yard: Yard) -> None:
    machine = yard.run(WORK)
    device = yard.disk()
    await yard.blocks.attach(WORK, device, {"frontend-dev": "xvdk"})
    assert list(machine.held) == ["xvdk"]
    (found,) = yard.blocks.attached("block")
    assert (found.frontend, found.device, found.options) == (WORK, device, {"frontend-dev": "xvdk"})
    with pytest.raises(NotNow, match="attached to work"):
        yard.blocks.hide("disk")
    await yard.blocks.detach(found)
    await yard.blocks.detach(found)
    assert (machine.held, list(yard.blocks.attached("block"))) == ({}, [])


async def test_the_same_file_is_never_written_by_two(yard: Yard) -> None:
    yard.run(WORK)
    lab = yard.run(LAB)
    first, second = yard.disk(), yard.blocks.expose(yard.tmp / "disk", "alias", read_only=False)
    await yard.blocks.attach(WORK, first, {})
    for options in ({}, {"read-only": "yes"}):
        with pytest.raises(DeviceInUse, match="in use"):
            await yard.blocks.attach(LAB, second, options)
    yard.machines[WORK].end()  # its process is gone, and the lock with it
    yard.blocks.stopped(WORK)
    await yard.blocks.attach(LAB, second, {})
    assert list(lab.held) == ["xvdi"]


async def test_two_at_once_get_two_names_and_one_device_goes_to_one(yard: Yard) -> None:
    machine = yard.run(WORK)
    devices = [yard.disk("one"), yard.disk("two"), yard.disk("one")]
    ends = await asyncio.gather(*(yard.blocks.attach(WORK, d, {}) for d in devices), return_exceptions=True)
    assert [type(end) for end in ends] == [type(None), type(None), DeviceInUse]
    assert sorted(machine.held) == ["xvdi", "xvdj"]


@pytest.mark.parametrize(
    ("options", "kind", "read_only"),
    [
        ({}, DriveKind.DISK, False),
        ({"read-only": "yes"}, DriveKind.DISK, True),
        ({"read-only": "No"}, DriveKind.DISK, False),
        ({"devtype": "cdrom"}, DriveKind.DISC, True),
    ],
)
async def test_options(yard: Yard, options: dict[str, str], kind: DriveKind, read_only: bool) -> None:
    machine = yard.run(WORK)
    await yard.blocks.attach(WORK, yard.disk(), options)
    drive, _ = machine.held["xvdi"]
    assert (drive.kind, drive.read_only) == (kind, read_only)


async def test_names_are_not_given_twice_and_come_to_an_end(yard: Yard) -> None:
    yard.run(WORK)
    for number in range(len(FRONTENDS)):
        await yard.blocks.attach(WORK, yard.disk(f"d{number}"), {})
    with pytest.raises(NotNow, match="block devices already"):
        await yard.blocks.attach(WORK, yard.disk("more"), {})
    with pytest.raises(NotNow, match="has a xvdi already"):
        await yard.blocks.attach(WORK, yard.disk("more"), {"frontend-dev": "xvdi"})
    with pytest.raises(BadRequest, match="xvde to xvdz"):
        await yard.blocks.attach(WORK, yard.disk("more"), {"frontend-dev": "private"})


async def test_a_failure_leaves_the_device_free(yard: Yard) -> None:
    yard.run(WORK).refuse = True
    device = yard.disk()
    with pytest.raises(BackendFailed):
        await yard.blocks.attach(WORK, device, {})
    yard.machines[WORK].refuse = False
    await yard.blocks.attach(WORK, device, {})
    yard.machines[WORK].refuse = True
    (found,) = yard.blocks.attached("block")
    with pytest.raises(BackendFailed):
        await yard.blocks.detach(found)
    assert list(yard.blocks.attached("block")) == [found]
    yard.machines[WORK].refuse = False


async def test_a_paused_qube_cannot_let_go(yard: Yard) -> None:
    yard.run(WORK)
    await yard.blocks.attach(WORK, yard.disk(), {})
    yard.paused = True
    with pytest.raises(NotNow, match="paused"):
        await yard.blocks.detach(yard.blocks.attached("block")[0])


async def test_a_later_daemon_learns_from_the_machines(yard: Yard) -> None:
    machine = yard.run(WORK)
    device = yard.disk()
    await yard.blocks.attach(WORK, device, {"read-only": "yes"})
    before = list(yard.blocks.attached("block"))
    yard.new_daemon()
    assert list(yard.blocks.attached("block")) == []
    await yard.blocks.recover()
    assert list(yard.blocks.attached("block")) == before
    (yard.tmp / "disk").unlink()
    yard.new_daemon()
    await yard.blocks.recover()
    (found,) = yard.blocks.attached("block")
    assert found.device.name == device.name
    await yard.blocks.detach(found)
    assert machine.held == {}


async def test_what_a_guest_ejects_is_told(yard: Yard) -> None:
    machine = yard.run(WORK)
    await yard.blocks.attach(WORK, yard.disk(), {})
    await yard.blocks.recover()
    yard.said.clear()
    machine.on_gone("xvdi")
    await yard.settle()
    assert yard.said == [e.DeviceDetached(WORK, "block", "dom0:disk")]
    assert (machine.held, list(yard.blocks.attached("block"))) == ({}, [])


async def test_a_start_gets_what_it_requires_and_then_what_it_may_have(yard: Yard) -> None:
    yard.disk()
    yard.disk("other")
    yard.assignments[WORK] = (wish("required", read_only="yes"), wish("auto-attach", "other"), wish("auto-attach", "x"),
                              wish("ask-to-attach", "other"))  # fmt: skip
    await yard.settle()
    yard.said.clear()
    with yard.blocks.required(WORK) as drives:
        assert [(drive.name, drive.read_only) for drive in drives] == [("xvdi", True)]
        machine = yard.run(WORK)
        await machine.add_drive(drives[0])
    await yard.blocks.started(WORK)
    assert sorted(machine.held) == ["xvdi", "xvdj"]
    assert yard.told() == ["DeviceAttachRequested", "DeviceAttached"] * 2
    assert sorted(each.device.port for each in yard.blocks.attached("block")) == ["disk", "other"]


@pytest.mark.parametrize(("port", "said"), [("gone", "no block device gone"), ("empty", "0 bytes"), ("*", "no such")])
async def test_a_start_without_what_it_requires_is_refused(yard: Yard, port: str, said: str) -> None:
    (yard.tmp / "data/exposed/rw").mkdir(parents=True)
    (yard.tmp / "data/exposed/rw/empty").symlink_to(yard.tmp / "nothing")
    (yard.tmp / "nothing").write_bytes(b"")
    yard.assignments[WORK] = (wish("required", port),)
    with pytest.raises(NotNow, match=f"cannot start work: it requires .*{said}"), yard.blocks.required(WORK):
        pass


async def test_a_start_that_fails_frees_what_it_required(yard: Yard) -> None:
    device = yard.disk()
    yard.assignments[WORK] = (wish("required"),)
    with pytest.raises(CloisonError, match="no memory"), yard.blocks.required(WORK):
        raise CloisonError("no memory")
    yard.run(LAB)
    await yard.blocks.attach(LAB, device, {})
    with pytest.raises(NotNow, match="attached to lab"), yard.blocks.required(WORK):
        pass


async def test_a_device_that_comes_goes_to_who_wishes_for_it(yard: Yard) -> None:
    yard.assignments = {WORK: (wish("auto-attach"),), LAB: (wish("auto-attach", "*"),)}
    yard.run(WORK)
    yard.run(LAB)
    yard.disk()
    await yard.settle()
    assert [list(yard.machines[name].held) for name in (WORK, LAB)] == [[], ["xvdi"]]
    assert yard.told() == ["DeviceAdded", "DeviceListChanged", "DeviceAttachRequested", "DeviceAttached"]
