"""Creating, cloning, renaming and removing qubes: records and volumes together.

In: names and wishes. Out: changed records and volumes, events. May import: model, errors, the storage interface.

A qube appears in one change, after its volumes are whole; it goes in one change, before its volumes do. What a crash
leaves between is doomed (``volumes``) and swept by the next daemon.
"""

from __future__ import annotations

import random
import re
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Protocol

from cloison.drivers.state.base import Transaction
from cloison.drivers.storage import base as storage
from cloison.engine import events as e
from cloison.engine.consequences import MAY_FOLLOW, NOTHING, consequences, consequences_of_setting
from cloison.engine.inventory import Ledger
from cloison.engine.running import Seats
from cloison.engine.volumes import Maker, Volumes, vids
from cloison.errors import BadRequest, NotNow, ProtocolError, QubeExists, QubeInUse, QubeNotFound, StorageNotFound
from cloison.model import rules
from cloison.model.classes import Klass
from cloison.model.inventory import Inventory, Reference
from cloison.model.names import DOM0, QubeName, parse_qube_name
from cloison.model.properties import QUBE_PROPERTIES, Mode, properties_of
from cloison.model.qube import Assignment, Qube
from cloison.model.values import Value
from cloison.model.volumes import VOLUMES_OF, Volume, VolumeKind, volume_id

MAX_QID = 10_000
MAX_DISPID = 9999
DISPID_REST_S = 7 * 24 * 3600
"""How long the number of a used disposable is not given again: its addresses may linger in logs and firewalls."""
ROLE_TAGS = {"guivm": "guivm-", "audiovm": "audiovm-"}
NAMED_IN_TAGS = ("created-by-", "disp-created-by-", "guivm-", "audiovm-")
MayName = Callable[[QubeName], bool]
"""Whether whoever asks may know of a qube; one that it may not know is answered for like one that does not exist."""
NOT_CLONED = frozenset({"template", "installed_by_rpm", "prevent_remove", "dispid", "backup_timestamp"})


@dataclass(frozen=True)
class Wish:
    """A qube to be made. ``pools``: volume name ("" for all) -> pool; ``makers``: of volumes not made blank."""

    klass: Klass
    name: QubeName
    label: str
    template: QubeName | None = None
    pools: Mapping[str, str] = field(default_factory=dict)
    properties: Mapping[str, Value] = field(default_factory=dict)
    features: Mapping[str, str] = field(default_factory=dict)
    tags: frozenset[str] = frozenset()
    firewall: str | None = None
    notes: str = ""
    assignments: tuple[Assignment, ...] = ()
    sizes: Mapping[str, int] = field(default_factory=dict)
    """Volume name -> bytes, where it is not the usual size."""
    makers: Mapping[str, Maker] = field(default_factory=dict)
    source: QubeName = DOM0
    """Who asked."""
    may_name: MayName = lambda _: True
    durable: bool = True


class Kept(Protocol):
    """Things that are kept outside the records under a qube's name. Both verbs are idempotent."""

    def share(self, name: str, new: str) -> None:
        """What is kept for ``name`` is kept for ``new`` too."""
        ...

    def forget(self, name: str) -> None: ...


class Qubes:
    """``kept``: what must follow when qubes are cloned, renamed or removed."""

    def __init__(self, ledger: Ledger, seats: Seats, volumes: Volumes, *, kept: Sequence[Kept] = (),
                 clock: Callable[[], float] = time.time, chance: random.Random | None = None) -> None:  # fmt: skip
        self._ledger = ledger
        self._kept = tuple(kept)
        self._seats = seats
        self._volumes = volumes
        self._clock = clock
        self._chance = chance or random.SystemRandom()
        self.leaving: Callable[[QubeName], AbstractAsyncContextManager[None]] = lambda _: nullcontext()
        """Held while a qube is removed or renamed: nothing is kept ready of it meanwhile."""
        self._coming: dict[QubeName, int] = {}
        """Names and numbers of qubes that are being made."""

    # -- making ----------------------------------------------------------------------------------------------------

    async def create(self, wish: Wish) -> Qube:
        """Make a halted qube. Nothing is left of it after a failure or cancellation.

        Raises QubeExists, QubeNotFound, LabelNotFound, StorageNotFound, BadRequest, DiskFull, BackendFailed.
        """
        inventory = self._ledger.inventory
        wish = self._complete(inventory, wish)
        with self._reserved(inventory, wish.name) as qid:
            volumes = self._plan_volumes(inventory, wish, qid)
            await self._volumes.make(volumes, wish.makers, durable=wish.durable)
            try:
                self._record(wish, qid, [volume for volume, _ in volumes.values()])
            except BaseException:
                await self._volumes.remove_doomed({(volume.pool, volume.vid) for volume, _ in volumes.values()})
                raise
        qube = self._ledger.inventory.qube(wish.name)
        self._ledger.tell(e.QubeAdded(qube.name))
        self._ledger.tell(*(e.TagAdded(qube.name, tag) for tag in sorted(qube.tags)))
        self._ledger.tell(e.QubeFilesCreated(qube.name))
        return qube

    async def create_disposable(
        self, template: QubeName | None, *, source: QubeName, features: Mapping[str, str] | None = None
    ) -> QubeName:
        """Make a halted disposable that is removed when it stops; None: of the source's default_dispvm.

        ``features``: it is made in advance, for nobody yet, and marked by these.
        """
        inventory = self._ledger.inventory
        if template is None:
            chosen = inventory.peer(source, "default_dispvm")
            if chosen is None:
                raise BadRequest(f"{source} has no default_dispvm", hint="set one, or name a disposable template")
            template = chosen.name
        rules.check_disposable_template(inventory, template)
        dispid = self._free_dispid(inventory)
        wish = Wish(
            Klass.DISPOSABLE,
            QubeName(f"disp{dispid}"),
            inventory.qube(template).label,
            template,
            properties={"dispid": dispid, "auto_cleanup": True},
            features=features or {},
            tags=frozenset() if features else frozenset({f"disp-created-by-{source}"}),
            source=source,
            durable=False,
        )
        return (await self.create(wish)).name

    def _free_dispid(self, inventory: Inventory) -> int:
        busy = set(self._ledger.store.recent_dispids(self._clock() - DISPID_REST_S))
        busy |= {number for qube in inventory if isinstance(number := qube.properties.get("dispid"), int)}
        for _ in range(1000):
            dispid = self._chance.randint(0, MAX_DISPID)
            name = QubeName(f"disp{dispid}")
            if dispid not in busy and inventory.find(name) is None and name not in self._coming:
                return dispid
        free = [
            number for number in range(MAX_DISPID + 1) if number not in busy and f"disp{number}" not in self._coming
        ]
        if not free:
            raise NotNow("all numbers of disposables were used within the last week")
        return self._chance.choice(free)

    @contextmanager
    def _reserved(self, inventory: Inventory, name: QubeName) -> Iterator[int]:
        if inventory.find(name) is not None or name in self._coming:
            raise QubeExists(f"a qube named {name} exists")
        taken = {qube.qid for qube in inventory} | set(self._coming.values())
        qid = next((qid for qid in range(1, MAX_QID + 1) if qid not in taken), None)
        if qid is None:
            raise NotNow(f"there are {MAX_QID} qubes already")
        self._coming[name] = qid
        try:
            yield qid
        finally:
            del self._coming[name]

    def _complete(self, inventory: Inventory, wish: Wish) -> Wish:
        """Check the wish and fill in what follows from it."""
        parse_qube_name(wish.name)
        if wish.klass is Klass.ADMIN:
            raise BadRequest("there is one AdminVM, dom0")
        if inventory.find(wish.name) is not None:
            raise QubeExists(f"a qube named {wish.name} exists")
        inventory.label(wish.label)
        if not wish.klass.has_template:
            if wish.template is not None:
                raise ProtocolError(f"a {wish.klass.value} has no template")
            return wish
        template = self._template_for(inventory, wish)
        properties: dict[str, Value] = {}
        features: dict[str, str] = {}
        tags = wish.tags
        firewall = wish.firewall
        if wish.klass is Klass.DISPOSABLE:
            properties = _copied_properties(template, wish.klass)
            features = {f: v for f, v in template.features.items() if not f.startswith("preload-dispvm")}
            tags |= {tag for tag in template.tags if not tag.startswith(NAMED_IN_TAGS)}
            firewall = wish.firewall or template.firewall
            if "dispid" not in wish.properties:
                properties["dispid"] = self._free_dispid(inventory)
        properties |= {"template": template.name, **wish.properties}
        return replace(wish, template=template.name, properties=properties, features=features | {**wish.features},
                       tags=tags, firewall=firewall)  # fmt: skip

    def _template_for(self, inventory: Inventory, wish: Wish) -> Qube:
        name = wish.template
        if name is None:
            setting = "default_dispvm" if wish.klass is Klass.DISPOSABLE else "default_template"
            chosen = inventory.setting(setting)
            if not isinstance(chosen, str):
                raise BadRequest(
                    f"no template is named and the system has no {setting}",
                    hint="`cloison template list` shows templates, `cloison template build debian-13` makes one",
                )
            name = QubeName(chosen)
        elif not wish.may_name(name):
            raise QubeNotFound(name)
        template = inventory.qube(name)
        rules.check_template_for(inventory, wish.klass, template)
        return template

    def _plan_volumes(self, inventory: Inventory, wish: Wish, qid: int) -> dict[str, tuple[Volume, Volume | None]]:
        """Every volume of the new qube with the one it starts from."""
        unknown = set(wish.pools) - set(VOLUMES_OF[wish.klass]) - {"", "kernel"}
        if unknown:
            raise ProtocolError(f"a {wish.klass.value} has no volume {', '.join(sorted(unknown))}")
        planned: dict[str, tuple[Volume, Volume | None]] = {}
        for name, plan in VOLUMES_OF[wish.klass].items():
            source: Volume | None = None
            if plan.kind is VolumeKind.SNAPSHOT and wish.template is not None:
                there = inventory.qube(wish.template).volumes[name]
                source = inventory.volume_source(wish.template, name) or there
            pool = self._pool_for(inventory, wish, name, source)
            vid = volume_id(wish.klass, wish.name, name)
            if vid in vids(inventory, pool):
                vid = volume_id(wish.klass, f"{wish.name}.{qid}", name)
            size = source.size_bytes if source else wish.sizes.get(name, plan.size_bytes)
            record = inventory.pools[pool]
            volume = Volume(name, pool, vid, plan.kind, size, record.revisions_to_keep,
                            ephemeral=record.ephemeral_volatile and plan.kind is VolumeKind.VOLATILE)  # fmt: skip
            planned[name] = (volume, source)
        return planned

    def _pool_for(self, inventory: Inventory, wish: Wish, volume: str, source: Volume | None) -> str:
        wanted = wish.pools.get(volume) or wish.pools.get("")
        if source is not None:
            if wish.pools.get(volume, source.pool) != source.pool:
                raise BadRequest(f"the {volume} volume of {wish.name} must be in its source's pool, {source.pool}")
            return source.pool
        pool = wanted or str(inventory.setting(f"default_pool_{volume}"))
        if pool not in inventory.pools:
            raise StorageNotFound(f"no pool is named {pool[:64]!a}", hint=f"there are {', '.join(inventory.pools)}")
        return pool

    def _record(self, wish: Wish, qid: int, volumes: list[Volume]) -> None:
        with self._ledger.change(durable=wish.durable) as records:
            records.add_qube(wish.name, qid=qid, uuid=str(uuid.uuid4()), klass=wish.klass, label=wish.label)
            for volume in volumes:
                records.put_volume(wish.name, volume)
                records.spare_volume(volume.pool, volume.vid)
            for name, value in wish.properties.items():
                records.set_property(wish.name, name, value)
            for feature, text in wish.features.items():
                records.set_feature(wish.name, feature, text)
            for tag in wish.tags | {f"created-by-{wish.source}"} | self._role_tags(wish):
                records.add_tag(wish.name, tag)
            for assignment in wish.assignments:
                records.put_assignment(wish.name, assignment)
            if wish.firewall is not None:
                records.set_firewall(wish.name, wish.firewall)
            if wish.notes:
                records.set_notes(wish.name, wish.notes)
            dispid = wish.properties.get("dispid")
            if isinstance(dispid, int):
                records.use_dispid(dispid, self._clock())

    def _role_tags(self, wish: Wish) -> set[str]:
        found = set()
        for role, prefix in ROLE_TAGS.items():
            if role in properties_of(wish.klass):
                value = wish.properties.get(role, self._ledger.inventory.setting(f"default_{role}"))
                if value:
                    found.add(f"{prefix}{value}")
        return found

    # -- cloning ---------------------------------------------------------------------------------------------------

    async def clone(self, name: QubeName, new: QubeName, *, klass: Klass | None = None, label: str | None = None,
                    pool: str | None = None, source: QubeName = DOM0) -> Qube:  # fmt: skip
        """A second qube with the first one's settings and the present content of its kept volumes.

        ``klass``: another class that keeps its root too (a standalone qube made of a template, or the reverse).
        """
        inventory = self._ledger.inventory
        origin = inventory.qube(name)
        if not origin.is_machine:
            raise BadRequest(f"{name} is no virtual machine and cannot be cloned")
        klass = klass or origin.klass
        if klass is not origin.klass and not (klass.keeps_root and origin.klass.keeps_root):
            raise BadRequest(f"{name} is a {origin.klass.value} and cannot become a {klass.value}")
        kept = {v.name: v for v in origin.volumes.values() if v.kind is VolumeKind.KEPT}
        wish = Wish(
            klass,
            new,
            label or origin.label,
            template.name if (template := inventory.template(name)) else None,
            pools={v.name: pool or v.pool for v in kept.values()},
            properties=_copied_properties(origin, klass),
            features={
                f: v
                for f, v in origin.features.items()
                if f == "preload-dispvm-max" or not f.startswith("preload-dispvm")
            },
            tags=frozenset(tag for tag in origin.tags if not tag.startswith(NAMED_IN_TAGS)),
            firewall=origin.firewall,
            notes=self._ledger.notes(name),
            assignments=origin.assignments,
            sizes={v.name: v.size_bytes for v in origin.volumes.values()},
            makers={v.name: _cloning(v.vid) for v in kept.values()},
            source=source,
        )
        if inventory.find(new) is not None or new in self._coming:
            raise QubeExists(f"a qube named {new} exists")
        self._share(name, new)
        try:
            return await self.create(wish)
        except BaseException:
            self._forget_kept(new)
            raise

    def _share(self, name: QubeName, new: QubeName) -> None:
        for holder in self._kept:
            holder.share(name, new)

    def _forget_kept(self, name: QubeName) -> None:
        for holder in self._kept:
            holder.forget(name)

    # -- renaming and removing -------------------------------------------------------------------------------------

    async def rename(self, name: QubeName, new: QubeName) -> None:
        """Give a halted qube another name; everything that named it follows. Volumes keep their ids."""
        parse_qube_name(new)
        inventory = self._ledger.inventory
        if name == DOM0 or not inventory.qube(name).is_machine:
            raise BadRequest(f"{name} cannot be renamed")
        if inventory.find(new) is not None or new in self._coming:
            raise QubeExists(f"a qube named {new} exists")
        self._refuse_protected(inventory, name)
        async with self.leaving(name), self._seats.halted(name):
            self._share(name, new)
            self._ledger.tell(e.QubeRemovalRequested(name))
            with self._ledger.change() as records:
                records.rename_qube(name, new)
                _rename_in_tags(records, self._ledger.inventory, name, new)
            self._forget_kept(name)
        self._ledger.tell(e.QubeRemoved(name), e.QubeAdded(new), e.QubeRenamed(new, name))

    async def remove(self, name: QubeName) -> None:
        """Remove a halted qube with its volumes; QubeInUse naming everything that names it."""
        inventory = self._ledger.inventory
        inventory.qube(name)
        self._check_unused(inventory, name)
        async with self.leaving(name), self._seats.halted(name):
            self._check_unused(self._ledger.inventory, name)
            await self.forget(name)

    def _check_unused(self, inventory: Inventory, name: QubeName) -> None:
        if name == DOM0:
            raise QubeInUse("dom0 cannot be removed")
        self._refuse_protected(inventory, name)
        references = [ref for ref in inventory.references(name) if not _is_preloaded(inventory, ref)]
        if references:
            users = ", ".join(f"{ref.by} of {ref.user or 'the system'}" for ref in references)
            raise QubeInUse(f"{name} cannot be removed: it is {users}", hint="change those first",
                            others=[ref.user for ref in references])  # fmt: skip

    def _refuse_protected(self, inventory: Inventory, name: QubeName) -> None:
        if "installed_by_rpm" in properties_of(inventory.qube(name).klass) and inventory.flag(name, "installed_by_rpm"):
            raise QubeInUse(f"{name} belongs to a package", hint="set its property installed_by_rpm to False")
        if "prevent_remove" in properties_of(inventory.qube(name).klass) and inventory.flag(name, "prevent_remove"):
            raise QubeInUse(f"{name} is protected", hint=f"`cloison prefs {name} prevent_remove False` allows it")

    async def forget(self, name: QubeName) -> None:
        """Remove a qube that is known to be halted (its seat is held) and that nothing names.

        A disposable that cleans up after itself goes even if somebody names it: those properties are reset.
        """
        inventory = self._ledger.inventory
        qube = inventory.qube(name)
        durable = not (qube.klass is Klass.DISPOSABLE and qube.properties.get("auto_cleanup"))
        dangling = () if durable else tuple(dict.fromkeys(inventory.references(name)))
        self._ledger.tell(e.QubeRemovalRequested(name))
        doomed = {(volume.pool, volume.vid) for volume in qube.volumes.values()}
        with self._ledger.change(durable=durable) as records:
            for pool, vid in doomed:
                records.doom_volume(pool, vid)
            reset = [event for ref in dangling for event in _drop_reference(records, inventory, name, ref)]
            records.remove_qube(name)
        self._ledger.tell(*reset, *_consequences_of(reset, inventory, self._ledger.inventory))
        self._forget_kept(name)
        try:
            await self._volumes.remove_doomed(doomed)
        finally:
            self._ledger.tell(e.QubeFilesRemoved(name), e.QubeRemoved(name))


def _cloning(source_vid: str) -> Maker:
    async def make(pool: storage.Pool, spec: storage.VolumeSpec) -> None:
        await pool.clone(source_vid, spec)

    return make


def _copied_properties(origin: Qube, klass: Klass) -> dict[str, Value]:
    """What a clone, or a disposable of it, takes over of the explicitly set properties."""
    return {
        name: value
        for name, value in origin.properties.items()
        if name not in NOT_CLONED and QUBE_PROPERTIES[name].mode is Mode.RW and klass in QUBE_PROPERTIES[name].on
    }


def _rename_in_tags(records: Transaction, inventory: Inventory, old: QubeName, new: QubeName) -> None:
    for qube in inventory:
        for tag in qube.tags:
            found = re.fullmatch(rf"({'|'.join(NAMED_IN_TAGS)}){re.escape(old)}", tag)
            if found is not None:
                holder = new if qube.name == old else qube.name
                records.remove_tag(holder, tag)
                records.add_tag(holder, f"{found[1]}{new}")


def _drop_reference(records: Transaction, inventory: Inventory, name: QubeName, ref: Reference) -> Iterator[e.Event]:
    """Take a name out of whatever holds it."""
    if ref.user is None:
        records.reset_setting(ref.by)
        yield e.PropertyReset(None, ref.by, name)
    elif ref.by in QUBE_PROPERTIES:
        records.reset_property(ref.user, ref.by)
        yield e.PropertyReset(ref.user, ref.by, name)
    else:
        for assignment in inventory.qube(ref.user).assignments:
            if assignment.backend == name and ref.by == f"device {assignment.devclass}":
                records.remove_assignment(ref.user, assignment)
                device = f"{name}:{assignment.port}:{assignment.device_id}"
                yield e.DeviceUnassigned(ref.user, assignment.devclass, device)


def _consequences_of(reset: Sequence[e.Event], before: Inventory, after: Inventory) -> Iterator[e.Event]:
    for event in reset:
        if isinstance(event, e.PropertyReset) and event.qube is not None:
            yield from consequences(before, after, event.qube, MAY_FOLLOW.get(event.name, NOTHING), reset)
        elif isinstance(event, e.PropertyReset):
            yield from consequences_of_setting(before, after, event.name, reset)


def _is_preloaded(inventory: Inventory, reference: Reference) -> bool:
    if reference.user is None:
        return False
    return inventory.qube(reference.user).is_preloaded
