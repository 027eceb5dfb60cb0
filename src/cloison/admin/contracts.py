"""What each method answers, how it refuses and what it tells: for the reference page, and checked by the tests.

In: nothing. Out: ``CONTRACTS``. A test watches every call of the test suite: an error or an event that is not declared
here, or a method without a row, fails.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from cloison.model.classes import Klass

ALWAYS = frozenset(
    {"ProtocolError", "QubesVMNotFoundError", "QubesVMInvalidUUIDError", "QubesValueError", "QubesException"}
)
"""Errors of every method: the form of the request, a qube that is not there or whose name cannot be, a value
that cannot be, a fault inside."""
GUARDED = frozenset({"PermissionDenied"})
"""Of every method that is dom0's own, for anybody else."""
CHANGING = frozenset({"QubesVMError"})
"""Of every method that changes something: the disk, the machine or the guest failed, or the state forbids it."""


@dataclass(frozen=True)
class Contract:
    """``errors``: besides ``ALWAYS`` and ``CHANGING``. ``events``: names without what follows their colon."""

    answer: str = ""
    errors: frozenset[str] = frozenset()
    events: tuple[str, ...] = ()


RESET = ("property-reset",)
SET = ("property-pre-set", "property-set", "property-reset")
UNSET = ("property-pre-reset", "property-pre-del", "property-reset", "property-del")
FEATURE = ("domain-feature-set", "domain-feature-delete")
TAGS = ("domain-tag-add", "domain-tag-delete")
MADE = ("domain-add", "domain-tag-add", "domain-create-on-disk")
GONE = ("domain-pre-delete", "property-reset", "property-del", "device-unassign", "domain-remove-from-disk",
        "domain-delete")  # fmt: skip
STARTED = ("domain-pre-start", "domain-verify-files", "domain-pre-spawn", "property-reset", "domain-spawn",
           "domain-qdb-create", "domain-pre-unpaused", "domain-unpaused", "domain-start", "net-domain-connect",
           "domain-start-failed", "device-pre-attach", "device-attach")  # fmt: skip
STOPPED = ("domain-stopped", "property-reset", "domain-shutdown")
IMPORTED = ("domain-volume-import-begin", "domain-volume-import-end")
LINES = "one per line"
PAIRS = "`key=value` per line"
SHOWN = "`default=BOOL type=TYPE VALUE`"
NO_PROPERTY, BAD_VALUE, NO_FEATURE = "QubesNoSuchPropertyError", "QubesPropertyValueError", "QubesFeatureNotFoundError"
REFUSED, POOL, LABEL = "PermissionDenied", "StoragePoolException", "QubesLabelNotFoundError"
RUNS, OFF, IN_USE = "QubesVMNotHaltedError", "QubesVMNotRunningError", "QubesVMInUseError"
NOT_STARTED, TAG = "QubesVMNotStartedError", "QubesInvalidTagError"
NOT_ASSIGNED = "DeviceNotAssigned"
_Row = tuple[str, str, str, tuple[str, ...]]


def _words(*names: str) -> str:
    return " ".join(names)


_CREATION = _words("QubesVMAlreadyExistsError", LABEL, BAD_VALUE, POOL, TAG)
_QUBES: tuple[_Row, ...] = (
    ("admin.vmclass.List", LINES, "", ()),
    ("admin.vm.List", "`NAME class=CLASS state=STATE uuid=UUID` per line", "", ()),
    *((f"admin.vm.{verb}.{klass.value}", "", _CREATION, MADE)
      for verb in ("Create", "CreateInPool") for klass in Klass),
    ("admin.vm.CreateDisposable", "the name; `uuid:UUID` if the payload is `uuid`", _words(BAD_VALUE),
     (*MADE, "domain-preload-dispvm-used", "domain-pre-unpaused", "domain-unpaused", *FEATURE)),
    ("admin.vm.Remove", "", _words(IN_USE, RUNS), GONE),
    ("admin.vm.Start", "", _words(RUNS, "QubesMemoryError", OFF), (*STARTED, *GONE)),
    ("admin.vm.Shutdown", "", _words(NOT_STARTED, OFF, IN_USE, "QubesVMShutdownTimeoutError"),
     ("domain-pre-shutdown", "domain-shutdown-failed", *STOPPED, *GONE)),
    ("admin.vm.Kill", "", _words(NOT_STARTED), (*STOPPED, *GONE)),
    ("admin.vm.Pause", "", _words(OFF), ("domain-pre-paused", "domain-paused")),
    ("admin.vm.Unpause", "", _words("QubesVMNotPausedError", OFF), ("domain-pre-unpaused", "domain-unpaused")),
    ("admin.vm.Suspend", "", _words(OFF), ("domain-pre-paused", "domain-paused")),
    ("admin.vm.Resume", "", _words("QubesVMNotPausedError", OFF),
     ("domain-pre-unpaused", "domain-unpaused", "domain-resumed")),
    ("admin.vm.CurrentState", "`mem=KIB mem_static_max=KIB cputime=NS power_state=STATE`", "", ()),
    ("admin.vm.Console", "the path of a socket", _words(OFF, REFUSED), ()),
    ("admin.vm.Stats", "stream of `vm-stats`", "", ()),
    ("admin.Events", "stream", "", ()),
    ("internal.SuspendPre", "", "", ("domain-pre-paused", "domain-paused")),
    ("internal.SuspendPost", "", "", ("domain-pre-unpaused", "domain-unpaused", "domain-resumed")),
    ("internal.GetSystemInfo", "JSON", "", ()),
)  # fmt: skip


def _property_rows(prefix: str) -> Iterator[_Row]:
    setting = _words(NO_PROPERTY, BAD_VALUE, LABEL, RUNS, NOT_STARTED, IN_USE, POOL)
    yield f"{prefix}.List", LINES, "", ()
    yield f"{prefix}.Get", SHOWN, NO_PROPERTY, ()
    yield f"{prefix}.GetAll", f"`NAME ` and {SHOWN} per line; `\\` as `\\\\`, newline as `\\n`", "", ()
    yield f"{prefix}.GetDefault", "`type=TYPE VALUE`, or nothing", NO_PROPERTY, ()
    yield f"{prefix}.Help", "a paragraph", NO_PROPERTY, ()
    yield f"{prefix}.Set", "", setting, (*SET, *FEATURE, *TAGS, "net-domain-connect")
    yield f"{prefix}.Reset", "", setting, (*UNSET, "property-pre-set", "property-set", *FEATURE, *TAGS,
                                           "net-domain-connect")  # fmt: skip


_SETTINGS: tuple[_Row, ...] = (
    *_property_rows("admin.vm.property"),
    *_property_rows("admin.property"),
    ("admin.vm.feature.List", LINES, "", ()),
    *((f"admin.vm.feature.{verb}", "the value", NO_FEATURE, ())
      for verb in ("Get", "CheckWithTemplate", "CheckWithNetvm", "CheckWithAdminVM", "CheckWithTemplateAndAdminVM")),
    ("admin.vm.feature.Set", "", REFUSED, ("domain-feature-pre-set", *RESET, "domain-feature-set")),
    ("admin.vm.feature.Remove", "", _words(NO_FEATURE, REFUSED),
     ("domain-feature-pre-delete", *RESET, "domain-feature-delete")),
    ("admin.vm.tag.List", f"sorted, {LINES}", "", ()),
    ("admin.vm.tag.Get", "`1` or `0`", TAG, ()),
    ("admin.vm.tag.Set", "", TAG, ("domain-tag-add",)),
    ("admin.vm.tag.Remove", "", _words(TAG, "QubesTagNotFoundError"), ("domain-tag-delete",)),
    ("admin.vm.notes.Get", "text (UTF-8)", "", ()),
    ("admin.vm.notes.Set", "", "", ()),
    ("admin.vm.firewall.Get", "a rule per line", "", ()),
    ("admin.vm.firewall.Set", "", "", ("firewall-changed",)),
    ("admin.vm.firewall.Reload", "", "", ("firewall-changed",)),
    ("admin.label.List", f"by number, {LINES}", "", ()),
    ("admin.label.Get", "`0xRRGGBB`", LABEL, ()),
    ("admin.label.Index", "a number", LABEL, ()),
    ("admin.label.Create", "", _words("QubesLabelInUseError", "QubesInvalidLabelError"), ()),
    ("admin.label.Remove", "", _words(LABEL, "QubesLabelInUseError"), ()),
)  # fmt: skip


def _volume_rows() -> Iterator[_Row]:
    for verb, answer, errors, events in (
        ("List", LINES, "", ()),
        ("Info", PAIRS, "", ()),
        ("ListSnapshots", f"oldest first, {LINES}", "", ()),
        ("Revert", "", RUNS, ()),
        ("Resize", "", OFF, ()),
        ("CloneFrom", "a token: 32 letters and digits", "", ()),
        ("CloneTo", "", RUNS, (*IMPORTED, "domain-import-volume")),
        ("Clear", "", RUNS, IMPORTED),
        ("Set.revisions_to_keep", "", "", ()),
        ("Set.rw", "", RUNS, ()),
        ("Set.ephemeral", "", RUNS, ()),
        ("Import", "", RUNS, IMPORTED),
        ("ImportWithSize", "", RUNS, IMPORTED),
    ):
        yield f"admin.vm.volume.{verb}", answer, "" if verb == "List" else _words(POOL, *errors.split()), events
    yield "internal.vm.volume.ImportBegin", "`SIZE PATH`", _words(POOL, RUNS), IMPORTED[:1]
    yield "internal.vm.volume.ImportEnd", "", _words(POOL, RUNS), IMPORTED


_STORAGE: tuple[_Row, ...] = (
    *_volume_rows(),
    ("admin.pool.List", LINES, "", ()),
    ("admin.pool.ListDrivers", "`DRIVER OPTION...` per line", "", ()),
    ("admin.pool.Info", PAIRS, POOL, ()),
    ("admin.pool.UsageDetails", PAIRS, POOL, ()),
    ("admin.pool.Add", "", _words(POOL, BAD_VALUE), ("pool-add",)),
    ("admin.pool.Remove", "", _words(POOL, "QubesPoolInUseError"), ("pool-pre-delete", "pool-delete")),
    ("admin.pool.Set.revisions_to_keep", "", _words(POOL), ()),
    ("admin.pool.Set.ephemeral_volatile", "", POOL, ()),
    ("admin.pool.volume.List", LINES, POOL, ()),
)


def _device_rows() -> Iterator[_Row]:
    yield "admin.deviceclass.List", LINES, "", ()
    for devclass in ("block", "mic", "pci", "usb"):
        for verb, answer, errors, events in (
            ("Available", "`PORT:DEVICE_ID key='value' ...` per line", "", ()),
            ("Assigned", "`BACKEND+PORT:DEVICE_ID key='value' ...` per line", "", ()),
            ("Attached", "`BACKEND+PORT:DEVICE_ID key='value' ...` per line", "", ()),
            ("Assign", "", _words("DeviceAlreadyAssigned"), ("device-pre-assign", "device-assign")),
            ("Unassign", "", NOT_ASSIGNED, ("device-unassign",)),
            ("Attach", "", _words(OFF, "UnrecognizedDevice", "DeviceAlreadyAttached", REFUSED),
             ("device-pre-attach", "device-attach")),
            ("Detach", "", _words(NOT_ASSIGNED, RUNS, OFF), ("device-pre-detach", "device-detach")),
            ("Set.assignment", "", _words(NOT_ASSIGNED, "QubesUnrecognizedDeviceAssignmentMode"),
             ("device-assignment-changed",)),
        ):  # fmt: skip
            yield f"admin.vm.device.{devclass}.{verb}", answer, errors, events
    changed = _words(NO_PROPERTY, BAD_VALUE)
    yield "admin.vm.device.denied.List", "codes, joined by newlines", "", ()
    yield "admin.vm.device.denied.Add", "", changed, ("property-pre-set", "property-set")
    yield "admin.vm.device.denied.Remove", "", changed, ("property-pre-set", "property-set")


_OURS: tuple[_Row, ...] = (
    *((name, "JSON", errors, events) for name, errors, events in (
        ("cloison.method.List", "", ()),
        ("cloison.daemon.Status", "", ()),
        ("cloison.daemon.Stop", "", ()),
        ("cloison.audit.Erase", "", ()),
        ("cloison.policy.Changed", "", ()),
        ("cloison.property.Catalogue", "", ()),
        ("cloison.qube.List", NO_PROPERTY, ()),
        ("cloison.qube.Clone", _CREATION, MADE),
        ("cloison.qube.Rename", _words(RUNS, IN_USE, "QubesVMAlreadyExistsError"),
         ("domain-pre-delete", "domain-delete", "domain-add", "cloison-renamed")),
        ("cloison.qube.ConsoleLog", "", ()),
        ("cloison.firewall.Counters", "", ()),
        ("cloison.template.Build", _CREATION,
         (*MADE, "property-pre-set", "property-set", "domain-feature-pre-set", *FEATURE, "cloison-forkpoint-made",
          *IMPORTED)),
        ("cloison.template.List", "", ()),
        ("cloison.template.Commit", RUNS, ("cloison-template-committed", "cloison-forkpoint-made",
                                                          "cloison-forkpoint-dropped")),
        ("cloison.forkpoint.List", "", ()),
        ("cloison.forkpoint.Make", "QubesMemoryError", ("cloison-forkpoint-made",)),
        ("cloison.forkpoint.Drop", "", ("cloison-forkpoint-dropped",)),
        ("cloison.standalone.Import", _CREATION, (*MADE, *SET, "domain-feature-pre-set", *FEATURE)),
        ("cloison.trial.Hold", _words(RUNS, "QubesMemoryError"), (*STARTED, *STOPPED, "cloison-template-committed")),
        ("cloison.trial.Settle", OFF, ()),
        ("cloison.block.Expose", "",
         ("device-added", "device-list-change", "device-pre-attach", "device-attach")),
        ("cloison.block.Hide", "UnrecognizedDevice", ("device-removed", "device-list-change")),
        ("cloison.call.List", "", ()),
        ("cloison.call.Kill", "", ()),
        ("cloison.policy.Apply", "", ()),
        ("cloison.ask.Answer", REFUSED, ()),
    )),
    ("cloison.firewall.Table", "rules of nftables", "", ()),
    ("cloison.call.Follow", "stream", "", ()),
    ("cloison.ask.Listen", "stream", "QubesVMError", ()),
    *((f"admin.backup.{verb}", "", "QubesNotImplementedError", ()) for verb in ("Info", "Execute", "Cancel")),
)  # fmt: skip

CONTRACTS: Mapping[str, Contract] = {
    name: Contract(answer, frozenset(errors.split()), tuple(dict.fromkeys(events)))
    for rows in (_QUBES, _SETTINGS, _STORAGE, tuple(_device_rows()), _OURS)
    for name, answer, errors, events in rows
}
