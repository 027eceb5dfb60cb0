"""The packages of an image, kept apart from our own guest files: an unpacked tree as one archive in the cache.

In: the inputs that decide which packages an image has. Out: a path to an archive, or None. May import: errors, this
package. Fetching and installing packages is most of a build's time, and our guest's side changes far more often.

Layout: ``bases/<key>.tar.zst``, whole when it has its name. An archive older than ``MAX_AGE_S`` is not used, so that a
new image does not begin with packages of long ago.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path

MAX_AGE_S = 7 * 86400.0
KEPT = 3
"""Archives kept (130 MB each), the newest first."""


class Bases:
    """The archives below a cache directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def find(self, key: str) -> Path | None:
        """The archive of that key, if there is one young enough."""
        path = self._path(key)
        try:
            age_s = time.time() - path.stat().st_mtime
        except OSError:
            return None
        return path if 0 <= age_s <= MAX_AGE_S else None

    def publish(self, key: str, archive: Path) -> None:
        """Take ``archive`` (on the same file system) in under its key, synced; older ones give way."""
        self._directory.mkdir(parents=True, exist_ok=True)
        with archive.open("rb") as file:
            os.fsync(file.fileno())
        archive.rename(self._path(key))
        for old in self.all()[KEPT:]:
            old.unlink(missing_ok=True)

    def drop(self, key: str) -> None:
        self._path(key).unlink(missing_ok=True)

    def all(self) -> list[Path]:
        """Every archive, the newest first."""
        dated = []
        for path in self._directory.glob("*.tar.zst"):
            try:
                dated.append((path.stat().st_mtime, path))
            except OSError:  # another build removed it just now
                continue
        return [path for _, path in sorted(dated, reverse=True)]

    def _path(self, key: str) -> Path:
        return self._directory / f"{key}.tar.zst"


def base_key(**inputs: str | Sequence[str]) -> str:
    """Digest of what decides the packages: distribution, suite, sources by option, packages, how dpkg unpacks."""
    return hashlib.sha256(json.dumps(inputs, sort_keys=True, default=list).encode()).hexdigest()[:32]
