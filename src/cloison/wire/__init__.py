"""The wire: what agents, qrexec daemons, the broker and clients say to each other, as bytes and as messages.

In: bytes. Out: messages, or one of the two errors. May import: the standard library. No sockets, no asyncio: it runs in
the guest too.

**Hops and roles.** One protocol on three kinds of hop::

    guest program --leg-- agent ==port== qrexec daemon --leg-- qrexec daemon ==port== agent -- service
                                         qrexec daemon --leg-- host client (cloison run) / broker

A *port* (virtio-serial) carries many sessions between ``Role.HOST`` and ``Role.AGENT``, begins with a greeting and
HELLO, and has the connection's own messages (Control, Reply, Notice, Ping). A *leg* (unix socket or socket pair)
carries exactly one session, number ``LEG_SESSION``, between ``Role.LEG_CALLER`` and ``Role.LEG_SERVICE`` and nothing
else.

**Use.** ::

    connection = Connection(Role.LEG_CALLER)
    sock.sendall(connection.send(Call(LEG_SESSION, "work", "qubes.VMShell")))
    for event in connection.receive_data(sock.recv(131072)):   # list; Accepted, Data, Credit, Exit...
        ...
    sock.sendall(connection.data_to_send())                     # automatic answers, after each receive_data

``send`` returns everything to be written now, in order (with automatic answers that were waiting). ``window(session,
stream)`` is how much may be sent; sending more raises LocalProtocolError. The consumer of a stream returns credit,
best with a ``CreditCounter`` per stream: ``if n := counter.consumed(len(payload)): send(Credit(session, stream,
n))``. A leg whose descriptor is passed on after its call was accepted is continued elsewhere by ``Connection(role,
live=True)``: the caller sends nothing between CALL and ACCEPTED except RESET, so no byte is lost.

**A session's course.** ``Open`` (host to agent, even number) is not answered; data may follow at once. ``Call`` is
answered by ``Accepted`` or ``Refused``. Then the calling end sends stdin, signals, window sizes; the serving end
stdout, stderr and, last, ``Exit`` (which implies end of file). An empty ``Data`` is end of file of that stream only.
Either end may ``Reset``. Each end says one last word (Exit, Refused or Reset); the answer to the peer's last word is
automatic and is not shown. What is sent to a session that is over is dropped silently, because its end may lie in the
same batch of events. A descriptor that closes without a last word means Reset.

**Relays** forward: ``out.send(renumbered(event, other_session))`` for Data, Credit, Exit, Signal, WindowSize and
Reset, in order. Credit is end to end: both of the relay's connections merely count it, and by counting they check it;
a relay never holds more than ``WINDOW`` bytes per stream. ``Data.payload`` is a view of the bytes given to
``receive_data``.

**Trust.** Everything from an agent or a leg is hostile. Only RemoteProtocolError leaves ``receive_data``, and after
it the connection is dead. The agent's role never raises it: a broken stream yields ``Restarted`` and it waits for a
greeting.
"""

from cloison.wire.connection import LEG_SESSION, Connection, CreditCounter, Role
from cloison.wire.errors import LocalProtocolError, ProtocolError, RemoteProtocolError
from cloison.wire.frames import CREDIT_STEP, MAX_PAYLOAD, NONCE_BYTES, WINDOW, Kind, Stream
from cloison.wire.messages import (
    Accepted,
    Call,
    Control,
    Credit,
    Data,
    Event,
    Exit,
    Hello,
    Notice,
    Open,
    Ping,
    Pong,
    Refused,
    Reply,
    Reset,
    Restarted,
    SessionEvent,
    Signal,
    Tty,
    WindowSize,
    renumbered,
)

__all__ = [
    "CREDIT_STEP",
    "LEG_SESSION",
    "MAX_PAYLOAD",
    "NONCE_BYTES",
    "WINDOW",
    "Accepted",
    "Call",
    "Connection",
    "Control",
    "Credit",
    "CreditCounter",
    "Data",
    "Event",
    "Exit",
    "Hello",
    "Kind",
    "LocalProtocolError",
    "Notice",
    "Open",
    "Ping",
    "Pong",
    "ProtocolError",
    "Refused",
    "RemoteProtocolError",
    "Reply",
    "Reset",
    "Restarted",
    "Role",
    "SessionEvent",
    "Signal",
    "Stream",
    "Tty",
    "WindowSize",
    "renumbered",
]
