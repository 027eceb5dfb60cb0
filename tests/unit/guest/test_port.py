"""The agent's port while hosts come and go: packets stand for what a virtio port gives one after another."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from cloison.wire import Connection, Event, Hello, Notice, Restarted, Role
from cloison.wire.frames import FILLER, MAGIC
from cloison_agent.loop import HANGUP, READ, Loop
from cloison_agent.port import PAGE_BYTES, Port

NO_HOST = b""
"""An empty packet reads as nothing, which is what a port without a host says."""


class Wire:
    """The host's end, and the agent's port in a loop that is turned by hand."""

    def __init__(self) -> None:
        self.ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        self.events: list[Event] = []
        self.loop = Loop()
        self.port = Port(self.loop, theirs.detach(), self.take, "agent")
        self.loop.step(0)

    def take(self, event: Event) -> None:
        self.events.append(event)
        if isinstance(event, Hello):
            self.port.send(Notice("ready", {}))

    def says(self, *packets: bytes) -> None:
        for packet in packets:
            self.ours.send(packet)
        self.loop.step(0)

    def heard(self) -> bytes:
        said = b""
        self.ours.setblocking(False)
        try:
            while True:
                said += self.ours.recv(1 << 20)
        except BlockingIOError:
            return said


@pytest.fixture
def wire() -> Iterator[Wire]:
    made = Wire()
    yield made
    made.ours.close()


def greeted(wire: Wire, nonce: bytes, *, resync: bool = False, cut_at: int = 0) -> list[Event]:
    """A host that greets; its bytes come in two reads, cut behind ``cut_at`` bytes of the greeting."""
    host = Connection(Role.HOST, nonce=nonce, resync=resync)
    said = host.data_to_send()
    cut = said.index(MAGIC) + cut_at
    # Only a whole page makes the port ask for more at once, as when all of it lies there.
    said, cut = b"\xff" * (PAGE_BYTES - cut) + said if cut < PAGE_BYTES else said, max(cut, PAGE_BYTES)
    pieces = [said[at : min(cut, at + PAGE_BYTES)] for at in range(0, cut, PAGE_BYTES)]
    wire.says(*pieces, said[cut:])
    return host.receive_data(wire.heard())


@pytest.mark.parametrize("resync", [False, True])
@pytest.mark.parametrize("cut_at", [0, 1, 16, 31, 32, 33, 44])
def test_a_greeting_is_answered_wherever_it_is_cut(wire: Wire, cut_at: int, resync: bool) -> None:
    answer = greeted(wire, b"n" * 16, resync=resync, cut_at=cut_at)
    assert [type(event) for event in answer] == [Hello, Notice]


@pytest.mark.parametrize("cut_at", [0, 16, 32, 40])
def test_another_host_is_answered_whatever_the_first_left_behind(wire: Wire, cut_at: int) -> None:
    greeted(wire, b"n" * 16)
    wire.says(b"\x10\0\0\0 half a frame")
    answer = greeted(wire, b"m" * 16, resync=True, cut_at=cut_at)
    assert [type(event) for event in answer] == [Hello, Notice]
    assert [type(event) for event in wire.events] == [Hello, Restarted, Hello]


def test_two_hosts_in_one_read_leave_the_answer_to_the_second(wire: Wire) -> None:
    first = Connection(Role.HOST, nonce=b"1" * 16).data_to_send()
    second = Connection(Role.HOST, nonce=b"2" * 16)
    wire.says((first + FILLER)[:PAGE_BYTES], FILLER[PAGE_BYTES:] + second.data_to_send())
    assert [type(event) for event in second.receive_data(wire.heard())] == [Hello, Notice]


def test_a_hang_up_is_noticed_even_if_the_next_host_is_there_already(wire: Wire) -> None:
    greeted(wire, b"n" * 16)
    second = Connection(Role.HOST, nonce=b"m" * 16)
    wire.ours.send(NO_HOST)
    wire.port._ready(HANGUP)
    assert [type(event) for event in wire.events] == [Hello, Restarted]
    wire.ours.send(second.data_to_send())
    wire.port._ready(READ)
    wire.loop.step(0)
    assert [type(event) for event in second.receive_data(wire.heard())] == [Hello, Notice]
