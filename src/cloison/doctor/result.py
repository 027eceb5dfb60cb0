"""What a check finds.

In: nothing. Out: frozen values. May import: layout.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

from cloison.layout import Layout


class Status(Enum):
    OK = "ok"
    WARNING = "warning"
    """Qubes run, but something is slower, smaller or less safe than it could be."""
    FAILED = "failed"
    """Qubes will not run (or no template can be built) until this is mended."""


@dataclass(frozen=True)
class Ground:
    """What the checks look at besides the host itself."""

    layout: Layout


@dataclass(frozen=True)
class Finding:
    """``mend`` says what to do, and is empty when there is nothing to do."""

    status: Status
    found: str
    mend: str = ""


@dataclass(frozen=True)
class CheckResult:
    name: str
    topic: str
    status: Status
    found: str
    mend: str
    duration_s: float

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "topic": self.topic,
            "status": self.status.value,
            "found": self.found,
            "mend": self.mend,
            "duration_s": round(self.duration_s, 3),
        }
