"""The noun: what a document says about a system."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

Texts = Mapping[str, str]

ANNOUNCED = frozenset({"updates-available", "last-update", "last-updates-check", "os", "os-distribution", "os-version",
                       "os-eol", "qrexec", "gui", "vmexec", "servicevm", "menu-items-known"})  # fmt: skip
ANNOUNCED_PREFIXES = ("supported-", "template-", "os-", "apps.")


@dataclass(frozen=True)
class QubeWish:
    """One qube. ``None`` in a section means that the document says nothing about it."""

    name: str
    klass: str
    label: str
    template: str = ""
    """Empty for classes without one. A StandaloneVM is copied from it when it is made, and forgets it."""
    properties: Texts = field(default_factory=dict)
    """Explicit values; every other settable property has its default."""
    features: Texts | None = None
    tags: frozenset[str] | None = None
    firewall: tuple[str, ...] | None = None
    """Rules in the Admin API's form, in order."""
    notes: str | None = None
    volumes: Mapping[str, int] | None = None
    """Volume name -> size in bytes; volumes only grow."""
    devices: tuple[str, ...] | None = None
    """Assignments, each ``CLASS BACKEND:PORT MODE [OPTION=VALUE...]`` (see ``assignments``)."""
    pool: str = ""
    """Where its kept volumes are made; empty: in the system's default pools."""
    build: Mapping[str, object] | None = None
    """Options for building a TemplateVM that does not exist."""


@dataclass(frozen=True)
class Document:
    """A system, or what is said of it."""

    system: Texts | None = None
    """Explicit global properties; when the section exists, every other one has its default."""
    labels: Texts = field(default_factory=dict)
    """Name -> colour as 0xRRGGBB."""
    pools: Mapping[str, Texts] = field(default_factory=dict)
    """Name -> ``driver``, the driver's options, and ``revisions_to_keep``, ``ephemeral_volatile``."""
    qubes: Mapping[str, QubeWish] = field(default_factory=dict)
    policy: Texts | None = None
    """Policy file (``30-user``, ``include/NAME``) -> content."""


def is_announced(feature: str) -> bool:
    """Guests or the daemon set it by themselves: it is no wish of the user unless he writes it down."""
    return feature in ANNOUNCED or feature.startswith(ANNOUNCED_PREFIXES)


def without_announced(document: Document) -> Document:
    """The document as a person would have written it."""
    qubes = {
        name: replace(wish, features={k: v for k, v in (wish.features or {}).items() if not is_announced(k)})
        for name, wish in document.qubes.items()
    }
    return replace(document, qubes=qubes)
