"""The typed client of the Admin API, and of the host's qrexec socket.

In: calls as values (``calls``). Out: parsed answers, or one of two errors: ``Refused`` (nothing was changed) and
``OutcomeUnknown`` (the connection was lost after the request went out). May import: wire, model.names, layout, errors.

Importing this package is cheap: no asyncio, no wire codec; ``aio`` and ``qrexec`` are imported by those who need them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cloison.client.connection import Client
    from cloison.client.failures import DaemonUnreachable, OutcomeUnknown, Refused

__all__ = ["Client", "DaemonUnreachable", "OutcomeUnknown", "Refused"]

_HOMES = {
    "Client": "cloison.client.connection",
    "DaemonUnreachable": "cloison.client.failures",
    "OutcomeUnknown": "cloison.client.failures",
    "Refused": "cloison.client.failures",
}


def __getattr__(name: str) -> Any:
    """Names are fetched from their modules when they are first used."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value
