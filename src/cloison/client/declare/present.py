"""The document that describes a running system.

In: something that carries out calls. Out: a ``Document``. May import: client.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from cloison.client import calls, devicecalls
from cloison.client.calls import Call
from cloison.client.declare.assignments import format_assignment
from cloison.client.declare.document import Document, QubeWish
from cloison.client.failures import Refused
from cloison.errors import CloisonError

T = TypeVar("T")
Do = Callable[[Call[T]], T]

STANDARD_LABELS = frozenset({"red", "orange", "yellow", "green", "gray", "blue", "purple", "black"})
IDENTITY = frozenset({"name", "qid", "uuid", "klass", "label", "template", "dispid"})
"""Properties that are a qube's identity, or have a place of their own in a document."""
MOMENTARY = frozenset({"backup_timestamp", "start_time", "xid", "stubdom_xid", "stubdom_uuid", "is_preload"})
"""What happened to a qube, not how it shall be."""
GROWING_VOLUMES = ("root", "private")
KERNEL_POOL = "linux-kernel"
MEASURED = frozenset({"name", "size", "usage", "included_in"})
"""What a pool is called and how full it is, not how it shall be."""


def read_present(do: Callable[[Call[Any]], Any], policy: Mapping[str, str] | None) -> Document:
    """The whole system but its unnamed disposables, which pass. ``policy``: its files, read by the caller."""
    qubes = {}
    classes = do(devicecalls.class_list())
    for state in do(calls.list_states()):
        try:
            wish = _read_qube(do, state.name, state.klass, classes)
        except CloisonError as error:
            if isinstance(error, Refused) and not _exists(do, state.name):
                continue  # it went away meanwhile
            raise
        if wish is not None:
            qubes[wish.name] = wish
    system = {
        name: value.value or ""
        for name, value in do(calls.property_get_all(None)).items()
        if not value.is_default
    }  # fmt: skip
    labels = {label: do(calls.label_colour(label)) for label in do(calls.label_list()) if label not in STANDARD_LABELS}
    usual = do(calls.property_get(None, "default_pool")).value or ""
    qubes = {name: replace(wish, pool="" if wish.pool == usual else wish.pool) for name, wish in qubes.items()}
    return Document(system=system, labels=labels, pools=_read_pools(do), qubes=qubes, policy=policy)


def _read_pools(do: Callable[[Call[Any]], Any]) -> dict[str, Mapping[str, str]]:
    """All but the built-in one of kernels."""
    found = {name: do(calls.pool_info(name)) for name in do(calls.pool_list()) if name != KERNEL_POOL}
    return {
        name: {key: value for key, value in info.items() if key not in MEASURED}
        for name, info in found.items()
    }  # fmt: skip


def _exists(do: Callable[[Call[Any]], Any], name: str) -> bool:
    return any(state.name == name for state in do(calls.list_states()))


def _read_qube(
    do: Callable[[Call[Any]], Any], name: str, klass: str, classes: Sequence[str]
) -> QubeWish | None:  # fmt: skip
    found: dict[str, calls.Property] = do(calls.property_get_all(name))
    if klass == "DispVM" and found["auto_cleanup"].value == "True":
        return None
    properties = {
        key: value.value or ""
        for key, value in found.items()
        if not value.is_default and key not in IDENTITY | MOMENTARY
    }
    features = {key: do(calls.feature_get(name, key)) for key in do(calls.feature_list(name))}
    volumes, pools = {}, set()
    if klass not in ("AdminVM", "RemoteVM"):
        for volume in do(calls.volume_list(name)):
            info = do(calls.volume_info(name, volume))
            if volume in GROWING_VOLUMES and info.get("save_on_stop") == "True":
                volumes[volume] = int(info["size"])
                pools.add(info.get("pool", ""))
    template = found["template"].value if "template" in found else None
    return QubeWish(
        name=name,
        klass=klass,
        label=found["label"].value or "",
        template=template or "",
        properties=properties,
        features=features,
        tags=frozenset(tag for tag in do(calls.tag_list(name)) if not is_automatic(tag)),
        firewall=None if klass in ("AdminVM", "RemoteVM") else tuple(do(calls.firewall_get(name))),
        notes=None if klass == "AdminVM" else do(calls.notes_get(name)) or None,
        volumes=volumes or None,
        devices=None if klass in ("AdminVM", "RemoteVM") else _read_devices(do, name, classes),
        pool=pools.pop() if len(pools) == 1 else "",
    )


def _read_devices(do: Callable[[Call[Any]], Any], name: str, classes: Sequence[str]) -> tuple[str, ...] | None:
    lines = [
        format_assignment(devclass, device)
        for devclass in classes
        for device in do(devicecalls.device_list("Assigned", name, devclass))
    ]
    return tuple(sorted(lines)) or None


def is_automatic(tag: str) -> bool:
    """Tags that the daemon gives by itself."""
    return tag.startswith(("created-by-", "disp-created-by-", "guivm-", "audiovm-"))
