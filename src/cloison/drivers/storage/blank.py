"""The empty file system that new volumes start from: made once per size, so a guest never has to format anything.

In: a size. Out: a qcow2 file. May import: errors, this package.

It is a shared read-only base below each volume's own encrypted layers and holds no data of anybody, so it is not
encrypted itself. Made reproducibly (fixed ids and times): equal sizes give equal bytes.
"""

from __future__ import annotations

import asyncio
import os
import uuid
from pathlib import Path

from cloison.drivers.storage import qemuimg
from cloison.drivers.storage.shelf import reporting_full_disk, write_empty_image
from cloison.errors import BackendFailed

_NAMESPACE = uuid.UUID("6f1e6f0a-4c51-4b0e-9d0a-2f6c1d6f0b77")
MIN_FORMATTED_BYTES = 8 << 20
JOURNAL_MIB = 16
MIN_JOURNALED_BYTES = 256 << 20
LABEL = "private"


def blank_id(size_bytes: int) -> str:
    """Name of the layer with an empty file system of that size."""
    return f"blank-{size_bytes}"


async def write_blank(path: Path, size_bytes: int) -> None:
    """A qcow2 image at ``path`` with an empty ext4 (too small a one stays without); the old file is replaced."""
    if size_bytes < MIN_FORMATTED_BYTES:
        write_empty_image(path, size_bytes, None, "", b"")
        return
    raw, fresh = path.with_suffix(".raw"), path.with_suffix(".new")
    try:
        with reporting_full_disk(f"cannot make file system {raw}", size_bytes // 64):
            with raw.open("wb") as file:
                os.truncate(file.fileno(), size_bytes)
        await _make_file_system(raw, size_bytes)
        await qemuimg.convert(raw, "raw", fresh)
        fresh.replace(path)
    finally:
        raw.unlink(missing_ok=True)
        fresh.unlink(missing_ok=True)


async def _make_file_system(path: Path, size_bytes: int) -> None:
    identity = uuid.uuid5(_NAMESPACE, str(size_bytes))
    journal = ["-J", f"size={JOURNAL_MIB}"] if size_bytes >= MIN_JOURNALED_BYTES else []
    options = f"assume_storage_prezeroed=1,root_owner=0:0,hash_seed={identity}"
    command = ["mke2fs", "-q", "-F", "-t", "ext4", "-m", "0", *journal, "-L", LABEL, "-U", str(identity), "-E", options]
    environment = {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "LC_ALL": "C.UTF-8",
        "E2FSPROGS_FAKE_TIME": "1700000000",
    }
    try:
        process = await asyncio.create_subprocess_exec(
            *command, str(path), env=environment,
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
    except FileNotFoundError as error:
        raise BackendFailed("the program mke2fs is missing", hint="sudo apt install e2fsprogs") from error
    try:
        _, said = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
    if process.returncode != 0:
        raise BackendFailed(f"cannot make a file system in {path}: {said.decode(errors='replace').strip()[:300]}")
