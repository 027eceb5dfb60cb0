"""Which layers a pool needs, and which two could be one: pure functions over its records.

In: layers and volumes. Out: chains, sets of ids, planned merges. May import: errors, records.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from cloison.drivers.storage.records import Layer, VolumeRecord
from cloison.errors import BackendFailed

MAX_CHAIN = 200


@dataclass(frozen=True)
class Merge:
    """Write ``upper``'s data into ``lower``, which then holds the same content by itself."""

    upper: str
    lower: str


def chain_of(layers: Mapping[str, Layer], top: str) -> tuple[Layer, ...]:
    """The layer and all below it, top first; BackendFailed when one is missing."""
    found: list[Layer] = []
    step: str | None = top
    while step is not None:
        layer = layers.get(step)
        if layer is None or len(found) >= MAX_CHAIN:
            above = f" (below {found[-1].id})" if found else ""
            raise BackendFailed(f"disk layer {step}{above} is missing from the pool", hint="did a restore fail?")
        found.append(layer)
        step = layer.parent
    return tuple(found)


def pinned(volumes: Iterable[VolumeRecord]) -> frozenset[str]:
    """Layers which a run in progress reads or writes."""
    runs = [volume.run for volume in volumes if volume.run is not None]
    return frozenset(layer for run in runs for layer in (run.layer, *run.pins) if layer is not None)


def referenced(layers: Mapping[str, Layer], volumes: Iterable[VolumeRecord]) -> frozenset[str]:
    """Layers that must stay: below any content, or in use."""
    volumes = list(volumes)
    waiting = [revision.layer for volume in volumes for revision in volume.contents()]
    waiting += pinned(volumes)
    seen: set[str] = set()
    while waiting:
        step = waiting.pop()
        if step in seen:
            continue
        seen.add(step)
        if (layer := layers.get(step)) is not None and layer.parent is not None:
            waiting.append(layer.parent)
    return frozenset(seen)


def plan_merge(layers: Mapping[str, Layer], volumes: Iterable[VolumeRecord]) -> Merge | None:
    """The next merge that would shorten a chain, or None.

    ``lower`` is nobody's content any more, is no base, carries ``upper`` alone, and no run reads either of them. So
    everybody who sees ``lower`` sees it through ``upper``, which hides whatever merging writes: the merge may be
    interrupted anywhere and simply be done again.
    """
    volumes = list(volumes)
    contents = {revision.layer for volume in volumes for revision in volume.contents()}
    in_use = pinned(volumes)
    needed = referenced(layers, volumes)
    children: dict[str, list[str]] = {}
    for layer in layers.values():
        if layer.parent is not None and layer.id in needed:
            children.setdefault(layer.parent, []).append(layer.id)
    for lower, above in sorted(children.items()):
        if len(above) != 1 or lower in contents or lower not in layers or layers[lower].is_base:
            continue
        upper = above[0]
        if layers[upper].is_base or layers[lower].format != "qcow2" or {lower, upper} & in_use:
            continue
        return Merge(upper, lower)
    return None
