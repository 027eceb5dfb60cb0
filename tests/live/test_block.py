"""Disks of dom0 in real guests: files become disks and discs, come and go while a qube runs, and outlive the daemon."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.live.conftest import wait_until
from tests.live.test_standalone import BOOT_LIMIT_S, HELLO, boot_sector

if TYPE_CHECKING:
    from tests.live.conftest import LiveSystem

MakeQube = Callable[..., str]
APPEARS = "for i in $(seq 300); do [ -e /dev/{0} ] && break; sleep 0.2; done; [ -e /dev/{0} ] && "
SECTOR = 2048


@pytest.fixture
def disk(system: LiveSystem, tmp_path: Path) -> Iterator[Path]:
    """A file with an empty file system, exposed as dom0:disk."""
    path = tmp_path / "disk"
    path.touch()
    os.truncate(path, 16 << 20)
    subprocess.run(["/sbin/mkfs.ext4", "-q", path], check=True)
    system.cloison("device", "expose", str(path))
    yield path
    system.cloison("device", "hide", "disk")


def refused(system: LiveSystem, *words: str) -> str:
    """The one line in which a command says no."""
    done = system.cloison(*words, expect=None)
    said = done.stderr.decode().strip()
    assert done.returncode, "it was not refused"
    assert "\n" not in said
    return said


def content(path: Path, name: str) -> str:
    return subprocess.run(["/sbin/debugfs", "-R", f"cat {name}", path], capture_output=True, check=True).stdout.decode()


def in_guest(system: LiveSystem, qube: str, device: str, script: str) -> str:
    """What a script of root says once the device is there; the script must succeed."""
    done = system.run(qube, "sh", "-c", APPEARS.format(device) + f"{{ {script}; }}", user="root")
    return done.stdout.decode().strip()


def users(system: LiveSystem, device: str) -> list[str]:
    return next((row["used_by"] for row in system.json("device", "list") if row["device"] == device), [])


def test_a_disk_comes_and_goes_and_survives_the_daemon(
    system: LiveSystem, new_qube: MakeQube, disk: Path, tmp_path: Path
) -> None:
    qube, other = new_qube("--prop", "netvm="), new_qube("--prop", "netvm=")
    said = refused(system, "device", "attach", qube, "dom0:disk")
    assert f"{qube} is not running" in said
    system.cloison("start", qube)
    system.cloison("device", "attach", qube, "dom0:disk")
    in_guest(system, qube, "xvdi", "mount /dev/xvdi /mnt && echo before > /mnt/one")

    system.kill_daemon()
    in_guest(system, qube, "xvdi", "echo after > /mnt/two && umount /mnt")
    assert users(system, "dom0:disk") == [qube]
    said = refused(system, "device", "attach", other, "dom0:disk")
    assert "is not running" in said
    system.cloison("device", "detach", qube, "dom0:disk")
    assert (content(disk, "one"), content(disk, "two")) == ("before\n", "after\n")
    assert users(system, "dom0:disk") == []
    assert in_guest(system, qube, "null", "ls /dev/xvd* 2>&1; true").startswith("ls: cannot access")

    system.cloison("device", "attach", "--ro", "-o", "frontend-dev=xvdk", qube, "dom0:disk")
    said = in_guest(system, qube, "xvdk", "echo x | dd of=/dev/xvdk 2>&1; mount -o ro /dev/xvdk /mnt && cat /mnt/two")
    assert "after" in said
    assert "not permitted" in said or "Read-only" in said
    # One qube writes, or several read: a second name for the file changes nothing.
    alias = tmp_path / "alias"
    alias.symlink_to(disk)
    system.cloison("device", "expose", "--name", "alias", str(alias))
    said = refused(system, "device", "attach", qube, "dom0:alias")
    assert "is in use" in said
    in_guest(system, qube, "xvdk", "umount /mnt")
    system.cloison("device", "detach", qube)

    # What is required is there when the qube starts; without it the qube does not start.
    system.cloison("device", "assign", "--required", "-o", "devtype=cdrom", other, "dom0:alias")
    system.cloison("start", other)
    assert in_guest(system, other, "xvdi", "head -c 1082 /dev/sr0 | tail -c 2 | od -An -tx1") == "53 ef"
    assert users(system, "dom0:alias") == [f"{other} (devtype=cdrom)"]
    system.cloison("kill", other)
    system.cloison("device", "hide", "alias")
    said = refused(system, "start", other)
    assert f"cannot start {other}: it requires dom0:alias" in said


def disc(boot: bytes) -> bytes:
    """A disc that a firmware boots: El Torito without emulation, and nothing else on it."""
    catalogue, code = 19, 20
    primary = b"\x01CD001\x01".ljust(SECTOR, b"\0")
    record = b"\x00CD001\x01" + b"EL TORITO SPECIFICATION".ljust(64, b"\0") + catalogue.to_bytes(4, "little")
    end = b"\xffCD001\x01"
    validation = bytearray(b"\x01".ljust(30, b"\0") + b"\x55\xaa")
    total = sum(int.from_bytes(validation[at : at + 2], "little") for at in range(0, 32, 2))
    validation[28:30] = (-total & 0xFFFF).to_bytes(2, "little")
    entry = b"\x88\0\0\0\0\0" + (4).to_bytes(2, "little") + code.to_bytes(4, "little")
    sectors = [*[b""] * 16, primary, record, end, bytes(validation) + entry.ljust(32, b"\0"), boot, *[b""] * 40]
    return b"".join(sector.ljust(SECTOR, b"\0") for sector in sectors)


def test_an_installer_is_booted_from_its_disc_once(system: LiveSystem, tmp_path: Path) -> None:
    path = tmp_path / "installer.iso"
    path.write_bytes(disc(boot_sector()))
    qube = "from-disc"
    system.cloison("create", "--class", "StandaloneVM", "--label", "red", "--prop", "kernel=", "--prop", "netvm=", qube)
    try:
        system.cloison("start", "--cdrom", f"dom0:{path}", qube)
        wait_until(
            lambda: HELLO.strip() in system.cloison("console", "--log", qube).stdout, BOOT_LIMIT_S, "its greeting"
        )
        assert users(system, "dom0:installer.iso") == [f"{qube} (devtype=cdrom)"]
        system.cloison("kill", qube)
        assert users(system, "dom0:installer.iso") == []
    finally:
        system.cloison("kill", qube, expect=None)
        system.cloison("remove", "--yes", qube, expect=None)
        system.cloison("device", "hide", "installer.iso", expect=None)
