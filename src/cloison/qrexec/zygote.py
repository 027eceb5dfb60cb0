"""The fork server of the relays: started once in its jail, imports all a relay needs, then forks one per qube.

In: packets on an inherited socket, each ``{"name", "resync"}`` with two descriptors (agent channel, control socket).
Out: confined relay processes. May import: seccomp, relay (runs in the jail).

Forking an interpreter that has already imported everything costs a few private pages instead of a few megabytes.
The price: all relays share one address space layout and hash seed, so a leak in one tells about the others; what a
relay may do is limited by its filter, not by its secrets.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import resource
import signal
import socket
import struct
import sys
import traceback

from cloison.qrexec.relay import MAX_SESSIONS, open_relay
from cloison.qrexec.seccomp import Confinement

EMPTY_ROOT = "/empty"
MAX_REQUEST_BYTES = 4096
_LINUX_CAPABILITY_VERSION_3 = 0x20080522

_LIMITS = (
    # A relay holds at most a few MiB of unsent frames; the interpreter's own mappings take some tens of MiB.
    (resource.RLIMIT_AS, 256 << 20),
    (resource.RLIMIT_CORE, 0),
    (resource.RLIMIT_FSIZE, 0),
    (resource.RLIMIT_MEMLOCK, 0),
    (resource.RLIMIT_NPROC, 0),
    (resource.RLIMIT_MSGQUEUE, 0),
    # Control socket, channel, epoll and one leg per call.
    (resource.RLIMIT_NOFILE, 16 + MAX_SESSIONS),
)


def main(socket_fd: int) -> None:
    """Serve fork requests until the daemon closes its end."""
    gc.disable()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    confinement = Confinement()
    _leave_files_behind()
    requests = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, fileno=socket_fd)
    gc.collect()
    gc.freeze()
    requests.send(b"ready")
    while True:
        packet, fds, flags, _ = socket.recv_fds(requests, MAX_REQUEST_BYTES, 2)
        if not packet:
            return
        if len(fds) == 2 and not flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            order = json.loads(packet)
            if os.fork() == 0:
                requests.close()
                _become_relay(confinement, fds[0], fds[1], str(order["name"]), bool(order["resync"]))
        for fd in fds:
            os.close(fd)


def _leave_files_behind() -> None:
    """Everything is imported: from here on the process sees an empty directory, and may not change that back."""
    os.chroot(EMPTY_ROOT)
    os.chdir("/")
    libc = ctypes.CDLL(None, use_errno=True)
    header = struct.pack("<Ii", _LINUX_CAPABILITY_VERSION_3, 0)
    if libc.capset(header, bytes(24)) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"capset: {os.strerror(code)}")


def _become_relay(confinement: Confinement, channel_fd: int, control_fd: int, name: str, resync: bool) -> None:
    """In the child: give everything up, then carry frames until the end. Never returns."""
    status = 70
    try:
        confinement.set_process_name(f"qrexec {name}")
        for limit, value in _LIMITS:
            resource.setrlimit(limit, (value, value))
        process = open_relay(channel_fd, control_fd, resync=resync)
        confinement.enter()
        process.run()
        status = 0
    except BaseException:
        # The named border: whatever happens in here, this process ends, and only the channel's qube notices.
        sys.stderr.write(traceback.format_exc(limit=-4))
        sys.stderr.flush()
    finally:
        os._exit(status)


if __name__ == "__main__":
    main(int(sys.argv[1]))
