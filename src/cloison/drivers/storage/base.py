"""The contract of storage pools.

In: volume specifications. Out: disk layers that a hypervisor can open. May import: model, errors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from cloison.model.volumes import VolumeKind as VolumeKind


@dataclass(frozen=True)
class VolumeSpec:
    """One volume of one qube. ``vid`` is unique in the pool, e.g. ``appvms/work/private``."""

    vid: str
    kind: VolumeKind
    size_bytes: int
    source: str | None = None
    """vid of the volume a SNAPSHOT is taken of (same pool)."""
    revisions_to_keep: int = 1
    encrypted: bool = True


@dataclass(frozen=True)
class DiskLayer:
    """One image of a chain; ``secret`` is the LUKS key (bytes, never logged) or None."""

    path: Path
    format: str
    secret: bytes | None = field(default=None, repr=False)
    unlinked: bool = False
    """The file may be unlinked once it has been opened (throw-away data)."""


Chain = tuple[DiskLayer, ...]
"""Top (the only writable one) first, base last."""


@dataclass(frozen=True)
class VolumeInfo:
    vid: str
    size_bytes: int
    usage_bytes: int
    revisions: tuple[str, ...]
    """Oldest first."""
    revision_id: str
    """Identity of the current content: equal ids mean equal bytes; part of the key of fork points."""
    pristine: bool
    """Never written since it was created."""
    is_outdated: bool = False


class Pool(Protocol):
    """A place for volumes. Every method is atomic: after a failure or kill -9 the old state holds, nothing half made.

    Errors: BackendFailed (names the file), DiskFull (says how many bytes are needed), BadRequest (unknown volume).
    """

    name: str
    driver: str

    async def create(self, spec: VolumeSpec) -> None: ...
    async def remove(self, vid: str) -> None: ...
    async def clone(self, source_vid: str, spec: VolumeSpec) -> None:
        """A KEPT volume with the source's present content, sharing data where possible."""
        ...

    async def import_image(self, spec: VolumeSpec, image: Path, *, image_format: str, content_key: str) -> None:
        """A KEPT volume whose first revision is the image (hard-linked or reflinked where possible, else copied);
        its revision_id is derived from ``content_key``."""
        ...

    async def info(self, vid: str) -> VolumeInfo: ...
    async def chain(self, vid: str) -> Chain:
        """The current content, read-only: a base to put an overlay on (root of app qubes, fork points)."""
        ...

    async def begin_run(self, vid: str, *, base: Chain | None = None, on_trial: bool = False) -> Chain:
        """Open the volume for a run: a fresh writable layer on the current content (SNAPSHOT: of its source).

        ``base`` replaces the layers below (a fork point's frozen root). The image is checked first; a damaged one
        raises BackendFailed naming it. At most one run at a time. ``on_trial``: what is written counts only if
        ``settle_run`` says so before the end.
        """
        ...

    async def settle_run(self, vid: str) -> None:
        """What a run on trial wrote, and writes from now on, shall be kept like any other run's. Idempotent."""
        ...

    async def end_run(self, vid: str, *, clean: bool = True) -> str | None:
        """The run is over: a KEPT volume's changes become its newest revision (its id is returned); others are erased,
        and those of a run that is still on trial.

        Idempotent, also after a crash: called again by the next daemon for runs that were cut short.
        """
        ...

    async def resize(self, vid: str, size_bytes: int) -> None: ...
    async def revert(self, vid: str, revision: str) -> None: ...
    async def check(self, vid: str) -> None:
        """Raises BackendFailed naming a damaged image."""
        ...

    async def set_revisions_to_keep(self, vid: str, count: int) -> None: ...
    async def volumes(self) -> Sequence[str]: ...
    async def usage(self) -> tuple[int, int]:
        """(size_bytes, used_bytes) of the file system below."""
        ...
