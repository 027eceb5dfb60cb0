"""Images that another process has locked: waited for, and not called damaged."""

from __future__ import annotations

import asyncio
import fcntl
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cloison.drivers.storage import qemuimg
from cloison.drivers.storage.base import DiskLayer
from cloison.errors import BackendFailed


@pytest.fixture
def image(tmp_path: Path) -> DiskLayer:
    path = tmp_path / "disk.img"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(path), "4M"], check=True, timeout=60)
    return DiskLayer(path, "qcow2")


@contextmanager
def locked(image: DiskLayer) -> Iterator[int]:
    """As by a process that writes to it: QEMU says so by a lock on byte 101."""
    descriptor = os.open(image.path, os.O_RDWR)
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_SH, 1, 101)
        yield descriptor
    finally:
        os.close(descriptor)


async def test_who_writes_an_image_is_waited_for(image: DiskLayer) -> None:
    with locked(image) as descriptor:
        checking = asyncio.create_task(qemuimg.check((image,)))
        await asyncio.sleep(0.5)
        assert not checking.done()
        fcntl.lockf(descriptor, fcntl.LOCK_UN, 1, 101)
        await checking


async def test_an_image_that_stays_in_use_is_not_called_damaged(
    image: DiskLayer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(qemuimg, "LOCK_PATIENCE_S", 0.3)
    with locked(image), pytest.raises(BackendFailed, match=r"disk\.img is in use by another process"):
        await qemuimg.check((image,))
