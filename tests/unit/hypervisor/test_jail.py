"""What a machine's process may see and call."""

from __future__ import annotations

import errno
import os
import struct
from pathlib import Path

import pytest

from cloison.drivers.hypervisor.base import Accelerator
from cloison.drivers.hypervisor.jail import JailedFile, JailedPci, plan_jail
from cloison.drivers.hypervisor.seccomp import GUEST_MEMORY_FD, build_door_filter, build_jail_filter

X86_64, I386 = 0xC000003E, 0x40000003
ALLOW, NOTIFY, KILL = 0x7FFF0000, 0x7FC00000, 0x80000000
READ, CHMOD, FCHMOD, OPENAT, FALLOCATE = 0, 90, 91, 257, 285
PUNCH = 3


def run_filter(program: bytes, number: int, *arguments: int, architecture: int = X86_64) -> int:
    """A few instructions of the kernel's own interpreter."""
    data = struct.pack("<IIQ6Q", number, architecture, 0, *arguments, *(0,) * (6 - len(arguments)))
    steps = list(struct.iter_unpack("<HBBI", program))
    at = accumulator = 0
    while True:
        code, if_true, if_false, value = steps[at]
        at += 1
        if code == 0x20:
            (accumulator,) = struct.unpack_from("<I", data, value)
        elif code == 0x06:
            return int(value)
        else:
            holds = accumulator == value if code == 0x15 else accumulator >= value
            assert code in (0x15, 0x35)
            at += if_true if holds else if_false


def test_the_jail_shares_no_namespace_and_no_capability() -> None:
    jail = plan_jail(["true"], accelerator=Accelerator.EMULATION)
    for kind in ("user", "ipc", "pid", "net", "uts"):
        assert f"--unshare-{kind}" in jail
    assert jail[jail.index("--cap-drop") + 1] == "ALL"
    assert "--clearenv" in jail and "--new-session" in jail


def test_the_jail_sees_programs_and_named_files_only() -> None:
    files = (JailedFile("/kernel", Path("/images/vmlinuz")), JailedFile("/key-root0", 7))
    jail = plan_jail(["true"], accelerator=Accelerator.EMULATION, files=files)
    binds = [(jail[i], jail[i + 1], jail[i + 2]) for i, word in enumerate(jail) if "bind" in word]
    assert binds == [
        ("--ro-bind", "/usr", "/usr"),
        ("--ro-bind", "/images/vmlinuz", "/kernel"),
        ("--ro-bind-data", "7", "/key-root0"),
    ]
    assert "--proc" not in jail, "through /proc a read-only descriptor could be opened again for writing"


def test_a_device_of_the_host_brings_its_group_and_nothing_of_sysfs() -> None:
    devices = (JailedPci("/pci/0000:02:00.0", 7),)
    jail = plan_jail(["true"], accelerator=Accelerator.KVM, devices=devices)
    binds = [(jail[i], jail[i + 1], jail[i + 2]) for i, word in enumerate(jail) if "bind" in word]
    assert binds == [
        ("--ro-bind", "/usr", "/usr"),
        *[("--dev-bind", device, device) for device in ("/dev/kvm", "/dev/vfio/vfio", "/dev/vfio/7")],
    ]
    at = jail.index("/pci/0000:02:00.0")
    assert jail[at - 1 : at + 4] == [
        "--dir", "/pci/0000:02:00.0", "--symlink", "/groups/7", "/pci/0000:02:00.0/iommu_group",
    ]  # fmt: skip


def test_kvm_is_the_only_device_and_only_where_it_is_used() -> None:
    assert "/dev/kvm" in plan_jail(["true"], accelerator=Accelerator.KVM)
    assert not any(word.startswith("/dev") for word in plan_jail(["true"], accelerator=Accelerator.EMULATION))


def test_a_machine_outlives_the_daemon() -> None:
    assert "--die-with-parent" not in plan_jail(["true"], accelerator=Accelerator.EMULATION)
    assert "--die-with-parent" in plan_jail(["true"], accelerator=Accelerator.EMULATION, outlives_parent=False)


@pytest.mark.parametrize("build", [build_jail_filter, build_door_filter])
def test_filters_know_one_system_call_table(build) -> None:  # type: ignore[no-untyped-def]
    assert run_filter(build(), READ) == ALLOW
    assert run_filter(build(), READ, architecture=I386) == KILL
    assert run_filter(build(), OPENAT | 0x40000000) not in (ALLOW, NOTIFY)


def test_a_machine_cannot_change_the_mode_of_an_image() -> None:
    assert run_filter(build_jail_filter(), CHMOD) == 0x00050000 | errno.EPERM
    assert run_filter(build_jail_filter(), FCHMOD) == 0x00050000 | errno.EPERM
    assert run_filter(build_jail_filter(), OPENAT, 0, 0, os.O_RDWR) == ALLOW


def test_a_fork_asks_before_it_opens_anything_for_writing() -> None:
    door = build_door_filter()
    assert run_filter(door, OPENAT, 0, 0, os.O_RDWR) == NOTIFY
    assert run_filter(door, OPENAT, 0, 0, os.O_RDONLY | os.O_CLOEXEC) == ALLOW


def test_a_hole_in_frozen_memory_is_only_pretended() -> None:
    door = build_door_filter()
    pretended = 0x00050000
    assert run_filter(door, FALLOCATE, GUEST_MEMORY_FD, PUNCH) == pretended
    assert run_filter(door, FALLOCATE, 17, PUNCH) == ALLOW, "disks keep their holes"
    assert run_filter(door, FALLOCATE, GUEST_MEMORY_FD, 0) == ALLOW, "fails by itself: the descriptor is read-only"
