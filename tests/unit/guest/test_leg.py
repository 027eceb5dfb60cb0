"""The tools' own small calling end, held against the real protocol."""

from __future__ import annotations

import pytest

from cloison.wire import (
    CREDIT_STEP,
    LEG_SESSION,
    WINDOW,
    Accepted,
    Call,
    Connection,
    Credit,
    Data,
    Event,
    Exit,
    Kind,
    Refused,
    Reset,
    Role,
)
from cloison_tools import leg as small
from cloison_tools.leg import Leg, exit_code


def test_the_numbers_are_those_of_the_protocol() -> None:
    for name in ("STDIN", "STDOUT", "STDERR", "CREDIT", "EXIT", "ACCEPTED", "REFUSED", "RESET"):
        assert getattr(small, name) == Kind[name]
    assert small.SESSION == LEG_SESSION
    assert 2 * CREDIT_STEP <= small.WINDOW <= WINDOW


@pytest.mark.parametrize("source", ["", "remote"])
def test_a_call_is_understood(source: str) -> None:
    broker = Connection(Role.LEG_SERVICE)
    assert broker.receive_data(Leg().call("@dispvm:x", "qubes.VMExec+a--b", source)) == [
        Call(LEG_SESSION, "@dispvm:x", "qubes.VMExec+a--b", source)
    ]


@pytest.mark.parametrize("piece", [1, 7, 1000])
def test_answers_are_understood_in_pieces(piece: int) -> None:
    leg, broker = Leg(), Connection(Role.LEG_SERVICE)
    broker.receive_data(leg.call("a", "b", ""))
    answers: list[Event] = [Accepted(1), Data(1, 1, b"out"), Data(1, 2, b"err"), Data(1, 1, b""), Exit(1, 3)]
    stream = b"".join(broker.send(event) for event in answers)
    seen = [event for start in range(0, len(stream), piece) for event in leg.receive(stream[start : start + piece])]
    assert [kind for kind, _ in seen] == [Kind.ACCEPTED, Kind.STDOUT, Kind.STDERR, Kind.STDOUT, Kind.EXIT]
    assert [payload for _, payload in seen[1:4]] == [b"out", b"err", b""]
    assert exit_code(seen[4][1]) == 3


@pytest.mark.parametrize("event", [Refused(1), Reset(1, "why")])
def test_refusals_and_resets_are_understood(event: Event) -> None:
    leg, broker = Leg(), Connection(Role.LEG_SERVICE)
    broker.receive_data(leg.call("a", "b", ""))
    assert [kind for kind, _ in leg.receive(broker.send(event))] == [Kind[type(event).__name__.upper()]]


def test_credit_is_kept_and_returned() -> None:
    leg, service = Leg(), Connection(Role.LEG_SERVICE, live=True)
    for _ in range(WINDOW // 65536):
        service.receive_data(leg.stdin(bytes(65536)))
    assert leg.window == 0
    assert leg.receive(service.send(Credit(1, 0, 100_000))) == []
    assert leg.window == 100_000
    for _ in range(WINDOW // 65536):
        leg.receive(service.send(Data(1, 1, bytes(65536))))
    granted = [service.receive_data(credit) for _ in range(WINDOW // 65536) if (credit := leg.consumed(1, 65536))]
    assert granted == [[Credit(1, 1, CREDIT_STEP)]] * (WINDOW // CREDIT_STEP) and service.window(1, 1) == WINDOW


def test_a_code_that_no_process_has_is_255() -> None:
    assert exit_code(b"\xff\xff\xff\xff") == 255
