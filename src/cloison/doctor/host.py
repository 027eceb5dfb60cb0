"""What the machine and its programs can do.

In: the host. Out: findings, each tried rather than looked up where that is possible. May import: the hypervisor's
probe and jail.
"""

from __future__ import annotations

import asyncio
import getpass
import grp
import os
import re
import shutil
import subprocess
from pathlib import Path

from cloison.doctor.result import Finding, Ground, Status
from cloison.drivers.hypervisor.jail import check_jail
from cloison.drivers.hypervisor.probe import KVM_DEVICE, probe_kvm
from cloison.drivers.pci.host import count_groups
from cloison.errors import BackendFailed

QEMU = "qemu-system-x86_64"
OLDEST_QEMU = (7, 2)
"""Debian 12's. Forks need x-ignore-shared and fd-based migration, which older ones may have untested."""
TOOL_TIMEOUT_S = 20
QUBE_MIB = 512
"""What a default app qube is given."""
TEMPLATE_BYTES = 3 << 30
"""Free space that a first template build needs: unpacked tree, image and fork point (measured: 2.6 GB at the peak)."""
COMFORT_BYTES = 10 << 30
FEW_INODES = 20_000
"""A template build unpacks some 15 000 files."""
SUBORDINATE_IDS = 65536


def find_accelerator(ground: Ground) -> Finding:
    """Runs a few guest instructions under KVM: on some machines /dev/kvm opens and yet no guest gets anywhere."""
    if shutil.which(QEMU) is None:
        return Finding(Status.FAILED, "cannot be tried without QEMU", "as root: apt-get install qemu-system-x86")
    try:
        works, why = asyncio.run(probe_kvm())
    except BackendFailed as error:
        return Finding(Status.FAILED, error.message, error.hint)
    if works:
        return Finding(Status.OK, "KVM works: guests run at the processor's own speed")
    return Finding(
        Status.WARNING,
        f"{why}. Guests are emulated: a disposable answers after about 0.6 s instead of 0.15 s, heavy work in a qube "
        "takes 10 to 30 times as long, and a fork point takes a minute to make",
        _mend_kvm(KVM_DEVICE),
    )


def _mend_kvm(device: Path) -> str:
    if not device.exists():
        return "switch on VT-x or AMD-V in the firmware; in a virtual machine, nested virtualisation on the one below"
    if not os.access(device, os.R_OK | os.W_OK):
        return f"as root: {_open_device_to(getpass.getuser(), device.stat())}; then log in again"
    return "nothing to do here: only the machine below, whose virtual machine this is, could mend it"


def _open_device_to(user: str, device: os.stat_result) -> str:
    """Joining the device's group is enough only where that group, not root's, may read and write it."""
    shared = device.st_mode & 0o060 == 0o060 and device.st_gid != 0
    try:
        group = grp.getgrgid(device.st_gid).gr_name if shared else "kvm"
    except KeyError:
        group = str(device.st_gid)
    join = f"usermod --append --groups {group} {user}"
    return join if shared else f"groupadd --force --system kvm; chgrp kvm {KVM_DEVICE}; chmod 660 {KVM_DEVICE}; {join}"


def _output(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=TOOL_TIMEOUT_S, check=False)
    return done.stdout + done.stderr


def find_qemu(ground: Ground) -> Finding:
    if shutil.which(QEMU) is None:
        return Finding(Status.FAILED, f"{QEMU} is missing", "as root: apt-get install qemu-system-x86")
    text = _output(QEMU, "--version")
    version = re.search(r"version (\d+)\.(\d+)(\S*)", text)
    if version is None:
        return Finding(Status.FAILED, f"{QEMU} does not tell its version: {text.strip()[:100]}", "reinstall QEMU")
    if (int(version[1]), int(version[2])) < OLDEST_QEMU:
        oldest = ".".join(map(str, OLDEST_QEMU))
        return Finding(Status.FAILED, f"QEMU {version[1]}.{version[2]} is too old", f"install {oldest} or newer")
    devices = _output(QEMU, "-device", "help")
    wanted = ("virtio-blk-pci", "virtio-serial-pci", "virtio-rng-pci", "virtio-balloon-pci", "vmgenid")
    missing = [name for name in wanted if f'"{name}"' not in devices]
    if "seccomp" not in _output(QEMU, "-sandbox", "help") and "-sandbox" not in _output(QEMU, "--help"):
        missing.append("-sandbox")
    if missing:
        return Finding(Status.FAILED, f"this QEMU lacks {', '.join(missing)}", "install your distribution's full QEMU")
    return Finding(Status.OK, f"QEMU {version[1]}.{version[2]}{version[3]} with all devices and its seccomp sandbox")


def find_qemu_img(ground: Ground) -> Finding:
    if shutil.which("qemu-img") is None:
        return Finding(Status.FAILED, "qemu-img is missing", "as root: apt-get install qemu-utils")
    return Finding(Status.OK, "qemu-img is there")


def find_passt(ground: Ground) -> Finding:
    """The way out of sys-net, unless that is a socket or nothing."""
    if shutil.which("passt") is None:
        return Finding(Status.WARNING, "passt is missing: qubes have no network", "as root: apt-get install passt")
    return Finding(Status.OK, "passt is there: qubes reach the network without privileges")


def find_jail(ground: Ground) -> Finding:
    """Builds the very jail that QEMU runs in, around `true`."""
    try:
        check_jail()
    except BackendFailed as error:
        return Finding(Status.FAILED, error.message, error.hint)
    return Finding(Status.OK, "bubblewrap makes user, mount, pid, network and ipc namespaces")


def find_iommu(ground: Ground) -> Finding:
    """Needed by nobody but a sys-net with a network card of its own."""
    if groups := count_groups():
        return Finding(Status.OK, f"there is one ({groups} groups): network cards can be handed over to qubes")
    return Finding(Status.OK, "none is in use: network cards cannot be handed over to qubes (sys-net uses passt)")


def find_subordinate_ids(ground: Ground) -> Finding:
    """An ordinary user builds templates as root of a user namespace, which needs a range of further ids."""
    if os.getuid() == 0:
        return Finding(Status.OK, "not needed by root")
    user = getpass.getuser()
    for name in ("/etc/subuid", "/etc/subgid"):
        if _subordinate_ids(Path(name), user, os.getuid()) < SUBORDINATE_IDS:
            return Finding(
                Status.FAILED,
                f"{name} gives {user} no range of {SUBORDINATE_IDS} ids, so no template can be built",
                f"as root: usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {user}",
            )
    return Finding(Status.OK, f"{user} has {SUBORDINATE_IDS} or more")


def _subordinate_ids(file: Path, user: str, uid: int) -> int:
    try:
        lines = file.read_text().splitlines()
    except OSError:
        return 0
    rows = (line.split(":") for line in lines)
    return max((int(row[2]) for row in rows if len(row) == 3 and row[0] in (user, str(uid))), default=0)


def find_memory(ground: Ground) -> Finding:
    found = re.search(r"^MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    mib = int(found[1]) // 1024 if found else 0
    qubes = max(0, mib - 512) // QUBE_MIB
    text = f"{mib / 1024:.1f} GiB available: room for {qubes} qubes of {QUBE_MIB} MiB at full use, more when forked"
    if qubes < 1:
        return Finding(Status.FAILED, text, "close programs, or give the machine more memory")
    if qubes < 4:
        return Finding(Status.WARNING, text, "4 GiB make a comfortable start")
    return Finding(Status.OK, text)


def nearest_existing(path: Path) -> Path:
    return next(parent for parent in (path, *path.parents) if parent.exists())


def find_disk(ground: Ground) -> Finding:
    places = {nearest_existing(path) for path in (ground.layout.data, ground.layout.cache)}
    free, place = min((shutil.disk_usage(place).free, place) for place in places)
    text = f"{free / (1 << 30):.1f} GiB free under {place}"
    if free < TEMPLATE_BYTES:
        return Finding(
            Status.FAILED, text, f"a first template needs {TEMPLATE_BYTES >> 30} GiB: free some, or set CLOISON_CACHE"
        )
    if free < COMFORT_BYTES:
        return Finding(Status.WARNING, text, f"{COMFORT_BYTES >> 30} GiB make a comfortable start")
    return Finding(Status.OK, text)


def find_inodes(ground: Ground) -> Finding:
    place = nearest_existing(ground.layout.cache)
    status = os.statvfs(place)
    if status.f_files == 0:
        return Finding(Status.OK, f"the file system of {place} has no limit")
    if status.f_favail < FEW_INODES:
        return Finding(
            Status.FAILED,
            f"{status.f_favail} files can still be made under {place}",
            "remove directories with very many small files (`du --inodes`)",
        )
    return Finding(Status.OK, f"{status.f_favail} more files can be made under {place}")
