"""Plan → QEMU's command line. Pure: nothing is opened, nothing is asked.

In: a specification, what the host can do, numbers of descriptors. Out: an argument vector. May import: the contract.

Every device has an explicit id and address, so that a fork's devices match those of the frozen machine. Backends
(disks' files, sockets) may differ and are given as descriptors only: the process sees no host path.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from cloison.drivers.hypervisor.base import Accelerator, Disk, MachineSpec
from cloison.errors import BadRequest

AGENT_PORT = "org.cloison.agent"
DISK_ADDRESSES = {"root": "02.0", "private": "03.0", "volatile": "04.0"}
CHANNEL_ADDRESS = "05.0"
RNG_ADDRESS = "06.0"
BALLOON_ADDRESS = "07.0"
HOTPLUG_PORTS = 4
"""Spare PCIe root ports: a network card, devices. Each costs guest start time, so not more."""
BRIDGES = 2
BRIDGE_SLOTS = range(1, 32)
"""A netvm's cards for its clients go behind conventional PCI bridges: one bridge has 31 places and costs a guest less
than a single root port (no interrupt, no driver at work), while 62 root ports would use up a processor's interrupt
vectors. Every machine has them, so that any qube may provide network and netvms share fork points with other qubes."""
HANDED = "handed"
"""Ids of devices that are handed over begin so: with their port's number, then their address on the host."""
LAYOUT_VERSION = 1
"""Raise it when the device model changes in a way that the command line does not show."""
CODE_CACHE_MIB = 256
"""Emulator's translated code: touched as needed, thrown away when full. A desktop guest fills 100 to 200 MiB."""
MIN_MEMORY_MIB, MAX_MEMORY_MIB, MAX_VCPUS = 64, 1 << 20, 128
KERNEL_PLACE, INITRD_PLACE, MEMORY_PLACE = "/kernel", "/initrd", "/memory"
"""Where files that QEMU takes by name only are in the jail."""
PCI_PLACE = "/pci"
"""Where a handed-over device has its directory in the jail: QEMU reads nothing of it but the number of its group."""
SECCOMP = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"


class Start(Enum):
    """How a machine begins."""

    BOOT = "boot"
    """Cold, memory is anonymous."""
    BOOT_TO_FREEZE = "boot to freeze"
    """Cold, memory is a shared file."""
    FORK = "fork"
    """From a frozen state, memory is a private mapping of the frozen file."""

    @property
    def has_memory_file(self) -> bool:
        return self is not Start.BOOT


@dataclass(frozen=True)
class Host:
    """What shapes a command line besides the specification: found out once by ``probe``."""

    accelerator: Accelerator
    qemu_version: tuple[int, int]
    qemu_text: str
    """First line of ``--version``: part of the key of fork points."""
    cpu_identity: str = ""
    """Model and flags of the physical CPU; matters where guests run on it directly."""
    why: str = ""
    """For people: why this accelerator."""


@dataclass(frozen=True)
class Descriptors:
    """Numbers of open descriptors that the process inherits, and that its disks' keys are copied from."""

    qmp: int
    agent: int
    console: int
    layers: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Per disk slot, top layer first."""
    secrets: Mapping[str, tuple[int | None, ...]] = field(default_factory=dict)
    """Per disk slot, parallel to ``layers``: where the layer's key can be read, or None."""
    device_state: int | None = None


def cpu_model(host: Host) -> str:
    """The CPU that guests see.

    QEMU 7.2's emulation of CMPXCHG16B is broken (guest kernels panic in the allocator); five-level paging only slows
    an emulated guest down.
    """
    if host.accelerator is Accelerator.KVM:
        return "host,migratable=on"
    return "Nehalem,-cx16" if host.qemu_version < (8, 0) else "Nehalem"


def plan_kernel_options(spec: MachineSpec, host: Host) -> str:
    """The kernel's command line: what this hardware needs, then the qube's own options (the later one wins)."""
    options = ["root=/dev/vda", "rw", "console=ttyS0", "panic=-1", "no_timer_check"]
    if host.accelerator is Accelerator.EMULATION:
        # Emulated code has no hardware speculation of its own; page table isolation there only empties the
        # emulator's translation cache at every system call.
        options.append("mitigations=off")
    return " ".join([*options, *spec.kernel_options.split()])


def plan_command(
    spec: MachineSpec, host: Host, disks: tuple[Disk, ...], fds: Descriptors, start: Start, *, name: str
) -> list[str]:
    """QEMU's argument vector. Raises BadRequest for a specification that no machine can have."""
    check_spec(spec)
    if spec.pci and start is not Start.BOOT:
        raise BadRequest("a machine with a device of the host can only boot: the device writes into its memory itself")
    if spec.pci and host.accelerator is not Accelerator.KVM:
        raise BadRequest(
            f"{name} cannot have the PCI device {spec.pci[0]}: guests are emulated here, and that needs KVM",
            hint="`cloison doctor` says why there is no KVM",
        )
    return [
        "qemu-system-x86_64",
        *["-name", f"guest={_escaped(name)}"],
        *["-nodefaults", "-no-user-config", "-display", "none"],
        *["-sandbox", SECCOMP],
        *["-action", "reboot=shutdown,shutdown=poweroff,panic=shutdown"],
        *_machine(spec, host, start),
        *_kernel(spec, host, start),
        *_firmware_devices(fds),
        *_disks(disks, fds),
        *_virtio_devices(fds),
        *(_balloon() if not spec.pci else []),
        *_hotplug_ports(),
        *_bridges(),
        *_handed_devices(spec),
        *(["-incoming", "defer"] if start is Start.FORK else []),
    ]


def check_spec(spec: MachineSpec) -> None:
    if not MIN_MEMORY_MIB <= spec.memory_mib <= MAX_MEMORY_MIB:
        raise BadRequest(f"memory of {spec.memory_mib} MiB is not between {MIN_MEMORY_MIB} and {MAX_MEMORY_MIB}")
    if not 1 <= spec.vcpus <= MAX_VCPUS:
        raise BadRequest(f"{spec.vcpus} virtual CPUs are not between 1 and {MAX_VCPUS}")
    if len(spec.pci) > HOTPLUG_PORTS:
        raise BadRequest(f"a machine has room for {HOTPLUG_PORTS} devices of the host, not for {len(spec.pci)}")
    if "\n" in spec.kernel_options or "\0" in spec.kernel_options:
        raise BadRequest("kernel options must be one line")


def _machine(spec: MachineSpec, host: Host, start: Start) -> list[str]:
    machine = "q35,memory-backend=ram,usb=off,vmport=off,smm=off,sata=off,smbus=off,graphics=off,dump-guest-core=off"
    size = f"size={spec.memory_mib}M"
    match start:
        case Start.BOOT:
            memory = f"memory-backend-ram,id=ram,{size}"
        case Start.BOOT_TO_FREEZE:
            memory = f"memory-backend-file,id=ram,{size},mem-path={MEMORY_PLACE},share=on"
        case Start.FORK:
            copied = "" if spec.share_memory else ",prealloc=on"
            memory = f"memory-backend-file,id=ram,{size},mem-path={MEMORY_PLACE},share=off{copied}"
    cpus = count_cpus(spec.vcpus, host)
    if host.accelerator is Accelerator.KVM:
        accelerator = "kvm"
    else:
        accelerator = f"tcg,tb-size={CODE_CACHE_MIB},thread={'multi' if cpus > 1 else 'single'}"
    return [
        *["-machine", machine],
        *["-accel", accelerator],
        *["-cpu", cpu_model(host)],
        *["-smp", f"{cpus},sockets=1,cores={cpus},threads=1"],
        *["-m", f"{spec.memory_mib}M"],
        *["-object", memory],
    ]


def count_cpus(vcpus: int, host: Host) -> int:
    """How many processors a machine really gets.

    Before QEMU 8.1 the emulator lets a CPU translate code while another one changes it, and keep the old translation
    for ever. Guest kernels patch themselves while they run (static keys) and panic in the breakpoint that the patching
    leaves behind for a moment: each of 6 guests with two emulator threads that switched a static key under load was
    dead within 5 s; with one thread for both CPUs 4 of 4 lived. But CPUs that share a thread take turns of 100 ms, so
    that a stream between two programs gets half as fast: one CPU, which the guest's own kernel shares out, is better.
    """
    return 1 if host.accelerator is Accelerator.EMULATION and host.qemu_version < (8, 1) else vcpus


def _kernel(spec: MachineSpec, host: Host, start: Start) -> list[str]:
    """A fork has its kernel in memory already: giving it again would only cost time and tens of MiB."""
    if spec.kernel is None or start is Start.FORK:
        return []
    given = ["-kernel", KERNEL_PLACE, "-append", plan_kernel_options(spec, host)]
    return [*given, *(["-initrd", INITRD_PLACE] if spec.initrd is not None else [])]


def _firmware_devices(fds: Descriptors) -> list[str]:
    return [
        *["-chardev", f"socket,id=qmp,fd={fds.qmp},server=on,wait=off"],
        *["-mon", "chardev=qmp,mode=control"],
        *["-chardev", f"socket,id=console,fd={fds.console},server=on,wait=off"],
        *["-device", "isa-serial,id=serial0,chardev=console,iobase=0x3f8,irq=4"],
        *["-device", "pvpanic,id=pvpanic0,ioport=0x505"],
        *["-device", "vmgenid,id=vmgenid0,guid=auto"],
    ]


def _disks(disks: tuple[Disk, ...], fds: Descriptors) -> list[str]:
    slots = [disk.slot for disk in disks]
    if unknown := [slot for slot in slots if slot not in DISK_ADDRESSES]:
        raise BadRequest(f"no disk slot is named {unknown[0]!r}")
    if len(set(slots)) != len(slots):
        raise BadRequest("a disk slot is used twice")
    arguments: list[str] = []
    for disk in sorted(disks, key=lambda disk: DISK_ADDRESSES[disk.slot]):
        arguments += _disk(disk, fds)
    return arguments


def _disk(disk: Disk, fds: Descriptors) -> list[str]:
    slot = disk.slot
    numbers, secrets = fds.layers[slot], fds.secrets.get(slot, (None,) * len(disk.chain))
    arguments: list[str] = []
    for depth in reversed(range(len(disk.chain))):
        layer, is_top = disk.chain[depth], depth == 0
        node = f"{slot}{depth}"
        protocol = {
            "driver": "file",
            "node-name": f"{node}-file",
            "filename": f"/dev/fdset/{numbers[depth]}",
            "locking": "off",
            "discard": "unmap",
            "read-only": not is_top,
            "cache": {"direct": False, "no-flush": layer.unlinked},
        }
        image: dict[str, object] = {
            "driver": layer.format,
            "node-name": node,
            "file": f"{node}-file",
            "read-only": not is_top,
            "discard": "unmap",
            "cache": {"direct": False, "no-flush": layer.unlinked},
        }
        if layer.format == "qcow2":
            image["backing"] = f"{slot}{depth + 1}" if depth + 1 < len(disk.chain) else None
        if secrets[depth] is not None:
            arguments += ["-object", f"secret,id={node}-key,file={place_of_key(slot, depth)}"]
            image["encrypt"] = {"format": "luks", "key-secret": f"{node}-key"}
        arguments += ["-add-fd", f"fd={numbers[depth]},set={numbers[depth]}"]
        arguments += ["-blockdev", json.dumps(protocol), "-blockdev", json.dumps(image)]
    boot = ",bootindex=1" if slot == "root" else ""
    # A full host stops a guest whose data are kept, so that no write is lost; throw-away data may fail.
    on_error = "report" if disk.chain[0].unlinked else "enospc"
    device = f"virtio-blk-pci-non-transitional,id=disk-{slot},drive={slot}0,serial={slot},werror={on_error}"
    return [*arguments, "-device", f"{device},bus=pcie.0,addr={DISK_ADDRESSES[slot]}{boot}"]


def _virtio_devices(fds: Descriptors) -> list[str]:
    return [
        *["-device", f"virtio-serial-pci-non-transitional,id=channel,max_ports=2,bus=pcie.0,addr={CHANNEL_ADDRESS}"],
        *["-chardev", f"socket,id=agent,fd={fds.agent},server=on,wait=off"],
        *["-device", f"virtserialport,id=agent-port,bus=channel.0,nr=1,chardev=agent,name={AGENT_PORT}"],
        *["-object", "rng-builtin,id=rng"],
        *["-device", f"virtio-rng-pci-non-transitional,id=rng0,rng=rng,bus=pcie.0,addr={RNG_ADDRESS}"],
    ]


def _balloon() -> list[str]:
    """Not where a device of the host writes into memory: all of it must stay where it is."""
    return [
        "-device",
        "virtio-balloon-pci-non-transitional,id=balloon,free-page-reporting=on,page-poison=off,deflate-on-oom=on,"
        f"bus=pcie.0,addr={BALLOON_ADDRESS}",
    ]


def _hotplug_ports() -> list[str]:
    arguments: list[str] = []
    for index in range(HOTPLUG_PORTS):
        first = ",multifunction=on" if index == 0 else ""
        port = f"pcie-root-port,id=port{index},chassis={index + 1},slot={index + 1},bus=pcie.0,addr=10.{index}{first}"
        arguments += ["-device", port]
    return arguments


def _bridges() -> list[str]:
    arguments: list[str] = []
    for index in range(BRIDGES):
        arguments += ["-device", f"pcie-pci-bridge,id=bridge{index},bus=pcie.0,addr={0x11 + index:02x}.0"]
    return arguments


def _handed_devices(spec: MachineSpec) -> list[str]:
    """In the last ports, so that the first ones stay for what is plugged in later. A device's own boot program is
    kept from the guest: nobody boots from it."""
    arguments: list[str] = []
    for index, address in enumerate(spec.pci):
        port = HOTPLUG_PORTS - 1 - index
        name = f"{HANDED}{port}-{address.replace(':', '_')}"
        place = f"sysfsdev={PCI_PLACE}/{address},bus=port{port},addr=00.0,rombar=0"
        arguments += ["-device", f"vfio-pci,id={name},{place}"]
    return arguments


def find_handed(device_id: str) -> tuple[str, str] | None:
    """Address on the host and the guest's port, from the id of a device that was handed over; None: it was not."""
    head, _, address = device_id.partition("-")
    if not head.startswith(HANDED):
        return None
    return address.replace("_", ":"), f"0000:00:10.{head.removeprefix(HANDED)}"


def place_of_key(slot: str, depth: int) -> str:
    """Where a disk layer's key is in the jail."""
    return f"/key-{slot}{depth}"


def _escaped(text: str) -> str:
    return text.replace(",", ",,")
