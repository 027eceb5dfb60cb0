"""Volume data on their way in: more than a request may hold, so they are collected in a file first.

In: bytes in any portions. Out: a volume with that content, or with the one it had. May import: model, errors, engine.

``admin.vm.volume.Import``: exactly the volume's size. ``admin.vm.volume.ImportWithSize``: the size in decimal on a
line of its own, then that many bytes (Admin API notes, section 1.7).
"""

from __future__ import annotations

import asyncio
import os
import re
import secrets
from pathlib import Path

from cloison.admin.methods import Answer, Call, Desk
from cloison.errors import BadRequest, DiskFull, ProtocolError
from cloison.model.names import QubeName

IMPORT = "admin.vm.volume.Import"
IMPORT_WITH_SIZE = "admin.vm.volume.ImportWithSize"
UPLOADS = frozenset({IMPORT, IMPORT_WITH_SIZE})
MAX_SIZE_LINE = 21
"""Twenty digits and the newline."""


def open_file(desk: Desk, qube: QubeName, volume: str, size_bytes: int) -> Path:
    """A private, sparse file of that size, noted as the import of that volume."""
    desk.imports.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = desk.imports / f"{secrets.token_hex(8)}.img"
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    try:
        os.ftruncate(descriptor, size_bytes)
    except OSError as error:
        path.unlink()
        raise DiskFull(f"no room for {size_bytes} bytes of volume {volume} of {qube}: {error.strerror}") from None
    finally:
        os.close(descriptor)
    try:
        old = desk.volumes.begin_import(qube, volume, path, size_bytes)
    except BaseException:
        path.unlink()
        raise
    if old is not None:
        old.unlink(missing_ok=True)
    return path


def sweep(desk: Desk) -> None:
    """Remove what an earlier daemon's imports left."""
    for path in desk.imports.glob("*.img"):
        path.unlink(missing_ok=True)


class Upload:
    """One import. ``receive`` portions, then ``finish``; or ``abandon``, which leaves the volume as it was."""

    def __init__(self, desk: Desk, call: Call) -> None:
        self._desk = desk
        self._call = call
        self._path: Path | None = None
        self._descriptor = -1
        self._head = b""
        self._size = -1
        self._position = 0
        volume = desk.volumes.volume(call.dest, call.arg)
        if call.method == IMPORT:
            self._begin(volume.size_bytes)

    def _begin(self, size_bytes: int) -> None:
        self._path = open_file(self._desk, self._call.dest, self._call.arg, size_bytes)
        self._descriptor = os.open(self._path, os.O_WRONLY | os.O_CLOEXEC)
        self._size = size_bytes

    async def receive(self, data: bytes) -> None:
        if self._size < 0:
            self._head += data
            line, newline, data = self._head.partition(b"\n")
            if not newline and len(line) < MAX_SIZE_LINE:
                return
            if not newline or not re.fullmatch(rb"[1-9][0-9]{0,18}", line):
                raise ProtocolError(f"{self._call.method} begins with a line that holds the size")
            self._begin(int(line))
        if self._position + len(data) > self._size:
            raise ProtocolError(f"more data came than the {self._size} bytes of the volume")
        if data.count(0) != len(data):
            await asyncio.to_thread(self._write, data)
        self._position += len(data)

    def _write(self, data: bytes) -> None:
        try:
            os.pwrite(self._descriptor, data, self._position)
        except OSError as error:
            raise DiskFull(f"no room for the data of volume {self._call.arg} of {self._call.dest}: {error}") from None

    async def finish(self) -> Answer:
        """All data came: make them the volume's content."""
        if self._position != self._size:
            await self.abandon()
            raise BadRequest(f"{self._position} bytes came and not the {max(self._size, 0)} of the volume")
        self._close()
        await self._desk.volumes.end_import(self._call.dest, self._call.arg, self._require_path(), success=True)
        return ""

    async def abandon(self) -> None:
        """Idempotent."""
        self._close()
        if self._path is not None and self._path.exists():
            await self._desk.volumes.end_import(self._call.dest, self._call.arg, self._path, success=False)

    def _require_path(self) -> Path:
        assert self._path is not None
        return self._path

    def _close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
