"""A call that stays open, so that single exchanges in it can be timed."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

from cloison.client.qrexec import connect
from cloison.layout import Layout
from cloison.wire import LEG_SESSION, Accepted, Call, Connection, Data, Exit, Refused, Reset, Role, Stream

RECEIVE_BYTES = 1 << 17


class OpenCall:
    """A running call as its caller sees it; for small amounts of data (no credit is returned)."""

    def __init__(self, connection: socket.socket, call: Call) -> None:
        self._socket = connection
        self._wire = Connection(Role.LEG_CALLER)
        self._output = b""
        self._accepted = False
        self._socket.sendall(self._wire.send(call))
        while not self._accepted:
            self._receive()

    def exchange(self, payload: bytes) -> bytes:
        """Send, and receive as many bytes as were sent."""
        self._socket.sendall(self._wire.send(Data(LEG_SESSION, Stream.STDIN, payload)))
        return self.read(len(payload))

    def read(self, size_bytes: int) -> bytes:
        """Exactly so many bytes of its standard output."""
        while len(self._output) < size_bytes:
            self._receive()
        answer, self._output = self._output[:size_bytes], self._output[size_bytes:]
        return answer

    def read_line(self) -> str:
        """A line of its standard output, without the end."""
        while b"\n" not in self._output:
            self._receive()
        line, _, self._output = self._output.partition(b"\n")
        return line.decode()

    def _receive(self) -> None:
        data = self._socket.recv(RECEIVE_BYTES)
        if not data:
            raise RuntimeError("the connection was lost")
        for event in self._wire.receive_data(data):
            if isinstance(event, Data) and event.stream == Stream.STDOUT:
                self._output += event.payload
            elif isinstance(event, Exit | Refused | Reset):
                raise RuntimeError(f"the call ended: {event}")
            elif isinstance(event, Accepted):
                self._accepted = True


@contextmanager
def open_call(layout: Layout, call: Call) -> Iterator[OpenCall]:
    with connect(layout) as connection:
        yield OpenCall(connection, call)
