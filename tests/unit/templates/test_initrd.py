"""The archive that the guest's kernel unpacks."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from cloison.templates import initrd


def test_cpio_can_read_what_we_pack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    if shutil.which("cpio") is None:
        pytest.skip("cpio is not installed")
    module = tmp_path / "virtio_blk.ko"
    module.write_bytes(b"module")
    monkeypatch.setattr(initrd, "find_modules", lambda version: [module])
    monkeypatch.setattr(Path, "read_bytes", lambda path: b"content of " + path.name.encode())
    archive = b"".join(initrd.archive_members("6.12"))
    names = subprocess.run(["cpio", "-it"], input=archive, capture_output=True, check=True).stdout.decode().split()
    assert {"init", "bin/busybox", "bin/switch_root", "dev/console", "modules/00-virtio_blk.ko"} <= set(names)


def test_members_are_aligned() -> None:
    for name in ("a", "ab", "abc", "abcd"):
        for content in (b"", b"x", b"xyz", b"wxyz"):
            assert len(initrd.archive_entry(name, 0o100644, content)) % 4 == 0


def test_the_init_script_is_a_shell_script() -> None:
    subprocess.run(["sh", "-n"], input=initrd.INIT, check=True)
