"""Block devices of dom0, attached to running qubes.

In: images of the host, assignments, qubes that start and stop. Out: drives in machines, events. May import: model,
errors, driver interfaces.

What is attached is the machines' to know: each drive carries its story as its label, so that a later daemon asks and
learns the same. That an image is never in two places at once, one of them writing, is the kernel's to guarantee: the
lock that opening takes goes with the descriptor into the machine.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from cloison.drivers.block.base import Image, Images
from cloison.drivers.hypervisor.base import Drive, DriveKind
from cloison.engine import events as e
from cloison.engine.devices import Attached, Exposed
from cloison.engine.start import Live
from cloison.engine.system import System
from cloison.errors import BackendFailed, BadRequest, CloisonError, DeviceAlreadyAttached, DeviceNotFound, NotNow
from cloison.model.devices import matches
from cloison.model.inventory import Inventory
from cloison.model.names import DOM0, QubeName
from cloison.model.power import PowerState
from cloison.model.qube import Assignment
from cloison.model.values import parse_bool

log = logging.getLogger(__name__)

CLASS = "block"
FRONTENDS = tuple(f"xvd{letter}" for letter in "ijklmnopqrstuvwxyzefgh")
"""Names in the qube, in the order in which they are given: Qubes's own, whose first letters are the fixed disks'."""


class BlockDevices:
    """Implements ``engine.devices.Devices``, ``engine.devices.Shelf`` and ``engine.system.Drives``."""

    def __init__(self, system: System, inventory: Callable[[], Inventory], images: Images) -> None:
        self._system = system
        self._inventory = inventory
        self._images = images
        self._attached: dict[QubeName, dict[str, Attached]] = {}
        """By frontend and name of the drive."""
        self._coming: set[tuple[QubeName, str]] = set()
        """Frontend and name of drives that are being attached."""
        self._furnished: set[QubeName] = set()
        """Qubes that have just been started with drives."""

    # -- looking

    def exposed(self, backend: QubeName, devclass: str) -> Sequence[Exposed]:
        if (backend, devclass) != (DOM0, CLASS):
            return ()
        return [_exposed(image) for image in self._images.images()]

    def attached(self, devclass: str) -> Sequence[Attached]:
        if devclass != CLASS:
            return ()
        return [found for held in self._attached.values() for found in held.values()]

    def trouble(self, backend: QubeName, devclass: str, port: str) -> str:
        return self._images.trouble(port) if (backend, devclass) == (DOM0, CLASS) and port != "*" else ""

    # -- verbs

    def expose(self, path: Path, port: str, *, read_only: bool) -> Exposed:
        before = {image.port for image in self._images.images()}
        device = _exposed(self._images.expose(path, port, read_only=read_only))
        if device.port not in before:
            self._say(e.DeviceAdded(DOM0, CLASS, device.name), e.DeviceListChanged(DOM0, CLASS))
            self._system.own(self._attach_everywhere(device), f"wishes for {device.name}")
        return device

    def hide(self, port: str) -> None:
        for found in self.attached(CLASS):
            if found.device.port == port:
                raise NotNow(f"{port} is attached to {found.frontend}", hint="detach it first")
        self._images.hide(port)
        self._say(e.DeviceRemoved(DOM0, CLASS, f"{DOM0}:{port}"), e.DeviceListChanged(DOM0, CLASS))

    async def attach(self, frontend: QubeName, device: Exposed, options: Mapping[str, str]) -> None:
        live = self._system.live(frontend)
        with self._opened(frontend, device, options) as drive:
            self._coming.add((frontend, drive.name))
            try:
                await live.machine.add_drive(drive)
            finally:
                self._coming.discard((frontend, drive.name))
        if self._system.find_live(frontend) is not live:
            raise NotNow(f"{frontend} stopped while {device.name} was attached to it")
        self._attached.setdefault(frontend, {})[drive.name] = Attached(device, frontend, options)

    async def detach(self, attached: Attached) -> None:
        held = self._attached.get(attached.frontend, {})
        name = next((name for name, found in held.items() if found == attached), None)
        live = self._system.find_live(attached.frontend)
        if name is None or live is None:
            return
        if self._system.power_state(attached.frontend) is PowerState.PAUSED:
            raise NotNow(f"{attached.frontend} is paused and cannot let go of {attached.device.name}")
        await live.machine.remove_drive(name)
        held.pop(name, None)

    # -- told by the system

    @contextmanager
    def required(self, name: QubeName) -> Iterator[tuple[Drive, ...]]:
        """The opened drives that a qube must have from its start; NotNow naming the one that is missing."""
        with ExitStack() as stack:
            drives = []
            for wish in self._wishes(name, "required"):
                try:
                    device = self._device_for(wish)
                    self._say(e.DeviceAttachRequested(name, CLASS, device.name, str(wish.options)))
                    drive = stack.enter_context(self._opened(name, device, wish.options))
                except CloisonError as error:
                    raise NotNow(
                        f"cannot start {name}: it requires {wish.backend}:{wish.port}: {error.message}",
                        hint=error.hint or f"`cloison device unassign {name} {wish.backend}:{wish.port}` lifts that",
                    ) from error
                self._coming.add((name, drive.name))
                stack.callback(self._coming.discard, (name, drive.name))
                drives.append(drive)
            yield tuple(drives)
            if drives:
                self._furnished.add(name)

    async def started(self, name: QubeName) -> None:
        """Learn what the machine has, if it may have anything (asking would hold up a disposable); then give the qube
        what it is to have when it can be had. Raises nothing."""
        live = self._system.find_live(name)
        if live is None:
            return
        self._watch(live)
        if name in self._furnished:
            self._furnished.discard(name)
            await self._learn(live)
        for found in self._attached.get(name, {}).values():
            self._say(e.DeviceAttached(name, CLASS, found.device.name, str(dict(found.options))))
        for wish in self._wishes(name, "auto-attach"):
            await self._attach_wished(name, wish)

    def stopped(self, name: QubeName) -> None:
        self._attached.pop(name, None)
        self._furnished.discard(name)

    async def recover(self) -> None:
        """After another daemon: learn what is attached from the machines."""
        for name in self._system.running():
            self._watch(self._system.live(name))
            await self._learn(self._system.live(name))

    # -- inside

    def _say(self, *events: e.Event) -> None:
        for event in events:
            self._system.books.say(event)

    def _wishes(self, name: QubeName, mode: str) -> list[Assignment]:
        """Those that name a port first: they leave less choice."""
        found = [
            wish for wish in self._inventory().qube(name).assignments if (wish.devclass, wish.mode) == (CLASS, mode)
        ]
        return sorted(found, key=lambda wish: (wish.port == "*", wish.device_id == "*"))

    def _device_for(self, wish: Assignment) -> Exposed:
        """A free device that answers to an assignment."""
        found = [device for device in self.exposed(wish.backend, CLASS) if matches(wish, device.port, device.device_id)]
        if not found:
            why = self.trouble(wish.backend, CLASS, wish.port) or "no such device is there"
            raise DeviceNotFound(why)
        holders = {each.device.port: each.frontend for each in self.attached(CLASS)}
        for device in found:
            if device.port not in holders:
                return device
        raise DeviceAlreadyAttached(f"{found[0].name} is attached to {holders[found[0].port]}")

    @contextmanager
    def _opened(self, frontend: QubeName, device: Exposed, options: Mapping[str, str]) -> Iterator[Drive]:
        kind = DriveKind(options.get("devtype", DriveKind.DISK.value))
        wished = options.get("read-only")
        only_read = device.about.get("_mode") == "r"
        read_only = kind is DriveKind.DISC or (only_read if wished is None else parse_bool(wished))
        name = self._free_name(frontend, options.get("frontend-dev", ""))
        opened = self._images.open(device.port, read_only=read_only)
        try:
            label = json.dumps({"port": device.port, "device_id": device.device_id, "options": dict(options)})
            yield Drive(name, kind, opened.descriptor, opened.read_only, opened.is_block_node, label)
        finally:
            os.close(opened.descriptor)

    def _free_name(self, frontend: QubeName, wished: str) -> str:
        taken = set(self._attached.get(frontend, {})) | {name for qube, name in self._coming if qube == frontend}
        if wished:
            if wished not in FRONTENDS:
                raise BadRequest(f"frontend-dev is one of xvde to xvdz, and not {wished[:20]!a}")
            if wished in taken:
                raise NotNow(f"{frontend} has a {wished} already")
            return wished
        for name in FRONTENDS:
            if name not in taken:
                return name
        raise NotNow(f"{frontend} has {len(FRONTENDS)} block devices already")

    async def _attach_wished(self, name: QubeName, wish: Assignment) -> None:
        """As an assignment says; trouble is told in the log."""
        try:
            device = self._device_for(wish)
            self._say(e.DeviceAttachRequested(name, CLASS, device.name, str(dict(wish.options))))
            await self.attach(name, device, wish.options)
        except CloisonError as error:
            log.warning("%s:%s, assigned to %s, was not attached: %s", wish.backend, wish.port, name, error)
        else:
            self._say(e.DeviceAttached(name, CLASS, device.name, str(dict(wish.options))))

    async def _attach_everywhere(self, device: Exposed) -> None:
        """A device has come: the first running qube that wishes for it gets it."""
        for name in sorted(self._system.running()):
            for wish in self._wishes(name, "auto-attach"):
                taken = any(each.device.port == device.port for each in self.attached(CLASS))
                if not taken and wish.backend == DOM0 and matches(wish, device.port, device.device_id):
                    await self._attach_wished(name, wish)

    def _watch(self, live: Live) -> None:
        name = live.facts.name
        live.machine.watch_drives(lambda drive: self._left(name, drive))

    async def _learn(self, live: Live) -> None:
        name = live.facts.name
        found = {}
        with contextlib.suppress(CloisonError):
            for drive, label in (await live.machine.drives()).items():
                with contextlib.suppress(BackendFailed):
                    found[drive] = self._read_label(name, label)
        if found:
            self._attached[name] = found

    def _read_label(self, name: QubeName, label: str) -> Attached:
        try:
            story = json.loads(label)
            port, device_id, options = str(story["port"]), str(story["device_id"]), dict(story["options"])
        except (ValueError, KeyError, TypeError):
            raise BackendFailed(f"{name} has a drive that is not ours") from None
        there = (device for device in self.exposed(DOM0, CLASS) if device.port == port)
        device = next(there, Exposed(CLASS, DOM0, port, device_id))
        return Attached(device, name, options)

    def _left(self, name: QubeName, drive: str) -> None:
        """The guest let go of a drive by itself, or later than it was waited for."""
        if (found := self._attached.get(name, {}).pop(drive, None)) is not None:
            self._say(e.DeviceDetached(name, CLASS, f"{found.device.backend}:{found.device.port}"))
            if (live := self._system.find_live(name)) is not None:
                self._system.own(live.machine.remove_drive(drive), f"image behind {drive} of {name}")


def _exposed(image: Image) -> Exposed:
    about = {
        "name": image.description,
        "manufacturer": f"hosted by {DOM0}",
        "interfaces": "b******",
        "_size": str(image.size_bytes),
        "_mode": "r" if image.read_only else "w",
    }
    return Exposed(CLASS, DOM0, image.port, image.identity, about)
