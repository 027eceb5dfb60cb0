"""The qube's disks: found by their virtio serial, taken from and given back to the driver, mounted.

A frozen guest must notice that its private disk is another one after the fork: the driver reads the size and the serial
only when it binds, so the disks are unbound before the freeze and bound again afterwards.
"""

from __future__ import annotations

import os
import shutil
import struct
import subprocess

from cloison_agent import syscalls

_DRIVER = "/sys/bus/virtio/drivers/virtio_blk"
_DEVICES = "/sys/bus/virtio/devices"
_PCI = "/sys/bus/pci/devices"
_BLOCK_DEVICE = "0x0002"
PRIVATE_PLACE = "0000:00:03.0"
"""Where every machine has its private disk: before it is bound, it has no serial."""
_BLANK_BYTES = 128 * 1024
_SUPERBLOCK_END = 4096
_PAGE = 4096


def find_disk(serial: str) -> str | None:
    """The device (``/dev/vdb``) of the disk with this serial, if it is bound."""
    for name in sorted(os.listdir("/sys/block")):
        if name.startswith("vd") and _read(f"/sys/block/{name}/serial") == serial:
            return f"/dev/{name}"
    return None


def find_private() -> str | None:
    """The private disk, if it is bound: by its place, which costs no request to the disk; else by its serial."""
    for virtio in _listed(f"{_PCI}/{PRIVATE_PLACE}"):
        if virtio.startswith("virtio"):
            for name in _listed(f"{_PCI}/{PRIVATE_PLACE}/{virtio}/block"):
                return f"/dev/{name}"
    return find_disk("private")


def bind_private() -> None:
    """Give the private disk to the driver; without a look at the others, for each look costs a fresh fork time."""
    for name in _listed(f"{_PCI}/{PRIVATE_PLACE}"):
        is_disk = name.startswith("virtio") and _read(f"{_DEVICES}/{name}/device") == _BLOCK_DEVICE
        if is_disk and not os.path.exists(f"{_DEVICES}/{name}/driver"):
            _write(f"{_DRIVER}/bind", name)


def release_disk(serial: str) -> bool:
    """Unbind the disk from the driver; whether it was there."""
    device = find_disk(serial)
    if device is None:
        return False
    virtio = os.path.basename(os.path.realpath(f"/sys/block/{device[5:]}/device"))
    _write(f"{_DRIVER}/unbind", virtio)
    return True


def bind_disks() -> None:
    """Give every unbound virtio disk to the driver."""
    for name in sorted(os.listdir(_DEVICES)):
        if _read(f"{_DEVICES}/{name}/device") == _BLOCK_DEVICE and not os.path.exists(f"{_DEVICES}/{name}/driver"):
            _write(f"{_DRIVER}/bind", name)


def mount_private(device: str, target: str) -> bool:
    """Mount the private disk, formatting it if it is blank; returns whether it was blank."""
    blank = _is_blank(device)
    if blank:
        _format(device)
    flags = syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOATIME
    try:
        syscalls.mount(device, target, "ext4", flags, "discard")
    except OSError:
        subprocess.run(["/sbin/e2fsck", "-p", device], stdin=subprocess.DEVNULL, capture_output=True, check=False)
        syscalls.mount(device, target, "ext4", flags, "discard")
    if not blank:
        _grow(device)
    return blank


def _is_blank(device: str) -> bool:
    """No file system and nothing else: anything unknown is left alone."""
    with open(device, "rb", buffering=0) as disk:
        start = disk.read(_SUPERBLOCK_END)
        if start[1080:1082] == b"\x53\xef":
            return False
        while len(start) < _BLANK_BYTES and (more := disk.read(_BLANK_BYTES - len(start))):
            start += more
    if start.strip(b"\0"):
        raise OSError(f"{device} holds something that is not ext4; it was left alone")
    return True


def _format(device: str) -> None:
    options = "lazy_itable_init=1,lazy_journal_init=1,nodiscard"
    command = ["/sbin/mkfs.ext4", "-q", "-F", "-m", "0", "-L", "private", "-E", options, device]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    if done.returncode:
        raise OSError(f"mkfs.ext4 {device}: {done.stderr.decode(errors='replace').strip()[:200]}")


def _grow(device: str) -> None:
    """Let the file system fill a disk that has become larger, beside everything else."""
    with open(device, "rb", buffering=0) as disk:
        disk.seek(1024)
        superblock = disk.read(1024)
        size_bytes = disk.seek(0, os.SEEK_END)
    low, log_block = struct.unpack_from("<I", superblock, 4)[0], struct.unpack_from("<I", superblock, 24)[0]
    if size_bytes - (low << (10 + log_block)) > 16 << 20:
        subprocess.Popen(["/sbin/resize2fs", device], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)


def use_as_swap(device: str) -> None:
    """Make the volatile disk swap space: a header with version, last page and signature is all it needs."""
    with open(device, "r+b", buffering=0) as disk:
        pages = disk.seek(0, os.SEEK_END) // _PAGE
        header = bytearray(_PAGE)
        struct.pack_into("<III", header, 1024, 1, pages - 1, 0)
        header[-10:] = b"SWAPSPACE2"
        disk.seek(0)
        disk.write(header)
    syscalls.swap_on(device)


def copy_tree(source: str, target: str) -> None:
    """A directory's contents with owners, modes and times."""
    os.makedirs(target, exist_ok=True)
    for entry in os.scandir(source):
        destination = os.path.join(target, entry.name)
        if entry.is_dir(follow_symlinks=False):
            copy_tree(entry.path, destination)
        else:
            copy_file(entry.path, destination)
    shutil.copystat(source, target)
    _copy_owner(source, target)


def copy_file(source: str, target: str) -> None:
    shutil.copy2(source, target, follow_symlinks=False)
    _copy_owner(source, target)


def _copy_owner(source: str, target: str) -> None:
    status = os.lstat(source)
    os.chown(target, status.st_uid, status.st_gid, follow_symlinks=False)


def _listed(path: str) -> list[str]:
    try:
        return os.listdir(path)
    except OSError:
        return []


def _read(path: str) -> str:
    try:
        with open(path) as file:
            return file.read().strip()
    except OSError:
        return ""


def _write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)
