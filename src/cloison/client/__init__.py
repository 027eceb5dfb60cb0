"""The typed client of the Admin API, and of the host's qrexec socket.

In: calls as values (``calls``). Out: parsed answers, or one of two errors: ``Refused`` (nothing was changed) and
``OutcomeUnknown`` (the connection was lost after the request went out). May import: wire, model.names, layout, errors.

Importing this package is cheap: no asyncio, no wire codec; ``aio`` and ``qrexec`` are imported by those who need them.
"""

from __future__ import annotations

from cloison.client.connection import Client
from cloison.client.failures import DaemonUnreachable, OutcomeUnknown, Refused

__all__ = ["Client", "DaemonUnreachable", "OutcomeUnknown", "Refused"]
