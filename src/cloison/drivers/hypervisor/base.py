"""The contract of hypervisors.

In: a machine's specification and its disks. Out: running machines. May import: model, errors, storage's interface.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Protocol

from cloison.drivers.storage.base import Chain


class Accelerator(Enum):
    KVM = "kvm"
    EMULATION = "tcg"


class StopReason(Enum):
    """Why a machine is no longer there."""

    GUEST_POWEROFF = "guest powered off"
    GUEST_REBOOT = "guest asked for a reboot"
    """Its process ends as well: whoever wants the guest back starts it again."""
    KILLED = "killed"
    PANICKED = "guest kernel panicked"
    CRASHED = "hypervisor process ended unexpectedly"


@dataclass(frozen=True)
class Disk:
    """A disk at a fixed place: ``slot`` is root, private or volatile (its virtio serial and its PCI address follow)."""

    slot: str
    chain: Chain


@dataclass(frozen=True)
class MachineSpec:
    """Everything that shapes a machine, its disks' contents aside; equal specs may be forked from one fork point."""

    memory_mib: int
    vcpus: int
    kernel: Path | None
    """None: the guest boots from its own disk (imported systems)."""
    initrd: Path | None
    kernel_options: str
    has_agent: bool = True
    debug: bool = False
    share_memory: bool = True
    """A fork maps the frozen memory and shares its unwritten pages with the other forks; False: it gets a full copy
    of its own, which costs time and memory and denies others the timing of shared pages."""
    pci: tuple[str, ...] = ()
    """Addresses of the host's devices that are handed over. They write into memory by themselves, so such a machine is
    booted: it can neither be frozen nor be a fork."""


class Framing(Enum):
    """How packets travel on a network card's descriptor."""

    PACKETS = "packets"
    """A datagram socket: each packet is one message, nothing can get out of step."""
    STREAM = "stream"
    """A stream socket: each packet follows its length (four bytes, big-endian)."""


class Place(Enum):
    """Where in a running machine another device goes."""

    PORT = "port"
    """One of the few ports that each machine has for anything."""
    BRIDGE = "bridge"
    """Behind the bridges that hold many: a netvm's cards for its clients, drives."""


@dataclass(frozen=True)
class Nic:
    """A network card to be plugged into a running machine."""

    name: str
    """Unique in the machine: letters and digits."""
    link: str
    """Identity of the cable, the same at both its ends; letters and digits. ``Machine.nics`` tells it later."""
    mac: str
    mtu: int
    descriptor: int
    """One end of a socket pair (or a connected socket). The machine gets a copy; the caller closes this one."""
    place: Place = Place.PORT
    framing: Framing = Framing.PACKETS
    open: bool = True
    """False: nothing passes in either direction until ``open_nic``."""


class DriveKind(Enum):
    DISK = "disk"
    DISC = "cdrom"
    """A medium in a drive of its own, always read-only."""


@dataclass(frozen=True)
class Drive:
    """A disk or a disc that comes and goes, beside the fixed disks."""

    name: str
    """Unique in the machine, lower-case letters and digits; the guest is told it too."""
    kind: DriveKind
    descriptor: int
    """The opened image: for reading only, or for reading and writing. The machine gets a copy (which shares its locks);
    the caller closes this one."""
    read_only: bool
    is_block_node: bool
    """The descriptor is of a block device, not of a file."""
    label: str
    """Whatever the caller wants to find again: printable ASCII. ``Machine.drives`` tells it later."""


@dataclass(frozen=True)
class Frozen:
    """A fork point's files: guest memory and device state, made under ``machine_key``."""

    memory: Path
    device_state: Path
    machine_key: str


class Machine(Protocol):
    """One running machine. It outlives the daemon; ``record`` finds it again."""

    @property
    def record(self) -> Mapping[str, str | int]:
        """Plain values that ``Hypervisor.adopt`` needs later (pid, its start time, socket paths...)."""
        ...

    @property
    def agent_socket(self) -> Path:
        """Unix socket that QEMU serves; one connection at a time; speaks the wire protocol with the guest's agent."""
        ...

    @property
    def console_socket(self) -> Path:
        """Unix socket with the serial console (a bounded log of it is kept at ``console_log``)."""
        ...

    @property
    def console_log(self) -> Path: ...

    @property
    def trouble(self) -> str:
        """Why the guest stands still although nobody paused it; empty: it does not."""
        ...

    @property
    def is_leaving(self) -> bool:
        """The guest has closed its agent's port: it is going down, or its agent is being started again."""
        ...

    async def wait_stopped(self) -> StopReason:
        """Returns once the process is gone. May be awaited by several tasks."""
        ...

    async def pause(self) -> None: ...
    async def resume(self) -> None: ...
    async def powerdown(self) -> None:
        """Press the power button (ACPI); the agent's own shutdown is preferred."""
        ...

    async def kill(self) -> None:
        """End the machine now; returns when it is gone. Idempotent."""
        ...

    async def set_memory(self, mib: int) -> None:
        """Balloon target."""
        ...

    async def grow_disk(self, slot: str, size_bytes: int) -> None:
        """Make a disk larger while the guest runs; the guest is told by its hardware."""
        ...

    async def add_nic(self, nic: Nic) -> None:
        """Plug a network card in; the guest finds it in its own time. BackendFailed: there is none, no place is free,
        or one of that name is there."""
        ...

    async def remove_nic(self, name: str) -> None:
        """Cut the cable at once, then unplug the card. BackendFailed if the guest does not let go of the card; the
        cable is cut all the same. No error if there is no such card."""
        ...

    async def open_nic(self, name: str, *, open: bool) -> None:
        """Let packets pass, or nothing in either direction."""
        ...

    async def nics(self) -> Mapping[str, str]:
        """Names of the plugged cards, and the links of their cables (empty: the cable is cut)."""
        ...

    async def add_drive(self, drive: Drive) -> None:
        """Plug a drive in; the guest finds it in its own time. BackendFailed: there is none, no place is free, or one
        of that name is there."""
        ...

    async def remove_drive(self, name: str) -> None:
        """Returns when the guest has let go of it and the image is closed. BackendFailed if the guest does not: it
        stays. No error if there is no such drive."""
        ...

    async def drives(self) -> Mapping[str, str]:
        """Names of the drives that are plugged in, and their labels."""
        ...

    def watch_drives(self, on_gone: Callable[[str], None]) -> None:
        """``on_gone`` is told the name of each drive that the guest lets go of later than it was waited for."""
        ...

    async def handed_devices(self) -> Mapping[str, str]:
        """The host's devices that this machine was started with: address on the host, and PCI address of the port that
        the guest finds it behind."""
        ...

    async def memory_kib(self) -> int:
        """Resident (proportional) memory of the machine's process."""
        ...

    def cpu_time_ns(self) -> int:
        """Processor time the machine has used since it started."""
        ...

    async def detach(self) -> None:
        """Stop following; the machine runs on. For a daemon that ends."""
        ...

    async def freeze(self, directory: Path) -> Frozen:
        """Stop the guest, write device state into ``directory`` (memory is there already), end the process."""
        ...


class Hypervisor(Protocol):
    name: str

    async def accelerator(self) -> Accelerator:
        """Found out once by running a few real guest instructions, then remembered."""
        ...

    async def machine_key(self, spec: MachineSpec) -> str:
        """Digest of all that must be equal between a frozen machine and its forks: spec, device model, accelerator,
        CPU model, hypervisor version, kernel and initrd contents."""
        ...

    async def boot(self, spec: MachineSpec, disks: tuple[Disk, ...], directory: Path, *, name: str,
                   memory_file: Path | None = None, drives: tuple[Drive, ...] = ()) -> Machine:  # fmt: skip
        """Start cold. ``directory`` (made by the caller, private) receives sockets and logs. ``drives`` are there from
        the start, so that firmware can boot from a disc.

        ``memory_file``: guest memory is this file, shared, so that the machine can be frozen later.
        """
        ...

    async def fork(self, spec: MachineSpec, disks: tuple[Disk, ...], frozen: Frozen, directory: Path, *,
                   name: str) -> Machine:  # fmt: skip
        """Start from a frozen state; memory is mapped private. The guest runs when this returns."""
        ...

    async def adopt(self, record: Mapping[str, str | int]) -> Machine | None:
        """The machine of an earlier daemon, or None if it is gone (a recycled pid is noticed)."""
        ...

    async def end_leftover(self, directory: Path) -> None:
        """End a machine that runs in ``directory`` without a record (its daemon died while starting it), if there is
        one. Raises BackendFailed if it does not go."""
        ...
