"""The wire protocol: what two honest ends say, and what a hostile end cannot do."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloison.wire import (
    LEG_SESSION,
    MAX_PAYLOAD,
    WINDOW,
    Accepted,
    Call,
    Connection,
    Control,
    Credit,
    CreditCounter,
    Data,
    Event,
    Exit,
    Hello,
    LocalProtocolError,
    Notice,
    Open,
    Ping,
    Pong,
    Refused,
    RemoteProtocolError,
    Reply,
    Reset,
    Restarted,
    Role,
    Signal,
    Stream,
    Tty,
    WindowSize,
    renumbered,
)
from cloison.wire.frames import FILLER, HEADER, MAGIC, Kind, pack_frame

NONCE = b"0123456789abcdef"


def joined_port(*, resync: bool = False) -> tuple[Connection, Connection]:
    """A host and an agent after their greeting."""
    host = Connection(Role.HOST, nonce=NONCE, resync=resync)
    agent = Connection(Role.AGENT, software="agent 1")
    assert agent.receive_data(host.data_to_send()) == [Hello(1, "")]
    assert host.receive_data(agent.data_to_send()) == [Hello(1, "agent 1")]
    return host, agent


def joined_leg() -> tuple[Connection, Connection]:
    return Connection(Role.LEG_CALLER, live=True), Connection(Role.LEG_SERVICE, live=True)


def plain(events: list[Event]) -> list[Event]:
    return [e._replace(payload=bytes(e.payload)) if isinstance(e, Data) else e for e in events]


HOST_SAYS: list[Event] = [
    Ping(b"token"),
    Control(7, "configure", {"name": "work", "services": {"cups": True}, "private": None}),
    Open(2, service="qubes.VMShell+x", user="user", source="dom0", tty=Tty("xterm", 24, 80), nogui=True),
    Data(2, Stream.STDIN, b"echo hello\n"),
    Signal(2, 15),
    WindowSize(2, 50, 132),
    Data(2, Stream.STDIN, b""),
    Open(4, command="echo 'ä\n'"),
    Reset(4, "caller gone"),
]
AGENT_SAYS: list[Event] = [
    Ping(),
    Reply(7, True, {"seconds": 3}),
    Notice("ready", {"state": "running"}),
    Call(1, target="@dispvm", service="qubes.OpenInVM"),
]


def exchanged(sender: Connection, receiver: Connection, events: list[Event], piece: int) -> list[Event]:
    stream = b"".join(sender.send(event) for event in events)
    received: list[Event] = []
    for start in range(0, len(stream), piece):
        received += plain(receiver.receive_data(stream[start : start + piece]))
    return received


@pytest.mark.parametrize("piece", [1, 2, 3, 7, 13, 1000])
def test_every_message_of_the_host_survives_the_way_in_pieces_of(piece: int) -> None:
    host, agent = joined_port()
    assert exchanged(host, agent, HOST_SAYS, piece) == HOST_SAYS[1:]
    assert host.receive_data(agent.data_to_send()) == [Pong(b"token")]


@pytest.mark.parametrize("piece", [1, 5, 1000])
def test_every_message_of_the_agent_survives_the_way_in_pieces_of(piece: int) -> None:
    host, agent = joined_port()
    agent.receive_data(host.send(Control(7, "resize", {})))
    assert exchanged(agent, host, AGENT_SAYS, piece) == AGENT_SAYS[1:]


@pytest.mark.parametrize("piece", [1, 1000])
def test_a_call_on_a_leg_goes_from_request_to_exit(piece: int) -> None:
    caller, broker = Connection(Role.LEG_CALLER), Connection(Role.LEG_SERVICE)
    call = Call(LEG_SESSION, "work", "qubes.VMExec+ls", user="root", autostart=False)
    assert exchanged(caller, broker, [call], piece) == [call]
    assert exchanged(broker, caller, [Accepted(1)], piece) == [Accepted(1)]
    assert exchanged(caller, broker, [Data(1, 0, b"in"), Data(1, 0, b"")], piece) == [
        Data(1, 0, b"in"),
        Data(1, 0, b""),
    ]
    answer: list[Event] = [Data(1, 1, b"out"), Data(1, 2, b"err"), Exit(1, -3)]
    assert exchanged(broker, caller, answer, piece) == answer
    assert not caller.is_live(1)
    assert broker.receive_data(caller.data_to_send()) == []


def test_a_refusal_tells_a_host_client_why() -> None:
    caller, broker = Connection(Role.LEG_CALLER), Connection(Role.LEG_SERVICE)
    broker.receive_data(caller.send(Call(1, "vault", command="id")))
    assert caller.receive_data(broker.send(Refused(1, "30-user.policy:4: deny"))) == [
        Refused(1, "30-user.policy:4: deny")
    ]


def test_a_number_is_free_again_only_when_both_ends_said_their_last_word() -> None:
    host, agent = joined_port()
    agent.receive_data(host.send(Open(2, command="true")))
    late = host.send(Data(2, 0, b"late"))
    assert host.receive_data(agent.send(Exit(2, 0))) == [Exit(2, 0)]
    assert agent.receive_data(late) == []
    assert agent.receive_data(host.send(Data(2, 0, b"too late"))) == []  # carries only the automatic answer
    assert agent.receive_data(host.send(Open(2, command="true"))) == [Open(2, command="true")]


def test_two_resets_that_cross_end_the_session_quietly() -> None:
    caller, service = joined_leg()
    one, other = caller.send(Reset(1)), service.send(Reset(1))
    assert caller.receive_data(other) == [] and service.receive_data(one) == []
    assert not caller.data_to_send() and not service.data_to_send()


def test_a_relay_renumbers_without_touching_the_payload() -> None:
    host, agent = joined_port()
    leg, client = Connection(Role.LEG_SERVICE, live=True), Connection(Role.LEG_CALLER, live=True)
    number = host.new_session()
    agent.receive_data(host.send(Open(number, service="qubes.VMShell")))
    for event in leg.receive_data(client.send(Data(1, 0, b"x" * 1000))):
        assert isinstance(event, Data)
        assert plain(agent.receive_data(host.send(renumbered(event, number)))) == [Data(number, 0, b"x" * 1000)]
    for credit in host.receive_data(agent.send(Credit(number, 0, 1000))):
        assert isinstance(credit, Credit)
        assert client.receive_data(leg.send(renumbered(credit, 1))) == [Credit(1, 0, 1000)]
    assert client.window(1, 0) == WINDOW == host.window(number, 0)


def test_nobody_can_send_more_than_was_granted() -> None:
    caller, service = joined_leg()
    for _ in range(WINDOW // MAX_PAYLOAD):
        service.receive_data(caller.send(Data(1, 0, bytes(MAX_PAYLOAD))))
    assert caller.window(1, 0) == 0
    with pytest.raises(LocalProtocolError):
        caller.send(Data(1, 0, b"x"))
    with pytest.raises(RemoteProtocolError, match="credit"):
        service.receive_data(pack_frame(Kind.STDIN, 1, b"x"))


def test_credit_for_bytes_that_were_never_sent_is_refused() -> None:
    caller, service = joined_leg()
    with pytest.raises(LocalProtocolError):
        service.send(Credit(1, 0, 1))
    with pytest.raises(RemoteProtocolError):
        caller.receive_data(pack_frame(Kind.CREDIT, 1, bytes([0, 0, 0, 0, 1, 0, 0, 0])))


def test_the_counter_returns_all_credit_in_large_pieces() -> None:
    counter = CreditCounter()
    granted = [counter.consumed(MAX_PAYLOAD) for _ in range(8)]
    assert sum(granted) == 8 * MAX_PAYLOAD and granted[0] == 0


def test_data_header_is_the_same_as_send_for_those_who_write_the_payload_themselves() -> None:
    caller, service = joined_leg()
    assert service.receive_data(caller.data_header(1, 0, 5) + b"hello") == [Data(1, 0, b"hello")]
    assert caller.window(1, 0) == WINDOW - 5


@pytest.mark.parametrize(
    "garbage",
    [
        HEADER.pack(MAX_PAYLOAD + 1, 1, Kind.STDOUT),
        HEADER.pack(0, 1, 99),
        HEADER.pack(0, 1, Kind.STDOUT | 0x100),
        HEADER.pack(5, 1, Kind.EXIT),
        pack_frame(Kind.STDOUT, 3, b"x"),
        pack_frame(Kind.STDIN, 2, b"x"),
        pack_frame(Kind.OPEN, 8, b"{}"),
        pack_frame(Kind.CALL, 2, b'{"service":"a"}'),
        pack_frame(Kind.CALL, 3, b"[" * 8000),
        pack_frame(Kind.CALL, 3, b'{"service":"a","service":"b"}'),
        pack_frame(Kind.CALL, 3, b'{"service":"+a"}'),
        pack_frame(Kind.CALL, 3, b'{"service":"a b"}'),
        pack_frame(Kind.CALL, 3, b'{"service":"a","user":"root"}'),
        pack_frame(Kind.CALL, 3, b'{"command":"id"}'),
        pack_frame(Kind.CALL, 3, b'{"service":"a","target":"x\\ny"}'),
        pack_frame(Kind.CALL, 3, b'{"service":"a","colour":"red"}'),
        pack_frame(Kind.CALL, 3, b'{"service":1e400}'),
        pack_frame(Kind.CALL, 3, b'{"target":"work"}'),
        pack_frame(Kind.CALL, 3, b"\xff\xff"),
        pack_frame(Kind.NOTICE, 0, b'{"event":"ready","deep":{"a":1}}'),
        pack_frame(Kind.NOTICE, 0, b'{"event":"ready","text":"\\u001b[2J"}'),
        pack_frame(Kind.REPLY, 0, b'{"id":"1","ok":true}'),
        pack_frame(Kind.CONTROL, 0, b'{"id":1,"verb":"shutdown"}'),
        pack_frame(Kind.HELLO, 0, b'{"version":1}'),
        pack_frame(Kind.NOTICE, 2, b'{"event":"ready"}'),
        pack_frame(Kind.STDOUT, 0, b"x"),
    ],
)
def test_a_host_drops_an_agent_that_sends(garbage: bytes) -> None:
    host, _ = joined_port()
    host.send(Open(2, command="true"))
    with pytest.raises(RemoteProtocolError):
        host.receive_data(garbage)
    with pytest.raises(RemoteProtocolError):
        host.receive_data(b"")


def test_an_agent_with_too_many_calls_is_dropped() -> None:
    host = Connection(Role.HOST, nonce=NONCE, max_sessions=10)
    agent = Connection(Role.AGENT)
    agent.receive_data(host.data_to_send())
    host.receive_data(agent.data_to_send())
    calls = [agent.send(Call(1 + 2 * n, service="a")) for n in range(11)]
    for call in calls[:10]:
        host.receive_data(call)
    with pytest.raises(RemoteProtocolError, match="more than 10"):
        host.receive_data(calls[10])


def test_frames_before_the_greeting_do_not_count() -> None:
    host = Connection(Role.HOST, nonce=NONCE)
    assert host.receive_data(MAGIC + b"another nonce 16" + pack_frame(Kind.NOTICE, 0, b'{"event":"ready"}')) == []
    with pytest.raises(RemoteProtocolError, match="HELLO"):
        host.receive_data(MAGIC + NONCE + pack_frame(Kind.NOTICE, 0, b'{"event":"ready"}'))


@given(st.binary(max_size=300), st.integers(1, 50))
def test_a_new_host_reaches_an_agent_stuck_in_an_old_frame(stale: bytes, piece: int) -> None:
    _, agent = joined_port()
    agent.receive_data(stale)
    host = Connection(Role.HOST, nonce=b"another nonce 16", resync=True)
    stream = host.data_to_send()
    events: list[Event] = []
    for start in range(0, len(stream), piece * 1000):
        events += agent.receive_data(stream[start : start + piece * 1000])
    assert events[-1] == Hello(1, "")
    assert host.receive_data(b"old answers" + agent.data_to_send()) == [Hello(1, "agent 1")]


def test_a_new_host_reaches_an_agent_between_two_frames_without_filler() -> None:
    _, agent = joined_port()
    host = Connection(Role.HOST, nonce=b"another nonce 16")
    events = agent.receive_data(host.data_to_send())
    assert isinstance(events[0], Restarted) and events[1] == Hello(1, "")


def test_an_agent_forgets_its_sessions_when_the_stream_breaks() -> None:
    host, agent = joined_port()
    agent.receive_data(host.send(Open(2, command="true")))
    assert isinstance(agent.receive_data(FILLER)[0], Restarted)
    assert not agent.is_live(2)
    assert agent.send(Exit(2, 0)) == b"" == agent.send(Notice("ready", {}))


@given(st.binary(max_size=2000))
def test_random_bytes_raise_nothing_but_the_declared_error(noise: bytes) -> None:
    for role in Role:
        receiver = Connection(role, nonce=NONCE if role is Role.HOST else b"", live=role.name.startswith("LEG"))
        try:
            receiver.receive_data(noise)
            receiver.receive_data(MAGIC + NONCE + noise)
        except RemoteProtocolError:
            assert role is not Role.AGENT


_frames = st.tuples(
    st.sampled_from(list(Kind)), st.integers(0, 4), st.binary(max_size=40) | st.just(b'{"service":"a"}')
)


@given(st.lists(_frames, max_size=20))
def test_random_frames_raise_nothing_but_the_declared_error(frames: list[tuple[Kind, int, bytes]]) -> None:
    host, agent = joined_port()
    host.send(Open(2, command="true"))
    stream = b"".join(pack_frame(*frame) for frame in frames)
    agent.receive_data(stream)
    try:
        host.receive_data(stream)
    except RemoteProtocolError:
        pass


@pytest.mark.parametrize(
    "event",
    [
        Open(2),
        Open(2, service="a", command="b"),
        Open(3, command="a"),
        Open(2, service="a b"),
        Open(2, command="a", user="ro ot"),
        Call(1, service="a"),
        Notice("ready", {}),
        Hello(),
        Restarted("x"),
    ],
)
def test_our_own_mistakes_are_named_ours(event: Event) -> None:
    host, _ = joined_port()
    with pytest.raises(LocalProtocolError):
        host.send(event)
