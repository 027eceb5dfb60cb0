"""Fork points: frozen running states of templates from which qubes are forked.

In: a template root's content and a machine's shape. Out: frozen states kept under one directory, keyed by all that
they were made from. May import: model, errors, the interfaces of the drivers.

A fork point is a directory named by its key, made under a temporary name and renamed when complete:

``memory``      guest RAM, mapped private by every fork
``state``       device state
``root.qcow2``  the frozen root layer, below every fork's own overlay
``fork.json``   what it was made from
``claims/``     the systems that use it, a file each: several may share a cache, and have templates of the same name

Removing one is always safe: running forks hold the files open.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from cloison.drivers.hypervisor.base import Disk, Frozen, Hypervisor, MachineSpec
from cloison.drivers.storage.base import Chain, DiskLayer
from cloison.engine.agent import AgentConnector
from cloison.errors import BackendFailed, CloisonError, DiskFull
from cloison.model.names import QubeName

log = logging.getLogger(__name__)

QUIET_TIMEOUT_S = 180.0
"""Longest wait for a booted guest to become quiet: it takes a few seconds on a free core, far more on a shared one."""
BOOT_TIMEOUT_S = 420.0
"""Longest wait for a cold boot; generous, because an emulated guest on a loaded machine needs minutes."""
SPARE_BYTES = 1 << 30
"""Free disk space below which no fork point is made and the least recently used ones are dropped."""
UNUSED_S = 30 * 24 * 3600.0
"""A fork point unused for this long goes when the next one is made: its template, kernel or QEMU is history."""
MANIFEST, CLAIMS = "fork.json", "claims"

MakeLayer = Callable[[Path, Chain], Awaitable[Chain]]
"""Make a plain throw-away layer at a path on a base; returns the whole chain."""
MakeBlank = Callable[[Path, int], Awaitable[DiskLayer]]


@dataclass(frozen=True)
class ForkSource:
    """What a fork point is made from."""

    template: QubeName
    revision_id: str
    root: Chain
    spec: MachineSpec


@dataclass(frozen=True)
class ForkPoint:
    """A complete fork point on disk."""

    key: str
    template: str
    revision_id: str
    memory_mib: int
    vcpus: int
    machine_key: str
    made_at: float
    boot_s: float
    directory: Path

    @property
    def frozen(self) -> Frozen:
        return Frozen(self.directory / "memory", self.directory / "state", self.machine_key)

    @property
    def root_layer(self) -> DiskLayer:
        return DiskLayer(self.directory / "root.qcow2", "qcow2")

    def disk_bytes(self) -> int:
        """Space really used on disk (the memory file is sparse)."""
        return sum(path.stat().st_blocks * 512 for path in self.directory.iterdir() if path.is_file())

    def last_used(self) -> float:
        return (self.directory / MANIFEST).stat().st_mtime


class ForkPoints:
    """The fork points of one cache directory; several daemons may share it. ``owner``: our system's directory."""

    def __init__(
        self, directory: Path, hypervisor: Hypervisor, connector: AgentConnector, make_layer: MakeLayer,
        make_blank: MakeBlank, owner: Path,
    ) -> None:  # fmt: skip
        self._directory = directory
        self._owner = owner
        self._claim_name = hashlib.sha256(os.fsencode(owner)).hexdigest()[:16]
        self._hypervisor = hypervisor
        self._connector = connector
        self._make_layer = make_layer
        self._make_blank = make_blank
        self._making: dict[str, asyncio.Task[ForkPoint]] = {}
        self._making_of: dict[str, str] = {}
        self._failures: dict[str, int] = {}
        """Forks in a row that did not come to life; no entry: none was tried yet."""

    async def key(self, source: ForkSource) -> str:
        """Name of the fork point that suits this source; equal exactly when its forks would be interchangeable."""
        machine_key = await self._hypervisor.machine_key(source.spec)
        return hashlib.sha256(f"{machine_key}\0{source.revision_id}".encode()).hexdigest()[:32]

    def find(self, key: str) -> ForkPoint | None:
        """The fork point if it is complete and plausible; a damaged one is dropped and None returned."""
        directory = self._directory / key
        try:
            fields = json.loads((directory / MANIFEST).read_text())
            point = ForkPoint(directory=directory, **fields)
            sizes_ok = (
                point.key == key
                and (directory / "memory").stat().st_size == point.memory_mib << 20
                and (directory / "state").stat().st_size > 0
                and (directory / "root.qcow2").stat().st_size > 0
            )
        except FileNotFoundError:
            if directory.exists():
                self._drop_damaged(key, "a file of it is missing")
            return None
        except (OSError, ValueError, TypeError) as error:
            self._drop_damaged(key, str(error))
            return None
        if not sizes_ok:
            self._drop_damaged(key, "a file of it has the wrong size")
            return None
        return point

    def _drop_damaged(self, key: str, why: str) -> None:
        log.warning("fork point %s is damaged (%s): dropped, it will be made again", key, why)
        self.drop(key)

    def complete(self) -> list[ForkPoint]:
        """All complete fork points, newest first."""
        if not self._directory.is_dir():
            return []
        points = [self.find(path.name) for path in self._directory.iterdir() if len(path.name) == 32]
        return sorted((p for p in points if p), key=lambda p: p.made_at, reverse=True)

    def making(self) -> dict[str, str]:
        """Keys of those being made now, with their templates."""
        return dict(self._making_of)

    def drop(self, key: str) -> None:
        """Remove a fork point; running forks keep working. No error if there is none."""
        directory = self._directory / key
        doomed = self._directory / f".{key}.{os.getpid()}.{time.monotonic_ns()}.gone"
        try:
            directory.rename(doomed)
        except FileNotFoundError:
            return
        shutil.rmtree(doomed, ignore_errors=True)

    def drop_stale(self, template: QubeName, revision_id: str) -> list[str]:
        """Give up the template's fork points of other revisions; returns their keys."""
        stale = [p for p in self.complete() if p.template == template and p.revision_id != revision_id]
        ours = [point.key for point in stale if self.is_ours(point)]
        for key in ours:
            self.give_up(key)
        return ours

    def give_up(self, key: str) -> None:
        """We have no more use for it: it goes unless another system uses it."""
        with contextlib.suppress(OSError):
            (self._directory / key / CLAIMS / self._claim_name).unlink(missing_ok=True)
        if not self._claims(key):
            self.drop(key)

    def is_ours(self, point: ForkPoint) -> bool:
        """Whether we use it, or nobody does."""
        claims = self._claims(point.key)
        return not claims or self._claim_name in claims

    def _claims(self, key: str) -> set[str]:
        """Who uses it; systems that are gone do not count."""
        found = set()
        with contextlib.suppress(OSError):
            for claim in (self._directory / key / CLAIMS).iterdir():
                if Path(claim.read_text()).is_dir():
                    found.add(claim.name)
        return found

    def _claim(self, point: ForkPoint) -> ForkPoint:
        claim = point.directory / CLAIMS / self._claim_name
        with contextlib.suppress(OSError):  # dropped meanwhile, or a full disk: then it may go too early
            if not claim.exists():
                claim.parent.mkdir(exist_ok=True, mode=0o700)
                claim.write_text(str(self._owner))
        return point

    def blame(self, point: ForkPoint) -> None:
        """A fork of it did not come to life: drop it, unless others did and this is its first failure since."""
        failures = self._failures.get(point.key)
        self._failures[point.key] = 1 if failures is None else failures + 1
        if failures != 0:
            log.warning("dropping fork point %s of %s: its forks do not come to life", point.key, point.template)
            self.drop(point.key)

    def praise(self, point: ForkPoint) -> None:
        """A fork of it answered."""
        self._failures[point.key] = 0
        with contextlib.suppress(OSError):
            os.utime(point.directory / MANIFEST)

    async def make(self, source: ForkSource, *, again: bool = False) -> ForkPoint:
        """The fork point of ``source``, made now unless it exists; callers of the same key share one making.

        Raises BackendFailed or DiskFull; nothing half made stays.
        """
        key = await self.key(source)
        if again:
            self.drop(key)
        elif found := self.find(key):
            return self._claim(found)
        task = self._making.get(key)
        if task is None:
            task = asyncio.create_task(self._make(key, source), name=f"make fork point of {source.template}")
            self._making[key] = task
            self._making_of[key] = source.template
            task.add_done_callback(lambda done: self._made(key, done))
        return self._claim(await asyncio.shield(task))

    def _made(self, key: str, task: asyncio.Task[ForkPoint]) -> None:
        del self._making[key], self._making_of[key]
        if not task.cancelled() and (error := task.exception()):
            log.warning("no fork point could be made: %s", error)

    async def close(self) -> None:
        """Cancel makings and wait until their machines are gone."""
        tasks = list(self._making.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _make(self, key: str, source: ForkSource) -> ForkPoint:
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        async with _exclusive(self._directory / f".{key}.lock"):
            if found := self.find(key):
                return found
            await self._hypervisor.end_leftover(self._directory / f".{key}.making" / "run")
            self._sweep(key)
            self._make_room(source)
            work = self._directory / f".{key}.making"
            work.mkdir(mode=0o700)
            try:
                point = await self._freeze_into(work, key, source)
                (work / MANIFEST).write_text(json.dumps(_manifest(point), indent=1))
                work.rename(self._directory / key)
            except OSError as error:
                raise BackendFailed(f"cannot make a fork point of {source.template}: {error}") from error
            finally:
                shutil.rmtree(work, ignore_errors=True)
            log.info("fork point %s of %s made in %.1f s", key, source.template, point.boot_s)
            return replace(point, directory=self._directory / key)

    async def _freeze_into(self, work: Path, key: str, source: ForkSource) -> ForkPoint:
        started = time.monotonic()
        root = await self._make_layer(work / "root.qcow2", source.root)
        scratch = work / "run"
        scratch.mkdir(mode=0o700)
        blanks = [
            Disk(slot, (await self._make_blank(scratch / slot, size),))
            for slot, size in (("private", 1 << 20), ("volatile", 1 << 20))
        ]
        machine = await self._hypervisor.boot(
            source.spec, (Disk("root", root), *blanks), scratch, name=f"fork-{source.template}"[:31],
            memory_file=work / "memory",
        )  # fmt: skip
        try:
            link = await self._connector.connect(source.template, machine.agent_socket, ready_timeout_s=BOOT_TIMEOUT_S)
            try:
                await link.control("prepare-freeze", {}, timeout_s=QUIET_TIMEOUT_S)
            finally:
                await link.close()
            frozen = await machine.freeze(work)
        except CloisonError as error:
            tail = _console_tail(machine.console_log)
            raise BackendFailed(f"cannot make a fork point of {source.template}: {error.message}{tail}") from error
        finally:
            await asyncio.shield(machine.kill())
            shutil.rmtree(scratch, ignore_errors=True)
        for made, wanted in ((frozen.memory, "memory"), (frozen.device_state, "state")):
            if made != work / wanted:
                made.rename(work / wanted)
        return ForkPoint(
            key, source.template, source.revision_id, source.spec.memory_mib, source.spec.vcpus, frozen.machine_key,
            time.time(), round(time.monotonic() - started, 1), work,
        )  # fmt: skip

    def _sweep(self, key: str) -> None:
        """Remove what an interrupted making or dropping left (the lock is ours, so nobody is at it)."""
        for leftover in self._directory.glob(f".{key}.*"):
            if leftover.is_dir():
                shutil.rmtree(leftover, ignore_errors=True)

    def _make_room(self, source: ForkSource) -> None:
        needed = SPARE_BYTES + (source.spec.memory_mib << 20)
        points = sorted(self.complete(), key=ForkPoint.last_used)
        while points and points[0].last_used() < time.time() - UNUSED_S:
            log.info("dropping fork point %s of %s: long unused", points[0].key, points[0].template)
            self.drop(points.pop(0).key)
        while (free := shutil.disk_usage(self._directory).free) < needed:
            if not points:
                raise DiskFull(
                    f"cannot make a fork point of {source.template}: "
                    f"{needed >> 20} MiB are needed, {free >> 20} MiB are free",
                    hint="qubes start by a cold boot until there is room",
                )
            oldest = points.pop(0)
            log.warning("disk space is short: dropping fork point %s of %s", oldest.key, oldest.template)
            self.drop(oldest.key)


def _manifest(point: ForkPoint) -> dict[str, Any]:
    fields = asdict(point)
    del fields["directory"]
    return fields


def _console_tail(path: Path) -> str:
    try:
        lines = path.read_bytes()[-2000:].decode("utf-8", "replace").split("\n")
    except OSError:
        return ""
    last = [line.strip() for line in lines if line.strip()][-1:]
    return f"; the console's last line: {last[0][:200]!a}" if last else ""


@contextlib.asynccontextmanager
async def _exclusive(path: Path) -> AsyncIterator[None]:
    """Hold the lock file, also against other daemons that share the directory."""
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                await asyncio.sleep(0.2)
        yield
    finally:
        os.close(descriptor)
