"""Events: the bus never waits, and every typed event becomes the names that clients know."""

from __future__ import annotations

import asyncio
import dataclasses

import pytest

from cloison.admin.eventnames import records
from cloison.engine import events as e

SAMPLES = {
    "qube": "work", "old_name": "job", "pool": "p", "name": "memory", "value": 5, "old_value": None, "feature": "f",
    "tag": "t", "start_id": "guid", "memory_mib": 400, "reason": "why", "force": True, "client": "mail",
    "volume": "private", "size_bytes": 7, "success": True, "source": "a:b", "devclass": "block", "device": "b:p:i",
    "options": "{}", "revision": "r1", "is_consequence": False,
    "kind": "denied", "service": "qubes.Gpg", "target": "vault", "calls": 3, "disposable": "disp1",
    "delay_s": 0.5, "port": "b:p",
}  # fmt: skip
ONLY_OURS = {e.Event, e.QubeEvent, e.DeviceEvent, e.SubscriptionDropped}
"""Roots, and what clients of Qubes are never told."""
MACHINE = ["property-reset:xid", "property-reset:stubdom_xid", "property-reset:start_time"]
NAMES = {
    e.QubeAdded: ["domain-add"],
    e.QubeFilesCreated: ["domain-create-on-disk"],
    e.QubeRemovalRequested: ["domain-pre-delete"],
    e.QubeFilesRemoved: ["domain-remove-from-disk"],
    e.QubeRemoved: ["domain-delete"],
    e.QubeRenamed: ["cloison-renamed"],
    e.PoolAdded: ["pool-add"],
    e.PoolRemovalRequested: ["pool-pre-delete"],
    e.PoolRemoved: ["pool-delete"],
    e.PropertySetRequested: ["property-pre-set:memory"],
    e.PropertySet: ["property-set:memory"],
    e.PropertyResetRequested: ["property-pre-reset:memory", "property-pre-del:memory"],
    e.PropertyReset: ["property-reset:memory", "property-del:memory"],
    e.FeatureSetRequested: ["domain-feature-pre-set:f"],
    e.FeatureSet: ["domain-feature-set:f"],
    e.FeatureRemovalRequested: ["domain-feature-pre-delete:f"],
    e.FeatureRemoved: ["domain-feature-delete:f"],
    e.QubeToolsAnnounced: ["template-postinstall"],
    e.TagAdded: ["domain-tag-add:t"],
    e.TagRemoved: ["domain-tag-delete:t"],
    e.FirewallChanged: ["firewall-changed"],
    e.QubeStartRequested: ["domain-pre-start"],
    e.QubeFilesVerified: ["domain-verify-files"],
    e.QubeSpawnRequested: ["domain-pre-spawn"],
    e.QubeSpawned: [*MACHINE, "domain-spawn", "domain-qdb-create", "domain-pre-unpaused", "domain-unpaused"],
    e.QubeStarted: ["domain-start"],
    e.QubeStartFailed: ["domain-start-failed"],
    e.QubeShutdownRequested: ["domain-pre-shutdown"],
    e.QubeShutdownFailed: ["domain-shutdown-failed"],
    e.QubeStopped: ["domain-stopped", *MACHINE, "domain-shutdown"],
    e.QubePaused: ["domain-pre-paused", "domain-paused"],
    e.QubeUnpaused: ["domain-pre-unpaused", "domain-unpaused"],
    e.QubeResumed: ["domain-resumed"],
    e.NetvmConnected: ["net-domain-connect"],
    e.QubeNetworkFailed: ["cloison-network-failed"],
    e.VolumeImportBegun: ["domain-volume-import-begin"],
    e.VolumeImportEnded: ["domain-volume-import-end"],
    e.VolumeCloned: ["domain-import-volume"],
    e.DeviceAssignmentRequested: ["device-pre-assign:block"],
    e.DeviceAdded: ["device-added:block"],
    e.DeviceRemoved: ["device-removed:block"],
    e.DeviceListChanged: ["device-list-change:block"],
    e.DeviceAssigned: ["device-assign:block"],
    e.DeviceAttachRequested: ["device-pre-attach:block"],
    e.DeviceAttached: ["device-attach:block"],
    e.DeviceDetachRequested: ["device-pre-detach:block"],
    e.DeviceDetached: ["device-detach:block"],
    e.DeviceUnassigned: ["device-unassign:block"],
    e.DeviceAssignmentChanged: ["device-assignment-changed:block"],
    e.PreloadBegun: ["domain-preload-dispvm-start"],
    e.PreloadUsed: ["domain-preload-dispvm-used"],
    e.TemplateCommitted: ["cloison-template-committed"],
    e.CallNoticed: ["cloison-call-denied"],
    e.AuditLost: ["cloison-audit-lost"],
    e.AuditRestored: ["cloison-audit-restored"],
    e.ForkPointMade: ["cloison-forkpoint-made"],
    e.ForkPointDropped: ["cloison-forkpoint-dropped"],
}


def every_event():
    found = [e.Event]
    for kind in found:
        found += [child for child in kind.__subclasses__() if child.__module__ == e.__name__]
    return set(found)


def sample(kind):
    return kind(**{field.name: SAMPLES[field.name] for field in dataclasses.fields(kind)})


def test_no_event_is_forgotten_at_the_edge():
    assert every_event() == set(NAMES) | ONLY_OURS


@pytest.mark.parametrize("kind", sorted(NAMES, key=lambda kind: kind.__name__), ids=lambda kind: kind.__name__)
def test_the_names_that_clients_are_told(kind):
    told = list(records(sample(kind)))
    assert [record.name for record in told] == NAMES[kind]
    assert all(isinstance(text, str) and text.isascii() for record in told for text in record.fields.values())


def test_the_fields_of_some_records():
    [added] = records(e.QubeAdded("work"))
    assert (added.subject, added.fields, added.about) == (None, {"vm": "work"}, "work")
    [failed] = records(e.QubeStartFailed("work", "no memory"))
    assert (failed.subject, failed.fields, failed.about) == ("work", {"reason": "no memory"}, "work")
    [changed] = records(e.PropertySet("work", "netvm", None, "net"))
    assert changed.fields == {"name": "netvm", "newvalue": "None", "oldvalue": "net"}
    [first] = records(e.PropertySet("work", "netvm", "net", None))
    assert "oldvalue" not in first.fields
    [default] = records(e.PropertyReset("work", "memory", 400, is_consequence=True))
    assert default.name == "property-reset:memory"


async def test_events_are_delivered_in_order():
    bus = e.EventBus()
    first, second = bus.subscribe(), bus.subscribe()
    for name in "abc":
        bus.emit(e.QubeAdded(name))
    assert [(await anext(first)).qube for _ in range(3)] == ["a", "b", "c"]
    assert [event.qube for event in second.take_waiting()] == ["a", "b", "c"]


async def test_a_listener_that_does_not_keep_up_is_dropped_with_a_reason_and_others_are_not():
    bus = e.EventBus()
    slow, quick = bus.subscribe(limit=10), bus.subscribe()
    for number in range(50):
        bus.emit(e.QubeAdded(f"q{number}"))
    [last] = [event async for event in slow]
    assert isinstance(last, e.SubscriptionDropped) and "10 events" in last.reason
    assert len(quick.take_waiting()) == 50 and len(bus) == 1


async def test_a_waiting_listener_is_woken_and_closing_ends_it():
    bus = e.EventBus()
    subscription = bus.subscribe()
    waiting = asyncio.ensure_future(anext(subscription))
    await asyncio.sleep(0)
    bus.emit(e.QubeAdded("a"))
    assert (await waiting).qube == "a"
    waiting = asyncio.ensure_future(anext(subscription, None))
    await asyncio.sleep(0)
    subscription.close()
    assert await waiting is None and len(bus) == 0


async def test_a_thousand_listeners_are_told_quickly_and_without_waiting():
    bus = e.EventBus()
    listeners = [bus.subscribe() for _ in range(1000)]
    bus.emit(e.QubeAdded("a"))
    assert all(len(listener.take_waiting()) == 1 for listener in listeners)


async def test_a_crowd_is_woken_a_few_at_a_time_and_others_get_on_between():
    bus = e.EventBus()
    told: list[str] = []

    async def listen(subscription: e.Subscription) -> None:
        async for event in subscription:
            told.append(event.qube)

    tasks = [asyncio.ensure_future(listen(bus.subscribe())) for _ in range(500)]
    await asyncio.sleep(0)
    bus.emit(e.QubeAdded("a"))
    bus.emit(e.QubeAdded("b"))
    for _ in range(5):
        await asyncio.sleep(0)
    assert 0 < len(told) < 400, "whoever made the change goes on while most are still asleep"
    bus.emit(e.QubeAdded("c"))
    for _ in range(2000):
        await asyncio.sleep(0)
    assert sorted(told) == ["a"] * 500 + ["b"] * 500 + ["c"] * 500
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
