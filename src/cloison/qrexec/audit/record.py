"""What a record holds, and how much of it each setting keeps.

In: fields as the broker and the daemon give them. Out: fields to be kept, and the qubes they are about. May import:
``qrexec.ports``. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from cloison.qrexec.ports import AuditValue

Fields = Mapping[str, AuditValue]

MAX_TEXT = 2000
"""Characters of one field: rules of a firewall fit, a volume's data do not."""
_NOT_QUBES = ("", "dom0", "@adminvm", "@default", "@anyvm", "@dispvm")
_TALKATIVE = frozenset({"argument", "value", "old", "reason"})
"""What may quote a qube's data; the setting ``metadata`` leaves it out."""
_ALWAYS = frozenset({"audit", "daemon", "policy"})
"""Kinds that no qube's setting can silence."""
_VERDICTS = {"allowed": "allow", "denied": "deny", "denied-more": "deny"}


class Kind(Enum):
    CALL = "call"
    PROMPT = "prompt"
    CHANGE = "change"
    """Something about a qube or the system was set, by the Admin API or the command line."""
    POLICY = "policy"
    QUBE = "qube"
    """A qube was made, removed, started, stopped."""
    DAEMON = "daemon"
    AUDIT = "audit"
    """About the record itself: repaired, shortened, erased."""


class Level(Enum):
    """The property ``audit``, least first."""

    OFF = "off"
    METADATA = "metadata"
    FULL = "full"


@dataclass(frozen=True)
class Subject:
    """A qube as records know it: ``uuid`` stays when it gets another name."""

    uuid: str
    name: str
    level: Level


def shape(given: Fields) -> dict[str, AuditValue]:
    """The fields in their kept form: a kind, a verdict, the argument apart from the service, nothing empty."""
    record = {"kind": Kind.CALL.value, **given}
    service = str(record.get("service") or "")
    if service.startswith("command:"):
        record["service"], record["argument"] = "command", service.removeprefix("command:")
    elif "+" in service:
        record["service"], _, record["argument"] = service.partition("+")
    if record["kind"] == Kind.CALL.value and (verdict := _VERDICTS.get(str(record.get("event")))):
        record.setdefault("verdict", verdict)
        if record.get("source") == "dom0":
            record.setdefault("who", "dom0")
    return {name: _short(value) for name, value in record.items() if value not in ("", None)}


def _short(value: AuditValue) -> AuditValue:
    return value[:MAX_TEXT] + "…" if isinstance(value, str) and len(value) > MAX_TEXT else value


def keep(record: dict[str, AuditValue], level: Level) -> dict[str, AuditValue] | None:
    """What ``level`` keeps of a shaped record; None: nothing."""
    if level is Level.FULL or record["kind"] in _ALWAYS or is_about_recording(record):
        return record
    if level is Level.OFF:
        return None
    return {name: value for name, value in record.items() if name not in _TALKATIVE}


def is_about_recording(record: Fields) -> bool:
    """Who switches the record off is recorded."""
    return record["kind"] == Kind.CHANGE.value and record.get("argument") in ("audit", "default_audit")


def names_of(record: Fields) -> tuple[str, ...]:
    """The qubes that a record is about, each once."""
    found: dict[str, None] = {}
    for field in ("source", "target", "requested_target", "qube"):
        name = str(record.get(field) or "").removeprefix("@dispvm:")
        if name not in _NOT_QUBES and not name.startswith("@"):
            found[name] = None
    return tuple(found)


def least(subjects: tuple[Subject, ...]) -> Level:
    """A record about two qubes says as much as the more private one allows."""
    levels = {subject.level for subject in subjects}
    return next((level for level in Level if level in levels), Level.FULL)
