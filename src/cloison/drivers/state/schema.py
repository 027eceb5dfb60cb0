"""The tables. A change of them is a new version and a step in ``MIGRATIONS``."""

from __future__ import annotations

APPLICATION_ID = 0x436C6F69
VERSION = 1

TABLES = """
CREATE TABLE labels (
    name   TEXT PRIMARY KEY,
    number INTEGER NOT NULL UNIQUE,
    colour TEXT NOT NULL
) STRICT;
CREATE TABLE qubes (
    qid      INTEGER PRIMARY KEY CHECK (qid BETWEEN 0 AND 10000),
    name     TEXT NOT NULL UNIQUE,
    uuid     TEXT NOT NULL UNIQUE,
    klass    TEXT NOT NULL,
    label    TEXT NOT NULL REFERENCES labels (name),
    notes    TEXT NOT NULL DEFAULT '',
    firewall TEXT
) STRICT;
-- A property of type vm keeps its value in "ref", so that no name can dangle and a rename touches one row.
CREATE TABLE properties (
    qid   INTEGER NOT NULL REFERENCES qubes (qid) ON DELETE CASCADE,
    name  TEXT NOT NULL,
    value TEXT,
    ref   INTEGER REFERENCES qubes (qid) DEFERRABLE INITIALLY DEFERRED,
    PRIMARY KEY (qid, name)
) STRICT, WITHOUT ROWID;
CREATE INDEX properties_ref ON properties (ref) WHERE ref IS NOT NULL;
CREATE TABLE settings (
    name  TEXT PRIMARY KEY,
    value TEXT,
    ref   INTEGER REFERENCES qubes (qid) DEFERRABLE INITIALLY DEFERRED
) STRICT, WITHOUT ROWID;
CREATE TABLE features (
    qid   INTEGER NOT NULL REFERENCES qubes (qid) ON DELETE CASCADE,
    name  TEXT NOT NULL,
    value TEXT NOT NULL,
    PRIMARY KEY (qid, name)
) STRICT, WITHOUT ROWID;
CREATE TABLE tags (
    qid INTEGER NOT NULL REFERENCES qubes (qid) ON DELETE CASCADE,
    tag TEXT NOT NULL,
    PRIMARY KEY (qid, tag)
) STRICT, WITHOUT ROWID;
CREATE TABLE pools (
    name               TEXT PRIMARY KEY,
    driver             TEXT NOT NULL,
    config             TEXT NOT NULL,
    revisions_to_keep  INTEGER NOT NULL,
    ephemeral_volatile INTEGER NOT NULL
) STRICT;
CREATE TABLE volumes (
    qid               INTEGER NOT NULL REFERENCES qubes (qid) ON DELETE CASCADE,
    name              TEXT NOT NULL,
    pool              TEXT NOT NULL REFERENCES pools (name),
    vid               TEXT NOT NULL,
    kind              TEXT NOT NULL,
    size_bytes        INTEGER NOT NULL,
    revisions_to_keep INTEGER NOT NULL,
    rw                INTEGER NOT NULL,
    ephemeral         INTEGER NOT NULL,
    PRIMARY KEY (qid, name),
    UNIQUE (pool, vid)
) STRICT, WITHOUT ROWID;
CREATE TABLE assignments (
    qid       INTEGER NOT NULL REFERENCES qubes (qid) ON DELETE CASCADE,
    devclass  TEXT NOT NULL,
    backend   INTEGER NOT NULL REFERENCES qubes (qid) DEFERRABLE INITIALLY DEFERRED,
    port      TEXT NOT NULL,
    device_id TEXT NOT NULL,
    mode      TEXT NOT NULL,
    options   TEXT NOT NULL,
    PRIMARY KEY (qid, devclass, backend, port, device_id)
) STRICT, WITHOUT ROWID;
CREATE TABLE runs (
    qid        INTEGER PRIMARY KEY REFERENCES qubes (qid) ON DELETE CASCADE,
    record     TEXT NOT NULL,
    started_at REAL NOT NULL
) STRICT;
-- Volumes that the next daemon must remove: half made, or of a qube that is gone already.
CREATE TABLE doomed_volumes (
    pool TEXT NOT NULL,
    vid  TEXT NOT NULL,
    PRIMARY KEY (pool, vid)
) STRICT, WITHOUT ROWID;
CREATE TABLE used_dispids (
    dispid  INTEGER PRIMARY KEY,
    used_at REAL NOT NULL
) STRICT;
"""

MIGRATIONS: dict[int, str] = {}
"""Statements that lead from that version to the next."""
