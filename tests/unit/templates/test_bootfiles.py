"""Kernel and initrd are read from a file system that a guest wrote."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from cloison.errors import BackendFailed
from cloison.templates.bootfiles import newest_version, parse_listing, read_boot_files


@pytest.mark.parametrize(
    ("names", "version"),
    [
        (["vmlinuz-6.12.9-amd64", "initrd.img-6.12.9-amd64", "vmlinuz-6.12.10-amd64", "initrd.img-6.12.10-amd64"],
         "6.12.10-amd64"),
        (["vmlinuz-6.12.9", "initrd.img-6.12.9", "vmlinuz-6.13"], "6.12.9"),
        (["vmlinuz-6.13~rc1", "initrd.img-6.13~rc1", "vmlinuz-6.13", "initrd.img-6.13"], "6.13"),
        (["vmlinuz-6.12", "initrd.img-6.12", "vmlinuz-6.12.1", "initrd.img-6.12.1"], "6.12.1"),
        (["vmlinuz", "initrd.img", "config-6.12"], None),
        (["vmlinuz-6 /etc/passwd", "initrd.img-6 /etc/passwd"], None),
        (["vmlinuz-6\n", "initrd.img-6\n"], None),
        (["vmlinuz-" + "6" * 100, "initrd.img-" + "6" * 100], None),
        ([], None),
    ],
)  # fmt: skip
def test_the_newest_kernel_with_an_initrd(names: list[str], version: str | None) -> None:
    assert newest_version(names) == version


def test_only_regular_files_count() -> None:
    listing = "/13/040755/0/0/.//\n/14/100644/0/0/vmlinuz-6/83/\n/15/120777/0/0/initrd.img-6/5/\nnonsense\n/\n"
    assert parse_listing(listing) == ["vmlinuz-6"]


async def test_files_come_out_of_a_real_file_system(tmp_path: Path) -> None:
    boot = tmp_path / "tree/boot"
    boot.mkdir(parents=True)
    kernel = bytes(range(256)) * 40000
    (boot / "vmlinuz-6.12.1-amd64").write_bytes(kernel)
    (boot / "initrd.img-6.12.1-amd64").write_bytes(b"initrd")
    image = tmp_path / "an image.raw"
    command = ["mke2fs", "-q", "-t", "ext4", "-d", str(tmp_path / "tree"), str(image), "64M"]
    subprocess.run(command, check=True, env={"PATH": "/usr/sbin:/usr/bin"})  # noqa: ASYNC221
    found = await read_boot_files(image, tmp_path)
    assert found and found.version == "6.12.1-amd64"
    assert found.kernel.read_bytes() == kernel and found.initrd.read_bytes() == b"initrd"


async def test_what_is_no_file_system_is_said_so(tmp_path: Path) -> None:
    image = tmp_path / "noise"
    image.write_bytes(b"noise" * 100000)
    with pytest.raises(BackendFailed):
        await read_boot_files(image, tmp_path)
