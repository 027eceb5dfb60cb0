"""From typed events to the names and fields that clients of the Admin API know (notes, section 4.11).

In: one event of the engine. Out: the records it becomes, in order.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import NamedTuple

from cloison.admin.framing import encode_event
from cloison.engine import events as e
from cloison.model.names import QubeName
from cloison.model.values import Value

OF_MACHINE = ("xid", "stubdom_xid", "start_time")
"""Computed properties that change with every start and stop."""


class Record(NamedTuple):
    """One record of ``admin.Events``. ``subject`` None: the system itself. ``about``: whose event it is for policy."""

    subject: QubeName | None
    name: str
    fields: Mapping[str, str]

    @property
    def about(self) -> QubeName | None:
        vm = self.fields.get("vm")
        return self.subject if self.subject is not None else QubeName(vm) if vm else None


@lru_cache(maxsize=256)
def encode(event: e.Event) -> tuple[tuple[Record, bytes], ...]:
    """The records with their bytes; remembered, so that a thousand listeners cost one encoding."""
    return tuple((r, encode_event(r.subject or "", r.name, r.fields)) for r in records(event))


def _of(subject: QubeName | None, name: str, /, **fields: object) -> Record:
    return Record(subject, name, {key: str(value) for key, value in fields.items()})


def _setting(subject: QubeName | None, stage: str, name: str, value: Value, old: Value) -> Record:
    fields: dict[str, object] = {"name": name, "newvalue": value}
    if old is not None:
        fields["oldvalue"] = old
    return _of(subject, f"property-{stage}:{name}", **fields)


def _resetting(subject: QubeName | None, prefix: str, name: str, old: Value) -> Iterator[Record]:
    fields: dict[str, object] = {"name": name}
    if old is not None:
        fields["oldvalue"] = old
    for word in ("reset", "del"):
        yield _of(subject, f"property-{prefix}{word}:{name}", **fields)


def _machine_changed(qube: QubeName) -> Iterator[Record]:
    for name in OF_MACHINE:
        yield _of(qube, f"property-reset:{name}", name=name)


def records(event: e.Event) -> Iterator[Record]:
    """What clients are told of an event; nothing for those that are only ours."""
    yield from _about_settings(event)
    yield from _about_power(event)
    yield from _about_the_rest(event)


def _about_settings(event: e.Event) -> Iterator[Record]:
    match event:
        case e.PropertySetRequested(qube, name, value, old):
            yield _setting(qube, "pre-set", name, value, old)
        case e.PropertySet(qube, name, value, old):
            yield _setting(qube, "set", name, value, old)
        case e.PropertyResetRequested(qube, name, old):
            yield from _resetting(qube, "pre-", name, old)
        case e.PropertyReset(qube, name, old, is_consequence=True):
            yield next(_resetting(qube, "", name, old))
        case e.PropertyReset(qube, name, old):
            yield from _resetting(qube, "", name, old)
        case e.FeatureSetRequested(qube, feature, value, old) | e.FeatureSet(qube, feature, value, old):
            stage = "pre-set" if isinstance(event, e.FeatureSetRequested) else "set"
            fields = {"feature": feature, "value": value} | ({} if old is None else {"oldvalue": old})
            yield _of(qube, f"domain-feature-{stage}:{feature}", **fields)
        case e.FeatureRemovalRequested(qube, feature):
            yield _of(qube, f"domain-feature-pre-delete:{feature}", feature=feature)
        case e.FeatureRemoved(qube, feature):
            yield _of(qube, f"domain-feature-delete:{feature}", feature=feature)
        case e.QubeToolsAnnounced(qube):
            yield _of(qube, "template-postinstall")
        case e.TagAdded(qube, tag):
            yield _of(qube, f"domain-tag-add:{tag}", tag=tag)
        case e.TagRemoved(qube, tag):
            yield _of(qube, f"domain-tag-delete:{tag}", tag=tag)
        case e.FirewallChanged(qube):
            yield _of(qube, "firewall-changed")


def _about_power(event: e.Event) -> Iterator[Record]:
    match event:
        case e.QubeStartRequested(qube, start_id, memory_mib):
            yield _of(qube, "domain-pre-start", start_guid=start_id, mem_required=memory_mib * 1024 * 1024)
        case e.QubeFilesVerified(qube):
            yield _of(qube, "domain-verify-files")
        case e.QubeSpawnRequested(qube, start_id):
            yield _of(qube, "domain-pre-spawn", start_guid=start_id)
        case e.QubeSpawned(qube, start_id):
            yield from _machine_changed(qube)
            yield _of(qube, "domain-spawn", start_guid=start_id)
            for name in ("domain-qdb-create", "domain-pre-unpaused", "domain-unpaused"):
                yield _of(qube, name)
        case e.QubeStarted(qube, start_id):
            yield _of(qube, "domain-start", start_guid=start_id)
        case e.QubeStartFailed(qube, reason):
            yield _of(qube, "domain-start-failed", reason=reason)
        case e.QubeShutdownRequested(qube, force):
            yield _of(qube, "domain-pre-shutdown", force=force)
        case e.QubeShutdownFailed(qube, reason):
            yield _of(qube, "domain-shutdown-failed", reason=reason)
        case e.QubeStopped(qube):
            yield _of(qube, "domain-stopped")
            yield from _machine_changed(qube)
            yield _of(qube, "domain-shutdown")
        case e.QubePaused(qube):
            yield _of(qube, "domain-pre-paused")
            yield _of(qube, "domain-paused")
        case e.QubeUnpaused(qube):
            yield _of(qube, "domain-pre-unpaused")
            yield _of(qube, "domain-unpaused")
        case e.QubeResumed(qube):
            yield _of(qube, "domain-resumed")


def _about_the_rest(event: e.Event) -> Iterator[Record]:
    match event:
        case e.QubeAdded(qube):
            yield _of(None, "domain-add", vm=qube)
        case e.QubeFilesCreated(qube):
            yield _of(qube, "domain-create-on-disk")
        case e.QubeRemovalRequested(qube):
            yield _of(None, "domain-pre-delete", vm=qube)
        case e.QubeFilesRemoved(qube):
            yield _of(qube, "domain-remove-from-disk")
        case e.QubeRemoved(qube):
            yield _of(None, "domain-delete", vm=qube)
        case e.QubeRenamed(qube, old_name):
            yield _of(qube, "cloison-renamed", oldname=old_name)
        case e.PoolAdded(pool):
            yield _of(None, "pool-add", pool=pool)
        case e.PoolRemovalRequested(pool):
            yield _of(None, "pool-pre-delete", pool=pool)
        case e.PoolRemoved(pool):
            yield _of(None, "pool-delete", pool=pool)
        case e.PreloadBegun(qube, reason):
            yield _of(qube, "domain-preload-dispvm-start", reason=reason)
        case e.PreloadUsed(qube, disposable, delay_s):
            yield _of(qube, "domain-preload-dispvm-used", dispvm=disposable, delay=delay_s)
        case e.NetvmConnected(qube, client):
            yield _of(qube, "net-domain-connect", vm=client)
        case e.QubeNetworkFailed(qube, reason):
            yield _of(qube, "cloison-network-failed", reason=reason)
        case e.VolumeImportBegun(qube, volume, size_bytes):
            yield _of(qube, "domain-volume-import-begin", volume=volume, size=size_bytes)
        case e.VolumeImportEnded(qube, volume, success):
            yield _of(qube, "domain-volume-import-end", volume=volume, success=success)
        case e.VolumeCloned(qube, volume, source):
            yield _of(qube, "domain-import-volume", name=volume, source=source)
        case e.DeviceAdded(qube, devclass, device):
            yield _of(qube, f"device-added:{devclass}", device=device)
        case e.DeviceRemoved(qube, devclass, port):
            yield _of(qube, f"device-removed:{devclass}", port=port)
        case e.DeviceListChanged(qube, devclass):
            yield _of(qube, f"device-list-change:{devclass}")
        case e.DeviceAssignmentRequested(qube, devclass, device, options):
            yield _of(qube, f"device-pre-assign:{devclass}", device=device, options=options)
        case e.DeviceAssigned(qube, devclass, device, options):
            yield _of(qube, f"device-assign:{devclass}", device=device, options=options)
        case e.DeviceUnassigned(qube, devclass, device):
            yield _of(qube, f"device-unassign:{devclass}", device=device)
        case e.DeviceAttachRequested(qube, devclass, device, options):
            yield _of(qube, f"device-pre-attach:{devclass}", device=device, options=options)
        case e.DeviceAttached(qube, devclass, device, options):
            yield _of(qube, f"device-attach:{devclass}", device=device, options=options)
        case e.DeviceDetachRequested(qube, devclass, port):
            yield _of(qube, f"device-pre-detach:{devclass}", port=port)
        case e.DeviceDetached(qube, devclass, port):
            yield _of(qube, f"device-detach:{devclass}", port=port)
        case e.DeviceAssignmentChanged(qube, devclass, device):
            yield _of(qube, f"device-assignment-changed:{devclass}", device=device)
        case e.TemplateCommitted(qube, revision):
            yield _of(qube, "cloison-template-committed", revision=revision)
        case e.CallNoticed(qube, kind, service, target, reason, calls):
            yield _of(qube, f"cloison-call-{kind}", service=service, target=target, reason=reason, calls=calls)
        case e.AuditLost(reason):
            yield _of(None, "cloison-audit-lost", reason=reason)
        case e.AuditRestored():
            yield _of(None, "cloison-audit-restored")
        case e.ForkPointMade(qube):
            yield _of(qube, "cloison-forkpoint-made")
        case e.ForkPointDropped(qube, reason):
            yield _of(qube, "cloison-forkpoint-dropped", reason=reason)
