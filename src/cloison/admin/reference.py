"""The reference pages, written from the tables: ``python -m cloison.admin.reference DIRECTORY``.

In: the tables of methods, properties and power states. Out: Markdown. A test compares the pages in ``docs/`` with it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

from cloison.admin.contracts import ALWAYS, CHANGING, CONTRACTS, GUARDED
from cloison.admin.dispatch import METHODS
from cloison.admin.methods import Dest, Method, Need, Scope
from cloison.model.classes import MACHINES, Klass
from cloison.model.power import TRANSITIONS, PowerState
from cloison.model.properties import GLOBAL_PROPERTIES, QUBE_PROPERTIES, Mode, Property
from cloison.model.values import Value, format_value

_DEST = {Dest.DOM0: "dom0", Dest.QUBE: "a qube", Dest.ANY: "any"}
_NEED = {Need.NONE: "", Need.REQUIRED: "yes", Need.OPTIONAL: "may"}
_MODE = {Mode.RW: "read, write", Mode.ONCE: "set at creation", Mode.COMPUTED: "computed"}
INCLUDES = {
    Scope.LOCAL_RO: "admin-local-ro",
    Scope.LOCAL_RW: "admin-local-rwx",
    Scope.LOCAL_X: "admin-local-rwx",
    Scope.GLOBAL_RO: "admin-global-ro",
    Scope.GLOBAL_RW: "admin-global-rwx",
    Scope.GLOBAL_X: "admin-global-rwx",
    Scope.INTERNAL: "dom0 only",
}
_MISSING = (
    ("admin.backup.Info, Execute, Cancel", "QubesNotImplementedError", "backups are not there yet"),
    ("admin.vm.device.*.Available, Attached but of block", "empty list", "no devices of other classes yet"),
    ("admin.vm.device.block.Available of a qube but dom0", "empty list", "qubes expose no disks of theirs yet"),
    ("admin.vm.device.*.Attach", "UnrecognizedDevice",
     "the reference's ProtocolError for an unknown device ends the stock tools with a traceback"),
    ("admin.vm.device.*.Assign with mode ask-to-attach", "stored; attached by hand only",
     "nobody is asked yet when the qube starts"),
    ("admin.vm.device.*.Assign with mode manual", "QubesValueError", "the reference closes without an answer"),
    ("admin.vm.Suspend, Resume", "the guest is told, then pause and unpause",
     "no suspend to memory inside guests yet"),
    ("admin.vm.Create.AdminVM, CreateInPool.AdminVM", "QubesValueError", "there is one AdminVM, dom0"),
    ("admin.vm.Console from a qube", "the path of a socket of the host", "no console is carried to qubes"),
    ("admin.vm.volume.Info, path", "empty", "volumes are files of the daemon; nobody else opens them"),
    ("admin.pool.volume.* other than List", "ProtocolError (no such method)", "the reference has none either"),
    ("start of a named disposable that fails", "the qube stays", "the reference removes it: data would be lost"),
    ("a bad firewall rule, feature name, creation; an unknown revision; setting name, qid or uuid", "the named error",
     "the reference closes without an answer"),
    ("admin.vm.volume.Set.revisions_to_keep with -1", "QubesValueError",
     "a template and what is based on it can always run together, so snapshots cannot be switched off"),
    ("admin.vm.CreateDisposable+preload", "accepted, nothing happens", "the daemon fills the stock by itself"),
    ("qubesd.internal.sock, qubesd.misc.sock", "not there",
     "internal methods are on the one socket, for dom0 alone; what guests send of themselves comes through the broker"),
    ("creating a qube under a taken name", "QubesVMAlreadyExistsError, also to a qube that may not know that one",
     "names are unique in the system; nothing else is told"),
    ("import, clear and clone of a volume", "no revision of what was there before",
     "the new content is made beside the old one and takes its place in one step; revisions are made by clean stops"),
    ("unknown volume, pool or pool driver", "StoragePoolException", "PermissionDenied crashes the stock tools"),
    ("shrinking a volume", "QubesValueError", "data at its end would be lost"),
)  # fmt: skip


def methods_page() -> str:
    ours = [row for name, row in METHODS.items() if name.startswith("cloison.")]
    theirs = [row for name, row in METHODS.items() if not name.startswith("cloison.")]
    return "\n".join(
        (
            "# The Admin API",
            "",
            "Written from the table of methods by `python -m cloison.admin.reference docs`; a test keeps it fresh.",
            "",
            "Requests go to the socket `qubesd.sock` in the runtime directory (mode 0600, this user and root only):",
            "`METHOD+ARGUMENT SOURCE name DESTINATION`, a NUL byte, the payload, end-of-file; at most 65 536 bytes.",
            "The answer is `0 NUL data`, or `2 NUL type NUL NUL text NUL`; streams are `1 NUL subject NUL event NUL",
            "(key NUL value NUL)* NUL` records. Bytes that are no request are answered with nothing.",
            "By default only dom0 (programs of this user, on the socket) may call any of them. Qubes reach the same",
            "methods through their calls to dom0, if the policy allows; the last column names the policy include file",
            "that a rule for the method belongs to.",
            "",
            "Besides the errors of its row a method may answer",
            f"{_listed(ALWAYS)}",
            "(the form of the request, a qube that does not exist, a value that cannot be, a fault inside),",
            f"one that changes something {_listed(CHANGING)} (the disk, the machine or the guest failed, or the state",
            f"forbids it), and one that is dom0's own {_listed(GUARDED)} to anybody else.",
            "An empty answer is success. Events are named without what",
            "follows their colon (`property-set:NAME`); properties that follow from what was changed are told by",
            "`property-reset:NAME`, on whatever qube they show. Columns are checked by the tests, not by hand.",
            "",
            "## From qubes",
            "",
            "A management qube calls the method as a service: `qrexec-client-vm DESTINATION METHOD+ARGUMENT`, the",
            "payload on standard input, the same answer on standard output. The policy decides by method, argument,",
            "caller and destination; rules must say `target=dom0`. What a qube may know is what `admin.vm.List` on",
            "that qube is allowed for: other qubes are in no list, and one that is named in an argument or a",
            "payload is answered for as if it did not exist. A record of `admin.Events` is sent if the policy",
            "allows `admin.Events+EVENT` (each `:` turned into `_`) on the qube that it is about, on dom0 for the",
            "system's own; the policy is asked while the event happens. `ask` counts as no in both. An example of a",
            "qube with little power:",
            "[examples/sys-admin](../examples/sys-admin/README.md).",
            "",
            "## Methods of Qubes OS",
            "",
            *_method_table(theirs),
            "",
            "## Our own",
            "",
            "Payloads and answers are JSON; long ones send `progress` events (step, text, percent) before they answer.",
            "",
            *_method_table(ours),
            "",
            "## Where this differs from Qubes OS",
            "",
            *_table(("what", "answer", "why"), _MISSING),
            "",
        )
    )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))


def _method_table(rows: Iterable[Method]) -> list[str]:
    return _table(
        ("method", "to", "argument", "payload", "what it does", "answer", "errors", "events", "policy include"),
        (
            (
                f"`{row.name}`",
                _DEST[row.dest],
                _NEED[row.arg],
                _NEED[row.payload],
                row.doc,
                *_contract(row.name),
                INCLUDES[row.scope],
            )
            for row in sorted(rows, key=lambda row: row.name)
        ),
    )


def _contract(method: str) -> tuple[str, str, str]:
    found = CONTRACTS[method]
    return found.answer, ", ".join(sorted(found.errors)), ", ".join(found.events)


def properties_page() -> str:
    return "\n".join(
        (
            "# Properties",
            "",
            "Written from the declarations by `python -m cloison.admin.reference docs`; a test keeps it fresh.",
            "",
            "## Of qubes",
            "",
            *_property_table(QUBE_PROPERTIES.values()),
            "",
            "## Of the system",
            "",
            *_property_table(GLOBAL_PROPERTIES.values()),
            "",
            "## Power states",
            "",
            *_table(
                ("state", "may become"),
                (
                    (state.value, ", ".join(sorted(after.value for after in TRANSITIONS[state])) or "-")
                    for state in PowerState
                ),
            ),
            "",
        )
    )


def _property_table(rows: Iterable[Property]) -> list[str]:
    return _table(
        ("property", "type", "of", "", "default", "meaning"),
        (
            (f"`{p.name}`", p.type.value, _classes(p), _MODE[p.mode], _default(p), p.doc)
            for p in sorted(rows, key=lambda p: p.name)
        ),
    )


def _classes(prop: Property) -> str:
    match prop.on:
        case on if on == frozenset(Klass):
            return "all"
        case on if on == MACHINES:
            return "machines"
        case on if on == MACHINES | {Klass.ADMIN}:
            return "machines, dom0"
        case on if on == frozenset({Klass.ADMIN}):
            return "the system"
        case on:
            return ", ".join(sorted(klass.value for klass in on))


def _default(prop: Property) -> str:
    if prop.mode is not Mode.RW or not prop.has_default:
        return "-"
    value: Value = None if callable(prop.default) else prop.default
    text = "follows from others" if callable(prop.default) else format_value(value) or "none"
    unit = f" {prop.unit}" if prop.unit and isinstance(value, int) else ""
    return f"the template's, else {text}{unit}" if prop.inherited else f"{text}{unit}"


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> list[str]:
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    return lines + [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows]


PAGES = {"admin-api.md": methods_page, "properties.md": properties_page}


def main(directory: Path) -> None:
    for name, page in PAGES.items():
        (directory / name).write_text(page())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
