"""The store in one SQLite file (write-ahead log, foreign keys, one transaction per change).

In: changes. Out: pictures. May import: model, errors. Called from one thread only.

A damaged file is refused and kept: opening it never writes to it. After each good opening and at each orderly end a
copy is left beside it (``NAME.good``), which a person can put back.
"""

from __future__ import annotations

import json
import os
import sqlite3
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from cloison.drivers.state import schema
from cloison.drivers.state.reader import read_inventory, read_qubes, read_runs
from cloison.drivers.state.transaction import SqliteTransaction
from cloison.errors import BackendFailed, DiskFull, StateDamaged
from cloison.model.classes import Klass
from cloison.model.inventory import Inventory
from cloison.model.labels import DEFAULT_LABELS
from cloison.model.names import DOM0, QubeName
from cloison.model.qube import Host

DOM0_UUID = str(uuid.UUID(int=0))
_FULL = ("disk is full", "disk full")


def read_host() -> Host:
    """This computer, as the default rules see it."""
    page, pages = os.sysconf("SC_PAGE_SIZE"), os.sysconf("SC_PHYS_PAGES")
    return Host(memory_mib=page * pages >> 20, cpus=len(os.sched_getaffinity(0)))


class Store:
    """One system's records. Make it with ``Store.open``."""

    def __init__(self, path: Path, connection: sqlite3.Connection, host: Host) -> None:
        self.path = path
        self._connection = connection
        self._host = host
        self._inventory: Inventory | None = None
        self._in_transaction = False
        self._changed = False
        self._closed = False

    @classmethod
    def open(cls, path: Path, *, host: Host | None = None, keep_copy: bool = True) -> Store:
        """Open, or make, the records at ``path``.

        Raises StateDamaged naming the file (which is left as it was) if it is not a whole database of ours.
        """
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not path.exists():
            _make(path)
        try:
            connection = _connect(path)
        except sqlite3.Error as error:
            raise StateDamaged(f"cannot open the database {path}: {error}", hint=_mend(path)) from None
        try:
            _check(path, connection)
            store = cls(path, connection, host or read_host())
            store._inventory = read_inventory(connection, store._host)
            if keep_copy:
                _copy(path, connection)
        except (sqlite3.Error, ValueError, KeyError) as error:
            connection.close()
            raise StateDamaged(f"the database {path} is damaged: {error}", hint=_mend(path)) from None
        except StateDamaged:
            connection.close()
            raise
        return store

    def close(self) -> None:
        """Idempotent. Leaves a fresh copy behind, if the records are whole."""
        if self._closed:
            return
        self._closed = True
        try:
            if self._changed and self._connection.execute("PRAGMA quick_check(1)").fetchone() == ("ok",):
                _copy(self.path, self._connection)
        except sqlite3.Error:
            pass  # the next opening says what is wrong, and keeps the older copy
        finally:
            self._connection.close()

    @property
    def inventory(self) -> Inventory:
        if self._inventory is None:
            self._inventory = read_inventory(self._connection, self._host)
        return self._inventory

    @contextmanager
    def transaction(self, *, durable: bool = True) -> Iterator[SqliteTransaction]:
        if self._in_transaction:
            raise BackendFailed("a change of the records inside another")
        self._in_transaction = True
        try:
            self._connection.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
            self._connection.execute("BEGIN IMMEDIATE")
            change = SqliteTransaction(self._connection)
            try:
                yield change
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise
            self._changed = True
            self._refresh(change)
        except sqlite3.Error as error:
            raise self._failure(error) from error
        finally:
            self._in_transaction = False

    def _refresh(self, change: SqliteTransaction) -> None:
        """Make the next picture: read again only what the change touched."""
        before = self._inventory
        if before is None or change.touched_all:
            self._inventory = None
            return
        if not change.touched:
            if change.touched_runs:
                self._inventory = before.with_runs(read_runs(self._connection))
            return
        fresh = read_qubes(self._connection, change.touched)
        qubes = {name: qube for name, qube in before.qubes.items() if qube.qid not in change.touched} | fresh
        runs = read_runs(self._connection) if change.touched_runs else before.runs
        self._inventory = replace(before, qubes=qubes, runs=runs, _memo={})

    def _failure(self, error: sqlite3.Error) -> Exception:
        text = str(error)
        if any(words in text for words in _FULL):
            return DiskFull(f"no room to write {self.path}", hint="free some space; nothing was changed")
        if isinstance(error, sqlite3.IntegrityError):
            return BackendFailed(f"the records would no longer fit together: {text}")
        return BackendFailed(f"cannot write {self.path}: {text}")

    def know_kernels(self, names: tuple[str, ...]) -> None:
        """The kernels that the property ``kernel`` may name from now on."""
        self._host = replace(self._host, kernels=names)
        self._inventory = None

    def notes(self, name: QubeName) -> str:
        row = self._connection.execute("SELECT notes FROM qubes WHERE name = ?", (name,)).fetchone()
        return str(row[0]) if row else ""

    def recent_dispids(self, since: float) -> frozenset[int]:
        rows = self._connection.execute("SELECT dispid FROM used_dispids WHERE used_at >= ?", (since,))
        return frozenset(row[0] for row in rows)

    def doomed_volumes(self) -> frozenset[tuple[str, str]]:
        rows = self._connection.execute("SELECT pool, vid FROM doomed_volumes")
        return frozenset((str(pool), str(vid)) for pool, vid in rows)


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None, timeout=5, check_same_thread=True)
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA trusted_schema = OFF")
    return connection


def _make(path: Path) -> None:
    """A new system: written aside and renamed, so that a database at ``path`` is always a whole one."""
    aside = path.with_name(path.name + ".new")
    for rest in (aside, aside.with_name(aside.name + "-wal"), aside.with_name(aside.name + "-shm")):
        rest.unlink(missing_ok=True)
    aside.touch(mode=0o600)
    connection = _connect(aside)
    try:
        connection.executescript(f"BEGIN; {schema.TABLES}")
        connection.executemany(
            "INSERT INTO labels (name, number, colour) VALUES (?, ?, ?)",
            [(label.name, label.index, label.colour) for label in DEFAULT_LABELS],
        )
        connection.execute(
            "INSERT INTO qubes (qid, name, uuid, klass, label) VALUES (0, ?, ?, ?, 'black')",
            (DOM0, DOM0_UUID, Klass.ADMIN.value),
        )
        connection.execute(
            "INSERT INTO pools VALUES ('default', 'qcow2', ?, 1, 0)",
            (json.dumps({}),),
        )
        connection.execute(f"PRAGMA application_id = {schema.APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {schema.VERSION}")
        connection.execute("COMMIT")
        connection.execute("PRAGMA journal_mode = WAL")
    except sqlite3.Error as error:
        text = str(error)
        kind = DiskFull if any(words in text for words in _FULL) else BackendFailed
        raise kind(f"cannot make the database {path}: {text}") from None
    finally:
        connection.close()
    aside.rename(path)
    _sync_directory(path.parent)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _check(path: Path, connection: sqlite3.Connection) -> None:
    """Raises StateDamaged unless this is a whole database of ours in a version that we know."""
    if path.stat().st_size == 0:
        raise StateDamaged(f"the database {path} is empty", hint=_mend(path))
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if application != schema.APPLICATION_ID:
        raise StateDamaged(f"{path} is not a database of Cloison", hint=_mend(path))
    if version > schema.VERSION:
        raise StateDamaged(
            f"the database {path} is of version {version}, newer than this program's {schema.VERSION}",
            hint="use the newer Cloison that wrote it",
        )
    problems = [str(row[0]) for row in connection.execute("PRAGMA integrity_check(3)") if row[0] != "ok"]
    problems += [f"table {row[0]} names a missing {row[2]}" for row in connection.execute("PRAGMA foreign_key_check")]
    if problems:
        raise StateDamaged(f"the database {path} is damaged: {'; '.join(problems[:3])}", hint=_mend(path))
    for step in range(version, schema.VERSION):
        connection.executescript(f"BEGIN; {schema.MIGRATIONS[step]}; PRAGMA user_version = {step + 1}; COMMIT")


def _copy(path: Path, connection: sqlite3.Connection) -> None:
    """Leave a whole copy beside the database; no room for it is no reason not to start."""
    aside, kept = path.with_name(path.name + ".good.new"), path.with_name(path.name + ".good")
    try:
        aside.unlink(missing_ok=True)
        aside.touch(mode=0o600)
        target = sqlite3.connect(aside)
        try:
            connection.backup(target)
        finally:
            target.close()
        aside.rename(kept)
    except (OSError, sqlite3.Error):
        aside.unlink(missing_ok=True)


def _mend(path: Path) -> str:
    kept = path.with_name(path.name + ".good")
    copy = f"; a copy from the last good start is {kept}" if kept.exists() else ""
    return f"nothing was changed in it{copy}"
