"""Pool driver ``qcow2``: volumes as chains of qcow2 files on any file system.

In: volume specifications. Out: disk layers. May import: model, errors, the contract, this package.

A run writes into a layer of its own on top of the current content. At its end a KEPT volume's layer becomes the
current content (the one before stays as a revision), any other layer is erased. Layers that nobody asks for any more
are merged downwards in the background. Layers made by runs are LUKS-encrypted, each under its own secret: a throw-away
layer's secret exists in memory only, a kept one's in the layer's record.

Nobody but one daemon opens a pool at a time (its lock sees to that), so the records are kept in memory and written
through.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from cloison.drivers.storage import graph, intake, qcow2format, qemuimg
from cloison.drivers.storage.base import Chain, DiskLayer, VolumeInfo, VolumeSpec
from cloison.drivers.storage.blank import blank_id, write_blank
from cloison.drivers.storage.records import Layer, Revision, Run, VolumeRecord
from cloison.drivers.storage.secretstock import SecretStock
from cloison.drivers.storage.shelf import MIN_FREE_BYTES, Shelf, sync_file, write_empty_image
from cloison.errors import BackendFailed, BadRequest, DiskFull, NotNow
from cloison.model.volumes import VolumeKind

log = logging.getLogger(__name__)
FORMAT = "qcow2"
MAX_VOLUME_BYTES = 1 << 46


class Qcow2Pool:
    """See ``base.Pool`` for the contract of the public methods."""

    driver = "qcow2"

    def __init__(self, name: str, directory: Path, *, clock: Callable[[], float] = time.time) -> None:
        """Reads the records in ``directory`` (made if missing) and removes what interrupted changes left.

        Damaged records do not keep the other volumes from working; asking for such a volume names its file.
        """
        self.name = name
        self._shelf = Shelf(directory)
        self._clock = clock
        self._layers: dict[str, Layer] = {}
        self._volumes: dict[str, VolumeRecord] = {}
        self._damaged: dict[str, BackendFailed] = {}
        self._lock = asyncio.Lock()
        self._stock = SecretStock()
        self._merging: frozenset[str] = frozenset()
        self._settled = asyncio.Condition()
        self._tidying: asyncio.Task[None] | None = None
        self._load()

    @classmethod
    async def open(cls, name: str, directory: Path) -> Qcow2Pool:
        """The pool, read without holding up the event loop, and awake."""
        pool = await asyncio.to_thread(cls, name, directory)
        pool.wake()
        return pool

    def wake(self) -> None:
        """Begin background work (the stock of secrets, interrupted merges); else the first run does. Needs the loop."""
        self._stock.refill_soon()
        self._tidy_soon()

    @classmethod
    def open_now(cls, name: str, directory: Path, *, clock: Callable[[], float] = time.time) -> Qcow2Pool:
        """As ``open``, without waiting for a thread: reads one small file per volume. Needs a running event loop."""
        pool = cls(name, directory, clock=clock)
        pool._load()
        pool._stock.refill_soon()
        pool._tidy_soon()
        return pool

    async def close(self) -> None:
        """End background work; nothing is lost, the next pool object takes it up again."""
        if self._tidying is not None:
            self._tidying.cancel()
            await asyncio.gather(self._tidying, return_exceptions=True)
        await self._stock.close()

    async def settle(self) -> None:
        """Return when merging and removing of unused layers is done."""
        while self._tidying is not None and not self._tidying.done():
            await asyncio.wait({self._tidying})

    # -- volumes -----------------------------------------------------------------------------------------------

    async def create(self, spec: VolumeSpec) -> None:
        async with self._lock:
            self._check_new(spec)
            if spec.kind is VolumeKind.SNAPSHOT:
                self._kept_source(spec.source, spec.vid)
            current = await self._blank(spec.size_bytes) if spec.kind is VolumeKind.KEPT else None
            await self._save(_record(spec, current))

    async def remove(self, vid: str) -> None:
        async with self._lock:
            volume = self._halted(vid, "removed")
            users = [other.vid for other in self._volumes.values() if other.source == vid]
            if users:
                raise NotNow(f"volume {vid} cannot be removed: {users[0]} starts from it")
            del self._volumes[vid]
            await asyncio.to_thread(self._shelf.remove_volume, volume.vid)
            await self._collect()
        self._tidy_soon()

    async def clone(self, source_vid: str, spec: VolumeSpec) -> None:
        async with self._lock:
            self._check_new(spec)
            source = self._kept_source(source_vid, spec.vid)
            assert source.current is not None
            record = _record(replace(spec, size_bytes=source.size_bytes), source.current, pristine=source.pristine)
            await self._save(await self._grown(record, max(spec.size_bytes, source.size_bytes)))

    async def import_image(self, spec: VolumeSpec, image: Path, *, image_format: str, content_key: str) -> None:
        async with self._lock:
            self._check_new(spec)
        revision = intake.revision_of(content_key)
        if spec.encrypted:
            layer = await intake.bring_in_encrypted(
                self._shelf, image, image_format, self._new_id(), self._stock.take()
            )
        elif (found := self._layers.get(revision)) is not None and self._shelf.has_image(revision):
            layer = found
        else:
            layer = await intake.bring_in(self._shelf, image, image_format, revision)
        async with self._lock:
            self._check_new(spec)
            if layer.id not in self._layers:
                await self._save_layer(layer)
            record = _record(replace(spec, size_bytes=layer.size_bytes), Revision(revision, layer.id))
            await self._save(await self._grown(record, max(spec.size_bytes, layer.size_bytes)))

    async def info(self, vid: str) -> VolumeInfo:
        volume = self._get(vid)
        source = self._content_owner(volume)
        return VolumeInfo(
            vid=vid,
            size_bytes=source.size_bytes if source else volume.size_bytes,
            usage_bytes=self._usage(volume),
            revisions=tuple(revision.id for revision in volume.revisions),
            revision_id=source.current.id if source and source.current else "",
            pristine=source.pristine if source else True,
            is_outdated=bool(
                volume.kind is VolumeKind.SNAPSHOT
                and volume.run
                and source
                and source.current
                and volume.run.source_revision != source.current.id
            ),
        )

    async def chain(self, vid: str) -> Chain:
        self._get(vid)
        return self._disk_layers(await self._sound_layers(vid))

    async def check(self, vid: str) -> None:
        volume = self._get(vid)
        if volume.run is not None:
            raise NotNow(f"volume {vid} cannot be checked while it is in use")
        async with self._settled:
            await self._settled.wait_for(lambda: not self._merging)
        for revision in volume.contents():
            await qemuimg.check(self._disk_layers(graph.chain_of(self._layers, revision.layer)))

    async def resize(self, vid: str, size_bytes: int) -> None:
        async with self._lock:
            volume = self._get(vid)
            if size_bytes < volume.size_bytes:
                raise BadRequest(
                    f"volume {vid} cannot be made smaller ({volume.size_bytes} bytes now, {size_bytes} asked for)",
                    hint="data at its end would be lost; make a new qube and copy",
                )
            _check_size(vid, size_bytes)
            if volume.kind is VolumeKind.KEPT and volume.run is None:
                await self._save(await self._grown(volume, size_bytes))
            else:
                await self._save(replace(volume, size_bytes=size_bytes))
        self._tidy_soon()

    async def revert(self, vid: str, revision: str) -> None:
        async with self._lock:
            volume = self._halted(vid, "reverted")
            wanted = next((item for item in volume.revisions if item.id == revision), None)
            if wanted is None or volume.current is None:
                known = ", ".join(item.id for item in volume.revisions) or "none"
                raise BadRequest(f"volume {vid} has no revision {revision[:80]!a} (it has: {known})")
            others = tuple(item for item in volume.revisions if item != wanted)
            record = replace(
                volume,
                current=wanted,
                revisions=_kept((*others, volume.current), volume.revisions_to_keep),
                size_bytes=self._layers[wanted.layer].size_bytes,
                pristine=False,
            )
            await self._save(record)
        self._tidy_soon()

    async def set_revisions_to_keep(self, vid: str, count: int) -> None:
        if count < -1:
            raise BadRequest(f"volume {vid} cannot keep {count} revisions (-1 or more)")
        async with self._lock:
            volume = self._get(vid)
            revisions = _kept(volume.revisions, count)
            if (volume.revisions_to_keep, volume.revisions) == (count, revisions):
                return
            await self._save(replace(volume, revisions_to_keep=count, revisions=revisions))
        self._tidy_soon()

    async def volumes(self) -> Sequence[str]:
        return sorted({*self._volumes, *self._damaged})

    async def usage(self) -> tuple[int, int]:
        status = os.statvfs(self._shelf.directory)
        return status.f_blocks * status.f_frsize, (status.f_blocks - status.f_bavail) * status.f_frsize

    # -- runs --------------------------------------------------------------------------------------------------

    async def begin_run(self, vid: str, *, base: Chain | None = None, on_trial: bool = False) -> Chain:
        self._get(vid)
        below = await self._sound_layers(vid)
        async with self._lock:
            volume = self._halted(vid, "opened")
            source = self._content_owner(volume)
            if [layer.id for layer in below] != [layer.id for layer in self._content_layers(volume)]:
                raise BackendFailed(f"volume {vid} cannot be opened: its content changed just now", hint="try again")
            if self._shelf.free_bytes() < MIN_FREE_BYTES:
                raise DiskFull(
                    f"volume {vid} cannot be opened: the disk of pool {self.name} is full, "
                    f"at least {MIN_FREE_BYTES >> 20} MiB must be free"
                )
            chain = self._disk_layers(below)
            if base is not None:
                _check_base(volume, base, chain)
                chain = base
            size = qcow2format.read_header(chain[0].path).size_bytes if chain else volume.size_bytes
            secret, crypto = self._stock.take() if volume.encrypted else (None, b"")
            pins = tuple(layer.id for layer in below)
            revision = source.current.id if source and source.current else ""
            if volume.kind is VolumeKind.KEPT:
                run = Run(self._new_id(), pins, on_trial=on_trial)
                top = await asyncio.to_thread(self._begin_kept, volume, run, size, secret, crypto)
            else:
                run = Run(None, pins, revision)
                top = await asyncio.to_thread(self._begin_thrown, volume, run, chain, size, secret, crypto)
        self._stock.refill_soon()
        return (top, *chain)

    def _begin_kept(self, volume: VolumeRecord, run: Run, size: int, secret: bytes | None, crypto: bytes) -> DiskLayer:
        assert run.layer is not None
        layer = Layer(run.layer, run.pins[0], FORMAT, size, secret)
        path = self._shelf.image(layer.id)
        write_empty_image(path, size, self._shelf.image(run.pins[0]), FORMAT, crypto)
        try:
            self._shelf.write_layer(layer)
            record = replace(volume, run=run)
            self._shelf.write_volume(record)
        except BaseException:
            self._shelf.remove_layer(layer.id)
            raise
        self._layers[layer.id] = layer
        self._volumes[volume.vid] = record
        return DiskLayer(path, FORMAT, secret)

    def _begin_thrown(
        self, volume: VolumeRecord, run: Run, below: Chain, size: int, secret: bytes | None, crypto: bytes
    ) -> DiskLayer:
        path = self._shelf.run_image(volume.vid)
        backing = below[0].path if below else None
        write_empty_image(path, size, backing, below[0].format if below else "", crypto)
        record = replace(volume, run=run)
        try:
            self._shelf.write_volume(record, durable=False)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        self._volumes[volume.vid] = record
        return DiskLayer(path, FORMAT, secret, unlinked=True)

    async def end_run(self, vid: str, *, clean: bool = True) -> str | None:
        async with self._lock:
            volume = self._get(vid)
            if volume.run is not None:
                await asyncio.to_thread(self._end_kept if volume.run.layer else self._end_thrown, volume, clean)
            current = self._volumes[vid].current
        if volume.run is not None:
            self._tidy_soon()
        return current.id if current else None

    async def settle_run(self, vid: str) -> None:
        async with self._lock:
            volume = self._get(vid)
            if volume.run is not None and volume.run.on_trial:
                self._put(replace(volume, run=replace(volume.run, on_trial=False)))

    def _put(self, record: VolumeRecord, *, durable: bool = True) -> None:
        self._shelf.write_volume(record, durable=durable)
        self._volumes[record.vid] = record

    def _end_thrown(self, volume: VolumeRecord, _clean: bool) -> None:
        self._shelf.run_image(volume.vid).unlink(missing_ok=True)
        self._put(replace(volume, run=None), durable=False)

    def _end_kept(self, volume: VolumeRecord, clean: bool) -> None:
        """The run's layer becomes the current content; one that was never written, or is on trial, is dropped.

        After an unclean end it gets no seal: the next use has it checked thoroughly. A layer whose header cannot be
        read is kept as well (never throw data away here): the next use names it.
        """
        assert volume.run is not None and volume.run.layer is not None and volume.current is not None
        layer = self._layers[volume.run.layer]
        record = replace(volume, run=None)
        try:
            size = qcow2format.read_header(self._shelf.image(layer.id)).size_bytes
            changed = size != layer.size_bytes or qcow2format.has_data(self._shelf.image(layer.id))
        except BackendFailed as error:
            log.error("%s", error)
            size, changed, clean = layer.size_bytes, self._shelf.has_image(layer.id), False
        if changed and not volume.run.on_trial:
            with contextlib.suppress(OSError):
                sync_file(self._shelf.image(layer.id))
            sealed = replace(layer, size_bytes=size, seal=self._shelf.look(layer.id) if clean else None)
            self._shelf.write_layer(sealed)
            self._layers[layer.id] = sealed
            record = replace(
                record,
                current=Revision(layer.id, layer.id),
                revisions=_kept((*volume.revisions, volume.current), volume.revisions_to_keep),
                pristine=False,
            )
            size = max(size, record.size_bytes)
            if size > sealed.size_bytes:
                record = self._extended(record, size)
            record = replace(record, size_bytes=size)
        self._put(record)

    # -- contents ----------------------------------------------------------------------------------------------

    def _content_owner(self, volume: VolumeRecord) -> VolumeRecord | None:
        """The KEPT volume whose content a run starts from, or None (volatile volumes start empty)."""
        if volume.kind is VolumeKind.VOLATILE:
            return None
        if volume.kind is VolumeKind.KEPT:
            return volume
        return self._kept_source(volume.source, volume.vid)

    def _content_layers(self, volume: VolumeRecord) -> tuple[Layer, ...]:
        owner = self._content_owner(volume)
        if owner is None or owner.current is None:
            return ()
        return graph.chain_of(self._layers, owner.current.layer)

    async def _sound_layers(self, vid: str) -> tuple[Layer, ...]:
        """The layers of the volume's content, none of them being merged, each known to be sound.

        Sound: the file looks as it did when it was sealed; else its tables are checked thoroughly (and it is sealed).
        """
        while True:
            layers = self._content_layers(self._get(vid))
            if self._merging & {layer.id for layer in layers}:
                async with self._settled:
                    await self._settled.wait_for(lambda: not self._merging)
                continue
            doubtful = [layer for layer in layers if layer.seal is None or layer.seal != self._shelf.look(layer.id)]
            if not doubtful:
                return layers
            for layer in doubtful:
                await self._inspect(layer)

    async def _inspect(self, layer: Layer) -> None:
        """Check one image thoroughly; seal it, or raise BackendFailed naming it."""
        before = self._shelf.look(layer.id)
        header = qcow2format.read_header(self._shelf.image(layer.id))
        if header.has_external_data or header.is_encrypted != (layer.secret is not None):
            raise BackendFailed(f"disk image {self._shelf.image(layer.id)} is damaged: it is not the file we made")
        await qemuimg.check(self._disk_layers((layer,)))
        async with self._lock:
            if layer.id in self._layers:
                await self._save_layer(replace(self._layers[layer.id], seal=before))

    async def _blank(self, size_bytes: int) -> Revision:
        """The content of a new volume: an empty file system, made once per size and shared by all."""
        layer_id = blank_id(size_bytes)
        if layer_id not in self._layers:
            path = self._shelf.image(layer_id)
            await write_blank(path, size_bytes)
            sync_file(path)
            await self._save_layer(
                Layer(layer_id, None, FORMAT, size_bytes, is_base=True, seal=self._shelf.look(layer_id))
            )
        return Revision(layer_id, layer_id)

    async def _grown(self, volume: VolumeRecord, size_bytes: int) -> VolumeRecord:
        """The volume with its content extended to ``size_bytes`` (saved by the caller)."""
        if volume.current is None or size_bytes <= self._layers[volume.current.layer].size_bytes:
            return replace(volume, size_bytes=size_bytes)
        if volume.pristine and volume.current.layer == blank_id(volume.size_bytes):
            return replace(volume, size_bytes=size_bytes, current=await self._blank(size_bytes))
        return await asyncio.to_thread(self._extended, volume, size_bytes)

    def _extended(self, volume: VolumeRecord, size_bytes: int) -> VolumeRecord:
        """A new empty layer of the new size on the current content."""
        assert volume.current is not None
        secret, crypto = self._stock.take() if volume.encrypted else (None, b"")
        layer = Layer(self._new_id(), volume.current.layer, FORMAT, size_bytes, secret)
        path = self._shelf.image(layer.id)
        write_empty_image(path, size_bytes, self._shelf.image(volume.current.layer), FORMAT, crypto)
        sync_file(path)
        layer = replace(layer, seal=self._shelf.look(layer.id))
        self._shelf.write_layer(layer)
        self._layers[layer.id] = layer
        return replace(volume, size_bytes=size_bytes, current=Revision(layer.id, layer.id))

    # -- tidying -----------------------------------------------------------------------------------------------

    def _tidy_soon(self) -> None:
        if self._tidying is None or self._tidying.done():
            self._tidying = asyncio.create_task(self._tidy())

    async def _tidy(self) -> None:
        """Remove unused layers and merge unneeded ones, until there is nothing to do. Trouble is logged, and left."""
        while True:
            async with self._lock:
                await self._collect()
                merge = None if self._damaged else graph.plan_merge(self._layers, self._volumes.values())
                if merge is None:
                    return
                self._merging = frozenset({merge.upper, merge.lower})
            try:
                await self._merge(merge)
            except BackendFailed as error:
                log.warning("disk layers of pool %s stay unmerged for now: %s", self.name, error)
                return
            finally:
                self._merging = frozenset()
                async with self._settled:
                    self._settled.notify_all()

    async def _merge(self, merge: graph.Merge) -> None:
        """Crash-safe: until the last step both layers show the same content to everybody who sees them."""
        chain = graph.chain_of(self._layers, merge.upper)
        await qemuimg.merge_down(self._disk_layers(chain))
        await asyncio.to_thread(sync_file, self._shelf.image(merge.lower))
        async with self._lock:
            upper, lower = self._layers[merge.upper], self._layers[merge.lower]
            await self._save_layer(replace(lower, size_bytes=upper.size_bytes, seal=self._shelf.look(lower.id)))
            for child in [layer for layer in self._layers.values() if layer.parent == upper.id]:
                await asyncio.to_thread(
                    qcow2format.write_backing_name,
                    self._shelf.image(child.id),
                    self._shelf.image(lower.id),
                    FORMAT,
                )
                seal = self._shelf.look(child.id) if child.seal else None
                await self._save_layer(replace(child, parent=lower.id, seal=seal))
            for volume in list(self._volumes.values()):
                moved = volume.with_layer_replaced(upper.id, lower.id)
                if moved != volume:
                    await self._save(moved)
            await self._collect()

    async def _collect(self) -> None:
        """Remove layers that nothing refers to (lock held)."""
        if self._damaged:
            return
        for layer_id in self._layers.keys() - graph.referenced(self._layers, self._volumes.values()):
            del self._layers[layer_id]
            await asyncio.to_thread(self._shelf.remove_layer, layer_id)

    # -- records -----------------------------------------------------------------------------------------------

    def _load(self) -> None:
        self._shelf.prepare()
        self._layers, damaged_layers = self._shelf.load_layers()
        self._volumes, self._damaged = self._shelf.load_volumes()
        self._damaged |= damaged_layers
        for where, error in self._damaged.items():
            log.error("pool %s: %s: %s", self.name, where, error)
        if not self._damaged:
            self._shelf.sweep(self._layers, self._volumes)

    def _get(self, vid: str) -> VolumeRecord:
        if (volume := self._volumes.get(vid)) is not None:
            return volume
        if (error := self._damaged.get(vid)) is not None:
            raise error
        raise BadRequest(f"there is no volume {vid[:80]!a} in pool {self.name}")

    def _halted(self, vid: str, verb: str) -> VolumeRecord:
        volume = self._get(vid)
        if volume.run is not None:
            raise NotNow(f"volume {vid} cannot be {verb} while it is in use")
        return volume

    def _kept_source(self, vid: str | None, asker: str) -> VolumeRecord:
        """The KEPT volume that ``vid`` is, or finally is taken from."""
        if vid is None:
            raise BadRequest(f"volume {asker} needs a source")
        volume = self._get(vid)
        for _ in range(8):
            if volume.kind is VolumeKind.KEPT:
                return volume
            if volume.source is None:
                break
            volume = self._get(volume.source)
        raise BadRequest(f"volume {vid} keeps nothing, {asker} cannot start from it")

    def _check_new(self, spec: VolumeSpec) -> None:
        if spec.vid in self._volumes or spec.vid in self._damaged:
            raise BadRequest(f"volume {spec.vid} exists in pool {self.name} already")
        if not spec.vid or len(spec.vid) > 120 or "\0" in spec.vid:
            raise BadRequest(f"{spec.vid[:80]!a} cannot be the id of a volume")
        _check_size(spec.vid, spec.size_bytes)

    async def _save(self, volume: VolumeRecord) -> None:
        """Durable for what holds data; a power cut may forget the others, which the engine then makes again."""
        await asyncio.to_thread(self._shelf.write_volume, volume, durable=volume.kind is VolumeKind.KEPT)
        self._volumes[volume.vid] = volume

    async def _save_layer(self, layer: Layer) -> None:
        await asyncio.to_thread(self._shelf.write_layer, layer)
        self._layers[layer.id] = layer

    def _disk_layers(self, layers: Sequence[Layer]) -> Chain:
        return tuple(DiskLayer(self._shelf.image(layer.id), layer.format, layer.secret) for layer in layers)

    def _usage(self, volume: VolumeRecord) -> int:
        """What the volume's contents take; the shared blank file system is nobody's."""
        files = {self._shelf.run_image(volume.vid)}
        tops = [revision.layer for revision in volume.contents()]
        if volume.run is not None and volume.run.layer is not None:
            tops.append(volume.run.layer)
        for top in tops:
            files |= {
                self._shelf.image(layer.id)
                for layer in graph.chain_of(self._layers, top)
                if not layer.id.startswith("blank-")
            }
        return sum(self._shelf.used_bytes(path) for path in files)

    def _new_id(self) -> str:
        return f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime(self._clock()))}-{secrets.token_hex(4)}"


async def make_layer(path: Path, base: Chain) -> Chain:
    """A plain throw-away image at ``path`` on ``base``; returns the whole chain. The caller owns the file."""
    size = qcow2format.read_header(base[0].path).size_bytes
    await asyncio.to_thread(write_empty_image, path, size, base[0].path, base[0].format, b"")
    return (DiskLayer(path, FORMAT), *base)


async def make_blank(path: Path, size_bytes: int) -> DiskLayer:
    """A plain empty image without a file system at ``path``. The caller owns the file."""
    await asyncio.to_thread(write_empty_image, path, size_bytes, None, "", b"")
    return DiskLayer(path, FORMAT)


async def export_raw(chain: Chain, path: Path) -> None:
    """What ``chain`` shows, as a sparse raw file at ``path``. The caller owns the file."""
    await qemuimg.flatten(chain, path)


def _record(spec: VolumeSpec, current: Revision | None, *, pristine: bool = True) -> VolumeRecord:
    return VolumeRecord(
        spec.vid, spec.kind, spec.size_bytes, spec.source if spec.kind is VolumeKind.SNAPSHOT else None,
        spec.revisions_to_keep, spec.encrypted, current, pristine=pristine,
    )  # fmt: skip


def _kept(revisions: tuple[Revision, ...], count: int) -> tuple[Revision, ...]:
    """The newest ``count`` of them."""
    return revisions[-count:] if count > 0 else ()


def _check_base(volume: VolumeRecord, base: Chain, content: Chain) -> None:
    """A base must end in the volume's present content: a frozen layer on anything else would show a mixture."""
    if volume.kind is not VolumeKind.SNAPSHOT:
        raise BadRequest(f"volume {volume.vid} is not a snapshot: it cannot be put on another base")
    if tuple(layer.path for layer in base[-len(content) :]) != tuple(layer.path for layer in content):
        raise BackendFailed(
            f"volume {volume.vid} cannot be opened on {base[0].path}: that was made from another content",
            hint="the template has changed; its fork point must be made anew",
        )
    for layer in base[: -len(content)]:
        qcow2format.read_header(layer.path)


def _check_size(vid: str, size_bytes: int) -> None:
    if not 0 < size_bytes <= MAX_VOLUME_BYTES or size_bytes % 512:
        raise BadRequest(f"volume {vid} cannot have {size_bytes} bytes (a multiple of 512 up to {MAX_VOLUME_BYTES})")
