"""The files of one qcow2 pool. Synchronous; every method is one atomic change, or a read.

In: records. Out: files below one directory (mode 0700). May import: errors, this package's records and formats.

    layers/ID.img        an image file; never renamed, never written after its run ended (merging aside)
    layers/ID.json       its record, with its secret (0600); an image without a record is rubbish
    volumes/VID.json     a volume's record (VID percent-quoted)
    runs/VID.qcow2       the throw-away layer of a run in progress

Order of writing: image, its record, then the volume's record that refers to them; each record is written beside,
synced and renamed. Order of removal: the volume's record, then layer records (secret overwritten first), then images.
So after a kill -9 or a power cut the records that are there describe a whole pool, and what they do not mention is
rubbish that ``sweep`` removes.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, unquote

from cloison.drivers.storage import qcow2format
from cloison.drivers.storage.records import Layer, Seal, VolumeRecord, parse_layer, parse_volume
from cloison.errors import BackendFailed, DiskFull

MIN_FREE_BYTES = 64 << 20
"""A run that would start with less could not even write its journal."""


class Shelf:
    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.layers = directory / "layers"
        self.volumes = directory / "volumes"
        self.runs = directory / "runs"

    def prepare(self) -> None:
        """Make the directories that are missing."""
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        for part in (self.layers, self.volumes, self.runs):
            part.mkdir(exist_ok=True, mode=0o700)

    # -- reading -----------------------------------------------------------------------------------------------

    def load_layers(self) -> tuple[dict[str, Layer], dict[str, BackendFailed]]:
        """All layer records, and an error for each damaged one (by layer id)."""
        layers: dict[str, Layer] = {}
        damaged: dict[str, BackendFailed] = {}
        for path in sorted(self.layers.glob("*.json")):
            try:
                layers[path.stem] = parse_layer(path.read_text(errors="replace"), str(path))
            except BackendFailed as error:
                damaged[path.stem] = error
        return layers, damaged

    def load_volumes(self) -> tuple[dict[str, VolumeRecord], dict[str, BackendFailed]]:
        """All volume records, and an error for each damaged one (by volume id)."""
        volumes: dict[str, VolumeRecord] = {}
        damaged: dict[str, BackendFailed] = {}
        for path in sorted(self.volumes.glob("*.json")):
            vid = unquote(path.stem)
            try:
                volumes[vid] = parse_volume(path.read_text(errors="replace"), str(path))
            except BackendFailed as error:
                damaged[vid] = error
        return volumes, damaged

    def image(self, layer_id: str) -> Path:
        return self.layers / f"{layer_id}.img"

    def run_image(self, vid: str) -> Path:
        return self.runs / f"{quote(vid, safe='')}.qcow2"

    def has_image(self, layer_id: str) -> bool:
        return self.image(layer_id).is_file()

    def used_bytes(self, path: Path) -> int:
        """What a file really takes on disk; 0 when there is none."""
        try:
            return path.stat().st_blocks * 512
        except FileNotFoundError:
            return 0

    def free_bytes(self) -> int:
        return shutil.disk_usage(self.directory).free

    def look(self, layer_id: str) -> Seal:
        """How the layer's file looks now."""
        try:
            status = self.image(layer_id).stat()
        except OSError as error:
            raise BackendFailed(f"disk image {self.image(layer_id)} cannot be read: {error.strerror}") from error
        return Seal(status.st_size, status.st_mtime_ns)

    # -- writing -----------------------------------------------------------------------------------------------

    def write_layer(self, layer: Layer) -> None:
        self._write(self.layers / f"{layer.id}.json", layer.to_json(), durable=True)

    def write_volume(self, volume: VolumeRecord, *, durable: bool = True) -> None:
        """``durable=False`` survives our own end but perhaps not a power cut: for runs that would end with it."""
        self._write(self.volumes / f"{quote(volume.vid, safe='')}.json", volume.to_json(), durable=durable)

    def remove_volume(self, vid: str) -> None:
        self.run_image(vid).unlink(missing_ok=True)
        (self.volumes / f"{quote(vid, safe='')}.json").unlink(missing_ok=True)
        sync_directory(self.volumes)

    def remove_layer(self, layer_id: str) -> None:
        """The secret goes first: from then on the image is noise."""
        record = self.layers / f"{layer_id}.json"
        with contextlib.suppress(FileNotFoundError):
            _destroy(record.replace(record.with_suffix(".dead")))
        self.image(layer_id).unlink(missing_ok=True)

    def adopt_image(self, source: Path, layer_id: str) -> None:
        """Bring a whole image in: hard link, else reflink, else copy. Durable when it returns.

        Only a file that nobody may write is linked: whoever changed it would change our volumes.
        """
        target = self.image(layer_id)
        fresh = target.with_suffix(".new")
        fresh.unlink(missing_ok=True)
        try:
            if source.stat().st_mode & 0o222:
                raise PermissionError(errno.EPERM, "may still be written")
            os.link(source, fresh)
        except OSError:
            with (
                gone_unless_whole(fresh),
                reporting_full_disk(f"cannot copy {source} into the pool", source.stat().st_blocks * 512),
            ):
                _copy_sparse(source, fresh)
        fresh.replace(target)
        sync_directory(self.layers)

    def sweep(self, layers: dict[str, Layer], volumes: dict[str, VolumeRecord]) -> None:
        """Remove files that no record mentions (rests of interrupted changes)."""
        for path in self.layers.iterdir():
            if path.suffix == ".dead":
                _destroy(path)
            elif path.suffix not in (".img", ".json") or path.stem not in layers:
                path.unlink(missing_ok=True)
        for path in self.volumes.iterdir():
            if path.suffix != ".json":
                path.unlink(missing_ok=True)
        for path in self.runs.iterdir():
            volume = volumes.get(unquote(path.stem))
            if volume is None or volume.run is None:
                path.unlink(missing_ok=True)

    def _write(self, path: Path, text: str, *, durable: bool) -> None:
        fresh = path.with_suffix(".new")
        with reporting_full_disk(f"cannot write {path}", MIN_FREE_BYTES):
            descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            try:
                os.write(descriptor, text.encode())
                if durable:
                    os.fsync(descriptor)
            finally:
                os.close(descriptor)
            fresh.replace(path)
            if durable:
                sync_directory(path.parent)


def write_empty_image(path: Path, size_bytes: int, backing: Path | None, backing_format: str, crypto: bytes) -> None:
    """A new qcow2 image at ``path`` that shows ``backing`` (or zeros); mode 0600."""
    data = qcow2format.empty_image(size_bytes, backing=backing, backing_format=backing_format, crypto=crypto)
    with reporting_full_disk(f"cannot make disk image {path}", MIN_FREE_BYTES):
        path.unlink(missing_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            _write_all(descriptor, data)
            os.ftruncate(descriptor, qcow2format.empty_image_length(size_bytes, encrypted=bool(crypto)))
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def gone_unless_whole(path: Path) -> Iterator[None]:
    """A half-written file gives its room back at once."""
    try:
        yield
    except BaseException:
        path.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def reporting_full_disk(tried: str, needed_bytes: int) -> Iterator[None]:
    """Turn the operating system's refusals into DiskFull and BackendFailed."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(
                f"{tried}: the disk is full, about {max(needed_bytes >> 20, 1)} MiB are needed",
                hint="remove qubes or revisions, or free space otherwise",
            ) from error
        raise BackendFailed(f"{tried}: {error}") from error


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_file(path: Path) -> None:
    """Make a file's content durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _destroy(path: Path) -> None:
    """Overwrite a small file before it is unlinked."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        _write_all(descriptor, b"\0" * os.fstat(descriptor).st_size)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    path.unlink()


_FICLONE = 0x40049409


def _copy_sparse(source: Path, target: Path) -> None:
    """Reflink where the file system can, else copy the parts that hold data."""
    import fcntl

    with source.open("rb") as reader, target.open("xb") as writer:
        try:
            fcntl.ioctl(writer.fileno(), _FICLONE, reader.fileno())
        except OSError:
            length = os.fstat(reader.fileno()).st_size
            os.ftruncate(writer.fileno(), length)
            position = 0
            while position < length:
                try:
                    start = os.lseek(reader.fileno(), position, os.SEEK_DATA)
                except OSError:  # nothing but a hole up to the end
                    break
                position = os.lseek(reader.fileno(), start, os.SEEK_HOLE)
                _copy_range(reader.fileno(), writer.fileno(), start, position)
        os.fsync(writer.fileno())


def _copy_range(source: int, target: int, start: int, end: int) -> None:
    while start < end:
        data = os.pread(source, min(end - start, 4 << 20), start)
        if not data:
            return
        done = 0
        while done < len(data):
            done += os.pwrite(target, data[done:], start + done)
        start += len(data)
