"""What is recorded: the broker's calls, changes through the Admin API, what became of qubes, the daemon itself.

In: records of the broker, calls of the Admin API, events of the engine. Out: the audit log. May import: admin, engine,
policy, qrexec.

Calls are not made without their record. What the person at this machine changes is recorded before it is done where
that is possible; a full disk does not stop them, because they must be able to make room.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cloison import __version__
from cloison.admin.methods import Call
from cloison.engine import events as e
from cloison.engine.inventory import Ledger
from cloison.errors import BackendFailed, BadRequest, CloisonError
from cloison.model.classes import Klass
from cloison.model.inventory import Inventory
from cloison.model.names import DOM0
from cloison.model.values import Value, format_value
from cloison.policy import PolicySource
from cloison.qrexec.audit.record import Kind, Level, Subject
from cloison.qrexec.audit.store import AuditLog
from cloison.qrexec.ports import AuditValue

log = logging.getLogger(__name__)

MAX_REMEMBERED = 1024
_NAMELESS = ("admin.vm.Create", "cloison.standalone.Import", "cloison.template.Build", "cloison.audit.Erase")
"""Methods about a qube that has no key (yet, or any more): its name would stay readable when its records are erased."""
_UPLOADS = "admin.vm.volume.Import"


class Auditing:
    """Implements ``qrexec.ports.AuditSink`` and ``admin.methods.Witness`` (its ``witness``)."""

    def __init__(self, directory: Path, ledger: Ledger, policy: PolicySource) -> None:
        self._ledger = ledger
        self._policy = policy
        self._policy_hash = ""
        self._older: dict[str, None] = {}
        """Hashes of sets that were in force before, oldest first."""
        self._subjects_of: Inventory | None = None
        self._subjects: dict[str, Subject | None] = {}
        self._follower: asyncio.Task[None] | None = None
        self.log = AuditLog(directory, self._find_subject, limit_bytes=self._limit_bytes, tell=self._tell)

    def begin(self) -> None:
        """The daemon's first record; from now on events are followed."""
        self._policy.current()
        self._policy_hash = self._policy.digest
        self.log.note({"kind": Kind.DAEMON.value, "event": "started", "version": __version__, "pid": os.getpid(),
                       "policy": self._policy_hash})  # fmt: skip
        self._events = self._ledger.bus.subscribe()
        self._follower = asyncio.create_task(self._follow(), name="audit of events")

    async def close(self) -> None:
        if self._follower is not None:
            self._follower.cancel()
            await asyncio.wait({self._follower})
            for event in self._events.take_waiting():
                self._note_event(event)
            self._events.close()
            self.log.note({"kind": Kind.DAEMON.value, "event": "stopped", "pid": os.getpid()})
        await self.log.close()

    def _find_subject(self, name: str) -> Subject | None:
        """Answers are remembered as long as the picture of the system is the same."""
        inventory = self._ledger.inventory
        if self._subjects_of is not inventory:
            self._subjects_of, self._subjects = inventory, {}
        if name not in self._subjects:
            if len(self._subjects) >= MAX_REMEMBERED:
                self._subjects.clear()  # names that do not exist are chosen by callers
            self._subjects[name] = self._make_subject(inventory, name)
        return self._subjects[name]

    @staticmethod
    def _make_subject(inventory: Inventory, name: str) -> Subject | None:
        """Unnamed disposables are recorded under the qube they are made from: nobody could name them later."""
        qube = inventory.find(name)
        if qube is None or qube.klass is Klass.ADMIN:
            return None
        level = Level(inventory.text(qube.name, "audit"))
        if qube.klass is Klass.DISPOSABLE and inventory.flag(qube.name, "auto_cleanup"):
            template = inventory.find(str(qube.properties.get("template")))
            qube = template or qube
        return Subject(qube.uuid, qube.name, level)

    def _limit_bytes(self) -> int:
        limit = self._ledger.inventory.setting("audit_limit")
        return limit << 20 if isinstance(limit, int) else 0

    def _tell(self, trouble: str) -> None:
        self._ledger.tell(e.AuditLost(trouble) if trouble else e.AuditRestored())

    # -- calls

    def write(self, record: Mapping[str, AuditValue]) -> None:
        """The broker's: OSError if the record cannot be kept, and then nothing is done."""
        # A record names the set that decided, which may be an older one by now; or one that was there so shortly that
        # nothing was written meanwhile.
        decided = str(record.get("policy") or "")
        if decided and decided != self._policy_hash and decided not in self._older:
            self.log.write(self._changed_to(decided))
            self._know_policy(decided)
        if self._policy.digest != self._policy_hash:
            self.log.write(self._changed_to(self._policy.digest))
            self._know_policy(self._policy.digest)
        self.log.write(record)

    def note_policy(self, *, who: str) -> None:
        """The policy may have been changed by ``who``; if so that is recorded now."""
        self._policy.current()
        if self._policy.digest != self._policy_hash:
            self.log.note({**self._changed_to(self._policy.digest), "who": who})
            self._know_policy(self._policy.digest)

    def _changed_to(self, policy: str) -> dict[str, AuditValue]:
        return {"kind": Kind.POLICY.value, "event": "changed", "old": self._policy_hash, "policy": policy}

    def _know_policy(self, policy: str) -> None:
        self._older[self._policy_hash] = None
        self._policy_hash = policy
        if len(self._older) > MAX_REMEMBERED:
            del self._older[next(iter(self._older))]

    # -- changes

    def witness(self, call: Call) -> Callable[[str], None]:
        about: dict[str, AuditValue] = {"kind": Kind.CHANGE.value, "who": call.source, "target": call.dest,
                                        "service": call.method, "argument": _argument(call)}  # fmt: skip
        self.log.note({**about, "event": "asked", "value": _shown(call)})

        def tell_end(failure: str) -> None:
            self.log.note({**about, "event": "failed" if failure else "done", "reason": failure})

        return tell_end

    async def erase(self, name: str) -> int:
        if not name.isprintable() or len(name) > 64:
            raise BadRequest(f"{name[:40]!a} is no qube's name")
        try:
            return await self.log.erase(name, who=DOM0)
        except OSError as error:
            raise BackendFailed(f"the records of {name} could not be erased: {error}") from error

    # -- what became of it

    async def _follow(self) -> None:
        async for event in self._events:
            if isinstance(event, e.SubscriptionDropped):
                self.log.note({"kind": Kind.AUDIT.value, "event": "missed", "reason": event.reason})
                self._events = self._ledger.bus.subscribe()
                self._follower = asyncio.create_task(self._follow(), name="audit of events")
                return
            self._note_event(event)

    def _note_event(self, event: e.Event) -> None:
        with contextlib.suppress(CloisonError):
            if (record := _record_of(event)) is not None:
                self.log.note(record)


def _argument(call: Call) -> str:
    return "" if call.method.startswith(_NAMELESS) else call.arg


def _shown(call: Call) -> str:
    if call.method.startswith((*_NAMELESS, _UPLOADS)):
        return ""
    text = call.payload.decode("utf-8", "replace")
    return text if all(c.isprintable() or c in "\n\t" for c in text) else f"{len(call.payload)} bytes"


def _text(value: Value) -> str:
    return "" if value is None else format_value(value)


def _record_of(event: e.Event) -> dict[str, AuditValue] | None:
    """None: not of interest. What is about to happen has its record from whoever asked for it."""
    match event:
        case e.PropertySet(qube, name, value, old):
            return _change(qube, "set", name, value=_text(value), old=_text(old))
        case e.PropertyReset(qube, name, old, is_consequence=False):
            return _change(qube, "reset", name, old=_text(old))
        case e.FeatureSet(qube, feature, value, old):
            return _change(qube, "set", f"feature {feature}", value=value, old=old or "")
        case e.FeatureRemoved(qube, feature):
            return _change(qube, "removed", f"feature {feature}")
        case e.TagAdded(qube, tag):
            return _change(qube, "set", f"tag {tag}")
        case e.TagRemoved(qube, tag):
            return _change(qube, "removed", f"tag {tag}")
        case e.FirewallChanged(qube):
            return _change(qube, "set", "firewall")
        case e.PoolAdded(pool):
            return _change(None, "set", f"pool {pool}")
        case e.PoolRemoved(pool):
            return _change(None, "removed", f"pool {pool}")
        case e.DeviceAssigned(qube, devclass, device, options):
            return _change(qube, "set", f"device {devclass} {device}", value=options)
        case e.DeviceUnassigned(qube, devclass, device):
            return _change(qube, "removed", f"device {devclass} {device}")
        case _:
            return _record_of_qube(event)


def _change(qube: str | None, what: str, name: str, **more: Any) -> dict[str, AuditValue]:
    return {"kind": Kind.CHANGE.value, "event": what, "target": qube or DOM0, "argument": name, **more}


def _record_of_qube(event: e.Event) -> dict[str, AuditValue] | None:
    def about(qube: str, what: str, **more: AuditValue) -> dict[str, AuditValue]:
        return {"kind": Kind.QUBE.value, "event": what, "qube": qube, **more}

    match event:
        case e.QubeAdded(qube):
            return about(qube, "created")
        case e.QubeRemoved(qube):
            return about(qube, "removed")
        case e.QubeRenamed(qube, old_name):
            return about(qube, "renamed", old=old_name)
        case e.QubeStarted(qube):
            return about(qube, "started")
        case e.QubeStartFailed(qube, reason):
            return about(qube, "start failed", reason=reason)
        case e.QubeShutdownRequested(qube):
            return about(qube, "shutting down")
        case e.QubeStopped(qube, reason):
            return about(qube, "stopped", reason=reason)
        case e.QubePaused(qube):
            return about(qube, "paused")
        case e.QubeUnpaused(qube):
            return about(qube, "unpaused")
        case e.TemplateCommitted(qube, revision):
            return about(qube, "committed", reason=revision)
        case _:
            return None
