"""Whole images from outside become layers of a pool.

In: an image file. Out: a sealed layer whose file is in the pool; nothing refers to it yet. May import: errors, this
package.
"""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path

from cloison.drivers.storage import qcow2format, qemuimg
from cloison.drivers.storage.base import DiskLayer
from cloison.drivers.storage.records import Layer
from cloison.drivers.storage.shelf import Shelf, gone_unless_whole, sync_file, write_empty_image
from cloison.errors import BackendFailed, BadRequest

SECTOR_BYTES = 512


def revision_of(content_key: str) -> str:
    """The revision id of an imported content."""
    return f"img-{hashlib.sha256(content_key.encode()).hexdigest()[:24]}"


async def bring_in(shelf: Shelf, image: Path, image_format: str, layer_id: str) -> Layer:
    """As a base that volumes share: a link or a copy of a qcow2 file, checked."""
    size = await asyncio.to_thread(disk_size, image, image_format)
    path = shelf.image(layer_id)
    if image_format == "qcow2":
        await asyncio.to_thread(shelf.adopt_image, image, layer_id)
    else:
        fresh = path.with_suffix(".new")
        with gone_unless_whole(fresh):
            await qemuimg.convert(image, image_format, fresh)
            await asyncio.to_thread(sync_file, fresh)
        fresh.replace(path)
    try:
        await qemuimg.check((DiskLayer(path, "qcow2"),))
    except BackendFailed:
        path.unlink(missing_ok=True)
        raise
    return Layer(layer_id, None, "qcow2", size, is_base=True, seal=shelf.look(layer_id))


async def bring_in_encrypted(
    shelf: Shelf, image: Path, image_format: str, layer_id: str, pair: tuple[bytes, bytes]
) -> Layer:
    """As one volume's own: a copy, encrypted under a secret of its own."""
    size = await asyncio.to_thread(disk_size, image, image_format)
    secret, header = pair
    path = shelf.image(layer_id)
    with gone_unless_whole(path):
        await asyncio.to_thread(write_empty_image, path, size, None, "", header)
        await qemuimg.fill(image, image_format, DiskLayer(path, "qcow2", secret))
        await asyncio.to_thread(sync_file, path)
    return Layer(layer_id, None, "qcow2", size, secret, seal=shelf.look(layer_id))


def disk_size(image: Path, image_format: str) -> int:
    """Size of the disk that the image holds, in whole sectors; BadRequest if we may not take it."""
    if image_format == "qcow2":
        header = qcow2format.read_header(image)
        if header.backing or header.has_external_data or header.is_encrypted:
            raise BadRequest(f"image {image} cannot be used as it is", hint="import it with `standalone import`")
        return header.size_bytes
    if image_format != "raw":
        raise BadRequest(f"image format {image_format[:20]!a} is not known (known: qcow2, raw)")
    size = image.stat().st_size
    return size + -size % SECTOR_BYTES
