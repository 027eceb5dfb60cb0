"""Volume data on their way out: more than a request may hold (Admin API notes, section 1.7).

In: a descriptor with the data. Out: a volume with that content, or Refused. May import: client.

The request line goes first, then the data as they come, however many; the daemon answers when they have ended, or as
soon as it refuses.
"""

from __future__ import annotations

import os
import socket

from cloison.client.connection import Client
from cloison.client.failures import OutcomeUnknown
from cloison.client.framing import AnswerReader, encode_request

PORTION = 1 << 18


def upload(client: Client, method: str, qube: str, volume: str, descriptor: int, *, head: bytes = b"") -> None:
    """``method``: ``admin.vm.volume.Import``, or ``ImportWithSize`` with the size as ``head``.

    Raises Refused (the volume has the content it had) or OutcomeUnknown.
    """
    reader = AnswerReader(f"{method}+{volume} {qube}")
    with client.connect() as connection:
        connection.settimeout(None)
        send(connection, encode_request(method, volume, qube, head), descriptor)
        try:
            while data := connection.recv(PORTION):
                reader.receive(data)
        except OSError as error:
            raise OutcomeUnknown(f"{method}+{volume} {qube}: connection lost: {error.strerror}") from None
    reader.finish()


def send(connection: socket.socket, request: bytes, descriptor: int) -> None:
    """The request and all data of the descriptor, as far as the daemon wants them."""
    try:
        connection.sendall(request)
        while data := os.read(descriptor, PORTION):
            connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
    except (BrokenPipeError, ConnectionResetError):
        pass  # it has refused: the answer says why
