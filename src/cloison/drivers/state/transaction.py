"""The changes that a transaction can make, as statements; notes which qubes they touched."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Mapping
from typing import Any

from cloison.errors import QubeNotFound
from cloison.model.classes import Klass
from cloison.model.labels import Label
from cloison.model.names import QubeName
from cloison.model.properties import GLOBAL_PROPERTIES, QUBE_PROPERTIES, Property
from cloison.model.qube import Assignment, Pool
from cloison.model.values import PropertyType, Value
from cloison.model.volumes import Volume


class SqliteTransaction:
    """Implements ``drivers.state.base.Transaction`` (the contract is written there)."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._run = connection.execute
        self.touched: set[int] = set()
        self.touched_runs = False
        self.touched_all = False

    def _qid(self, name: str) -> int:
        """The number of a qube that is about to be changed."""
        qid = self._find_qid(name)
        self.touched.add(qid)
        return qid

    def _find_qid(self, name: str) -> int:
        row = self._run("SELECT qid FROM qubes WHERE name = ?", (name,)).fetchone()
        if row is None:
            raise QubeNotFound(name)
        return int(row[0])

    def _stored(self, prop: Property, value: Value) -> tuple[str | None, int | None]:
        if value is None:
            return None, None
        if prop.type is PropertyType.VM:
            return None, self._find_qid(str(value))
        return str(value), None

    def add_qube(self, name: QubeName, *, qid: int, uuid: str, klass: Klass, label: str) -> None:
        self._run(
            "INSERT INTO qubes (qid, name, uuid, klass, label) VALUES (?, ?, ?, ?, ?)",
            (qid, name, uuid, klass.value, label),
        )
        self.touched.add(qid)

    def rename_qube(self, old: QubeName, new: QubeName) -> None:
        self._run("UPDATE qubes SET name = ? WHERE qid = ?", (new, self._qid(old)))
        self.touched_all = True

    def remove_qube(self, name: QubeName) -> None:
        qid = self._qid(name)
        self._run("DELETE FROM qubes WHERE qid = ?", (qid,))
        self.touched_runs = True

    def set_label(self, name: QubeName, label: str) -> None:
        self._run("UPDATE qubes SET label = ? WHERE qid = ?", (label, self._qid(name)))

    def set_property(self, name: QubeName, property_name: str, value: Value) -> None:
        text, ref = self._stored(QUBE_PROPERTIES[property_name], value)
        self._run(
            "INSERT INTO properties (qid, name, value, ref) VALUES (?, ?, ?, ?)"
            " ON CONFLICT DO UPDATE SET value = excluded.value, ref = excluded.ref",
            (self._qid(name), property_name, text, ref),
        )

    def reset_property(self, name: QubeName, property_name: str) -> None:
        self._run("DELETE FROM properties WHERE qid = ? AND name = ?", (self._qid(name), property_name))

    def set_setting(self, property_name: str, value: Value) -> None:
        text, ref = self._stored(GLOBAL_PROPERTIES[property_name], value)
        self._run(
            "INSERT INTO settings (name, value, ref) VALUES (?, ?, ?)"
            " ON CONFLICT DO UPDATE SET value = excluded.value, ref = excluded.ref",
            (property_name, text, ref),
        )
        self.touched_all = True

    def reset_setting(self, property_name: str) -> None:
        self._run("DELETE FROM settings WHERE name = ?", (property_name,))
        self.touched_all = True

    def set_feature(self, name: QubeName, feature: str, value: str) -> None:
        self._run(
            "INSERT INTO features (qid, name, value) VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET value = excluded.value",
            (self._qid(name), feature, value),
        )

    def remove_feature(self, name: QubeName, feature: str) -> None:
        self._run("DELETE FROM features WHERE qid = ? AND name = ?", (self._qid(name), feature))

    def add_tag(self, name: QubeName, tag: str) -> None:
        self._run("INSERT OR IGNORE INTO tags (qid, tag) VALUES (?, ?)", (self._qid(name), tag))

    def remove_tag(self, name: QubeName, tag: str) -> None:
        self._run("DELETE FROM tags WHERE qid = ? AND tag = ?", (self._qid(name), tag))

    def set_notes(self, name: QubeName, notes: str) -> None:
        self._run("UPDATE qubes SET notes = ? WHERE qid = ?", (notes, self._qid(name)))

    def set_firewall(self, name: QubeName, rules: str | None) -> None:
        self._run("UPDATE qubes SET firewall = ? WHERE qid = ?", (rules, self._qid(name)))

    def put_volume(self, name: QubeName, volume: Volume) -> None:
        self._run(
            "INSERT OR REPLACE INTO volumes"
            " (qid, name, pool, vid, kind, size_bytes, revisions_to_keep, rw, ephemeral)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                self._qid(name),
                volume.name,
                volume.pool,
                volume.vid,
                volume.kind.value,
                volume.size_bytes,
                volume.revisions_to_keep,
                volume.rw,
                volume.ephemeral,
            ),
        )

    def remove_volume(self, name: QubeName, volume: str) -> None:
        self._run("DELETE FROM volumes WHERE qid = ? AND name = ?", (self._qid(name), volume))

    def put_assignment(self, name: QubeName, assignment: Assignment) -> None:
        backend = self._find_qid(assignment.backend)
        self._run(
            "INSERT OR REPLACE INTO assignments (qid, devclass, backend, port, device_id, mode, options)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)",
            (
                self._qid(name),
                assignment.devclass,
                backend,
                assignment.port,
                assignment.device_id,
                assignment.mode,
                json.dumps(dict(assignment.options)),
            ),
        )

    def remove_assignment(self, name: QubeName, assignment: Assignment) -> None:
        self._run(
            "DELETE FROM assignments WHERE qid = ? AND devclass = ? AND port = ? AND device_id = ?"
            " AND backend = (SELECT qid FROM qubes WHERE name = ?)",
            (self._qid(name), assignment.devclass, assignment.port, assignment.device_id, assignment.backend),
        )

    def add_label(self, label: Label) -> None:
        self._run("INSERT INTO labels (name, number, colour) VALUES (?, ?, ?)", (label.name, label.index, label.colour))
        self.touched_all = True

    def remove_label(self, name: str) -> None:
        self._run("DELETE FROM labels WHERE name = ?", (name,))
        self.touched_all = True

    def put_pool(self, pool: Pool) -> None:
        self._run(
            "INSERT INTO pools (name, driver, config, revisions_to_keep, ephemeral_volatile) VALUES (?, ?, ?, ?, ?)"
            " ON CONFLICT DO UPDATE SET driver = excluded.driver, config = excluded.config,"
            " revisions_to_keep = excluded.revisions_to_keep, ephemeral_volatile = excluded.ephemeral_volatile",
            (pool.name, pool.driver, json.dumps(dict(pool.config)), pool.revisions_to_keep, pool.ephemeral_volatile),
        )
        self.touched_all = True

    def remove_pool(self, name: str) -> None:
        self._run("DELETE FROM pools WHERE name = ?", (name,))
        self.touched_all = True

    def set_run(self, name: QubeName, record: Mapping[str, Any], started_at: float | None = None) -> None:
        self._run(
            "INSERT INTO runs (qid, record, started_at) VALUES (?, ?, ?)"
            " ON CONFLICT DO UPDATE SET record = excluded.record, started_at = coalesce(?, started_at)",
            (
                self._find_qid(name),
                json.dumps(dict(record)),
                time.time() if started_at is None else started_at,
                started_at,
            ),
        )
        self.touched_runs = True

    def delete_run(self, name: QubeName) -> None:
        self._run("DELETE FROM runs WHERE qid = (SELECT qid FROM qubes WHERE name = ?)", (name,))
        self.touched_runs = True

    def use_dispid(self, dispid: int, at: float) -> None:
        self._run("INSERT OR REPLACE INTO used_dispids (dispid, used_at) VALUES (?, ?)", (dispid, at))

    def doom_volume(self, pool: str, vid: str) -> None:
        self._run("INSERT OR IGNORE INTO doomed_volumes (pool, vid) VALUES (?, ?)", (pool, vid))

    def spare_volume(self, pool: str, vid: str) -> None:
        self._run("DELETE FROM doomed_volumes WHERE pool = ? AND vid = ?", (pool, vid))
