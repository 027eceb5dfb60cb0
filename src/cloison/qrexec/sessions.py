"""One call as its relay sees it: what may pass in which direction, and what waits to be passed on.

In: headers and small payloads. Out: None (it may pass) or RemoteProtocolError. May import: wire (runs in the jail).

A call has two ends. One is the agent of this relay's qube, the other (the *leg*) is another relay, a host client
or the daemon. Neither is believed: what the agent breaks ends the relay, what the leg breaks ends the call. The rules
and the windows are those of the wire's own session; since credit is end to end, one set of windows checks both.
"""

from __future__ import annotations

from cloison.wire.errors import RemoteProtocolError
from cloison.wire.frames import Kind
from cloison.wire.messages import Credit, parse_message
from cloison.wire.sessions import PEER_MAY, WE_MAY, Session, State

_TERMINAL_KINDS = frozenset({Kind.SIGNAL, Kind.WINSIZE})


class RelayedCall(Session):
    """``state`` is the relay's own, as the host end of the port."""

    __slots__ = (
        "backlog",
        "backlog_bytes",
        "counts",
        "exit_code",
        "handle",
        "leg",
        "may_signal",
        "number",
        "partial",
        "reason",
    )

    def __init__(self, number: int, handle: int, state: State, *, may_signal: bool = False) -> None:
        super().__init__(state)
        self.number = number
        """The session on the port."""
        self.handle = handle
        """The name of this call between relay and daemon; never used twice, whatever numbers the agent chooses."""
        self.may_signal = may_signal
        self.leg = -1
        """Descriptor of the other end; -1 before the answer and after the end."""
        self.counts = [0, 0, 0]
        self.backlog: list[bytes] = []
        """What the leg has not taken yet; bounded by the windows."""
        self.backlog_bytes = 0
        self.partial = b""
        """Beginning of a frame whose rest the leg has not sent yet."""
        self.exit_code: int | None = None
        self.reason = ""

    def check_from_agent(self, kind: int, untrusted_payload: memoryview) -> bool:
        """Any frame but data. Raises RemoteProtocolError. False: legal, but not to be passed on (a guest may send
        signals to what it called, and they end here)."""
        if kind not in PEER_MAY[self.state]:
            raise RemoteProtocolError(f"{Kind(kind).name} while {self.state.value!r}")
        self._check(kind, untrusted_payload, agent_sends=True)
        return kind not in _TERMINAL_KINDS

    def check_from_leg(self, kind: int, untrusted_payload: memoryview) -> None:
        """The same for a frame of the other end. Signals and window sizes are for dom0's calls only."""
        if kind not in WE_MAY[self.state] or (kind in _TERMINAL_KINDS and not self.may_signal):
            raise RemoteProtocolError(f"{Kind(kind).name} while {self.state.value!r}")
        self._check(kind, untrusted_payload, agent_sends=False)

    def count(self, stream: int, size_bytes: int) -> None:
        """Data, in whichever direction that stream flows."""
        if wrong := self.count_data(stream, size_bytes):
            raise RemoteProtocolError(wrong)
        self.counts[stream] += size_bytes

    def _check(self, kind: int, untrusted_payload: memoryview, *, agent_sends: bool) -> None:
        message = parse_message(kind, self.number, untrusted_payload)
        if isinstance(message, Credit):
            if self.sends(message.stream) != agent_sends:
                raise RemoteProtocolError("credit for a stream of its own")
            if wrong := self.count_credit(message.stream, message.size_bytes):
                raise RemoteProtocolError(wrong)
