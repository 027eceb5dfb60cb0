"""Who listens: a socket in a directory like /tmp could be somebody else's trap.

In: a connected socket. Out: nothing, or DaemonUnreachable. May import: client.failures.
"""

from __future__ import annotations

import os
import socket
import struct

from cloison.client.failures import DaemonUnreachable

_CREDENTIALS = struct.Struct("iII")
"""pid, uid, gid of the process that listens, as the kernel knows them (struct ucred)."""


def require_own_peer(connection: socket.socket, path: str) -> None:
    """Raise DaemonUnreachable unless the daemon at the other end runs as this user."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _pid, uid, _gid = _CREDENTIALS.unpack(raw)
    if uid != os.getuid():
        raise DaemonUnreachable(
            f"who listens on {path} is user {uid}, not you (user {os.getuid()})",
            hint="that is another user's system, or a trap; CLOISON_ROOT names another place for yours",
        )
