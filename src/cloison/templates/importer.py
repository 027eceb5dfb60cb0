"""Look at a disk image from anywhere before it becomes a standalone qube's root.

In: a path that the user named. Out: what the image is, or BadRequest saying why it cannot be used. May import: errors,
storage's knowledge of image formats.

The image's content is not trusted: a header may name other files of the host (backing files, external data), and a
guest that could choose them would read what the user can read. Such images are refused, never followed.
"""

from __future__ import annotations

import asyncio
import secrets
import stat
from dataclasses import dataclass
from pathlib import Path

from cloison.drivers.storage import qcow2format
from cloison.errors import BackendFailed, BadRequest

SECTOR_BYTES = 512
SMALLEST_DISK_BYTES = 1 << 20
"""No system fits into less: what is smaller was meant to be something else."""
PROBE_BYTES = 4096
MAX_SIZE_BYTES = 1 << 44
FORMATS = ("qcow2", "raw")
_FOREIGN_MAGICS = {
    b"KDMV": "vmdk",
    b"# Disk DescriptorFile": "vmdk",
    b"vhdxfile": "vhdx",
    b"conectix": "vpc",
    b"QED\0": "qed",
    b"\x1f\x8b": "gzip",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PK\x03\x04": "zip",
    b"ustar": "tar",
}
_PACKED = ("gzip", "xz", "zstd", "zip", "tar")
_TAR_MAGIC_OFFSET = 257
_VDI_OFFSET, _VDI_MAGIC = 64, b"\x7f\x10\xda\xbe"
_ISO_OFFSET, _ISO_MAGIC = 0x8001, b"CD001"


@dataclass(frozen=True)
class ForeignImage:
    """An image that may be imported."""

    path: Path
    format: str
    """``qcow2`` or ``raw``."""
    size_bytes: int
    """Of the disk that a guest sees, a multiple of 512."""
    content_key: str
    """For ``Pool.import_image``: new each time, because the file belongs to the user and may change."""


async def inspect_image(path: Path, *, image_format: str | None = None) -> ForeignImage:
    """What the image is; ``image_format`` (``qcow2``, ``raw``) is believed rather than guessed when given."""
    return await asyncio.to_thread(_inspect, path, image_format)


def _inspect(path: Path, image_format: str | None) -> ForeignImage:
    if image_format not in (None, *FORMATS):
        raise BadRequest(f"image format {str(image_format)[:20]!a} is not known (known: {', '.join(FORMATS)})")
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise BadRequest(f"{path} is not a file")
        with path.open("rb") as file:
            head = file.read(PROBE_BYTES)
            file.seek(_ISO_OFFSET)
            is_iso = file.read(len(_ISO_MAGIC)) == _ISO_MAGIC
    except OSError as error:
        raise BadRequest(f"image {path} cannot be read: {error.strerror}") from error
    found = image_format or guess_format(head)
    if found not in FORMATS:
        mend = "unpack it first" if found in _PACKED else f"qemu-img convert -f {found} -O qcow2 {path.name} disk.qcow2"
        raise BadRequest(f"image {path} is of format {found}, which cannot be imported", hint=mend)
    if is_iso and found == "raw" and image_format is None:
        raise BadRequest(
            f"{path} is a CD image, not a disk", hint="install it into a disk image first; or --format raw to insist"
        )
    if (
        found == "raw"
        and image_format is None
        and (status.st_size < SMALLEST_DISK_BYTES or status.st_size % SECTOR_BYTES)
    ):
        raise BadRequest(
            f"{path} is no disk image: {status.st_size} bytes",
            hint="qcow2 or raw; others: qemu-img convert -O qcow2; or --format raw to insist",
        )
    size = _qcow2_size(path) if found == "qcow2" else status.st_size
    if not 0 < size <= MAX_SIZE_BYTES:
        raise BadRequest(f"image {path} is a disk of {size} bytes, which is not usable")
    size += -size % SECTOR_BYTES
    return ForeignImage(path, found, size, f"foreign {secrets.token_hex(16)}")


def guess_format(head: bytes) -> str:
    """Format of an image by its first bytes; what nobody claims is raw."""
    if head.startswith(qcow2format.MAGIC):
        return "qcow2"
    for magic, name in _FOREIGN_MAGICS.items():
        if head.startswith(magic, _TAR_MAGIC_OFFSET if name == "tar" else 0):
            return name
    return "vdi" if head.startswith(_VDI_MAGIC, _VDI_OFFSET) else "raw"


def _qcow2_size(path: Path) -> int:
    """The size of its disk; BadRequest for images that cannot stand alone."""
    try:
        header = qcow2format.read_header(path)
    except BackendFailed as error:
        raise BadRequest(error.message) from error
    if header.backing or header.has_external_data:
        raise BadRequest(
            f"image {path} is only a part: it names another file for the rest",
            hint=f"if you trust it: qemu-img convert -O qcow2 {path.name} whole.qcow2",
        )
    if header.is_encrypted:
        raise BadRequest(f"image {path} is encrypted", hint="convert it to a plain image first (qemu-img convert)")
    if header.is_dirty:
        raise BadRequest(f"image {path} was not closed cleanly", hint=f"qemu-img check -r all {path.name}")
    return header.size_bytes
