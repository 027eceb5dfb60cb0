"""qvm-connect-tcp: a port of another qube as a port of this one, through the service qubes.ConnectTCP.

In: where to listen, whom to call. Out: one call for each connection. May import: the standard library.
"""

from __future__ import annotations

import os
import socket
import sys

from cloison_tools.client import REFUSED, TROUBLE, CallRefused, RemoteCall, complain

USAGE = """usage: qvm-connect-tcp [--foreground] [LOCAL_PORT]:[QUBE]:REMOTE_PORT
Connections to LOCAL_PORT (default: REMOTE_PORT) of this qube go to REMOTE_PORT of QUBE (default: the policy chooses).
It listens on localhost only, and goes on in the background. Example: qvm-connect-tcp 8080:work:80"""


class BadAddress(ValueError):
    """What was given is no LOCAL:QUBE:REMOTE."""


def parse_address(text: str) -> tuple[int, str, int]:
    """Local port, qube (empty: the policy's choice) and remote port."""
    parts = text.split(":")
    if len(parts) != 3:
        raise BadAddress(f"{text!a} is not [LOCAL_PORT]:[QUBE]:REMOTE_PORT")
    local, qube, remote = parts
    return _port(local or remote), qube.replace("$", "@"), _port(remote)


def _port(text: str) -> int:
    if not (text.isascii() and text.isdecimal()) or text.startswith("0") or not 1 <= int(text) <= 65535:
        raise BadAddress(f"{text!a} is not a port (1 to 65535)")
    return int(text)


def connect_tcp(arguments: list[str]) -> int:
    """The program."""
    words = [word for word in arguments if word not in ("-f", "--foreground")]
    if len(words) != 1 or words[0].startswith("-"):
        complain(USAGE)
        return 0 if words[:1] in (["-h"], ["--help"]) else TROUBLE
    try:
        local, qube, remote = parse_address(words[0])
        listener = socket.create_server(("127.0.0.1", local))
    except BadAddress as error:
        complain(f"qvm-connect-tcp: {error}")
        return TROUBLE
    except OSError as error:
        complain(f"qvm-connect-tcp: cannot listen on port {local}: {error.strerror}")
        return TROUBLE
    print(f"Port {local} of localhost is port {remote} of {qube or 'the qube that the policy chooses'}", flush=True)
    if words == arguments and not _go_to_background():
        return 0
    serve(listener, qube, remote)
    return 0


def _go_to_background() -> bool:
    """True in the process that goes on."""
    if os.fork():
        return False
    os.setsid()
    nothing = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(nothing, fd)
    os.close(nothing)
    return True


def serve(listener: socket.socket, qube: str, remote: int) -> None:
    """One call, in a process of its own, for each connection; until killed."""
    import signal

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            os._exit(carry(connection, qube, remote))
        connection.close()


def carry(connection: socket.socket, qube: str, remote: int) -> int:
    """One connection's call; its exit code. A refused one is closed."""
    try:
        call = RemoteCall(qube or "@default", f"qubes.ConnectTCP+{remote}")
        call.connect()
        fd = connection.fileno()
        return call.pump(fd, fd, 2, half_close=True)
    except CallRefused:
        print("Request refused", file=sys.stderr)
        return REFUSED
    except OSError as error:
        print(f"qvm-connect-tcp: {error}", file=sys.stderr)
        return TROUBLE
