"""Images whose every byte we wrote ourselves, judged by QEMU's own tools; and headers that lie."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloison.drivers.storage import luks, qcow2format
from cloison.drivers.storage.base import DiskLayer
from cloison.drivers.storage.shelf import write_empty_image
from cloison.errors import BackendFailed

from .conftest import MIB, Guest, run_tool

GIB = 1 << 30


@pytest.mark.parametrize("size", [512, MIB, 512 * MIB, 512 * MIB + 512, 10 * GIB, 5000 * GIB])
@pytest.mark.parametrize("encrypted", [False, True])
def test_qemu_finds_an_empty_image_sound(tmp_path: Path, size: int, encrypted: bool) -> None:
    path, secret = tmp_path / "i", luks.make_secret()
    write_empty_image(path, size, None, "", luks.make_header(secret) if encrypted else b"")
    (tmp_path / "key").write_bytes(secret)
    name = {"driver": "qcow2", "file": {"driver": "file", "filename": str(path)}}
    if encrypted:
        name["encrypt"] = {"format": "luks", "key-secret": "k"}
    told = run_tool("qemu-img", "check", "--object", f"secret,id=k,file={tmp_path / 'key'}", "json:" + json.dumps(name))
    assert "No errors" in told
    assert qcow2format.read_header(path).size_bytes == size
    assert not qcow2format.has_data(path)


def test_qemu_reads_the_backing_file_we_name(tmp_path: Path) -> None:
    base, top, other = tmp_path / "base", tmp_path / "top", tmp_path / ("other" * 20)
    for path in (base, other):
        write_empty_image(path, GIB, None, "", b"")
    write_empty_image(top, GIB, base, "qcow2", b"")
    told = json.loads(run_tool("qemu-img", "info", "--output=json", top))
    assert (told["backing-filename"], told["backing-filename-format"]) == (str(base), "qcow2")
    qcow2format.write_backing_name(top, other, "qcow2")
    assert json.loads(run_tool("qemu-img", "info", "--output=json", top))["backing-filename"] == str(other)
    assert qcow2format.read_header(top).backing == str(other)
    qcow2format.write_backing_name(top, base, "raw")
    told = json.loads(run_tool("qemu-img", "info", "-U", "--output=json", top))
    assert (told["backing-filename"], told["backing-filename-format"]) == (str(base), "raw")


def test_the_wrong_secret_opens_nothing(tmp_path: Path, guest: Guest) -> None:
    path, secret = tmp_path / "i", luks.make_secret()
    write_empty_image(path, MIB, None, "", luks.make_header(secret))
    guest.write((DiskLayer(path, "qcow2", secret),), 3, at=0)
    assert guest.shows((DiskLayer(path, "qcow2", secret),), 3, at=0)
    said = guest.run_loose((DiskLayer(path, "qcow2", luks.make_secret()),), "read 0 512")
    assert "Invalid password" in said


def test_an_image_with_data_is_seen_as_such(tmp_path: Path, guest: Guest) -> None:
    path = tmp_path / "i"
    write_empty_image(path, GIB, None, "", b"")
    guest.write((DiskLayer(path, "qcow2"),), 3, at=800 * MIB)
    assert qcow2format.has_data(path)


def test_headers_made_of_the_same_filler_share_no_secret() -> None:
    one, two = luks.make_header(luks.make_secret()), luks.make_header(luks.make_secret())
    blocks = [{header[at : at + 512] for at in range(4096, 4096 + 256000, 512)} for header in (one, two)]
    assert len(one) == luks.WRITTEN_BYTES and not blocks[0] & blocks[1]


def test_only_its_owner_may_read_an_image(tmp_path: Path) -> None:
    write_empty_image(tmp_path / "i", MIB, None, "", b"")
    assert (tmp_path / "i").stat().st_mode & 0o777 == 0o600


GOOD = qcow2format.empty_image(GIB, backing=Path("/some/base"), backing_format="qcow2")[:4096]


@pytest.mark.parametrize(
    ("what", "at", "value"),
    [
        ("another magic", 0, b"QFI\xfa"),
        ("version 2", 4, struct.pack(">I", 2)),
        ("a name outside", 8, struct.pack(">QI", 4000, 500)),
        ("an endless name", 16, struct.pack(">I", 0x7FFFFFFF)),
        ("clusters of one byte", 20, struct.pack(">I", 0)),
        ("clusters of an exabyte", 20, struct.pack(">I", 60)),
        ("an unknown incompatible feature", 72, struct.pack(">Q", 1 << 40)),
        ("a header too short", 100, struct.pack(">I", 72)),
    ],
)
def test_a_header_that_makes_no_sense_is_refused(what: str, at: int, value: bytes) -> None:
    with pytest.raises(BackendFailed, match=r"some\.img"):
        qcow2format.parse_header(GOOD[:at] + value + GOOD[at + len(value) :], "some.img")


def test_tables_beyond_the_end_of_the_file_are_noticed(tmp_path: Path) -> None:
    path = tmp_path / "i"
    write_empty_image(path, GIB, None, "", b"")
    with path.open("r+b") as file:
        file.seek(40)
        file.write(struct.pack(">Q", 1 << 40))
    with pytest.raises(BackendFailed, match="cut short"):
        qcow2format.read_header(path)


@given(st.binary(max_size=600))
def test_no_bytes_break_the_parser(data: bytes) -> None:
    for untrusted in (data, GOOD[:8] + data, GOOD[: len(data)] + data):
        try:
            qcow2format.parse_header(untrusted, "x")
        except BackendFailed:
            pass
