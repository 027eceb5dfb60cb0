"""What dom0 told this qube of itself, written down for its own scripts (qubesdb-read and its kin read it).

One small file in memory, open since before the freeze: a fork writes it at once, without making anything.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

PATH = "/run/cloison/told"
LONGEST = 1 << 20
SECRET = frozenset({"entropy"})


class Told:
    def __init__(self, path: str = PATH) -> None:
        self._path = path
        self._fd = -1
        self._known: dict[str, Any] = {}

    def prepare(self) -> None:
        """Open the file, which anybody in this qube may read; what an agent before this one wrote is known again."""
        if self._fd < 0:
            os.makedirs(os.path.dirname(self._path), exist_ok=True)
            self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            with suppress(ValueError):  # its writer was killed half-way
                self._known = dict(json.loads(os.pread(self._fd, LONGEST, 0) or b"{}"))

    def remember(self, fields: Mapping[str, Any]) -> None:
        """Add these to what is known; a key that comes again has its new value."""
        self.prepare()
        self._known.update((key, value) for key, value in fields.items() if key not in SECRET)
        content = json.dumps(self._known).encode()
        os.pwrite(self._fd, content, 0)
        os.ftruncate(self._fd, len(content))

    def text(self, key: str) -> str:
        """What was told under that name; empty: nothing."""
        self.prepare()
        return str(self._known.get(key) or "")

    def services(self) -> Mapping[str, Any]:
        """As they were told last."""
        found = self._known.get("services")
        return found if isinstance(found, dict) else {}


told = Told()
