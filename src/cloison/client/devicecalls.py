"""Calls about pools and devices, as values (Admin API notes, sections 4.5, 4.7 and 11).

In: plain arguments. Out: ``Call`` objects. May import: client.calls.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from cloison.client.calls import Call

ANY = "*"
MODES = ("ask-to-attach", "auto-attach", "required")
_PAIR = re.compile(r"([A-Za-z0-9_.-]+)='((?:[^'\\]|\\.)*)'")


@dataclass(frozen=True)
class Device:
    """A device that a qube exposes, or one that was given to a qube (then ``mode`` and ``options`` say how)."""

    backend: str
    port: str
    identity: str = ANY
    fields: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.backend}:{self.port}"

    @property
    def mode(self) -> str:
        return self.fields.get("mode", "")

    @property
    def argument(self) -> str:
        """As an argument, where neither ``:`` nor ``*`` may be."""
        port = "_" if self.port == ANY else self.port
        return (
            f"{self.backend}+{port}+{self.identity.replace('?******', '_______').replace(':', '+').replace('*', '_')}"
        )

    @property
    def description(self) -> str:
        """For a person: what the qube that has it says it is."""
        made_by = self.fields.get("manufacturer") or self.fields.get("vendor") or ""
        what = self.fields.get("name") or self.fields.get("product") or self.fields.get("serial") or ""
        return f"{what} ({made_by})" if what and made_by else what or made_by or "unknown device"


def parse_device(text: str) -> Device:
    """``BACKEND:PORT`` or ``BACKEND:PORT:IDENTITY``. Raises ValueError."""
    backend, colon, rest = text.partition(":")
    port, _, identity = rest.partition(":")
    if not backend or not colon or not port:
        raise ValueError(f"{text!a} is not BACKEND:DEVICE, for example sys-usb:sda")
    return Device(backend, port, identity or ANY)


def _devices(qube: str, data: bytes) -> list[Device]:
    found = []
    for line in data.decode("utf-8", "replace").splitlines():
        head, _, rest = line.partition(" ")
        place, _, identity = head.partition(":")
        backend, plus, port = place.partition("+")
        backend, port = (backend, port) if plus else (qube, place)
        pairs = {key: re.sub(r"\\(.)", r"\1", value) for key, value in _PAIR.findall(rest)}
        options = {key[1:]: value for key, value in pairs.items() if key.startswith("_")}
        found.append(Device(backend, port, identity or ANY, pairs, options))
    return found


def class_list() -> Call[list[str]]:
    return Call("admin.deviceclass.List", "dom0", parse=lambda data: data.decode().split())


def device_list(which: str, qube: str, devclass: str) -> Call[list[Device]]:
    """``which``: Available (what it exposes), Assigned, Attached (what it was given)."""
    return Call(f"admin.vm.device.{devclass}.{which}", qube, parse=lambda data: _devices(qube, data))


def device_give(verb: str, qube: str, devclass: str, device: Device, *, mode: str = "manual",
                options: Mapping[str, str] | None = None) -> Call[None]:  # fmt: skip
    """``verb``: Attach (now), Assign (whenever ``mode`` says)."""
    pairs = {
        "device_id": device.identity,
        "port_id": device.port,
        "devclass": devclass,
        "backend_domain": device.backend,
        "mode": mode,
        "frontend_domain": qube,
        **{f"_{key}": value for key, value in (options or {}).items()},
    }
    escaped = {key: value.replace("\\", "\\\\").replace("'", "\\'") for key, value in pairs.items()}
    payload = " ".join(f"{key}='{value}'" for key, value in escaped.items())
    return Call(f"admin.vm.device.{devclass}.{verb}", qube, device.argument, payload.encode())


def device_take(verb: str, qube: str, devclass: str, device: Device) -> Call[None]:
    """``verb``: Detach, Unassign."""
    return Call(f"admin.vm.device.{devclass}.{verb}", qube, device.argument)


def assignment_mode(qube: str, devclass: str, device: Device, mode: str) -> Call[None]:
    return Call(f"admin.vm.device.{devclass}.Set.assignment", qube, device.argument, mode.encode())


def block_expose(path: str, port: str, *, read_only: bool) -> Call[str]:
    """A file of the host becomes a device of dom0; the answer is its name, ``dom0:PORT``."""
    payload = json.dumps({"path": path, "read_only": read_only}).encode()
    return Call("cloison.block.Expose", "dom0", port, payload, parse=lambda data: str(json.loads(data)["device"]))


def block_hide(port: str) -> Call[None]:
    return Call("cloison.block.Hide", "dom0", port)


def pool_drivers() -> Call[dict[str, list[str]]]:
    """Drivers and the options that they know."""

    def parse(data: bytes) -> dict[str, list[str]]:
        return {words[0]: words[1:] for words in map(str.split, data.decode().splitlines()) if words}

    return Call("admin.pool.ListDrivers", "dom0", parse=parse)


def pool_add(pool: str, driver: str, options: Mapping[str, str]) -> Call[None]:
    lines = "".join(f"{key}={value}\n" for key, value in {"name": pool, **options}.items())
    return Call("admin.pool.Add", "dom0", driver, lines.encode())


def pool_remove(pool: str) -> Call[None]:
    return Call("admin.pool.Remove", "dom0", pool)


def pool_set(pool: str, option: str, value: str) -> Call[None]:
    """``option``: revisions_to_keep, ephemeral_volatile."""
    return Call(f"admin.pool.Set.{option}", "dom0", pool, value.encode())
