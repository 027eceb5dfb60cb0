"""Templates: made from images, committed at every stop, kept ready as fork points.

In: verbs of the Admin API. Out: template qubes, root revisions, fork points. May import: model, errors, interfaces.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import shutil
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from cloison.drivers.storage.base import Chain, Pool, VolumeSpec
from cloison.engine.events import ForkPointDropped, ForkPointMade, QubeRemoved, TemplateCommitted
from cloison.engine.facts import AGENT_FEATURE, facts_of
from cloison.engine.forkpoints import ForkPoint, ForkSource
from cloison.engine.inventory import Ledger
from cloison.engine.qubes import Qubes, Wish
from cloison.engine.start import machine_spec, may_fork
from cloison.engine.system import System
from cloison.engine.volumes import Maker
from cloison.errors import BadRequest, CloisonError, NotNow
from cloison.model.classes import Klass
from cloison.model.inventory import Inventory
from cloison.model.names import QubeName, parse_qube_name
from cloison.model.volumes import KERNEL_OF_TEMPLATE

log = logging.getLogger(__name__)

Progress = Callable[[str, float | None], None]
"""Called with what is being done and the fraction done so far (None: not known)."""
BOOT_OPTIONS = "quiet nowatchdog"
"""Kernel options of our own templates; a quiet serial console saves seconds of an emulated boot."""
TEMPLATE_FEATURES: Mapping[str, str] = {
    AGENT_FEATURE: "1",
    "os": "Linux",
    "vmexec": "1",
}
"""Of every built template; the services that can be called in it come with the image. At its first start it announces
all of that itself."""


class BuiltImage(Protocol):
    """A finished image, ready to become a template's root."""

    @property
    def disk(self) -> Path: ...
    @property
    def kernel(self) -> Path: ...
    @property
    def initrd(self) -> Path: ...
    @property
    def key(self) -> str: ...
    @property
    def size_bytes(self) -> int: ...
    @property
    def distribution(self) -> str: ...
    @property
    def services(self) -> Sequence[str]:
        """Names of the services that the image brings."""
        ...


BuildImage = Callable[[Mapping[str, Any], Progress], Awaitable[BuiltImage]]
"""Build (or find in the cache) the image that a request asks for."""
ReadBootFiles = Callable[[Chain, Path], Awaitable[tuple[Path, Path] | None]]
"""Kernel and initrd out of a root volume, as files in an empty directory; None if it has none."""


@dataclass(frozen=True)
class ForkPointRow:
    """One line of ``cloison forkpoint list``."""

    template: QubeName
    key: str
    state: str
    """ready or making"""
    point: ForkPoint | None
    users: tuple[QubeName, ...]
    """Running qubes that were forked from it."""


class Templates:
    """Verbs on templates and their fork points."""

    def __init__(
        self, system: System, ledger: Ledger, qubes: Qubes, build_image: BuildImage, read_boot_files: ReadBootFiles
    ) -> None:
        self._system = system
        self._ledger = ledger
        self._qubes = qubes
        self._build_image = build_image
        self._read_boot_files = read_boot_files
        self._reading = asyncio.Lock()
        self._revisions: dict[QubeName, str] = {}
        self._refreshing: set[QubeName] = set()
        """Templates with a new revision, whose fork points are about to be made again."""

    async def build(
        self, name: str, request: Mapping[str, Any], *, label: str = "black", progress: Progress
    ) -> tuple[QubeName, str]:
        """A new template from a built image, with its fork point; answers its name and revision.

        Raises BadRequest if the name is taken or bad. After a failure there is no template.
        """
        template = parse_qube_name(name)
        if self._ledger.inventory.find(template) is not None:
            raise BadRequest(f"a qube named {template} exists already", hint=f"`cloison remove {template}` first")
        self._ledger.inventory.label(label)
        image = await self._build_image(request, lambda step, done: progress(step, done and done * 0.5))
        progress("making the template", 0.5)
        kernels = self._system.ground.kernels
        known = kernels.names()
        kernel = kernels.add(image.distribution, image.kernel, image.initrd)
        kernels.assign(template, kernel)
        try:
            await self._qubes.create(
                Wish(
                    Klass.TEMPLATE,
                    template,
                    label,
                    properties={"kernelopts": BOOT_OPTIONS},
                    features={
                        **TEMPLATE_FEATURES,
                        **{f"supported-rpc.{service}": "1" for service in image.services},
                        "os-distribution": image.distribution,
                    },
                    sizes={"root": image.size_bytes},
                    makers={"root": _maker(image.disk, "qcow2", image.key)},
                )
            )
        except BaseException:
            if self._ledger.inventory.find(template) is None:
                kernels.forget(template)
                if kernel.name not in known:
                    kernels.remove(kernel.name)
            raise
        progress("making its fork point (one boot)", 0.55)
        try:
            await self.make_forkpoint(template)
        except CloisonError as error:
            log.warning("%s has no fork point yet: %s", template, error)
            progress(f"no fork point yet: {error}", None)
        progress("done", 1.0)
        revision = self._revisions[template] = await self.revision(template)
        return template, revision

    async def commit(self, template: QubeName, progress: Progress) -> str:
        """Shut the template down if it runs and give its new revision a fork point; answers the revision."""
        if self._ledger.inventory.qube(template).klass is not Klass.TEMPLATE:
            raise BadRequest(f"{template} is not a template")
        if (live := self._system.find_live(template)) is not None and live.run.on_trial:
            raise NotNow(f"{template} is on trial", hint="`cloison update` of it runs; wait for its end")
        if self._system.is_running(template):
            progress("shutting the template down", 0.0)
            await self._system.shutdown(template, wait=True)
        progress("looking for a new kernel in it", 0.2)
        await self._renew_kernel(template)
        progress("making the fork point of the new revision", 0.3)
        await self.make_forkpoint(template)
        progress("done", 1.0)
        return await self.revision(template)

    async def import_standalone(
        self, name: str, image: Path, *, image_format: str, size_bytes: int, label: str = "red", memory_mib: int = 0
    ) -> QubeName:
        """A StandaloneVM from any bootable disk image; it has no agent, only its console."""
        qube = parse_qube_name(name)
        if self._ledger.inventory.find(qube) is not None:
            raise BadRequest(f"a qube named {qube} exists already")
        await self._qubes.create(
            Wish(
                Klass.STANDALONE,
                qube,
                label,
                properties={"kernel": "", **({"memory": memory_mib} if memory_mib else {})},
                features={AGENT_FEATURE: ""},
                sizes={"root": size_bytes},
                makers={"root": _maker(image, image_format, f"import {secrets.token_hex(16)}")},
            )
        )
        return qube

    async def revision(self, template: QubeName) -> str:
        """Identity of the template's present root content."""
        root = self._ledger.inventory.qube(template).volumes["root"]
        return (await self._system.ground.pool(root.pool).info(root.vid)).revision_id

    def committed(self, name: QubeName) -> None:
        """A qube with a kept root stopped: tell of its new revision and refresh its fork point, in the background."""
        qube = self._ledger.inventory.find(name)
        if qube is not None and qube.klass is Klass.TEMPLATE:
            self._refreshing.add(name)
            task = self._system.own(self._refresh(name), f"refresh {name}")
            task.add_done_callback(lambda _: self._refreshing.discard(name))

    async def _refresh(self, template: QubeName) -> None:
        before = self._revisions.get(template)
        shapes = {
            (point.memory_mib, point.vcpus)
            for point in self._system.ground.forkpoints.complete()
            if point.revision_id == before
        }
        revision = self._revisions[template] = await self.revision(template)
        self._ledger.tell(TemplateCommitted(template, revision))
        for key in self._system.ground.forkpoints.drop_stale(template, revision):
            self._ledger.tell(ForkPointDropped(template, f"{key}: the template has a newer revision"))
        await self._renew_kernel(template)
        for name in self._one_of_each_shape(template, shapes):
            try:
                await self.make_forkpoint(name)
            except CloisonError as error:
                log.warning("the fork point of %s for %s could not be refreshed: %s", template, name, error)

    def _one_of_each_shape(self, template: QubeName, shapes: set[tuple[int, int]]) -> list[QubeName]:
        """The template, and for each other shape that had a fork point one qube that has this shape."""
        inventory = self._ledger.inventory
        chosen: dict[tuple[int, int], QubeName] = {}
        for name in (template, *(qube.name for qube in inventory.descendants(template))):
            shape = (inventory.number(name, "memory"), inventory.number(name, "vcpus"))
            if name == template or (shape in shapes and may_fork(facts_of(inventory, name))):
                chosen.setdefault(shape, name)
        return list(chosen.values())

    async def _renew_kernel(self, template: QubeName) -> None:
        """From now on boot the kernel which the template's root has now: an upgrade in it may have brought another.

        The old one goes on serving when that cannot be read.
        """
        ground, qube = self._system.ground, self._ledger.inventory.qube(template)
        if qube.properties.get("kernel", KERNEL_OF_TEMPLATE) != KERNEL_OF_TEMPLATE:
            return
        root = qube.volumes["root"]
        scratch = ground.layout.data / f".boot-{template}"
        async with self._reading:
            try:
                await asyncio.to_thread(shutil.rmtree, scratch, ignore_errors=True)
                scratch.mkdir(parents=True, mode=0o700)
                found = await self._read_boot_files(await ground.pool(root.pool).chain(root.vid), scratch)
                if found is not None:
                    label = qube.features.get("os-distribution", "kernel")
                    kernel = await asyncio.to_thread(ground.kernels.add, label, *found)
                    ground.kernels.assign(template, kernel)
            except (CloisonError, OSError) as error:
                log.warning("the kernel of %s stays the old one: %s", template, error)
            finally:
                await asyncio.to_thread(shutil.rmtree, scratch, ignore_errors=True)

    async def learn_revisions(self) -> None:
        """Read the present revision of every template that is not known yet, so that others need not wait."""
        for qube in self._ledger.inventory:
            if qube.klass is Klass.TEMPLATE and qube.name not in self._revisions:
                try:
                    self._revisions[qube.name] = await self.revision(qube.name)
                except CloisonError as error:
                    log.error("the root of %s cannot be read: %s", qube.name, error)

    async def resume(self) -> None:
        """Take up the making of fork points that an earlier daemon did not finish (templates with qubes only)."""
        inventory = self._ledger.inventory
        for qube in inventory:
            if (
                qube.klass is Klass.TEMPLATE
                and inventory.children(qube.name)
                and not self._system.is_running(qube.name)
            ):
                try:
                    await self.make_forkpoint(qube.name)
                except CloisonError as error:
                    log.warning("%s has no fork point: %s", qube.name, error)

    async def follow_removals(self) -> None:
        """Drop the fork points of templates that are removed, for as long as the daemon runs."""
        async for event in self._ledger.bus.subscribe():
            if isinstance(event, QubeRemoved) and self._revisions.pop(event.qube, None) is not None:
                kept = set(self._revisions.values())
                for point in self._system.ground.forkpoints.complete():
                    if point.template == event.qube and point.revision_id not in kept:
                        self._system.ground.forkpoints.give_up(point.key)
                        self._ledger.tell(ForkPointDropped(event.qube, f"{point.key}: its template was removed"))

    def is_outdated(self, name: QubeName) -> bool:
        """Whether a running qube started from an older root revision than its template has now."""
        live = self._system.find_live(name)
        if live is None or live.facts.kept_root:
            return False
        return self._revisions.get(live.facts.root_owner, live.run.root_revision) != live.run.root_revision

    # -- fork points

    async def source_for(self, name: QubeName) -> ForkSource:
        """What the fork point that suits this qube is made from."""
        facts = facts_of(self._ledger.inventory, name)
        ground = self._system.ground
        pool = ground.pool(facts.root_source.pool)
        info = await pool.info(facts.root_source.vid)
        chain = await pool.chain(facts.root_source.vid)
        return ForkSource(facts.root_owner, info.revision_id, chain, machine_spec(facts, ground.kernels))

    async def make_forkpoint(self, name: QubeName, *, again: bool = False) -> ForkPoint:
        """Make (or find) the fork point that suits this qube."""
        source = await self.source_for(name)
        point = await self._system.ground.forkpoints.make(source, again=again)
        self._ledger.tell(ForkPointMade(source.template))
        return point

    def forkpoints(self) -> list[ForkPointRow]:
        """All fork points of this system's templates, and those being made.

        A clone of a template has its content, and so its fork points too, until one of the two changes: one row each.
        """
        forkpoints = self._system.ground.forkpoints
        users: dict[str, list[QubeName]] = {}
        for name in sorted(self._system.running()):
            if (live := self._system.find_live(name)) is not None and live.run.forkpoint:
                users.setdefault(live.run.forkpoint, []).append(name)
        complete = forkpoints.complete()
        rows = [
            ForkPointRow(owner, point.key, "ready", point, tuple(users.get(point.key, ())))
            for point in complete
            for owner in self._owners(point)
        ]
        known = {row.key for row in rows}
        rows += [
            ForkPointRow(QubeName(template), key, "making", None, ())
            for key, template in forkpoints.making().items()
            if key not in known
        ]
        coming = {row.template for row in rows if row.state == "making"}
        rows += [ForkPointRow(name, "", "making", None, ()) for name in sorted(self._refreshing - coming)]
        return rows

    def _owners(self, point: ForkPoint) -> list[QubeName]:
        """The templates whose qubes are forked from it now; the one that it was made for, if there are none."""
        inventory = self._ledger.inventory
        present = sorted(n for n, revision in self._revisions.items() if revision == point.revision_id)
        made_for = [QubeName(point.template)] if self._system.ground.forkpoints.is_ours(point) else []
        return [name for name in present or made_for if _has_template(inventory, name)]

    def drop_forkpoints(self, *, key: str = "", template: str = "") -> list[str]:
        """Drop one fork point, a template's, or all; answers the keys. BadRequest if nothing is meant by the name."""
        if template:
            self._check_owner(QubeName(template))
        if key and key in self._system.ground.forkpoints.making():
            raise NotNow(f"fork point {key} is just being made", hint="drop it when it is ready")
        chosen = [row.key for row in self.forkpoints() if row.point and (not key or row.key == key)
                  and (not template or row.template == template)]  # fmt: skip
        if key and not chosen:
            raise BadRequest(f"there is no fork point {key[:40]!a}", hint="`cloison forkpoint list` shows them")
        if template and not chosen:
            raise BadRequest(f"{template} has no fork point", hint="`cloison forkpoint list` shows them all")
        for found in chosen:
            self._system.ground.forkpoints.drop(found)
        return chosen

    def _check_owner(self, name: QubeName) -> None:
        inventory = self._ledger.inventory
        if (qube := inventory.qube(name)).klass is not Klass.TEMPLATE:
            owner = inventory.template_of_root(name).name if qube.klass.has_template else None
            hint = f"those it starts from are {owner}'s: `cloison forkpoint drop {owner}`" if owner else ""
            raise BadRequest(f"{name} is no template, and only templates have fork points", hint=hint)


def _maker(image: Path, image_format: str, content_key: str) -> Maker:
    """Makes a root volume of an image."""

    async def make(pool: Pool, spec: VolumeSpec) -> None:
        await pool.import_image(
            replace(spec, encrypted=False), image, image_format=image_format, content_key=content_key
        )

    return make


def _has_template(inventory: Inventory, name: str) -> bool:
    qube = inventory.find(name)
    return qube is not None and qube.klass is Klass.TEMPLATE
