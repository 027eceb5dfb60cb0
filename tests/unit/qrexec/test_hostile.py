"""Agents, legs and relays that mean harm: only their own qube suffers, and memory stays bounded."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import socket
import struct
from pathlib import Path

import pytest
from conftest import deny
from fakes import Ended, FakeSession

from cloison.errors import BackendFailed
from cloison.qrexec.packets import Report, pack
from cloison.qrexec.relays import RelayProcess
from cloison.wire import MAX_PAYLOAD, WINDOW, Call, Kind, Open, Ping, Signal, Stream
from cloison.wire.frames import pack_frame

HEADER = struct.Struct("<IIB3x")


@pytest.fixture
async def others(house):
    """Two well-behaved qubes; after each test a call between them still works at once."""
    caller = await house.qubes.start("work")
    await house.qubes.start("vault")

    async def check() -> None:
        async with asyncio.timeout(5):
            call = await caller.call("vault", "test.Echo")
            await call.write(Stream.STDIN, b"fine", end=True)
            assert (await call.result())[1] == b"fine"

    await check()
    yield check
    await check()


def frame(kind: int, session: int, payload: bytes = b"", *, length: int | None = None) -> bytes:
    return HEADER.pack(len(payload) if length is None else length, session, kind) + payload


async def ended(link) -> None:
    """The first relay of this link is gone."""
    await link.first.wait_closed()


def resident_kib(pid: int | None) -> int:
    """Nothing of a process that is gone: its end is heard of a moment later."""
    try:
        _, _, rest = Path(f"/proc/{pid}/status").read_text().partition("VmRSS:")
    except FileNotFoundError:
        return 0
    return int(rest.split()[0]) if rest else 0


ILLEGAL = {
    "an oversized frame": frame(Kind.STDOUT, 2, length=MAX_PAYLOAD + 1),
    "an impossible length": frame(Kind.STDOUT, 2, length=2**32 - 1),
    "an unknown kind": frame(99, 0, b"x"),
    "dirty padding": struct.pack("<IIBBBB", 0, 0, Kind.PING, 0, 1, 0),
    "data for no session": frame(Kind.STDOUT, 2, b"x"),
    "data for a session of its own invention": frame(Kind.STDIN, 77, b"x"),
    "an exit out of nothing": frame(Kind.EXIT, 2, bytes(4)),
    "a second hello": frame(Kind.HELLO, 0, b'{"version":1}'),
    "a control request": frame(Kind.CONTROL, 0, b'{"id":1,"verb":"shutdown"}'),
    "an open": frame(Kind.OPEN, 2, b'{"service":"x"}'),
    "a call with an even number": frame(Kind.CALL, 2, b'{"service":"x"}'),
    "a call on session 0": frame(Kind.CALL, 0, b'{"service":"x"}'),
    "an acceptance": frame(Kind.ACCEPTED, 2),
    "a call as another user": frame(Kind.CALL, 1, b'{"service":"x","user":"root"}'),
    "a shell command": frame(Kind.CALL, 1, b'{"command":"id"}'),
    "a call that is no JSON": frame(Kind.CALL, 1, b"{nonsense"),
    "a call with an odd name": frame(Kind.CALL, 1, b'{"target":"../x","service":"x"}'),
    "a deep nest": frame(Kind.CALL, 1, b"[" * 60000),
    "a reply that is no JSON": frame(Kind.REPLY, 0, b"\xff\xfe"),
    "a call twice": frame(Kind.CALL, 1, b'{"service":"test.Wait"}') * 2,
    "input before the answer": frame(Kind.CALL, 1, b'{"service":"test.Wait"}') + frame(Kind.STDIN, 1, b"x"),
}


@pytest.mark.parametrize("what", ILLEGAL)
async def test_an_illegal_frame_ends_only_that_relay(house, others, what):
    gate = asyncio.Event()

    async def wait(name: str) -> None:
        await gate.wait()

    agent = await house.qubes.start("evil")
    house.qubes.halted.add("slow")
    ensure, house.qubes.ensure_running = house.qubes.ensure_running, wait
    await agent.send_raw(ILLEGAL[what])
    await ended(house.qubes.links["evil"])
    house.qubes.ensure_running = ensure


@pytest.mark.parametrize("seed", range(8))
async def test_random_bytes_end_only_that_relay(house, others, seed):
    agent = await house.qubes.start("evil")
    await agent.send_raw(random.Random(seed).randbytes(200_000))
    await ended(house.qubes.links["evil"])


@pytest.mark.parametrize("seed", range(4))
async def test_random_but_well_formed_frames_do_no_harm(house, others, seed):
    dice = random.Random(seed)
    agent = await house.qubes.start("evil")
    with contextlib.suppress(ConnectionError):
        for _ in range(2000):
            kind = dice.choice(list(Kind))
            await agent.send_raw(
                frame(kind, dice.choice([0, 0, 1, 2, 3]), dice.randbytes(dice.choice([0, 1, 4, 8, 50])))
            )
    await ended(house.qubes.links["evil"])


async def test_an_agent_that_never_answers_costs_a_deadline(house, others, tmp_path):
    async def swallow(reader, writer):
        await reader.read()

    async with await asyncio.start_unix_server(swallow, tmp_path / "mute.sock"):
        with pytest.raises(BackendFailed, match="does not answer"):
            await house.connector.connect("mute", tmp_path / "mute.sock", ready_timeout_s=0.3)


async def test_an_agent_that_talks_nonsense_forever_is_given_up(house, others, tmp_path):
    sent = 0

    async def babble(reader, writer):
        nonlocal sent
        with contextlib.suppress(ConnectionError):
            while True:
                writer.write(bytes(1 << 20))
                sent += 1 << 20
                await writer.drain()

    async with await asyncio.start_unix_server(babble, tmp_path / "babble.sock"):
        with pytest.raises(BackendFailed, match="does not answer the greeting"):
            await house.connector.connect("babble", tmp_path / "babble.sock", ready_timeout_s=30)
    assert sent < 200 << 20


async def test_a_million_calls_are_refused_without_growing(house, others):
    agent = await house.qubes.start("evil")
    link = house.qubes.links["evil"]
    payload = b'{"target":"vault","service":"test.Echo"}'
    calls = b"".join(frame(Kind.CALL, 2 * n + 1, payload) for n in range(200_000))
    flood = asyncio.create_task(agent.send_raw(calls))
    await others()
    await ended(link)
    await others()
    flood.cancel()


async def test_calls_and_resets_without_end_only_slow_their_own_qube(house, others):
    agent = await house.qubes.start("evil")
    link = house.qubes.links["evil"]
    payload = b'{"target":"vault","service":"test.Echo"}'
    pair = frame(Kind.CALL, 1, payload) + frame(Kind.RESET, 1)

    async def flood() -> None:
        while link.first.is_up:
            await agent.send_raw(pair * 500)
            await asyncio.sleep(0)  # the relay swallows it faster than it comes

    flooding = asyncio.create_task(flood())
    for _ in range(5):
        await others()
        await asyncio.sleep(0.05)
    assert not link.first.is_up or resident_kib(link.pid) < 64 * 1024
    assert len(house.audit.lines) < 3000
    await agent.hang_up()
    flooding.cancel()


async def test_a_flood_of_notices_only_slows_its_own_qube(house, others):
    agent = await house.qubes.start("evil")
    link = house.qubes.links["evil"]
    notices = frame(Kind.NOTICE, 0, b'{"event":"hello"}') * 1000

    async def flood() -> None:
        while link.first.is_up:
            await agent.send_raw(notices)
            await asyncio.sleep(0)

    flooding = asyncio.create_task(flood())
    for _ in range(5):
        await others()
    await ended(link)
    flooding.cancel()


async def test_a_flood_of_refused_calls_does_not_fill_the_audit_log(house, others):
    agent = await house.qubes.start("evil")
    house.policy.verdicts["test.No"] = deny("no")
    for _ in range(500):
        with pytest.raises(PermissionError):
            await agent.call("vault", "test.No")
    await house.until(lambda: any(line["event"] == "denied-more" for line in house.audit.lines))
    lines = [line for line in house.audit.lines if line["source"] == "evil"]
    assert len(lines) < 300
    await house.until(lambda: sum(line.get("count", 1) for line in house.audit.lines
                                  if line["source"] == "evil") == 500)  # fmt: skip


async def test_an_agent_that_never_reads_stalls_only_its_own_calls(house, others):
    async def deaf(session: FakeSession) -> None:
        session.agent._writer.transport.pause_reading()
        await asyncio.sleep(3600)

    await house.qubes.start("evil", **{"test.Deaf+": deaf})
    caller = house.qubes.agents["work"]
    call = await caller.call("evil", "test.Deaf")
    await asyncio.sleep(0.05)
    writing = asyncio.create_task(call.write(Stream.STDIN, bytes(16 << 20)))
    await others()
    assert not writing.done()
    assert resident_kib(house.qubes.links["evil"].pid) < 32 * 1024
    assert house.broker.kill((await house.broker.calls())[0].id)
    with pytest.raises(Ended):
        await call.result()
    writing.cancel()


async def test_pings_of_an_agent_that_never_reads_end_its_relay(house, others):
    agent = await house.qubes.start("evil")
    agent._writer.transport.pause_reading()
    with contextlib.suppress(ConnectionError):
        await agent.send_raw(agent.connection.send(Ping(b"x" * 64)) * 100_000)
    await ended(house.qubes.links["evil"])


async def test_more_than_the_window_ends_the_relay_and_the_caller_hears_it(house, others):
    async def flood(session: FakeSession) -> None:
        piece = pack_frame(Kind.STDOUT, session.number, bytes(MAX_PAYLOAD))
        await session.agent.send_raw(piece * (WINDOW // MAX_PAYLOAD + 1))

    await house.qubes.start("evil", **{"test.Flood+": flood})
    # A caller that takes nothing and gives no credit.
    leg, theirs = socket.socketpair()
    closed = house.qubes.links["evil"].open_call(Open(0, service="test.Flood+"), theirs, may_signal=False).closed
    assert (await closed).exit_code is None
    leg.close()


async def test_tiny_frames_to_a_slow_reader_stay_bounded(house, others):
    async def dribble(session: FakeSession) -> None:
        await session.agent.send_raw(pack_frame(Kind.STDOUT, session.number, b"x") * WINDOW)
        await asyncio.sleep(3600)

    await house.qubes.start("evil", **{"test.Dribble+": dribble})
    link = house.qubes.links["evil"]
    legs = []
    for _ in range(8):
        leg, theirs = socket.socketpair()
        legs.append(leg)
        link.open_call(Open(0, service="test.Dribble+"), theirs, may_signal=False)
    await asyncio.sleep(0.5)
    await others()
    assert resident_kib(link.pid) < 128 * 1024
    for leg in legs:
        leg.close()


JUNK = {
    "noise": random.Random(1).randbytes(64),
    "another session": frame(Kind.STDIN, 2, b"x"),
    "output instead of input": frame(Kind.STDOUT, 1, b"x"),
    "a signal by a qube": frame(Kind.SIGNAL, 1, b"\x09"),
    "more than the window": frame(Kind.STDIN, 1, bytes(MAX_PAYLOAD)) * (WINDOW // MAX_PAYLOAD + 1),
    "credit for nothing": frame(Kind.CREDIT, 1, struct.pack("<BxxxI", 1, 5)),
    "a hello": frame(Kind.HELLO, 0, b'{"version":1}'),
    "two ends of file": frame(Kind.STDIN, 1) * 2,
}


@pytest.mark.parametrize("junk", JUNK)
async def test_a_leg_that_breaks_the_rules_ends_only_its_call(house, others, junk):
    async def wait(session: FakeSession) -> None:
        await asyncio.sleep(3600)

    await house.qubes.start("target", **{"test.Wait+": wait})
    link = house.qubes.links["target"]
    leg, theirs = socket.socketpair()
    closed = link.open_call(Open(0, service="test.Wait+"), theirs, may_signal=False).closed
    leg.setblocking(False)
    with contextlib.suppress(ConnectionError):
        await asyncio.get_running_loop().sock_sendall(leg, JUNK[junk])
    assert "broke the protocol" in (await closed).reason
    assert (await link.run_service("test.Echo+", stdin=b"alive", timeout_s=5)).stdout == b"alive"
    leg.close()


async def test_a_leg_that_stops_in_the_middle_of_a_frame_holds_up_nobody(house, others):
    await house.qubes.start("target")
    link = house.qubes.links["target"]
    leg, theirs = socket.socketpair()
    link.open_call(Open(0, service="test.Echo+"), theirs, may_signal=False)
    leg.send(frame(Kind.STDIN, 1, b"half", length=60_000))
    assert (await link.run_service("test.Echo+", stdin=b"alive", timeout_s=5)).stdout == b"alive"
    leg.close()


async def test_a_guest_cannot_signal_what_it_called(house, others):
    async def wait(session: FakeSession) -> None:
        await session.read_all(Stream.STDIN)
        await session.exit(0)

    caller = house.qubes.agents["work"]
    target = await house.qubes.start("target", **{"test.Wait+": wait})
    call = await caller.call("target", "test.Wait")
    await caller.send(Signal(call.number, 9))
    await call.write(Stream.STDIN, b"", end=True)
    assert (await call.result())[0] == 0
    assert target.signals == []


async def test_numbers_may_be_used_again_after_both_last_words(house, others):
    caller = house.qubes.agents["work"]
    for _ in range(3):
        future = caller._calling[41] = asyncio.get_running_loop().create_future()
        session = caller.sessions[41] = FakeSession(caller, 41)
        await caller.send(Call(41, "vault", "test.Echo"))
        await future
        await session.write(Stream.STDIN, b"again", end=True)
        assert (await session.result())[1] == b"again"


async def test_frames_after_the_last_word_are_swallowed(house, others):
    async def quick(session: FakeSession) -> None:
        await session.exit(0)

    caller = house.qubes.agents["work"]
    await house.qubes.start("quick", **{"test.Quick+": quick})
    for _ in range(50):
        call = await caller.call("quick", "test.Quick")
        with contextlib.suppress(Ended):
            await call.write(Stream.STDIN, b"too late", end=True)
        assert (await call.result())[0] == 0


# A relay that was taken over: the daemon's side of the control socket


class Handlers:
    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.on_call = lambda link, handle, call: self.calls.append(call)
        self.on_gone = lambda link, handle: None


@pytest.fixture
async def captured():
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    handlers = Handlers()
    link = RelayProcess("evil", ours, handlers)
    yield link, theirs, handlers
    link.close()
    theirs.close()


LIES = {
    "a short packet": b"x",
    "an unknown report": pack(77),
    "a call that is no JSON": pack(Report.CALL, 1, b"{nonsense"),
    "a call as root": pack(Report.CALL, 1, b'{"service":"x","user":"root"}'),
    "a command": pack(Report.CALL, 1, b'{"command":"x"}'),
    "an oversized hello": pack(Report.UP, 0, b"{" + b" " * 60000),
    "a closing without figures": pack(Report.CLOSED, 2, b"short"),
    "a closing with control characters": pack(Report.CLOSED, 2, bytes(29) + b"\x1b[2J"),
    "a reply that is no reply": pack(Report.REPLY, 1, b"[]"),
    "traffic out of step": pack(Report.TRAFFIC, 1, b"123"),
    "last words that are no text": pack(Report.FAILED, 0, b"\xff\xff"),
}


@pytest.mark.parametrize("what", LIES)
async def test_what_a_captured_relay_says_is_checked(captured, what):
    link, relay, handlers = captured
    relay.send(LIES[what])
    async with asyncio.timeout(2):
        await link.wait_closed()
    assert handlers.calls == []


async def test_answers_to_questions_never_asked_are_ignored(captured):
    link, relay, _ = captured
    relay.send(pack(Report.REPLY, 1, b'{"id":99,"ok":true}'))
    relay.send(pack(Report.CLOSED, 98, bytes(29)))
    relay.send(pack(Report.GONE, 97))
    relay.send(pack(Report.TRAFFIC, 96))
    relay.send(pack(Report.UP, 0, b'{"version":1}'))
    await link.wait_up(ready=False)


async def test_a_captured_relay_cannot_fill_the_daemons_table_of_descriptors(captured):
    link, relay, _ = captured
    before = len(os.listdir("/proc/self/fd"))
    with open("/dev/null") as file:
        for _ in range(10):
            socket.send_fds(relay, [pack(Report.UP, 0, b'{"version":1}')], [file.fileno()] * 5)
    await link.wait_closed()
    assert len(os.listdir("/proc/self/fd")) <= before


async def test_a_relay_that_reads_no_orders_is_ended(captured):
    link, _, _ = captured
    for _ in range(5000):
        link.refuse(1)
    async with asyncio.timeout(2):
        await link.wait_closed()


async def test_calls_above_the_pace_wait(captured):
    _, relay, handlers = captured

    def flood() -> None:
        for n in range(1, 2001, 2):
            relay.send(pack(Report.CALL, n, b'{"service":"x"}'))

    sending = asyncio.get_running_loop().run_in_executor(None, flood)
    await asyncio.sleep(0.5)
    assert len(handlers.calls) < 700
    relay.shutdown(socket.SHUT_RDWR)
    with contextlib.suppress(OSError):
        await sending
