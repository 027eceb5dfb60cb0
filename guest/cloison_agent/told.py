"""What dom0 told this qube of itself, written down for its own scripts (qubesdb-read and its kin read it).

One small file in memory, open since before the freeze: a fork writes it at once, without making anything.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

PATH = "/run/cloison/told"
SECRET = frozenset({"entropy"})


class Told:
    def __init__(self, path: str = PATH) -> None:
        self._path = path
        self._fd = -1
        self._known: dict[str, Any] = {}

    def prepare(self) -> None:
        """Open the file; anybody in this qube may read it."""
        if self._fd < 0:
            os.makedirs(os.path.dirname(self._path), exist_ok=True)
            self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)

    def remember(self, fields: Mapping[str, Any]) -> None:
        """Add these to what is known; a key that comes again has its new value."""
        self.prepare()
        self._known.update((key, value) for key, value in fields.items() if key not in SECRET)
        content = json.dumps(self._known).encode()
        os.pwrite(self._fd, content, 0)
        os.ftruncate(self._fd, len(content))

    def services(self) -> Mapping[str, Any]:
        """As they were told last."""
        found = self._known.get("services")
        return found if isinstance(found, dict) else {}


told = Told()
