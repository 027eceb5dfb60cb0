"""Which devices an assignment speaks of. Pure."""

from __future__ import annotations

from cloison.model.qube import Assignment


def matches(wish: Assignment, port: str, device_id: str) -> bool:
    """Whether a device of the wish's backend and class is meant: ``*`` is any port, any identity."""
    return wish.port in ("*", port) and wish.device_id in ("*", device_id)
