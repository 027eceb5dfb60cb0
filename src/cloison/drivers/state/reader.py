"""From rows to the frozen picture. Raises ValueError or KeyError on rows that we would never have written."""

from __future__ import annotations

import json
import sqlite3
from collections import defaultdict
from collections.abc import Iterable, Mapping

from cloison.model.classes import Klass
from cloison.model.inventory import Inventory
from cloison.model.labels import Label
from cloison.model.names import QubeName
from cloison.model.properties import GLOBAL_PROPERTIES, QUBE_PROPERTIES, Property
from cloison.model.qube import Assignment, Host, Pool, Qube, Run
from cloison.model.values import PropertyType, Value
from cloison.model.volumes import Volume, VolumeKind


def read_inventory(connection: sqlite3.Connection, host: Host) -> Inventory:
    rows = connection.execute("SELECT name, number, colour FROM labels ORDER BY number")
    labels = {row[0]: Label(*row) for row in rows}
    pools = {
        name: Pool(name, driver, json.loads(config), keep, bool(ephemeral))
        for name, driver, config, keep, ephemeral in connection.execute("SELECT * FROM pools ORDER BY name")
    }
    settings = {
        name: stored_value(GLOBAL_PROPERTIES[name], value, peer)
        for name, value, peer in connection.execute(
            "SELECT s.name, s.value, p.name FROM settings s LEFT JOIN qubes p ON p.qid = s.ref"
        )
        if name in GLOBAL_PROPERTIES
    }
    return Inventory(read_qubes(connection), labels, pools, settings, read_runs(connection), host)


_VOLUME_ORDER = {"root": 0, "private": 1, "volatile": 2}


def _volume_order(item: tuple[str, Volume]) -> tuple[int, str]:
    return _VOLUME_ORDER.get(item[0], len(_VOLUME_ORDER)), item[0]


def stored_value(prop: Property, text: str | None, peer: str | None) -> Value:
    """The typed value of a row: ``text``, or for a property of type vm the name of the qube it refers to."""
    if prop.type is PropertyType.VM:
        return None if peer is None else QubeName(peer)
    if text is None:
        return None
    match prop.type:
        case PropertyType.INT:
            return int(text)
        case PropertyType.BOOL:
            return text == "True"
        case _:
            return text


def read_runs(connection: sqlite3.Connection) -> Mapping[QubeName, Run]:
    rows = connection.execute("SELECT q.name, r.record, r.started_at FROM runs r JOIN qubes q USING (qid)")
    return {QubeName(name): Run(json.loads(record), started_at) for name, record, started_at in rows}


def read_qubes(connection: sqlite3.Connection, qids: Iterable[int] | None = None) -> dict[QubeName, Qube]:
    """All qubes, or those of these numbers that exist."""
    where, numbers = "", ()
    if qids is not None:
        numbers = tuple(qids)  # type: ignore[assignment]
        where = f" WHERE t.qid IN ({','.join('?' * len(numbers))})"

    def rows(select: str) -> sqlite3.Cursor:
        return connection.execute(select + where, numbers)

    properties: dict[int, dict[str, Value]] = defaultdict(dict)
    for qid, name, value, peer in rows(
        "SELECT t.qid, t.name, t.value, p.name FROM properties t LEFT JOIN qubes p ON p.qid = t.ref"
    ):
        if name in QUBE_PROPERTIES:
            properties[qid][name] = stored_value(QUBE_PROPERTIES[name], value, peer)
    features: dict[int, dict[str, str]] = defaultdict(dict)
    for qid, name, value in rows("SELECT t.qid, t.name, t.value FROM features t"):
        features[qid][name] = value
    tags: dict[int, set[str]] = defaultdict(set)
    for qid, tag in rows("SELECT t.qid, t.tag FROM tags t"):
        tags[qid].add(tag)
    volumes: dict[int, dict[str, Volume]] = defaultdict(dict)
    for qid, name, pool, vid, kind, size, keep, rw, ephemeral in rows(
        "SELECT t.qid, t.name, t.pool, t.vid, t.kind, t.size_bytes, t.revisions_to_keep, t.rw, t.ephemeral"
        " FROM volumes t"
    ):
        volumes[qid][name] = Volume(name, pool, vid, VolumeKind(kind), size, keep, bool(rw), bool(ephemeral))
    assignments: dict[int, list[Assignment]] = defaultdict(list)
    for qid, devclass, backend, port, device_id, mode, options in rows(
        "SELECT t.qid, t.devclass, p.name, t.port, t.device_id, t.mode, t.options"
        " FROM assignments t JOIN qubes p ON p.qid = t.backend"
    ):
        assignments[qid].append(Assignment(devclass, QubeName(backend), port, device_id, mode, json.loads(options)))
    return {
        QubeName(name): Qube(
            name=QubeName(name),
            qid=qid,
            uuid=uuid,
            klass=Klass(klass),
            label=label,
            properties=properties.get(qid, {}),
            features=features.get(qid, {}),
            tags=frozenset(tags.get(qid, ())),
            volumes=dict(sorted(volumes.get(qid, {}).items(), key=_volume_order)),
            assignments=tuple(assignments.get(qid, ())),
            firewall=firewall,
        )
        for qid, name, uuid, klass, label, firewall in rows(
            "SELECT t.qid, t.name, t.uuid, t.klass, t.label, t.firewall FROM qubes t"
        )
    }
