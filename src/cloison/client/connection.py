"""The blocking client.

In: calls. Out: answers, events. May import: client, layout.

>>> client = Client()
>>> client.do(calls.start("work"))
>>> for event in client.events(): ...
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from cloison.client.calls import Call
from cloison.client.failures import DaemonUnreachable, OutcomeUnknown
from cloison.client.framing import AnswerReader, Event, encode_request
from cloison.client.peer import require_own_peer
from cloison.layout import Layout

T = TypeVar("T")

CONNECT_TIMEOUT_S = 10.0
"""The daemon's listening queue may be full for a moment; longer means that it hangs."""
RECONNECT_DELAY_S = 1.0


class Client:
    """One system's Admin API. Every call is a connection of its own; safe to share between threads.

    ``start_daemon``: if nobody listens, start the daemon and wait for it (at most ``client.spawn.START_TIMEOUT_S``).
    """

    def __init__(self, layout: Layout | None = None, *, start_daemon: bool = True) -> None:
        self.layout = layout or Layout.from_environment()
        self._start_daemon = start_daemon

    def do(
        self, call: Call[T], *, on_event: Callable[[Event], None] | None = None, timeout_s: float | None = None
    ) -> T:
        """Carry out one call. ``on_event`` gets the progress events of long verbs.

        Returns the parsed answer. Raises Refused or OutcomeUnknown; ``timeout_s`` bounds every wait for bytes.
        """
        reader = AnswerReader(call.what)
        for event in self._exchange(call, reader, timeout_s):
            if on_event is not None:
                on_event(event)
        return call.read(reader.finish())

    def events(self, dest: str = "dom0", *, reconnect: bool = True,
               method: str = "admin.Events") -> Iterator[Event]:  # fmt: skip
        """Every event of the system (or of one qube), for ever; after a lost connection again, one second later.

        Each connection begins with ``connection-established``: what was cached before it is stale. ``method``: another
        stream, as ``admin.vm.Stats``.
        """
        call: Call[bytes] = Call(method, dest, parse=bytes)
        while True:
            reader = AnswerReader(call.what)
            try:
                yield from self._exchange(call, reader, None)
                reader.finish()
            except (OutcomeUnknown, DaemonUnreachable):
                if not reconnect:
                    raise
            if not reconnect:
                return
            time.sleep(RECONNECT_DELAY_S)

    def _exchange(self, call: Call[T], reader: AnswerReader, timeout_s: float | None) -> Iterator[Event]:
        request = encode_request(call.method, call.arg, call.dest, call.payload)
        with self.connect() as connection:
            try:
                connection.settimeout(timeout_s)
                connection.sendall(request)
                connection.shutdown(socket.SHUT_WR)
                while data := connection.recv(1 << 18):
                    yield from reader.receive(data)
            except TimeoutError:
                raise OutcomeUnknown(f"{call.what}: no answer within {timeout_s:.0f} s") from None
            except OSError as error:
                if not reader.complete:
                    raise OutcomeUnknown(f"{call.what}: connection lost: {error.strerror}") from None

    def connect(self) -> socket.socket:
        """A connection to the Admin API socket; DaemonUnreachable if there is no daemon and none can be started."""
        path = self.layout.admin_socket
        connection = _try_connect(str(path))
        if connection is None and self._start_daemon:
            from cloison.client.spawn import start_daemon

            start_daemon(self.layout)
            connection = _try_connect(str(path))
        if connection is None:
            raise DaemonUnreachable(f"no daemon listens on {path}", hint="start it with `cloison daemon start`")
        return connection


def _try_connect(path: str) -> socket.socket | None:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(CONNECT_TIMEOUT_S)
        connection.connect(path)
        require_own_peer(connection, path)
        return connection
    except (FileNotFoundError, ConnectionRefusedError):
        connection.close()
        return None
    except OSError as error:
        connection.close()
        reason = error.strerror or str(error)
        raise DaemonUnreachable(f"cannot connect to {path}: {reason}") from None
    except DaemonUnreachable:
        connection.close()
        raise
