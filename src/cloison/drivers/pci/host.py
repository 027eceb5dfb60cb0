"""What the host has on its PCI bus, read from sysfs.

In: a PCI address. Out: a ``Device``. May import: errors.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from cloison.errors import BadRequest

SYSTEM = Path("/")
"""Where sysfs and the device files are looked for; tests put a tree of their own here."""
HANDING_DRIVER = "vfio-pci"
NETWORK_CARD, BRIDGE = "02", "06"
"""First two digits of a device's class."""


@dataclass(frozen=True)
class Device:
    """One device as the host sees it now."""

    address: str
    kind: str
    """Its class, six hexadecimal digits."""
    model: str
    """Vendor and device number, ``8086:10d3``."""
    driver: str
    """Of the host; empty: none has it."""
    group: int | None
    """The IOMMU's: what is in one group cannot be kept apart. None: no IOMMU stands before it."""
    companions: tuple[str, ...] = ()
    """Addresses of other devices of its group, bridges aside."""
    interfaces: tuple[str, ...] = ()
    """Network interfaces that the host has of it."""
    active: tuple[str, ...] = field(default=())
    """Those of them that are up."""

    @property
    def is_network_card(self) -> bool:
        return self.kind.startswith(NETWORK_CARD)

    @property
    def is_handed(self) -> bool:
        return self.driver == HANDING_DRIVER


def device_directory(address: str) -> Path:
    return SYSTEM / "sys/bus/pci/devices" / address


def group_file(group: int) -> Path:
    """The device file through which a group's devices are used."""
    return SYSTEM / "dev/vfio" / str(group)


def read_device(address: str) -> Device:
    """BadRequest: the host has no device there."""
    directory = device_directory(address)
    if not directory.is_dir():
        raise BadRequest(f"this host has no PCI device {address}", hint="`cloison pci list` shows its network cards")
    group = _link(directory / "iommu_group")
    interfaces = tuple(sorted(path.parent.name for path in directory.glob("**/net/*/ifindex")))
    return Device(
        address=address,
        kind=_number(directory / "class"),
        model=f"{_number(directory / 'vendor')}:{_number(directory / 'device')}",
        driver=_link(directory / "driver"),
        group=int(group) if group else None,
        companions=_companions(directory, address),
        interfaces=interfaces,
        active=tuple(name for name in interfaces if _is_up(name)),
    )


def list_network_cards() -> list[Device]:
    """All network cards, by address."""
    try:
        addresses = sorted(path.name for path in device_directory("").iterdir())
    except OSError:
        return []
    return [device for device in map(read_device, addresses) if device.is_network_card]


def count_groups() -> int:
    """How many groups the IOMMU has made; 0: there is no IOMMU, or it is switched off."""
    try:
        return sum(1 for _ in (SYSTEM / "sys/kernel/iommu_groups").iterdir())
    except OSError:
        return 0


def _companions(directory: Path, address: str) -> tuple[str, ...]:
    try:
        together = sorted(path.name for path in (directory / "iommu_group/devices").iterdir())
    except OSError:
        return ()
    return tuple(
        other
        for other in together
        if other != address and not _number(device_directory(other) / "class").startswith(BRIDGE)
    )


def _is_up(interface: str) -> bool:
    try:
        return bool(int((SYSTEM / "sys/class/net" / interface / "flags").read_text(), 16) & 1)
    except (OSError, ValueError):
        return False


def _link(path: Path) -> str:
    """Name of what a link leads to; empty: there is no such link."""
    try:
        return path.readlink().name
    except OSError:
        return ""


def _number(path: Path) -> str:
    """The hexadecimal digits of a number in a file."""
    try:
        return path.read_text().strip().removeprefix("0x")
    except OSError:
        return ""
