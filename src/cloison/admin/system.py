"""Methods on the system: labels, device classes, events, and the policy engine's view (notes, sections 1.4, 1.6)."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass

from cloison.admin import eventnames
from cloison.admin.framing import encode_event
from cloison.admin.methods import Answer, Call, Desk, Dest, Method, Need, Scope, lines
from cloison.admin.vms import state_of
from cloison.engine import events as e
from cloison.engine.labels import create_label, remove_label
from cloison.model.names import DOM0, QubeName
from cloison.model.properties import properties_of
from cloison.model.qube import Qube
from cloison.model.values import Value

log = logging.getLogger(__name__)
DEVICE_CLASSES = ("block", "mic", "pci", "usb")
LAST_WORDS = ("domain-remove-from-disk", "domain-delete")
"""Events about a qube that is in no picture of the system any more."""


async def list_labels(desk: Desk, _call: Call) -> Answer:
    return lines(desk.inventory.labels)


async def get_label(desk: Desk, call: Call) -> Answer:
    return desk.inventory.label(call.arg).colour


async def label_index(desk: Desk, call: Call) -> Answer:
    return str(desk.inventory.label(call.arg).index)


async def add_label(desk: Desk, call: Call) -> Answer:
    create_label(desk.ledger, call.arg, call.text)
    return ""


async def drop_label(desk: Desk, call: Call) -> Answer:
    remove_label(desk.ledger, call.arg)
    return ""


async def list_device_classes(_desk: Desk, _call: Call) -> Answer:
    return lines(DEVICE_CLASSES)


def picture_for_policy(desk: Desk) -> dict[str, object]:
    """All qubes as the policy sees them: the JSON value of ``internal.GetSystemInfo``."""
    return {"domains": {qube.name: _seen_by_policy(desk, qube) for qube in desk.inventory}}


async def system_info(desk: Desk, _call: Call) -> Answer:
    return json.dumps(picture_for_policy(desk))


def _seen_by_policy(desk: Desk, qube: Qube) -> dict[str, object]:
    inventory, known = desk.inventory, properties_of(qube.klass)

    def value(name: str) -> Value:
        return inventory.value(qube.name, name) if name in known else None

    return {
        "internal": bool(qube.features.get("internal")),
        "tags": sorted(qube.tags),
        "type": qube.klass.value,
        "template_for_dispvms": bool(value("template_for_dispvms")),
        "default_dispvm": value("default_dispvm"),
        "icon": value("icon"),
        "label": inventory.label(qube.label).colour,
        "guivm": value("guivm"),
        "relayvm": value("relayvm"),
        "transport_rpc": value("transport_rpc"),
        "power_state": state_of(desk, qube).value,
        "uuid": qube.uuid,
    }


async def stream_events(desk: Desk, call: Call) -> AsyncIterator[bytes]:
    """To dom0: everything (that the caller may know); to a qube: what happens to that one."""
    subscription = desk.ledger.bus.subscribe(sieve=e.everything if call.source == DOM0 else _Sieve(desk, call))
    try:
        yield encode_event("", "connection-established", {})
        async for event in subscription:
            waiting = (event, *subscription.take_waiting())
            if data := b"".join(_encode(call, each) for each in waiting):
                yield data
            if isinstance(waiting[-1], e.SubscriptionDropped):
                return
    finally:
        subscription.close()


def _encode(call: Call, event: e.Event) -> bytes:
    """The records of an event for this listener."""
    if isinstance(event, e.SubscriptionDropped):
        return encode_event("", "connection-dropped", {"reason": event.reason})
    if isinstance(event, _Passed):
        return event.data
    return b"".join(data for record, data in eventnames.encode(event) if call.dest in (DOM0, record.subject))


@dataclass(frozen=True)
class _Passed(e.Event):
    """The records of an event that a qube may know."""

    data: bytes


class _Sieve:
    """Asks the policy while an event happens: about each record, ``admin.Events+EVENT`` to the qube that it is about.

    A qube that has been removed is in no policy's sight any more, so it is asked about when its removal begins.
    """

    def __init__(self, desk: Desk, call: Call) -> None:
        self._desk = desk
        self._call = call
        self._leaving: dict[tuple[str, QubeName], bool] = {}

    def __call__(self, event: e.Event) -> e.Event | None:
        try:
            if isinstance(event, e.QubeRemovalRequested):
                self._leaving |= {(name, event.qube): self._permits(name, event.qube) for name in LAST_WORDS}
            wanted = [data for record, data in eventnames.encode(event) if self._wants(record)]
            if isinstance(event, e.QubeRemoved):
                for name in LAST_WORDS:
                    self._leaving.pop((name, event.qube), None)
        except Exception:
            # A border: what cannot be decided is not told, and whoever changes something is not troubled.
            log.exception("whether %s may know of an event could not be decided", self._call.source)
            return None
        return _Passed(b"".join(wanted)) if wanted else None

    def _wants(self, record: eventnames.Record) -> bool:
        if self._call.dest not in (DOM0, record.subject):
            return False
        if record.name in LAST_WORDS and record.about is not None:
            return self._leaving.get((record.name, record.about), False)
        return self._permits(record.name, record.about or DOM0)

    def _permits(self, name: str, about: QubeName) -> bool:
        return self._desk.permits(self._call.source, "admin.Events", name.replace(":", "_"), about)


_NO, _YES = Need.NONE, Need.REQUIRED

METHODS = (
    Method("admin.label.List", Dest.DOM0, _NO, _NO, Scope.GLOBAL_RO, "Names of the labels, by index.", list_labels),
    Method("admin.label.Get", Dest.DOM0, _YES, _NO, Scope.GLOBAL_RO, "The colour of a label.", get_label),
    Method("admin.label.Index", Dest.DOM0, _YES, _NO, Scope.GLOBAL_RO, "The number of a label.", label_index),
    Method("admin.label.Create", Dest.DOM0, _YES, _YES, Scope.GLOBAL_RW, "Make a label; payload: 0xRRGGBB.", add_label),
    Method("admin.label.Remove", Dest.DOM0, _YES, _NO, Scope.GLOBAL_RW, "Remove a label that is not used.",
           drop_label),
    Method("admin.deviceclass.List", Dest.DOM0, _NO, _NO, Scope.GLOBAL_RO, "The classes of devices.",
           list_device_classes),
    Method("admin.Events", Dest.ANY, _NO, _NO, Scope.GLOBAL_RO, "Stream of events.", streamer=stream_events),
    Method("internal.GetSystemInfo", Dest.DOM0, _NO, _NO, Scope.INTERNAL, "All qubes as the policy sees them (JSON).",
           system_info),
)  # fmt: skip
