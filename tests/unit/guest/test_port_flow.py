"""The agent's end of the port, over a socket pair: when it reads, when it waits, and what a lost host leaves behind."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator

import pytest

from cloison.wire import WINDOW, Connection, Data, Event, Hello, Open, Restarted, Role, Stream
from cloison_agent.loop import READ, Loop
from cloison_agent.port import FULL, MAX_WRITE, Port

BLOCK = bytes(range(256)) * (MAX_WRITE // 256)


class Line:
    """A port, its host, and what the port's agent was told."""

    def __init__(self) -> None:
        self.sock, theirs = socket.socketpair()
        self.sock.setblocking(False)
        self.loop = Loop()
        self.told: list[Event] = []
        self.port = Port(self.loop, theirs.detach(), self._tell, "a test")
        self.host = Connection(Role.HOST, nonce=bytes(16))
        self.heard: list[Event] = []
        self.sock.send(self.host.data_to_send())
        self.until(lambda: any(isinstance(event, Hello) for event in self.heard))
        self.session = self.host.new_session()
        self.send(Open(self.session, service="a.Service", source="work"))
        self.until(lambda: isinstance(self.told[-1], Open))

    def _tell(self, event: Event) -> None:
        self.told.append(event._replace(payload=bytes(event.payload)) if isinstance(event, Data) else event)

    def send(self, event: Event) -> None:
        self.sock.send(self.host.send(event))

    def hear(self) -> None:
        """The host reads all that is there."""
        while True:
            try:
                data = self.sock.recv(1 << 20)
            except BlockingIOError:
                return
            for event in self.host.receive_data(data):
                self.heard.append(event._replace(payload=bytes(event.payload)) if isinstance(event, Data) else event)

    def until(self, done: Callable[[], bool]) -> None:
        for _ in range(1000):
            self.loop.step(0.01)
            self.hear()
            if done():
                return
        raise AssertionError("it does not come")


@pytest.fixture
def line() -> Iterator[Line]:
    made = Line()
    yield made
    made.sock.close()


def count_reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    sizes: list[int] = []

    def readv(fd: int, buffers: list[memoryview], real: Callable[[int, list[memoryview]], int] = os.readv) -> int:
        sizes.append(-1)
        sizes[-1] = real(fd, buffers)
        return sizes[-1]

    monkeypatch.setattr(os, "readv", readv)
    return sizes


def test_a_small_message_costs_one_read(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = count_reads(monkeypatch)
    line.send(Data(line.session, Stream.STDIN, b"ping"))
    line.until(lambda: isinstance(line.told[-1], Data))
    line.loop.step(0)
    assert line.told[-1] == Data(line.session, Stream.STDIN, b"ping")
    assert sizes == [12 + 4]


def test_messages_that_came_together_are_all_told(line: Line) -> None:
    for number in range(200):
        line.send(Data(line.session, Stream.STDIN, b"%d" % number * 50))
    line.until(lambda: line.told[-1] == Data(line.session, Stream.STDIN, b"199" * 50))
    assert sum(isinstance(event, Data) for event in line.told) == 200


def test_what_a_slow_host_did_not_take_comes_later_in_order_and_input_is_read_meanwhile(line: Line) -> None:
    for _ in range(24):
        line.port.send(Data(line.session, Stream.STDOUT, BLOCK))
    line.loop.step(0)
    line.send(Data(line.session, Stream.STDIN, b"meanwhile"))
    for _ in range(3):
        line.loop.step(0)
    assert line.told[-1] == Data(line.session, Stream.STDIN, b"meanwhile")

    def output() -> bytes:
        return b"".join(event.payload for event in line.heard if isinstance(event, Data))

    line.until(lambda: len(output()) == 24 * len(BLOCK))
    assert output() == 24 * BLOCK
    line.loop.step(0)
    assert line.loop._epoll.poll(0) == []


def test_a_host_that_hangs_up_is_told_once_and_producers_go_on(line: Line) -> None:
    producer, other_end = os.pipe()
    os.write(other_end, b"more")
    produced: list[int] = []
    for _ in range(FULL // len(BLOCK) + 16):
        line.port.send(Data(line.session, Stream.STDOUT, BLOCK))
    line.loop.step(0)
    line.loop.add(producer, READ, produced.append, producer=True)
    line.loop.step(0)
    assert produced == []
    line.sock.close()
    for _ in range(3):
        line.loop.step(0)
    assert [event for event in line.told if isinstance(event, Restarted)] == [Restarted("the host hung up")]
    assert produced
    line.loop.remove(producer)
    line.loop.step(0)
    assert line.loop._epoll.poll(0) == []
    os.close(producer)
    os.close(other_end)


def test_nothing_is_read_while_the_window_is_closed(line: Line) -> None:
    readable, writable = os.pipe()
    os.set_blocking(readable, False)
    os.set_blocking(writable, False)
    moved = 0
    while True:
        os.write(writable, bytes(MAX_WRITE))
        size_bytes = line.port.pump(line.session, Stream.STDOUT, readable)
        line.loop.step(0)
        line.hear()
        if size_bytes is None:
            break
        moved += size_bytes
    assert moved == WINDOW
    assert len(os.read(readable, 1 << 20)) == MAX_WRITE
    assert line.port.pump(line.session + 2, Stream.STDOUT, readable) is None
    os.close(readable)
    os.close(writable)
