"""Whether a machine of this user may have a device now: asked at its start.

In: a PCI address. Out: the number of its group, or an error that says who must do what. May import: errors.
"""

from __future__ import annotations

import errno
import getpass
import os
import resource

from cloison.drivers.pci.host import Device, group_file, read_device
from cloison.errors import BackendFailed, NotNow

LOCK_MARGIN_MIB = 64
"""What a machine locks besides its guest's memory (firmware, windows of devices) is a few MiB; with room to spare."""


def check_separable(device: Device) -> int:
    """The device's group, which it has for itself; NotNow naming what stands in the way."""
    if device.group is None:
        raise NotNow(
            f"PCI device {device.address} is not behind an IOMMU: it could read and write all memory of the host",
            hint="switch VT-d or AMD-Vi on in the firmware, and boot with intel_iommu=on (Intel)",
        )
    if device.companions:
        raise NotNow(
            f"PCI device {device.address} shares its IOMMU group {device.group} with {', '.join(device.companions)}: "
            "they cannot be kept apart",
            hint="put the card into another slot, or take another card",
        )
    return device.group


def find_free_group(address: str, name: str) -> int:
    """The group of a device that was given to this user and that no other machine has. BadRequest or NotNow if not."""
    device = read_device(address)
    group = check_separable(device)
    user = getpass.getuser()
    if not device.is_handed:
        has_it = f"the host's driver {device.driver} has it" if device.driver else "it was not given to anybody"
        raise NotNow(
            f"{name} cannot have PCI device {address}: {has_it}", hint=f"sudo cloison pci give {address} --to {user}"
        )
    try:
        os.close(os.open(group_file(group), os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        why, hint = error.strerror, ""
        if error.errno == errno.EBUSY:
            why, hint = "another qube has it", "shut that one down first"
        elif error.errno in (errno.EACCES, errno.ENOENT):
            why, hint = f"it was not given to {user}", f"sudo cloison pci give {address} --to {user}"
        raise NotNow(f"{name} cannot have PCI device {address}: {why}", hint=hint) from error
    return group


def raise_memory_lock(memory_mib: int, name: str) -> None:
    """Let this process and its children lock as much memory as a machine with a device needs: the device writes into
    it, so no page may move. NotNow with the command that allows it."""
    needed = (memory_mib + LOCK_MARGIN_MIB) << 20
    soft, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise NotNow(
            f"{name} needs {needed >> 20} MiB of memory that stays where it is, and this user may lock "
            f"{hard >> 20} MiB (RLIMIT_MEMLOCK)",
            hint=f"as root: `prlimit --pid {os.getpid()} --memlock={needed}` for now; for good the line "
            f"`{getpass.getuser()} - memlock {needed >> 10}` in /etc/security/limits.d/cloison.conf, then log in again",
        )
    try:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (hard, hard))
    except (OSError, ValueError) as error:
        raise BackendFailed(f"the limit of locked memory cannot be raised for {name}: {error}") from error
