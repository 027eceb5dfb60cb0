"""Foreign images are looked at before anything else: what they are, and what they must not name."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from cloison.errors import BadRequest
from cloison.templates.importer import guess_format, inspect_image


def qcow2(path: Path, *options: str) -> Path:
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *options, str(path), "8M"], check=True)
    return path


async def test_a_qcow2_image_is_known_by_its_magic(tmp_path: Path) -> None:
    found = await inspect_image(qcow2(tmp_path / "disk.img"))
    assert (found.format, found.size_bytes) == ("qcow2", 8 << 20)


async def test_anything_else_is_raw_and_rounded_to_sectors(tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(b"\xeb\x63\x90" + bytes(1000))
    found = await inspect_image(tmp_path / "disk", image_format="raw")
    assert (found.format, found.size_bytes) == ("raw", 1024)


@pytest.mark.parametrize("size_bytes", [0, 1000, 1 << 19, (1 << 20) + 1])
async def test_what_is_too_small_for_a_system_or_has_half_a_sector_is_refused_unless_insisted_on(
    tmp_path: Path, size_bytes: int
) -> None:
    (tmp_path / "letter").write_bytes(b"\xeb" * size_bytes)
    with pytest.raises(BadRequest, match=f"no disk image: {size_bytes} bytes"):
        await inspect_image(tmp_path / "letter")


async def test_two_looks_never_share_content(tmp_path: Path) -> None:
    path = qcow2(tmp_path / "disk")
    assert (await inspect_image(path)).content_key != (await inspect_image(path)).content_key


async def test_an_image_that_names_a_file_of_the_host_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="names another file"):
        await inspect_image(qcow2(tmp_path / "disk", "-u", "-b", "/etc/shadow", "-F", "raw"))


async def test_an_image_with_its_data_elsewhere_is_refused(tmp_path: Path) -> None:
    path = qcow2(tmp_path / "disk", "-o", f"data_file={tmp_path / 'data'}")
    with pytest.raises(BadRequest, match="names another file"):
        await inspect_image(path)


@pytest.mark.parametrize(
    ("head", "name"),
    [
        (b"KDMV", "vmdk"), (b"vhdxfile", "vhdx"), (b"\x1f\x8b\x08", "gzip"), (b"PK\x03\x04", "zip"),
        (bytes(64) + b"\x7f\x10\xda\xbe", "vdi"), (bytes(257) + b"ustar", "tar"), (b"", "raw"), (b"\xeb\x63", "raw"),
    ],
)  # fmt: skip
def test_formats_by_first_bytes(head: bytes, name: str) -> None:
    assert guess_format(head) == name


async def test_formats_we_do_not_take_are_named_with_a_way_out(tmp_path: Path) -> None:
    (tmp_path / "disk.vmdk").write_bytes(b"KDMV" + bytes(5000))
    with pytest.raises(BadRequest, match="qemu-img convert -f vmdk"):
        await inspect_image(tmp_path / "disk.vmdk")


async def test_a_cd_image_is_refused_unless_insisted_on(tmp_path: Path) -> None:
    path = tmp_path / "cd.iso"
    path.write_bytes(bytes(0x8001) + b"CD001" + bytes(5000))
    with pytest.raises(BadRequest, match="CD image"):
        await inspect_image(path)
    assert (await inspect_image(path, image_format="raw")).format == "raw"


async def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    for path in (tmp_path, tmp_path / "absent", tmp_path / "empty", Path("/dev/zero")):
        with pytest.raises(BadRequest):
            await inspect_image(path)


async def test_a_qcow2_cut_short_is_refused(tmp_path: Path) -> None:
    path = qcow2(tmp_path / "disk")
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(BadRequest, match="damaged"):
        await inspect_image(path)
