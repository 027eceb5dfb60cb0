"""One qube as recorded, and the small records that hang on it. Values are frozen; the store makes new ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cloison.model.classes import Klass
from cloison.model.names import QubeName
from cloison.model.values import Value
from cloison.model.volumes import Volume


@dataclass(frozen=True)
class Assignment:
    """The stored wish that a device of ``backend`` be given to a qube. ``*`` as port or identity means any."""

    devclass: str
    backend: QubeName
    port: str
    device_id: str
    mode: str
    options: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Pool:
    """A place for volumes, as configured."""

    name: str
    driver: str
    config: Mapping[str, str] = field(default_factory=dict)
    revisions_to_keep: int = 1
    ephemeral_volatile: bool = False


@dataclass(frozen=True)
class Qube:
    """``properties`` holds only what was set explicitly; read values through ``Inventory.value``."""

    name: QubeName
    qid: int
    uuid: str
    klass: Klass
    label: str
    properties: Mapping[str, Value] = field(default_factory=dict)
    features: Mapping[str, str] = field(default_factory=dict)
    tags: frozenset[str] = frozenset()
    volumes: Mapping[str, Volume] = field(default_factory=dict)
    assignments: tuple[Assignment, ...] = ()
    firewall: str | None = None
    """Canonical rules, one per line; None when they were never set."""

    @property
    def is_machine(self) -> bool:
        return self.klass.is_machine

    @property
    def is_preloaded(self) -> bool:
        """A disposable that waits, ready, for its first use (only the daemon writes the second of these features)."""
        marked = self.features.get("internal") and "preload-dispvm-in-progress" in self.features
        return self.klass is Klass.DISPOSABLE and bool(marked)


@dataclass(frozen=True)
class Run:
    """A machine that a daemon started. ``record`` is whatever the engine needs to find it again."""

    record: Mapping[str, Any]
    started_at: float
    """Seconds since the epoch."""


@dataclass(frozen=True)
class Host:
    """What the rules for defaults must know of this computer."""

    memory_mib: int
    cpus: int
    kernels: tuple[str, ...] = ()
    """Names of kernels besides the template's own."""
