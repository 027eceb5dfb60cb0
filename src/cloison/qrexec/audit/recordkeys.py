"""One key per qube, under which records about it are sealed; destroying it erases them.

In: a file of JSON lines. Out: keys by their ids. May import: record, sealing, disk.

A key is on the disk for good before the first record is sealed with it. What stays of a destroyed key is its id, which
says nothing about the qube.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cloison.qrexec.audit.disk import Disk
from cloison.qrexec.audit.record import Subject
from cloison.qrexec.audit.sealing import KEY_BYTES, forget_ciphers

KEYS_FILE = "record-keys"


@dataclass(frozen=True)
class RecordKey:
    id: str
    uuid: str
    name: str
    key: bytes

    def to_line(self) -> bytes:
        return json.dumps({"id": self.id, "uuid": self.uuid, "name": self.name, "key": self.key.hex()}).encode() + b"\n"


class RecordKeys:
    """Keys of all qubes that were ever recorded. Reading needs no ``disk``."""

    def __init__(self, directory: Path, disk: Disk | None = None) -> None:
        self._path = directory / KEYS_FILE
        self._disk = disk or Disk()
        self._keys: dict[str, RecordKey] = {}
        self._by_uuid: dict[str, RecordKey] = {}
        self.erased: set[str] = set()
        self._load()

    def _load(self) -> None:
        try:
            text = self._path.read_bytes()
        except FileNotFoundError:
            return
        for line in text.split(b"\n"):
            try:
                found = json.loads(line)
                if "erased" in found:
                    self.erased.add(str(found["id"]))
                else:
                    self._learn(RecordKey(found["id"], found["uuid"], found["name"], bytes.fromhex(found["key"])))
            except (ValueError, LookupError, TypeError):
                continue  # the end of a line that a power cut left: no record was sealed with it
        for gone in self.erased:
            self._keys.pop(gone, None)

    def _learn(self, key: RecordKey) -> None:
        self._keys[key.id] = self._by_uuid[key.uuid] = key

    def find(self, key_id: str) -> bytes | None:
        found = self._keys.get(key_id)
        return found.key if found else None

    def find_ids(self, name: str) -> list[str]:
        """Keys of every qube that had this name last."""
        return [key.id for key in self._keys.values() if key.name == name]

    def names(self) -> list[str]:
        return sorted({key.name for key in self._keys.values()})

    def of(self, subject: Subject) -> RecordKey:
        """The qube's key, made and stored at first use. OSError if it cannot be stored."""
        known = self._by_uuid.get(subject.uuid)
        if known is not None and known.name == subject.name:
            return known
        key_id, secret = (known.id, known.key) if known else (secrets.token_hex(8), os.urandom(KEY_BYTES))
        made = RecordKey(key_id, subject.uuid, subject.name, secret)
        self._append(made.to_line())
        self._learn(made)
        return made

    def _append(self, line: bytes) -> None:
        descriptor = self._disk.open_to_append(self._path)
        try:
            size = os.fstat(descriptor).st_size
            # A newline first: what a power cut left of an earlier line must not swallow this one.
            data = b"\n" + line if size else line
            if self._disk.write(descriptor, data) != len(data):
                self._disk.truncate(descriptor, size)
                raise OSError(28, "no space left for a record key", str(self._path))
            self._disk.sync(descriptor)
            if not size:
                self._disk.sync_directory(self._path.parent)
        finally:
            os.close(descriptor)

    def destroy(self, key_ids: Sequence[str]) -> None:
        """Their records cannot be read any more when this returns."""
        gone = self.erased | set(key_ids)
        left = [key for key in self._keys.values() if key.id not in gone]
        tombs = [json.dumps({"id": key_id, "erased": True}).encode() + b"\n" for key_id in sorted(gone)]
        self._disk.replace_secret(self._path, b"".join([key.to_line() for key in left] + tombs))
        self._keys, self._by_uuid, self.erased = {}, {}, gone
        for key in left:
            self._learn(key)
        forget_ciphers()
