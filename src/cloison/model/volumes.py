"""Volumes as records: what each qube class gets (table: Admin API notes, section 7)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from cloison.model.classes import Klass

GIB = 1024**3


class VolumeKind(Enum):
    """What becomes of a volume's data at a stop."""

    KEPT = "kept"
    """Saved at stop (template root, private)."""
    SNAPSHOT = "snapshot"
    """Starts as a copy of its source each time; changes are thrown away (an app qube's root)."""
    VOLATILE = "volatile"
    """Starts empty each time; thrown away."""

    @property
    def snap_on_start(self) -> bool:
        return self is VolumeKind.SNAPSHOT

    @property
    def save_on_stop(self) -> bool:
        return self is VolumeKind.KEPT


@dataclass(frozen=True)
class Volume:
    """One volume of one qube, as recorded. A SNAPSHOT's source follows from the qube's template."""

    name: str
    pool: str
    vid: str
    kind: VolumeKind
    size_bytes: int
    revisions_to_keep: int = 1
    rw: bool = True
    ephemeral: bool = False


@dataclass(frozen=True)
class VolumePlan:
    kind: VolumeKind
    size_bytes: int


_K, _S, _V = VolumeKind.KEPT, VolumeKind.SNAPSHOT, VolumeKind.VOLATILE

VOLUMES_OF: Mapping[Klass, Mapping[str, VolumePlan]] = {
    Klass.ADMIN: {},
    Klass.REMOTE: {},
    Klass.TEMPLATE: {
        "root": VolumePlan(_K, 10 * GIB), "private": VolumePlan(_K, 2 * GIB), "volatile": VolumePlan(_V, 10 * GIB)
    },
    Klass.STANDALONE: {
        "root": VolumePlan(_K, 10 * GIB), "private": VolumePlan(_K, 2 * GIB), "volatile": VolumePlan(_V, 10 * GIB)
    },
    Klass.APP: {
        "root": VolumePlan(_S, 10 * GIB), "private": VolumePlan(_K, 2 * GIB), "volatile": VolumePlan(_V, 10 * GIB)
    },
    Klass.DISPOSABLE: {
        "root": VolumePlan(_S, 10 * GIB), "private": VolumePlan(_S, 2 * GIB), "volatile": VolumePlan(_V, 12 * GIB)
    },
}  # fmt: skip

KERNEL_POOL = "linux-kernel"
"""The pool under whose volume ids clients look for kernels."""
KERNEL_OF_TEMPLATE = "template"
"""The kernel that came with the template's own image (taken out of it when a revision is committed)."""


def volume_id(klass: Klass, qube: str, volume: str) -> str:
    """Unique in its pool, and the form that users of Qubes know."""
    return f"{'vm-templates' if klass is Klass.TEMPLATE else 'appvms'}/{qube}/{volume}"
