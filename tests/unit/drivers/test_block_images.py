"""Files of the host as disks: which may be one, what is said of those that may not, and that nobody shares one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cloison.drivers.block.images import HostImages
from cloison.errors import BadRequest, CloisonError, DeviceInUse, DeviceNotFound, Refused


@pytest.fixture
def images(tmp_path: Path) -> HostImages:
    (tmp_path / "data").mkdir()
    (tmp_path / "block").mkdir()
    return HostImages(tmp_path / "data/exposed", tmp_path / "data", block=tmp_path / "block", devices=tmp_path)


def make(path: Path, size: int = 4096) -> Path:
    path.write_bytes(b"x" * size)
    return path


def test_an_exposed_file_is_there_until_it_is_hidden(images: HostImages, tmp_path: Path) -> None:
    path = make(tmp_path / "my disk.img")
    image = images.expose(path, "", read_only=False)
    assert (image.port, image.size_bytes, image.read_only, image.description) == (
        "my-disk.img", 4096, False, str(path)
    )  # fmt: skip
    assert images.expose(path, "", read_only=False) == image
    assert list(images.images()) == [image]
    images.hide("my-disk.img")
    assert list(images.images()) == []
    assert path.exists()
    with pytest.raises(DeviceNotFound, match="no file is exposed"):
        images.hide("my-disk.img")


@pytest.mark.parametrize(
    ("name", "port", "said"),
    [
        ("gone", "", "No such file"),
        ("short", "", "has 511 bytes"),
        ("odd", "", "has 4097 bytes"),
        ("directory", "", "neither a file nor a block device"),
        ("data/own", "", "belongs to this system"),
        ("link-to-own", "", "belongs to this system"),
        ("image.qcow2", "", "is a qcow2 image"),
        ("secret", "", "Permission denied"),
        ("good", "../x", "no name for a device"),
        ("good", "loop0", "no name for a device"),
        ("good", "taken", "is .*other already"),
    ],
)
def test_what_cannot_be_a_disk_is_told(images: HostImages, tmp_path: Path, name: str, port: str, said: str) -> None:
    make(tmp_path / "good")
    make(tmp_path / "short", 511)
    make(tmp_path / "odd", 4097)
    make(tmp_path / "data/own")
    make(tmp_path / "secret").chmod(0)
    (tmp_path / "image.qcow2").write_bytes(b"QFI\xfb".ljust(512, b"\0"))
    (tmp_path / "directory").mkdir()
    (tmp_path / "link-to-own").symlink_to(tmp_path / "data/own")
    images.expose(make(tmp_path / "other"), "taken", read_only=False)
    if name == "secret" and os.access(tmp_path / "secret", os.R_OK):
        pytest.skip("root may read everything")
    with pytest.raises(BadRequest, match=said):
        images.expose(tmp_path / name, port, read_only=False)
    assert [image.port for image in images.images()] == ["taken"]


def test_a_path_must_be_whole(images: HostImages) -> None:
    with pytest.raises(BadRequest, match="no absolute path"):
        images.expose(Path("disk.img"), "", read_only=False)


def test_what_became_of_an_exposed_file_is_told(images: HostImages, tmp_path: Path) -> None:
    path = make(tmp_path / "disk")
    images.expose(path, "", read_only=False)
    path.write_bytes(b"")
    assert list(images.images()) == []
    assert "has 0 bytes" in images.trouble("disk")
    with pytest.raises(DeviceNotFound, match="has 0 bytes"):
        images.open("disk", read_only=True)
    path.unlink()
    assert "No such file" in images.trouble("disk")
    assert images.trouble("other") == "dom0 exposes no block device other"


def attempt(images: HostImages, port: str, *, read_only: bool) -> int:
    return images.open(port, read_only=read_only).descriptor


@pytest.mark.parametrize(("first", "second", "works"), [
    (False, False, False), (False, True, False), (True, False, False), (True, True, True),
])  # fmt: skip
def test_nobody_shares_what_somebody_writes(
    images: HostImages, tmp_path: Path, first: bool, second: bool, works: bool
) -> None:
    """Not even under two names; the lock lives as long as any copy of the descriptor."""
    path = make(tmp_path / "disk")
    images.expose(path, "one", read_only=False)
    images.expose(path, "two", read_only=False)
    held = attempt(images, "one", read_only=first)
    copy = os.dup(held)
    os.close(held)
    if works:
        os.close(attempt(images, "two", read_only=second))
    else:
        with pytest.raises(DeviceInUse, match="in use"):
            attempt(images, "two", read_only=second)
    os.close(copy)
    os.close(attempt(images, "two", read_only=second))


def test_what_may_only_be_read_is_not_opened_for_writing(images: HostImages, tmp_path: Path) -> None:
    path = make(tmp_path / "disk")
    assert images.expose(path, "disk", read_only=True).read_only
    with pytest.raises(Refused, match="only be read"):
        images.open("disk", read_only=False)
    opened = images.open("disk", read_only=True)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.write(opened.descriptor, b"x")
    os.close(opened.descriptor)


def test_loop_devices_with_a_file_are_there_by_themselves(images: HostImages, tmp_path: Path) -> None:
    for number in (0, 1):
        (tmp_path / f"block/loop{number}/loop").mkdir(parents=True)
        (tmp_path / f"block/loop{number}/ro").write_text("1\n")
    (tmp_path / "block/sda").mkdir()
    (tmp_path / "block/loop0/loop/backing_file").write_text("/home/me/b\u00fccher.iso\n")
    make(tmp_path / "loop0")
    (image,) = images.images()
    assert (image.port, image.description, image.read_only) == ("loop0", "/home/me/b?cher.iso", True)
    with pytest.raises(CloisonError, match="no file is exposed as 'loop0'"):
        images.hide("loop0")
