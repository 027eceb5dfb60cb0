"""The life of one session: which frames may come and go in which state, and how many bytes each stream may carry.

In: kinds and sizes. Out: verdicts (exceptions). May import: the standard library, this package.

A session has a calling end and a serving end. Each end says exactly one last word: the serving end EXIT (or REFUSED, or
RESET), the calling end RESET. An end that hears the other's last word answers with its own at once (``Connection`` does
it), and when both were said the number is free again. So frames that cross on the way are never mistaken for those of
another session, and no list of "recently closed" sessions is needed.
"""

from __future__ import annotations

from enum import Enum
from typing import Final

from cloison.wire.frames import WINDOW, Kind


class State(Enum):
    """Seen from one end."""

    # Looked up for each frame: an enumeration's own hash is a function in Python, which costs more than the lookup.
    __hash__ = object.__hash__

    CALLING = "we asked for a call and wait for the answer"
    ASKED = "the peer asked for a call and waits for our answer"
    CALLER = "connected, we are the calling end"
    SERVICE = "connected, we are the serving end"


_FROM_BROKER = frozenset({Kind.ACCEPTED, Kind.REFUSED, Kind.RESET})
_FROM_WAITING = frozenset({Kind.RESET})
_FROM_CALLER = frozenset({Kind.STDIN, Kind.CREDIT, Kind.SIGNAL, Kind.WINSIZE, Kind.RESET})
_FROM_SERVICE = frozenset({Kind.STDOUT, Kind.STDERR, Kind.CREDIT, Kind.EXIT, Kind.RESET})

PEER_MAY: Final[dict[State, frozenset[Kind]]] = {
    State.CALLING: _FROM_BROKER,
    State.ASKED: _FROM_WAITING,
    State.CALLER: _FROM_SERVICE,
    State.SERVICE: _FROM_CALLER,
}
WE_MAY: Final[dict[State, frozenset[Kind]]] = {
    State.CALLING: _FROM_WAITING,
    State.ASKED: _FROM_BROKER,
    State.CALLER: _FROM_CALLER,
    State.SERVICE: _FROM_SERVICE,
}
LAST_WORDS: Final = frozenset({Kind.EXIT, Kind.REFUSED, Kind.RESET})
EOF_SEEN: Final = -1
"""In ``Session.windows``: this stream has ended, not even an empty frame may follow."""


class Session:
    """State and windows of one session. A stream flows one way only, so one window each is enough."""

    __slots__ = ("ended", "state", "windows")

    def __init__(self, state: State) -> None:
        self.state = state
        self.ended = False
        """We said our last word; what still comes is swallowed until the peer has said its own."""
        self.windows = [WINDOW, WINDOW, WINDOW]

    def sends(self, stream: int) -> bool:
        """Whether data of this stream flow from us to the peer."""
        return (stream == 0) == (self.state is State.CALLER)

    def count_data(self, stream: int, size_bytes: int) -> str:
        """Charge data to the window; returns what is wrong, or ''."""
        window = self.windows[stream]
        if size_bytes > window:
            return "data after end of file" if window == EOF_SEEN else "data beyond the granted credit"
        if size_bytes == 0:
            self.windows[stream] = EOF_SEEN
            return "data after end of file" if window == EOF_SEEN else ""
        self.windows[stream] = window - size_bytes
        return ""

    def count_credit(self, stream: int, size_bytes: int) -> str:
        """Widen a window; returns what is wrong, or ''. Credit for a stream that has ended means nothing."""
        window = self.windows[stream]
        if window == EOF_SEEN:
            return ""
        if window + size_bytes > WINDOW:
            return "credit for bytes that were never sent"
        self.windows[stream] = window + size_bytes
        return ""
