"""Devices that qubes expose, and which qubes have them now.

In: questions and wishes of the Admin API. Out: devices, attachments. May import: model. Drivers of device classes
implement ``Devices``; what is *assigned* (a stored wish) is in the records and not here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from cloison.errors import DeviceNotFound, NotNow
from cloison.model.names import QubeName


@dataclass(frozen=True)
class Exposed:
    """A device that ``backend`` has to give. ``about``: vendor, product, name, serial, interfaces and the like."""

    devclass: str
    backend: QubeName
    port: str
    device_id: str
    about: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.backend}:{self.port}:{self.device_id}"

    @property
    def interfaces(self) -> tuple[str, ...]:
        codes = self.about.get("interfaces", "")
        return tuple(codes[at : at + 7] for at in range(0, len(codes), 7))


@dataclass(frozen=True)
class Attached:
    """A device that a running qube has now."""

    device: Exposed
    frontend: QubeName
    options: Mapping[str, str] = field(default_factory=dict)


class Devices(Protocol):
    def exposed(self, backend: QubeName, devclass: str) -> Sequence[Exposed]:
        """What is there now, attached or not."""
        ...

    def attached(self, devclass: str) -> Sequence[Attached]:
        """All attachments of a class."""
        ...

    def trouble(self, backend: QubeName, devclass: str, port: str) -> str:
        """Why a port exposes nothing, where that is known; empty otherwise."""
        ...

    async def attach(self, frontend: QubeName, device: Exposed, options: Mapping[str, str]) -> None:
        """Give a free device to a running qube. BackendFailed: it has it not, and the device is free."""
        ...

    async def detach(self, attached: Attached) -> None:
        """Take it back; idempotent. BackendFailed: the qube does not let go."""
        ...


class Shelf(Protocol):
    """Files and block devices of the host that the user gives to qubes."""

    def expose(self, path: Path, port: str, *, read_only: bool) -> Exposed:
        """dom0 has this from now on, at the port of that name ("": named after the file). Again the same: no error."""
        ...

    def hide(self, port: str) -> None:
        """dom0 has it no longer; NotNow while a qube has it."""
        ...


class NoDevices:
    """A host where no qube exposes any, nor can."""

    def expose(self, path: Path, port: str, *, read_only: bool) -> Exposed:
        raise NotNow("this system exposes no files")

    def hide(self, port: str) -> None:
        raise DeviceNotFound(f"no file is exposed as {port}")

    def trouble(self, backend: QubeName, devclass: str, port: str) -> str:
        return ""

    def exposed(self, backend: QubeName, devclass: str) -> Sequence[Exposed]:
        return ()

    def attached(self, devclass: str) -> Sequence[Attached]:
        return ()

    async def attach(self, frontend: QubeName, device: Exposed, options: Mapping[str, str]) -> None:
        raise DeviceNotFound(f"{device.backend} exposes no {device.devclass} device {device.port}")

    async def detach(self, attached: Attached) -> None: ...
