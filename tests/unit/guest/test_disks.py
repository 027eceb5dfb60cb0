"""The private disk: found by its place, bound once, and taken for blank only when all of its start is."""

from __future__ import annotations

from pathlib import Path

import pytest

from cloison_agent import disks

KIB = 1024


@pytest.fixture
def sysfs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The private disk at its place, not bound, beside a root disk that is."""
    devices, driver = tmp_path / "virtio", tmp_path / "driver"
    place = tmp_path / "pci" / disks.PRIVATE_PLACE / "virtio1"
    for directory in (devices / "virtio0" / "driver", devices / "virtio1", driver, place):
        directory.mkdir(parents=True)
    for name in ("virtio0", "virtio1"):
        (devices / name / "device").write_text("0x0002\n")
    monkeypatch.setattr(disks, "_PCI", str(tmp_path / "pci"))
    monkeypatch.setattr(disks, "_DEVICES", str(devices))
    monkeypatch.setattr(disks, "_DRIVER", str(driver))
    return tmp_path


def test_it_is_bound_by_its_place_and_found_there(sysfs: Path) -> None:
    disks.bind_private()
    assert (sysfs / "driver" / "bind").read_text() == "virtio1"
    (sysfs / "pci" / disks.PRIVATE_PLACE / "virtio1" / "block" / "vdb").mkdir(parents=True)
    assert disks.find_private() == "/dev/vdb"


def test_one_that_is_bound_is_left_alone(sysfs: Path) -> None:
    (sysfs / "virtio" / "virtio1" / "driver").mkdir()
    disks.bind_private()
    assert not (sysfs / "driver" / "bind").exists()


def test_what_is_no_disk_is_not_bound(sysfs: Path) -> None:
    (sysfs / "virtio" / "virtio1" / "device").write_text("0x0005\n")
    disks.bind_private()
    assert not (sysfs / "driver" / "bind").exists()


@pytest.mark.parametrize(
    ("content", "blank"),
    [
        (b"", True),
        (bytes(1 << 20), True),
        (bytes(1080) + b"\x53\xef" + bytes(4000), False),
        (bytes(200 * KIB) + b"x", True),  # beyond where any file system would say who it is
    ],
)
def test_blank_is_what_holds_nothing(tmp_path: Path, content: bytes, blank: bool) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(content)
    assert disks._is_blank(str(disk)) is blank


@pytest.mark.parametrize("offset", [0, 2 * KIB, 5 * KIB, 127 * KIB])
def test_anything_unknown_is_left_alone(tmp_path: Path, offset: int) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(offset) + b"something" + bytes(1 << 18))
    with pytest.raises(OSError, match="left alone"):
        disks._is_blank(str(disk))
