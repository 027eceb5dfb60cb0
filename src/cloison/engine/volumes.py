"""Pools and volumes: the records and the drivers below them, kept in step.

In: verbs. Out: changed volumes, records, events. May import: model, errors, the storage interface.

A volume that is about to be made, or to go, is first written down as *doomed*; the next daemon removes what a crash
left (``sweep``). A volume that no record dooms is never removed.
"""

from __future__ import annotations

import logging
import secrets
import string
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from cloison.drivers.state.base import Transaction
from cloison.drivers.storage import base as storage
from cloison.engine import events as e
from cloison.engine.inventory import Ledger
from cloison.engine.running import Seats
from cloison.errors import BadRequest, CloisonError, PoolInUse, ProtocolError, QubeNotHalted, StorageNotFound
from cloison.model.inventory import Inventory
from cloison.model.names import QubeName
from cloison.model.qube import Pool, Qube
from cloison.model.values import parse_pool_name
from cloison.model.volumes import KERNEL_POOL, Volume, VolumeKind

log = logging.getLogger(__name__)

Maker = Callable[[storage.Pool, storage.VolumeSpec], Awaitable[None]]
"""Makes a volume in its pool; the plain one is ``pool.create``."""
TOKEN_LENGTH = 32
MAX_TOKENS = 64
"""Clone tokens that may be open at once; the oldest goes."""
DEFAULT_POOLS = tuple(f"default_pool{suffix}" for suffix in ("", "_private", "_root", "_volatile", "_kernel"))


ROOT = "root"


@dataclass(frozen=True)
class PoolDriver:
    """``make`` opens a pool as configured; ``options`` are the configuration's keys (``mandatory`` among them)."""

    make: Callable[[Pool], storage.Pool]
    options: tuple[str, ...] = ()
    mandatory: tuple[str, ...] = ()


class Volumes:
    def __init__(self, ledger: Ledger, seats: Seats, drivers: Mapping[str, PoolDriver]) -> None:
        self._ledger = ledger
        self._seats = seats
        self.drivers = drivers
        self._open: dict[str, storage.Pool] = {}
        self._tokens: dict[str, tuple[QubeName, str]] = {}
        self._imports: dict[tuple[QubeName, str], tuple[Path, int]] = {}
        self.root_changed: Callable[[QubeName], None] = lambda name: None
        """Told when a halted qube's root got another content (reverted, cloned into): what was made from it is old."""

    # -- pools -----------------------------------------------------------------------------------------------------

    def pool(self, name: str) -> storage.Pool:
        """The driver of a recorded pool, opened at its first use."""
        if name not in self._open:
            record = self.pool_record(name)
            if record.driver not in self.drivers:
                raise StorageNotFound(f"pool {name} needs the driver {record.driver}, which is not here")
            self._open[name] = self.drivers[record.driver].make(record)
        return self._open[name]

    def pool_record(self, name: str) -> Pool:
        record = self._ledger.inventory.pools.get(name)
        if record is None:
            known = ", ".join(self._ledger.inventory.pools)
            raise StorageNotFound(f"no pool is named {name[:64]!a}", hint=f"there are {known}")
        return record

    def add_pool(self, driver: str, name: str, config: Mapping[str, str]) -> None:
        found = self.drivers.get(driver)
        if found is None:
            raise StorageNotFound(
                f"no pool driver is named {driver[:64]!a}", hint=f"there are {', '.join(self.drivers)}"
            )
        if not parse_pool_name(name) or name == KERNEL_POOL or name in self._ledger.inventory.pools:
            raise BadRequest(f"a pool cannot be named {name!a}: the name is taken or empty")
        unknown, missing = set(config) - set(found.options), set(found.mandatory) - set(config)
        if unknown or missing:
            raise BadRequest(
                f"pool {name}: unknown options {sorted(unknown)}, missing options {sorted(missing)}",
                hint=f"the driver {driver} knows {', '.join(found.options) or 'none'}",
            )
        record = Pool(name, driver, dict(config))
        opened = found.make(record)
        with self._ledger.change(e.PoolAdded(name)) as records:
            records.put_pool(record)
        self._open[name] = opened

    def remove_pool(self, name: str) -> None:
        self.pool_record(name)
        inventory = self._ledger.inventory
        held = [(q.name, v.name) for q in inventory for v in q.volumes.values() if v.pool == name]
        users = [f"{qube}:{volume}" for qube, volume in held]
        users += [key for key in DEFAULT_POOLS if inventory.setting(key) == name]
        if users:
            raise PoolInUse(f"pool {name} is used by {', '.join(users[:8])}", others=[qube for qube, _ in held])
        self._ledger.tell(e.PoolRemovalRequested(name))
        with self._ledger.change(e.PoolRemoved(name)) as records:
            records.remove_pool(name)
        self._open.pop(name, None)

    def set_pool_revisions_to_keep(self, name: str, count: int) -> None:
        record = self.pool_record(name)
        if count < 0:
            raise BadRequest("revisions_to_keep cannot be negative here")
        with self._ledger.change() as records:
            records.put_pool(replace(record, revisions_to_keep=count))

    def set_pool_ephemeral_volatile(self, name: str, value: bool) -> None:
        record = self.pool_record(name)
        with self._ledger.change() as records:
            records.put_pool(replace(record, ephemeral_volatile=value))

    # -- making and removing ---------------------------------------------------------------------------------------

    def spec(self, volume: Volume, source: Volume | None) -> storage.VolumeSpec:
        """What a driver is told of a recorded volume. A kept root holds programs; all else is encrypted."""
        return storage.VolumeSpec(
            vid=volume.vid,
            kind=volume.kind,
            size_bytes=volume.size_bytes,
            source=source.vid if source else None,
            revisions_to_keep=volume.revisions_to_keep,
            encrypted=volume.name != "root" or volume.kind is not VolumeKind.KEPT,
        )

    async def make(self, volumes: Mapping[str, tuple[Volume, Volume | None]], makers: Mapping[str, Maker], *,
                   durable: bool) -> None:  # fmt: skip
        """Make doomed volumes (name -> volume, source); the caller spares them in the change that records them.

        After a failure or cancellation those already made are gone again.
        """
        with self._ledger.change(durable=durable) as records:
            for volume, _ in volumes.values():
                records.doom_volume(volume.pool, volume.vid)
        try:
            for name, (volume, source) in volumes.items():
                pool, spec = self.pool(volume.pool), self.spec(volume, source)
                await (makers[name](pool, spec) if name in makers else pool.create(spec))
        except BaseException:
            await self.remove_doomed({(volume.pool, volume.vid) for volume, _ in volumes.values()})
            raise

    async def remove_doomed(self, doomed: set[tuple[str, str]] | frozenset[tuple[str, str]]) -> None:
        """Remove doomed volumes, snapshots before their sources; those that resist stay doomed and are tried again by
        the next daemon."""
        waiting, reasons = set(doomed), dict[tuple[str, str], CloisonError]()
        while waiting:
            before = len(waiting)
            for pool_name, vid in sorted(waiting):
                try:
                    pool = self.pool(pool_name)
                    if vid in await pool.volumes():
                        await pool.remove(vid)
                    with self._ledger.change(durable=False) as records:
                        records.spare_volume(pool_name, vid)
                except CloisonError as error:
                    reasons[pool_name, vid] = error
                    continue
                waiting.discard((pool_name, vid))
            if len(waiting) == before:
                break
        for pool_name, vid in sorted(waiting):
            log.error("volume %s of pool %s could not be removed: %s", vid, pool_name, reasons[pool_name, vid])

    async def sweep(self) -> None:
        """Finish what an earlier daemon began: doomed volumes go, missing throw-away volumes are made again, records
        and volumes say the same of sizes and revisions."""
        await self.remove_doomed(self._ledger.store.doomed_volumes())
        inventory = self._ledger.inventory
        there = {name: set(await self.pool(name).volumes()) for name in inventory.pools if self._is_usable(name)}
        for qube in inventory:
            for volume in qube.volumes.values():
                if volume.kind is VolumeKind.KEPT or volume.vid in there.get(volume.pool, {volume.vid}):
                    continue
                try:
                    await self._remake(qube.name, volume)
                except CloisonError as error:
                    log.error("volume %s of %s could not be made again: %s", volume.name, qube.name, error)
        for qube in inventory:
            for volume in qube.volumes.values():
                if volume.kind is VolumeKind.KEPT and volume.vid in there.get(volume.pool, ()):
                    await self._finish_changes(qube.name, volume)

    async def _finish_changes(self, name: QubeName, volume: Volume) -> None:
        """A volume is resized before its record is, and keeps as many revisions as its record says since before."""
        pool = self.pool(volume.pool)
        try:
            await pool.set_revisions_to_keep(volume.vid, volume.revisions_to_keep)
            size_bytes = (await pool.info(volume.vid)).size_bytes
        except CloisonError as error:
            log.error("volume %s of %s is in trouble: %s", volume.name, name, error)
            return
        if size_bytes != volume.size_bytes:
            self._record_size(name, volume.name, size_bytes)

    def _is_usable(self, pool: str) -> bool:
        try:
            self.pool(pool)
        except CloisonError as error:
            log.error("pool %s cannot be used: %s", pool, error)
            return False
        return True

    def doom_snapshots(self, records: Transaction, name: QubeName) -> None:
        """To be part of the change that gives a qube another template: what starts from the old one must not outlive
        it. ``follow_template`` afterwards (or the next daemon) makes it again."""
        for _, volume in self._snapshots(name):
            records.doom_volume(volume.pool, volume.vid)

    async def follow_template(self, name: QubeName) -> None:
        """After a change of template (the qube and all based on it are held halted): snapshots start from the new."""
        for holder, volume in list(self._snapshots(name)):
            await self.remove_doomed({(volume.pool, volume.vid)})
            await self._remake(holder, volume)

    def _snapshots(self, name: QubeName) -> Iterator[tuple[QubeName, Volume]]:
        inventory = self._ledger.inventory
        for holder in (inventory.qube(name), *inventory.descendants(name)):
            for volume in holder.volumes.values():
                if volume.kind is VolumeKind.SNAPSHOT:
                    yield holder.name, volume

    async def _remake(self, holder: QubeName, volume: Volume) -> None:
        """Make a throw-away volume again, where its source is now."""
        source = self._ledger.inventory.volume_source(holder, volume.name)
        moved = replace(volume, pool=source.pool, size_bytes=source.size_bytes) if source else volume
        await self.make({volume.name: (moved, source)}, {}, durable=True)
        with self._ledger.change() as records:
            records.put_volume(holder, moved)
            records.spare_volume(moved.pool, moved.vid)

    # -- verbs on one volume ---------------------------------------------------------------------------------------

    def volume(self, name: QubeName, volume: str) -> Volume:
        found = self._ledger.inventory.qube(name).volumes.get(volume)
        if found is None:
            raise volume_not_found(self._ledger.inventory.qube(name), volume)
        return found

    async def info(self, name: QubeName, volume: str) -> storage.VolumeInfo:
        record = self.volume(name, volume)
        return await self.pool(record.pool).info(record.vid)

    async def resize(self, name: QubeName, volume: str, size_bytes: int) -> None:
        record = self.volume(name, volume)
        if record.kind is VolumeKind.SNAPSHOT:
            raise BadRequest(f"volume {volume} of {name} is as large as its source; resize that")
        if size_bytes < record.size_bytes:
            raise BadRequest(f"volume {volume} of {name} cannot shrink from {record.size_bytes} to {size_bytes} bytes")
        await self.pool(record.pool).resize(record.vid, size_bytes)
        self._record_size(name, volume, size_bytes)

    def _record_size(self, name: QubeName, volume: str, size_bytes: int) -> None:
        """In one change with the volumes that start from it."""
        inventory, vid = self._ledger.inventory, self.volume(name, volume).vid
        with self._ledger.change() as records:
            records.put_volume(name, replace(self.volume(name, volume), size_bytes=size_bytes))
            for child in inventory.descendants(name):
                source = inventory.volume_source(child.name, volume) if volume in child.volumes else None
                if source is not None and source.vid == vid:
                    records.put_volume(child.name, replace(child.volumes[volume], size_bytes=size_bytes))

    async def revert(self, name: QubeName, volume: str, revision: str) -> None:
        record = self.volume(name, volume)
        async with self._seats.halted(name):
            known = (await self.pool(record.pool).info(record.vid)).revisions
            if revision not in known:
                raise StorageNotFound(
                    f"volume {volume} of {name} has no revision {revision[:64]!a}",
                    hint=f"there are {', '.join(known) or 'none'}",
                )
            await self.pool(record.pool).revert(record.vid, revision)
        if volume == ROOT:
            self.root_changed(name)

    async def clear(self, name: QubeName, volume: str) -> None:
        """Empty it, keeping its size."""
        record = self.volume(name, volume)
        if record.kind is not VolumeKind.KEPT:
            raise BadRequest(f"volume {volume} of {name} is not kept anyway")
        async with self.held(name):
            await self._replace(name, record, None)

    async def set_revisions_to_keep(self, name: QubeName, volume: str, count: int) -> None:
        record = self.volume(name, volume)
        if count < 0:
            raise BadRequest("revisions_to_keep cannot be negative here: snapshots cannot be switched off")
        self._put(name, replace(record, revisions_to_keep=count))
        await self.pool(record.pool).set_revisions_to_keep(record.vid, count)

    async def set_rw(self, name: QubeName, volume: str, value: bool) -> None:
        self.volume(name, volume)
        async with self._seats.halted(name):
            self._put(name, replace(self.volume(name, volume), rw=value))

    async def set_ephemeral(self, name: QubeName, volume: str, value: bool) -> None:
        record = self.volume(name, volume)
        if record.kind is not VolumeKind.VOLATILE or not record.rw:
            raise BadRequest(f"volume {volume} of {name} is kept or a snapshot: only throw-away ones can be ephemeral")
        async with self._seats.halted(name):
            self._put(name, replace(self.volume(name, volume), ephemeral=value))

    def _put(self, name: QubeName, volume: Volume) -> None:
        with self._ledger.change() as records:
            records.put_volume(name, volume)

    # -- cloning ---------------------------------------------------------------------------------------------------

    def clone_token(self, name: QubeName, volume: str) -> str:
        """A token, good for one ``clone_to``."""
        self.volume(name, volume)
        alphabet = string.ascii_letters + string.digits
        token = "".join(secrets.choice(alphabet) for _ in range(TOKEN_LENGTH))
        while len(self._tokens) >= MAX_TOKENS:
            self._tokens.pop(next(iter(self._tokens)))
        self._tokens[token] = (name, volume)
        return token

    async def clone_to(self, name: QubeName, volume: str, token: str) -> None:
        """Replace a volume's content by that of the token's; the token is used up in any case."""
        source = self._tokens.pop(token, None)
        if source is None:
            raise ProtocolError("this clone token is unknown or used up")
        origin = self.volume(*source)
        target = self.volume(name, volume)
        if target.kind is not VolumeKind.KEPT or origin.kind is not VolumeKind.KEPT:
            raise BadRequest(f"volume {volume} of {name} cannot be cloned into: only kept volumes can")
        async with self.held(name):
            await self._replace(name, target, origin)
        self._ledger.tell(e.VolumeCloned(name, volume, f"{source[0]}:{source[1]}"))
        if volume == ROOT:
            self.root_changed(name)

    async def _replace(self, name: QubeName, old: Volume, content: Volume | None) -> None:
        """Put a new volume (blank, or a clone of ``content``) in the place of a kept one: made whole first, then
        swapped in by one change, so that a crash leaves the old or the new."""
        fresh = replace(old, vid=self.free_vid(old.pool, old.vid))
        if content is not None:
            fresh = replace(fresh, pool=content.pool, size_bytes=content.size_bytes)

        async def clone(pool: storage.Pool, spec: storage.VolumeSpec) -> None:
            assert content is not None
            await pool.clone(content.vid, spec)

        self._ledger.tell(e.VolumeImportBegun(name, old.name, fresh.size_bytes))
        try:
            await self.make({old.name: (fresh, None)}, {old.name: clone} if content else {}, durable=True)
        except BaseException:
            self._ledger.tell(e.VolumeImportEnded(name, old.name, False))
            raise
        await self._swap(name, old, fresh, e.VolumeImportEnded(name, old.name, True))

    # -- importing -------------------------------------------------------------------------------------------------

    def begin_import(self, name: QubeName, volume: str, path: Path, size_bytes: int) -> Path | None:
        """Note that data are collected at ``path``; the file of an import that was given up is returned."""
        record = self.volume(name, volume)
        if record.kind is not VolumeKind.KEPT:
            raise BadRequest(f"volume {volume} of {name} is not kept: nothing can be imported into it")
        require_halted(self._seats, name, f"import into volume {volume} of")
        old = self._imports.pop((name, volume), None)
        self._imports[name, volume] = (path, size_bytes)
        self._ledger.tell(e.VolumeImportBegun(name, volume, size_bytes))
        return old[0] if old else None

    async def end_import(self, name: QubeName, volume: str, path: Path | None = None, *, success: bool) -> None:
        """Take the collected data as the volume's new content, or forget them.

        ``path``: whose import it must be; another one may have been begun meanwhile.
        """
        found = self._imports.get((name, volume))
        if found is not None and path in (None, found[0]):
            del self._imports[name, volume]
        elif path is not None and not success:
            path.unlink(missing_ok=True)
            return
        else:
            raise ProtocolError(f"no import into volume {volume} of {name} was begun")
        path, size_bytes = found
        try:
            if success:
                async with self.held(name):
                    await self._take_import(name, self.volume(name, volume), path, size_bytes)
        except BaseException:
            self._ledger.tell(e.VolumeImportEnded(name, volume, False))
            raise
        finally:
            path.unlink(missing_ok=True)
        self._ledger.tell(e.VolumeImportEnded(name, volume, success))

    async def _take_import(self, name: QubeName, old: Volume, path: Path, size_bytes: int) -> None:
        fresh = replace(old, vid=self.free_vid(old.pool, old.vid), size_bytes=size_bytes)

        async def take(pool: storage.Pool, spec: storage.VolumeSpec) -> None:
            await pool.import_image(spec, path, image_format="raw", content_key=secrets.token_hex(16))

        await self.make({old.name: (fresh, None)}, {old.name: take}, durable=True)
        await self._swap(name, old, fresh)

    async def _swap(self, name: QubeName, old: Volume, fresh: Volume, *events: e.Event) -> None:
        """``fresh``, which is whole and doomed, takes the place of ``old`` in one change."""
        with self._ledger.change(*events) as records:
            records.put_volume(name, fresh)
            records.spare_volume(fresh.pool, fresh.vid)
            records.doom_volume(old.pool, old.vid)
            for child in self._ledger.inventory.children(name):
                self.doom_snapshots(records, child.name)
        for child in self._ledger.inventory.children(name):
            await self.follow_template(child.name)
        await self.remove_doomed({(old.pool, old.vid)})

    @asynccontextmanager
    async def held(self, name: QubeName) -> AsyncIterator[None]:
        """Hold a qube and everything based on it halted: snapshots of a volume cannot run while it is replaced."""
        async with AsyncExitStack() as stack:
            for holder in (name, *(qube.name for qube in self._ledger.inventory.descendants(name))):
                await stack.enter_async_context(self._seats.halted(holder))
            yield

    def free_vid(self, pool: str, wish: str) -> str:
        """``wish``, or a variation of it that no volume has."""
        taken = vids(self._ledger.inventory, pool) | {v for p, v in self._ledger.store.doomed_volumes() if p == pool}
        candidate, number = wish, 2
        stem = wish.rpartition("+")[0] if wish.rpartition("+")[2].isdigit() else wish
        while candidate in taken:
            candidate, number = f"{stem}+{number}", number + 1
        return candidate


def vids(inventory: Inventory, pool: str) -> set[str]:
    """Ids of all recorded volumes in a pool."""
    return {volume.vid for qube in inventory for volume in qube.volumes.values() if volume.pool == pool}


def volume_not_found(qube: Qube, volume: str) -> StorageNotFound:
    known = ", ".join(qube.volumes) or "none"
    return StorageNotFound(f"{qube.name} has no volume {volume[:64]!a}", hint=f"it has {known}")


def require_halted(seats: Seats, name: QubeName, what: str) -> None:
    if seats.is_running(name):
        raise QubeNotHalted(f"cannot {what} {name} while it runs", hint=f"`cloison shutdown {name}` first")
