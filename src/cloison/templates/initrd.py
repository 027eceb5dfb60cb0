#!/usr/bin/python3
"""Make the small initrd of a guest: load the disk driver, mount the root disk, hand over to /sbin/init.

Runs in the guest as a script: ``make-initrd KERNEL_VERSION OUTPUT``. Standard library only, imports nothing of ours.
Which drivers are modules depends on the kernel (in Debian 13's cloud kernel only virtio_blk is). The archive is left
uncompressed because it is 2 MB and unpacking costs an emulated CPU more than reading.
"""

from __future__ import annotations

import lzma
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

INIT = rb"""#!/bin/sh
mount -t devtmpfs dev /dev
mount -t proc proc /proc
for module in /modules/*.ko; do
    [ -e "$module" ] && insmod "$module"
done
read -r words < /proc/cmdline
root=/dev/vda options=rw,noatime init=/sbin/init
for word in $words; do
    case $word in
        root=/dev/*) root=${word#root=} ;;
        init=/*) init=${word#init=} ;;
        rootflags=*) options=$options,${word#rootflags=} ;;
    esac
done
umount /proc
tries=0
while [ ! -b "$root" ]; do
    tries=$((tries + 1))
    [ $tries -gt 600 ] && { echo "cloison: there is no root disk $root" > /dev/console; exit 1; }
    sleep 0.05
done
mount -t ext4 -o "$options" "$root" /root || { echo "cloison: cannot mount $root" > /dev/console; exit 1; }
mount --move /dev /root/dev
exec switch_root /root "$init" "$@"
"""
MODULES = ("virtio_pci", "virtio_blk", "crc32c_generic", "ext4")
APPLETS = ("sh", "mount", "umount", "insmod", "sleep", "switch_root")


def archive_entry(name: str, mode: int, content: bytes = b"", device: tuple[int, int] = (0, 0)) -> bytes:
    """One member of a ``newc`` cpio archive."""
    raw = name.encode() + b"\0"
    fields = (0, mode, 0, 0, 1, 0, len(content), 0, 0, *device, len(raw), 0)
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + raw
    return head + b"\0" * (-len(head) % 4) + content + b"\0" * (-len(content) % 4)


def find_modules(version: str) -> list[Path]:
    """Files of the wanted modules in loading order, what they need first; built-in and unknown ones have none."""
    found: list[Path] = []
    for module in MODULES:
        command = ["modprobe", "--show-depends", "--set-version", version, module]
        for line in subprocess.run(command, capture_output=True, text=True).stdout.splitlines():
            kind, _, path = line.strip().partition(" ")
            if kind == "insmod" and Path(path.strip()) not in found:
                found.append(Path(path.strip()))
    return found


def read_module(path: Path) -> bytes:
    """A module's plain content (the busybox loader knows no compression)."""
    if path.suffix == ".xz":
        return lzma.decompress(path.read_bytes())
    if path.suffix == ".zst":
        return subprocess.run(["zstd", "-dcq", str(path)], capture_output=True, check=True).stdout
    return path.read_bytes()


def archive_members(version: str) -> Iterator[bytes]:
    """All members of the archive, the trailer included."""
    for directory in ("bin", "dev", "proc", "root", "modules"):
        yield archive_entry(directory, 0o040755)
    yield archive_entry("dev/console", 0o020600, device=(5, 1))
    yield archive_entry("bin/busybox", 0o100755, Path("/bin/busybox").read_bytes())
    for applet in APPLETS:
        yield archive_entry(f"bin/{applet}", 0o120777, b"busybox")
    yield archive_entry("init", 0o100755, INIT)
    for number, path in enumerate(find_modules(version)):
        yield archive_entry(f"modules/{number:02d}-{path.name.partition('.')[0]}.ko", 0o100644, read_module(path))
    yield archive_entry("TRAILER!!!", 0)


def write_initrd(version: str, output: Path) -> None:
    """Write the initrd for that kernel; the old one stays until the new one is complete."""
    fresh = output.with_name(output.name + ".new")
    fresh.write_bytes(b"".join(archive_members(version)))
    fresh.replace(output)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: make-initrd KERNEL_VERSION OUTPUT")
    write_initrd(sys.argv[1], Path(sys.argv[2]))
