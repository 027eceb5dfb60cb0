"""What the qcow2 pool knows of its layers and volumes, as values and as JSON.

In: JSON texts. Out: frozen records, or BackendFailed naming the file. May import: errors, model.

A **layer** is one image file. A volume's content is a layer together with all layers below it. Layers are never
written again once a run has ended (merging aside, which leaves every content that anybody can see as it was).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from cloison.errors import BackendFailed
from cloison.model.volumes import VolumeKind


@dataclass(frozen=True)
class Seal:
    """How a finished layer's file looked: a cheap proof that nobody touched it since."""

    length_bytes: int
    modified_ns: int


@dataclass(frozen=True)
class Layer:
    """One image file. ``secret`` (LUKS pass phrase) exists nowhere else: without this record the data are noise."""

    id: str
    parent: str | None
    format: str
    size_bytes: int
    secret: bytes | None = field(default=None, repr=False)
    is_base: bool = False
    """Brought in whole (an image, a blank file system) and perhaps hard-linked elsewhere: never merged into."""
    seal: Seal | None = None
    """None: never checked since it was last written."""

    def to_json(self) -> str:
        return json.dumps(
            {
                "id": self.id,
                "parent": self.parent,
                "format": self.format,
                "size": self.size_bytes,
                "secret": self.secret.decode() if self.secret else None,
                "base": self.is_base,
                "seal": [self.seal.length_bytes, self.seal.modified_ns] if self.seal else None,
            }
        )

    @classmethod
    def from_json(cls, text: str) -> Layer:
        raw = json.loads(text)
        return cls(
            str(raw["id"]),
            raw["parent"],
            str(raw["format"]),
            int(raw["size"]),
            raw["secret"].encode() if raw["secret"] else None,
            bool(raw["base"]),
            Seal(*map(int, raw["seal"])) if raw["seal"] else None,
        )


@dataclass(frozen=True)
class Revision:
    """One content of a volume."""

    id: str
    layer: str

    def to_raw(self) -> dict[str, str]:
        return {"id": self.id, "layer": self.layer}

    @classmethod
    def from_raw(cls, raw: Mapping[str, Any]) -> Revision:
        return cls(str(raw["id"]), str(raw["layer"]))


@dataclass(frozen=True)
class Run:
    """A volume in use. ``layer`` is the writable layer of a KEPT volume (others have a file among the runs)."""

    layer: str | None
    pins: tuple[str, ...]
    """Layers that the run reads, top first; they stay as they are until it ends."""
    source_revision: str = ""
    """What a SNAPSHOT was taken of."""
    on_trial: bool = False
    """What a KEPT volume's run writes is thrown away at its end, unless it is settled before."""

    def to_raw(self) -> dict[str, Any]:
        return {"layer": self.layer, "pins": self.pins, "source": self.source_revision, "trial": self.on_trial}

    @classmethod
    def from_raw(cls, raw: Mapping[str, Any]) -> Run:
        return cls(raw["layer"], tuple(raw["pins"]), str(raw["source"]), bool(raw.get("trial")))


@dataclass(frozen=True)
class VolumeRecord:
    vid: str
    kind: VolumeKind
    size_bytes: int
    source: str | None = None
    revisions_to_keep: int = 1
    encrypted: bool = True
    current: Revision | None = None
    """None for volumes that keep nothing."""
    revisions: tuple[Revision, ...] = ()
    """Earlier contents, oldest first."""
    run: Run | None = None
    pristine: bool = True

    def contents(self) -> tuple[Revision, ...]:
        """All contents that somebody may ask for, the current one last."""
        return (*self.revisions, self.current) if self.current else self.revisions

    def with_layer_replaced(self, old: str, new: str) -> VolumeRecord:
        """The same contents, found in another layer."""

        def moved(revision: Revision) -> Revision:
            return replace(revision, layer=new) if revision.layer == old else revision

        return replace(
            self,
            current=moved(self.current) if self.current else None,
            revisions=tuple(moved(revision) for revision in self.revisions),
        )

    def to_json(self) -> str:
        return json.dumps(
            {
                "vid": self.vid,
                "kind": self.kind.value,
                "size": self.size_bytes,
                "source": self.source,
                "keep": self.revisions_to_keep,
                "encrypted": self.encrypted,
                "current": self.current.to_raw() if self.current else None,
                "revisions": [revision.to_raw() for revision in self.revisions],
                "run": self.run.to_raw() if self.run else None,
                "pristine": self.pristine,
            }
        )

    @classmethod
    def from_json(cls, text: str) -> VolumeRecord:
        raw = json.loads(text)
        return cls(
            vid=str(raw["vid"]),
            kind=VolumeKind(raw["kind"]),
            size_bytes=int(raw["size"]),
            source=raw["source"],
            revisions_to_keep=int(raw["keep"]),
            encrypted=bool(raw["encrypted"]),
            current=Revision.from_raw(raw["current"]) if raw["current"] else None,
            revisions=tuple(Revision.from_raw(item) for item in raw["revisions"]),
            run=Run.from_raw(raw["run"]) if raw["run"] else None,
            pristine=bool(raw["pristine"]),
        )


def parse_layer(text: str, where: str) -> Layer:
    """The layer record, or BackendFailed naming ``where`` it was."""
    try:
        return Layer.from_json(text)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BackendFailed(f"storage record {where} is damaged ({type(error).__name__}: {error})") from error


def parse_volume(text: str, where: str) -> VolumeRecord:
    """The volume record, or BackendFailed naming ``where`` it was."""
    try:
        return VolumeRecord.from_json(text)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BackendFailed(f"storage record {where} is damaged ({type(error).__name__}: {error})") from error
