"""Methods on devices (Admin API notes, sections 4.7 and 11).

Assignments are kept in the records; what is exposed and attached is the engine's ``Devices`` to know.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from cloison.admin.methods import Answer, Call, Desk, Dest, Handler, Method, Need, Scope, lines, named_qube, target
from cloison.admin.ownmethods import parse_json
from cloison.admin.system import DEVICE_CLASSES
from cloison.engine import events as e
from cloison.engine.devices import Attached, Exposed
from cloison.errors import (
    BadRequest,
    DeviceAlreadyAssigned,
    DeviceAlreadyAttached,
    DeviceNotAssigned,
    DeviceNotFound,
    ProtocolError,
    QubeNotHalted,
    QubeNotRunning,
    Refused,
    UnknownAssignmentMode,
)
from cloison.model.devices import matches
from cloison.model.names import QubeName, parse_qube_name
from cloison.model.qube import Assignment, Qube
from cloison.model.values import is_bool_word, parse_interfaces

MANUAL = "manual"
"""The mode of what was attached by hand: no assignment has it."""
MODES = ("required", "ask-to-attach", "auto-attach")
_PORT = re.compile(r"[a-zA-Z0-9._-]{1,128}|\*", re.ASCII)
_IDENTITY = re.compile(r"[\x21-\x26\x28-\x7e]{1,512}")
_KEY = re.compile(r"[a-zA-Z0-9_.-]{1,64}", re.ASCII)
_PAIR = re.compile(r"([^= ']+)='((?:[^'\\]|\\.)*)'(?: |$)")
BLOCK_OPTIONS: Mapping[str, Callable[[str], bool]] = {
    "read-only": is_bool_word,
    "frontend-dev": lambda value: bool(re.fullmatch(r"xvd[e-z]", value)),
    "devtype": lambda value: value in ("disk", "cdrom"),
}


def _devclass(call: Call) -> str:
    return call.method.split(".")[3]


def parse_device(untrusted_arg: str) -> tuple[QubeName, str, str]:
    """``BACKEND+PORT+DEVICE_ID``; in the identity ``:`` comes as ``+`` and ``*`` as ``_``; missing parts mean any."""
    backend, *rest = untrusted_arg.split("+", 2)
    port = _wild(rest[0]) if rest else "*"
    device_id = _wild(rest[1]) if len(rest) > 1 else "*"
    device_id = device_id if device_id == "*" else device_id.replace("_______", "?******").replace("+", ":")
    if not _PORT.fullmatch(port) or not _IDENTITY.fullmatch(device_id):
        raise ProtocolError(f"{untrusted_arg[:80]!a} is no device: BACKEND+PORT+IDENTITY")
    return parse_qube_name(backend), port, device_id


def _wild(text: str) -> str:
    return "*" if text in ("_", "") else text


def parse_pairs(untrusted_text: str) -> dict[str, str]:
    """Blank-separated ``key='value'``; a quote inside a value is written ``\\'``."""
    found: dict[str, str] = {}
    at = 0
    text = untrusted_text.strip()
    while at < len(text):
        match = _PAIR.match(text, at)
        if match is None or not _KEY.fullmatch(match[1]) or match[1] in found:
            raise ProtocolError(f"{text[at : at + 40]!a} is no key='value', or comes twice")
        found[match[1]] = match[2].replace("\\'", "'")
        at = match.end()
    return found


def format_pairs(pairs: Mapping[str, str]) -> str:
    return " ".join(f"{key}='{value.replace(chr(39), chr(92) + chr(39))}'" for key, value in pairs.items())


def format_assignment(frontend: QubeName, found: Assignment) -> str:
    pairs = {
        "device_id": found.device_id,
        "port_id": found.port,
        "devclass": found.devclass,
        "backend_domain": found.backend,
        "mode": found.mode,
        "frontend_domain": frontend,
        **{f"_{key}": value for key, value in found.options.items()},
    }
    return f"{found.backend}+{found.port}:{found.device_id} {format_pairs(pairs)}"


def _assigned(qube: Qube, devclass: str) -> list[Assignment]:
    return [found for found in qube.assignments if found.devclass == devclass]


async def list_assigned(desk: Desk, call: Call) -> Answer:
    found = _assigned(target(desk, call), _devclass(call))
    if call.arg:
        backend, port, _ = parse_device(call.arg)
        found = [a for a in found if a.backend == backend and port in ("*", a.port)]
    return lines(sorted(format_assignment(call.dest, a) for a in found))


async def assign(desk: Desk, call: Call) -> Answer:
    devclass = _devclass(call)
    backend, port, device_id = parse_device(call.arg)
    named_qube(desk, call, backend)
    pairs = parse_pairs(call.text)
    _check_agreement(pairs, backend, port, device_id, devclass)
    mode = pairs.get("mode", "")
    if mode not in MODES:
        raise BadRequest(f"an assignment's mode is one of {', '.join(MODES)}, and not {mode[:20]!a}")
    options = {key[1:]: value for key, value in pairs.items() if key.startswith("_")}
    _check_options(devclass, options)
    assignment = Assignment(devclass, backend, port, device_id, mode, options)
    if _find(target(desk, call), assignment) is not None:
        raise DeviceAlreadyAssigned(f"{backend}:{port}:{device_id} is assigned to {call.dest} already")
    device = f"{backend}:{port}:{device_id}"
    desk.ledger.tell(e.DeviceAssignmentRequested(call.dest, devclass, device, str(options)))
    with desk.ledger.change(e.DeviceAssigned(call.dest, devclass, device, str(options))) as records:
        records.put_assignment(call.dest, assignment)
    return ""


def _check_agreement(pairs: Mapping[str, str], backend: str, port: str, device_id: str, devclass: str) -> None:
    """What the payload says of the device must be what the argument says."""
    said = {"backend_domain": backend, "port_id": port, "device_id": device_id, "devclass": devclass}
    for key, value in said.items():
        if pairs.get(key, value) not in (value, "*"):
            raise ProtocolError(f"the payload speaks of {key} {pairs[key][:40]!a}, the argument of {value}")


def _check_options(devclass: str, options: Mapping[str, str]) -> None:
    if devclass != "block":
        return
    for key, value in options.items():
        if key not in BLOCK_OPTIONS or not BLOCK_OPTIONS[key](value):
            raise BadRequest(f"block devices have no option {key[:40]}={value[:40]}")


def _find(qube: Qube, wanted: Assignment) -> Assignment | None:
    key = (wanted.devclass, wanted.backend, wanted.port, wanted.device_id)
    for found in qube.assignments:
        if (found.devclass, found.backend, found.port, found.device_id) == key:
            return found
    return None


def _get(desk: Desk, call: Call) -> Assignment:
    backend, port, device_id = parse_device(call.arg)
    found = _find(target(desk, call), Assignment(_devclass(call), backend, port, device_id, ""))
    if found is None:
        raise DeviceNotAssigned(f"{backend}:{port}:{device_id} is not assigned to {call.dest}")
    return found


async def unassign(desk: Desk, call: Call) -> Answer:
    found = _get(desk, call)
    device = f"{found.backend}:{found.port}:{found.device_id}"
    with desk.ledger.change(e.DeviceUnassigned(call.dest, found.devclass, device)) as records:
        records.remove_assignment(call.dest, found)
    return ""


async def set_assignment(desk: Desk, call: Call) -> Answer:
    found = _get(desk, call)
    if call.text not in MODES:
        raise UnknownAssignmentMode(f"an assignment's mode is one of {', '.join(MODES)}")
    device = f"{found.backend}:{found.port}:{found.device_id}"
    with desk.ledger.change(e.DeviceAssignmentChanged(call.dest, found.devclass, device)) as records:
        records.put_assignment(call.dest, replace(found, mode=call.text))
    return ""


async def list_available(desk: Desk, call: Call) -> Answer:
    port = call.arg or "*"
    if not _PORT.fullmatch(port):
        raise ProtocolError(f"{port[:80]!a} is no port")
    found = desk.devices.exposed(call.dest, _devclass(call))
    return lines(sorted(format_device(device) for device in found if port in ("*", device.port)))


def format_device(device: Exposed) -> str:
    pairs = {
        "device_id": device.device_id,
        "port_id": device.port,
        "devclass": device.devclass,
        "backend_domain": device.backend,
        **device.about,
    }
    return f"{device.port}:{device.device_id} {format_pairs(pairs)}"


async def list_attached(desk: Desk, call: Call) -> Answer:
    found = [each for each in desk.devices.attached(_devclass(call)) if each.frontend == call.dest]
    if call.arg:
        backend, port, _ = parse_device(call.arg)
        found = [each for each in found if each.device.backend == backend and port in ("*", each.device.port)]
    return lines(sorted(_format_attached(target(desk, call), each) for each in found))


def _format_attached(frontend: Qube, found: Attached) -> str:
    device = found.device
    wish = _wish_for(frontend, device)
    mode = wish.mode if wish is not None else MANUAL
    shown = Assignment(device.devclass, device.backend, device.port, device.device_id, mode, found.options)
    return format_assignment(frontend.name, shown)


def _wish_for(frontend: Qube, device: Exposed) -> Assignment | None:
    """The stored assignment that a device answers to."""
    for wish in _assigned(frontend, device.devclass):
        if wish.backend == device.backend and matches(wish, device.port, device.device_id):
            return wish
    return None


async def attach(desk: Desk, call: Call) -> Answer:
    devclass = _devclass(call)
    backend, port, device_id = parse_device(call.arg)
    named_qube(desk, call, backend)
    pairs = parse_pairs(call.text)
    _check_agreement(pairs, backend, port, device_id, devclass)
    options = {key[1:]: value for key, value in pairs.items() if key.startswith("_")}
    _check_options(devclass, options)
    if not desk.running.is_running(call.dest):
        raise QubeNotRunning(f"{call.dest} is not running")
    found = [d for d in desk.devices.exposed(backend, devclass) if _is_meant(d, port, device_id)]
    if len(found) != 1:
        why = "" if found else desk.devices.trouble(backend, devclass, port)
        many = "several" if found else "no"
        raise DeviceNotFound(why or f"{backend} exposes {many} {devclass} devices {port}:{device_id}")
    device = found[0]
    for other in desk.devices.attached(devclass):
        if (other.device.backend, other.device.port) == (device.backend, device.port):
            raise DeviceAlreadyAttached(
                f"{device.backend}:{device.port} is attached to {other.frontend}", others=[other.frontend]
            )
    _check_not_denied(desk, call, device)
    desk.ledger.tell(e.DeviceAttachRequested(call.dest, devclass, device.name, str(options)))
    await desk.devices.attach(call.dest, device, options)
    desk.ledger.tell(e.DeviceAttached(call.dest, devclass, device.name, str(options)))
    return ""


def _is_meant(device: Exposed, port: str, device_id: str) -> bool:
    return port in ("*", device.port) and device_id in ("*", device.device_id)


def _check_not_denied(desk: Desk, call: Call, device: Exposed) -> None:
    for pattern in _denied(desk, call):
        for code in device.interfaces:
            if all(wanted in ("*", given) for wanted, given in zip(pattern, code, strict=True)):
                raise Refused(f"{device.name} has the interface {code}, which devices_denied of {call.dest} forbids")


async def detach(desk: Desk, call: Call) -> Answer:
    devclass = _devclass(call)
    backend, port, device_id = parse_device(call.arg)
    for found in desk.devices.attached(devclass):
        device = found.device
        if found.frontend == call.dest and device.backend == backend and _is_meant(device, port, device_id):
            break
    else:
        raise DeviceNotAssigned(f"{backend}:{port} is not attached to {call.dest}")
    wish = _wish_for(target(desk, call), device)
    if wish is not None and wish.mode == "required":
        raise QubeNotHalted(f"{device.name} is required by {call.dest}, which is running")
    place = f"{device.backend}:{device.port}"
    desk.ledger.tell(e.DeviceDetachRequested(call.dest, devclass, place))
    await desk.devices.detach(found)
    desk.ledger.tell(e.DeviceDetached(call.dest, devclass, place))
    return ""


# -- interfaces that may not be attached by hand -----------------------------------------------------------------------


def _denied(desk: Desk, call: Call) -> list[str]:
    if not target(desk, call).is_machine:
        return []
    text = desk.inventory.text(call.dest, "devices_denied")
    return [text[at : at + 7] for at in range(0, len(text), 7)]


async def list_denied(desk: Desk, call: Call) -> Answer:
    return "\n".join(_denied(desk, call))


async def deny(desk: Desk, call: Call) -> Answer:
    await desk.properties.set(call.dest, "devices_denied", "".join(_denied(desk, call)) + parse_interfaces(call.text))
    return ""


async def allow(desk: Desk, call: Call) -> Answer:
    text = "" if call.text == "all" else parse_interfaces(call.text)
    gone = {text[at : at + 7] for at in range(0, len(text), 7)}
    kept = [] if call.text == "all" else [code for code in _denied(desk, call) if code not in gone]
    await desk.properties.set(call.dest, "devices_denied", "".join(kept))
    return ""


# -- what the host's user gives ---------------------------------------------------------------------------------------


async def expose(desk: Desk, call: Call) -> Answer:
    wish = parse_json(call, path=str, read_only=bool)
    device = desk.shelf.expose(Path(wish.get("path") or ""), call.arg, read_only=bool(wish.get("read_only")))
    return json.dumps({"device": f"{device.backend}:{device.port}"})


async def hide(desk: Desk, call: Call) -> Answer:
    desk.shelf.hide(call.arg)
    return "{}"


_NO, _YES, _MAY = Need.NONE, Need.REQUIRED, Need.OPTIONAL
_RO, _RW, _X = Scope.LOCAL_RO, Scope.LOCAL_RW, Scope.LOCAL_X
_VERBS: tuple[tuple[str, Need, Need, Scope, str, Handler], ...] = (
    ("Available", _MAY, _NO, _RO, "The {} devices that a qube exposes.", list_available),
    ("Assigned", _MAY, _NO, _RO, "The {} devices that are assigned to a qube.", list_assigned),
    ("Attached", _MAY, _NO, _RO, "The {} devices that are attached to a qube now.", list_attached),
    ("Assign", _YES, _YES, _RW, "Assign a {} device to a qube.", assign),
    ("Unassign", _YES, _NO, _RW, "Take back the assignment of a {} device.", unassign),
    ("Attach", _YES, _MAY, _X, "Attach a {} device to a running qube.", attach),
    ("Detach", _YES, _NO, _X, "Detach a {} device.", detach),
    ("Set.assignment", _YES, _YES, _RW, "Change when an assigned {} device is attached.", set_assignment),
)

METHODS = (
    *(
        Method(f"admin.vm.device.{devclass}.{verb}", Dest.ANY, arg, payload, scope, doc.format(devclass), handler)
        for devclass in DEVICE_CLASSES
        for verb, arg, payload, scope, doc, handler in _VERBS
    ),
    Method("admin.vm.device.denied.List", Dest.ANY, _NO, _NO, _RO, "Denied device interfaces.", list_denied),
    Method("admin.vm.device.denied.Add", Dest.ANY, _NO, _MAY, _RW, "Deny device interfaces.", deny),
    Method("admin.vm.device.denied.Remove", Dest.ANY, _NO, _MAY, _RW, "Allow device interfaces again.", allow),
    Method("cloison.block.Expose", Dest.DOM0, _MAY, _YES, Scope.INTERNAL,
           "Expose a file or block device of the host (argument: its port).", expose),
    Method("cloison.block.Hide", Dest.DOM0, _YES, _NO, Scope.INTERNAL, "Expose it no longer.", hide),
)  # fmt: skip
