"""The two import services, as the library runs them: volume data on standard input, the answer on standard output.

In: the method's name, the volume's; QREXEC_REQUESTED_TARGET. Out: the bytes of the daemon's answer.

The request line goes first, then the data as they come, however many: the daemon collects them (it knows these two
methods from the line), and answers when the stream has ended or as soon as it refuses.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Sequence

from cloison.client import Client
from cloison.client.framing import encode_request
from cloison.errors import CloisonError

PORTION = 1 << 18


def main(words: Sequence[str] | None = None) -> int:
    method, *rest = sys.argv[1:] if words is None else words
    volume = rest[0] if rest else ""
    try:
        request = encode_request(method, volume, os.environ.get("QREXEC_REQUESTED_TARGET", ""), b"")
        with Client(start_daemon=False).connect() as connection:
            connection.settimeout(None)
            _send(connection, request)
            while answer := connection.recv(PORTION):
                sys.stdout.buffer.write(answer)
        sys.stdout.buffer.flush()
    except (CloisonError, OSError) as error:
        print(f"{method}: {error}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


def _send(connection: socket.socket, request: bytes) -> None:
    try:
        connection.sendall(request)
        while data := os.read(0, PORTION):
            connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
    except (BrokenPipeError, ConnectionResetError):
        pass  # it has refused: the answer says why


if __name__ == "__main__":
    sys.exit(main())
