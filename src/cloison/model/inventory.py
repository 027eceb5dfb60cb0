"""One frozen picture of the whole system, and the pure questions that can be asked of it.

In: records that the store read. Out: typed answers. May import: wire. A picture never changes; after each change the
store makes a new one, so holding one for the length of a decision is safe and answers may be remembered inside it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple

from cloison.errors import LabelNotFound, NoSuchProperty, QubeNotFound
from cloison.model.classes import Klass
from cloison.model.labels import Label
from cloison.model.names import DOM0, QubeName
from cloison.model.properties import GLOBAL_PROPERTIES, QUBE_PROPERTIES, Mode, Property, properties_of
from cloison.model.qube import Host, Pool, Qube, Run
from cloison.model.values import PropertyType, Value
from cloison.model.volumes import Volume, VolumeKind

OF_RUNS = ("xid", "start_time")
"""The properties whose values follow from what runs."""


class Resolved(NamedTuple):
    """``is_default``: not set explicitly (whether the value equals the default does not matter)."""

    value: Value
    is_default: bool


class Reference(NamedTuple):
    """Somebody names a qube: ``user`` is None for the system's own properties."""

    user: QubeName | None
    by: str
    """Name of the property, or ``device CLASS``."""


@dataclass(frozen=True)
class Inventory:
    qubes: Mapping[QubeName, Qube]
    labels: Mapping[str, Label]
    pools: Mapping[str, Pool]
    settings: Mapping[str, Value]
    """Global properties that were set explicitly."""
    runs: Mapping[QubeName, Run]
    host: Host
    _memo: dict[tuple[str, str], Resolved] = field(default_factory=dict, repr=False, compare=False)

    def with_runs(self, runs: Mapping[QubeName, Run]) -> Inventory:
        """The same system with other machines running: nothing else follows from that, so answers are kept."""
        memo = {key: found for key, found in self._memo.items() if key[1] not in OF_RUNS}
        return replace(self, runs=runs, _memo=memo)

    # -- finding ---------------------------------------------------------------------------------------------------

    def find(self, name: str) -> Qube | None:
        return self.qubes.get(QubeName(name))

    def qube(self, name: str) -> Qube:
        """The record of that name, or QubeNotFound."""
        qube = self.qubes.get(QubeName(name))
        if qube is None:
            raise QubeNotFound(name)
        return qube

    def find_by_uuid(self, uuid: str) -> Qube | None:
        return self._by_uuid.get(uuid)

    def label(self, name: str) -> Label:
        found = self.labels.get(name)
        if found is None:
            raise LabelNotFound(f"no label is named {name[:64]!a}", hint=f"there are {', '.join(self.labels)}")
        return found

    @cached_property
    def _by_uuid(self) -> Mapping[str, Qube]:
        return {qube.uuid: qube for qube in self.qubes.values()}

    def __iter__(self) -> Iterator[Qube]:
        """dom0 first, then by name."""
        return iter(self._sorted)

    @cached_property
    def _sorted(self) -> tuple[Qube, ...]:
        return tuple(sorted(self.qubes.values(), key=lambda qube: (qube.klass is not Klass.ADMIN, qube.name)))

    # -- properties ------------------------------------------------------------------------------------------------

    def resolve(self, name: str, property_name: str) -> Resolved:
        """The value of a qube's property and whether it is a default; NoSuchProperty if its class has none such."""
        key = (name, property_name)
        found = self._memo.get(key)
        if found is None:
            found = self._memo[key] = self._resolve(self.qube(name), property_name)
        return found

    def value(self, name: str, property_name: str) -> Value:
        return self.resolve(name, property_name).value

    def _resolve(self, qube: Qube, property_name: str) -> Resolved:
        prop = properties_of(qube.klass).get(property_name)
        if prop is None:
            raise NoSuchProperty(f"{qube.name} ({qube.klass.value}) has no property {property_name[:64]!a}")
        if prop.is_computed:
            return Resolved(prop.default_for(self, qube), True)
        if prop.column is not None:
            return Resolved(prop.column(qube), False)
        if property_name in qube.properties:
            # What is written once was chosen for the qube, not set by anybody: a client that copies a qube leaves it.
            return Resolved(qube.properties[property_name], prop.mode is Mode.ONCE)
        return Resolved(self.default_value(qube.name, prop), True)

    def default_value(self, name: str, prop: Property) -> Value:
        """What the property would be if it were not set: the template's value where it is inherited, else its rule."""
        qube = self.qube(name)
        if prop.inherited and (template := self.template(qube.name)) is not None and template.klass in prop.on:
            return self.value(template.name, prop.name)
        return prop.default_for(self, qube)

    def text(self, name: str, property_name: str) -> str:
        value = self.value(name, property_name)
        return "" if value is None else str(value)

    def number(self, name: str, property_name: str) -> int:
        value = self.value(name, property_name)
        if not isinstance(value, int):
            raise NoSuchProperty(f"property {property_name} of {name} has no value")
        return value

    def flag(self, name: str, property_name: str) -> bool:
        return bool(self.value(name, property_name))

    def peer(self, name: str, property_name: str) -> Qube | None:
        """The qube that a property of type vm names."""
        value = self.value(name, property_name)
        return self.qube(value) if isinstance(value, str) and value else None

    def setting(self, property_name: str) -> Value:
        return self.resolve_setting(property_name).value

    def resolve_setting(self, property_name: str) -> Resolved:
        """A global property."""
        prop = GLOBAL_PROPERTIES.get(property_name)
        if prop is None:
            raise NoSuchProperty(f"the system has no property {property_name[:64]!a}")
        if not prop.is_computed and property_name in self.settings:
            return Resolved(self.settings[property_name], False)
        return Resolved(prop.default_for(self, self.qubes[DOM0]), True)

    # -- templates and chains --------------------------------------------------------------------------------------

    def template(self, name: str) -> Qube | None:
        """What the qube is based on: a TemplateVM for an app qube, a disposable template for a disposable."""
        qube = self.qube(name)
        base = qube.properties.get("template") if qube.klass.has_template else None
        return self.qubes.get(QubeName(base)) if isinstance(base, str) else None

    def template_of_root(self, name: str) -> Qube:
        """The qube whose root volume this one starts from: the end of its template chain (itself, if it has none)."""
        qube = self.qube(name)
        while (template := self.template(qube.name)) is not None:
            qube = template
        return qube

    def children(self, name: str) -> tuple[Qube, ...]:
        """Qubes directly based on this one, by name."""
        return self._children.get(QubeName(name), ())

    @cached_property
    def _children(self) -> Mapping[QubeName, tuple[Qube, ...]]:
        found: dict[QubeName, list[Qube]] = {}
        for qube in self:
            if (template := self.template(qube.name)) is not None:
                found.setdefault(template.name, []).append(qube)
        return {name: tuple(qubes) for name, qubes in found.items()}

    def descendants(self, name: str) -> tuple[Qube, ...]:
        """Children, their children, and so on."""
        return tuple(found for child in self.children(name) for found in (child, *self.descendants(child.name)))

    def chain(self, name: str, property_name: str) -> Iterator[Qube]:
        """The qube, then the one its property names, and so on (ends at a qube without that property)."""
        qube: Qube | None = self.qube(name)
        seen: set[QubeName] = set()
        while qube is not None and qube.name not in seen:
            seen.add(qube.name)
            yield qube
            has_it = property_name in properties_of(qube.klass)
            qube = self.peer(qube.name, property_name) if has_it else None

    def feature(self, name: str, feature: str, *, via: str | None = "template", dom0: bool = False) -> str | None:
        """A feature of the qube or, failing that, of the next in its ``via`` chain, then of dom0 if asked."""
        for qube in self.chain(name, via) if via else (self.qube(name),):
            if feature in qube.features:
                return qube.features[feature]
        return self.qubes[DOM0].features.get(feature) if dom0 else None

    # -- who names whom --------------------------------------------------------------------------------------------

    def references(self, name: str) -> tuple[Reference, ...]:
        """Everything that names this qube explicitly and would dangle if it went (itself not counted)."""
        return tuple(ref for ref in self._references.get(QubeName(name), ()) if ref.user != name)

    @cached_property
    def _references(self) -> Mapping[QubeName, tuple[Reference, ...]]:
        found: dict[QubeName, list[Reference]] = {}
        for setting, value in self.settings.items():
            if GLOBAL_PROPERTIES[setting].type is PropertyType.VM and isinstance(value, str):
                found.setdefault(QubeName(value), []).append(Reference(None, setting))
        for qube in self:
            for by, value in qube.properties.items():
                if QUBE_PROPERTIES[by].type is PropertyType.VM and isinstance(value, str):
                    found.setdefault(QubeName(value), []).append(Reference(qube.name, by))
            for assignment in qube.assignments:
                found.setdefault(assignment.backend, []).append(Reference(qube.name, f"device {assignment.devclass}"))
        return {name: tuple(refs) for name, refs in found.items()}

    def users(self, name: str, property_name: str) -> tuple[Qube, ...]:
        """Qubes whose property has this qube as its value, by default or explicitly."""
        return tuple(
            qube
            for qube in self
            if property_name in properties_of(qube.klass) and self.value(qube.name, property_name) == name
        )

    # -- volumes ---------------------------------------------------------------------------------------------------

    def volume_source(self, name: str, volume: str) -> Volume | None:
        """The volume that a SNAPSHOT volume starts from: the TemplateVM's root, or the template's private."""
        qube = self.qube(name)
        if qube.volumes[volume].kind is not VolumeKind.SNAPSHOT:
            return None
        template = self.template(name)
        if template is None:
            return None
        source = template.volumes[volume]
        return self.volume_source(template.name, volume) if source.kind is VolumeKind.SNAPSHOT else source

    def free_qid(self) -> int:
        """The smallest number that no qube has."""
        taken = {qube.qid for qube in self.qubes.values()}
        return next(qid for qid in range(1, len(taken) + 1) if qid not in taken)
