"""Calls through the real fork server, relays and broker; only the guests are made up."""

from __future__ import annotations

import asyncio
import errno
import os
import random
import signal
import socket
import time

import pytest
from conftest import allow, deny
from fakes import Ended, FakeSession

from cloison.errors import BackendFailed
from cloison.policy import PolicySource
from cloison.wire import Call, Kind, Reset, Stream
from cloison.wire.frames import FILLER, pack_frame

TIMEOUT_S = 20


async def test_the_engine_asks_the_agent(house):
    agent = await house.qubes.start("work")
    link = house.qubes.links["work"]
    assert await link.control("configure", {"name": "work"}, timeout_s=5) == {}
    assert agent.controls[0].verb == "configure" and agent.controls[0].fields == {"name": "work"}
    with pytest.raises(BackendFailed, match="asked to fail"):
        await link.control("fail", {}, timeout_s=5)
    with pytest.raises(BackendFailed, match="did not answer"):
        await link.control("be-silent", {}, timeout_s=0.1)


async def test_the_engine_runs_a_service_and_gets_output_and_exit_code(house):
    async def both(session: FakeSession) -> None:
        data = await session.read_all(Stream.STDIN)
        await session.write(Stream.STDOUT, data.upper(), end=True)
        await session.write(Stream.STDERR, b"warned", end=True)
        await session.exit(3)

    await house.qubes.start("work", **{"test.Both+": both})
    result = await house.qubes.links["work"].run_service("test.Both+", stdin=b"abc" * 200_000, timeout_s=TIMEOUT_S)
    assert (result.exit_code, result.stdout, result.stderr) == (3, b"ABC" * 200_000, b"warned")


async def test_a_command_goes_to_the_agent_as_dom0_wrote_it(house):
    seen = []

    async def record(session: FakeSession) -> None:
        seen.append(session.opened)
        await session.exit(0)

    await house.qubes.start("work", **{"command:echo hi": record})
    await house.qubes.links["work"].run_service("command:echo hi", user="root", timeout_s=TIMEOUT_S)
    assert seen[0].command == "echo hi" and seen[0].user == "root" and seen[0].source == "dom0"


async def test_a_qube_calls_another(house):
    seen = []

    async def greet(session: FakeSession) -> None:
        seen.append(session.opened)
        name = await session.read_all(Stream.STDIN)
        await session.write(Stream.STDOUT, b"hello " + name)
        await session.exit(7)

    caller = await house.qubes.start("work")
    await house.qubes.start("vault", **{"test.Greet+you": greet})
    call = await caller.call("vault", "test.Greet+you")
    await call.write(Stream.STDIN, b"there", end=True)
    assert await call.result() == (7, b"hello there", b"")
    assert seen[0].source == "work" and seen[0].user == ""
    await house.until(lambda: len(house.audit.lines) == 2)
    allowed, ended = house.audit.lines
    assert allowed["event"] == "allowed" and allowed["rule"] == "10-test.policy:7" and allowed["target"] == "vault"
    assert ended["exit_code"] == 7 and ended["stdin_bytes"] == 5 and ended["stdout_bytes"] == 11


async def test_a_call_without_argument_asks_for_the_empty_one(house):
    caller = await house.qubes.start("work")
    await house.qubes.start("vault")
    call = await caller.call("vault", "test.Echo")
    await call.write(Stream.STDIN, b"x", end=True)
    assert (await call.result())[1] == b"x"
    assert house.policy.requests[0].argument == "+"


async def test_a_refused_call_tells_the_caller_nothing_but_no(house):
    caller = await house.qubes.start("work")
    house.policy.verdicts["test.Echo"] = deny("secret reason")
    with pytest.raises(PermissionError):
        await caller.call("work2", "test.Echo")
    await house.until(lambda: house.audit.lines)
    assert house.audit.lines[0]["event"] == "denied" and house.audit.lines[0]["reason"] == "secret reason"


async def test_a_policy_that_raises_is_a_denial(house):
    caller = await house.qubes.start("work")
    await house.qubes.start("vault")
    house.policy.verdicts["test.Echo"] = ZeroDivisionError()
    with pytest.raises(PermissionError):
        await caller.call("vault", "test.Echo")
    assert house.audit.events() == ["denied"]


async def test_without_an_audit_line_nothing_is_done(house):
    caller = await house.qubes.start("work")
    house.qubes.halted.add("vault")
    house.audit.full = True
    with pytest.raises(PermissionError):
        await caller.call("vault", "test.Echo")
    assert "vault" in house.qubes.halted


async def test_the_source_is_the_descriptor_whatever_the_message_says(house):
    caller = await house.qubes.start("work")
    await house.qubes.start("vault")
    number = caller.connection.new_session()
    caller._calling[number] = asyncio.get_running_loop().create_future()
    await caller.send(Call(number, "vault", "test.Echo", source="personal"))
    await caller._calling[number]
    assert house.policy.requests[0].source == "work"
    assert house.policy.requests[0].requested_source == "personal"


async def test_a_halted_target_is_started(house):
    caller = await house.qubes.start("work")
    house.qubes.halted.add("vault")
    call = await caller.call("vault", "test.Echo")
    await call.write(Stream.STDIN, b"up", end=True)
    assert (await call.result())[1] == b"up"


async def test_autostart_no_starts_nothing(house):
    caller = await house.qubes.start("work")
    house.qubes.halted.add("vault")
    house.policy.verdicts["test.Echo"] = allow("vault", autostart=False)
    with pytest.raises(PermissionError):
        await caller.call("vault", "test.Echo")
    assert "vault" in house.qubes.halted


async def test_a_disposable_is_made_used_and_released(house):
    caller = await house.qubes.start("work")
    house.policy.verdicts["test.Echo"] = allow("@dispvm:default-dvm", user="bob")
    call = await caller.call("@dispvm", "test.Echo")
    await call.write(Stream.STDIN, b"once", end=True)
    assert (await call.result())[1] == b"once"
    await house.until(lambda: house.qubes.released)
    assert house.qubes.released == ["disp1"]


async def test_a_service_that_is_not_there_is_127(house):
    caller = await house.qubes.start("work")
    await house.qubes.start("vault")
    assert (await (await caller.call("vault", "test.None")).result())[0] == 127


@pytest.mark.parametrize(("answer", "allowed"), [("vault", True), (None, False), ("personal", False)])
async def test_a_question_is_answered_by_one_of_the_offers_or_it_is_a_no(house, answer, allowed):
    caller = await house.qubes.start("work")
    await house.qubes.start("vault")
    (house.directory / "policy.d").mkdir()
    (house.directory / "policy.d" / "30-user.policy").write_text("test.Echo * work @default ask target=vault\n")
    house.policy.files = PolicySource(house.directory / "policy.d")
    house.answers.append(answer)
    if not allowed:
        with pytest.raises(PermissionError):
            await caller.call("@default", "test.Echo")
        assert house.audit.lines[-1]["cause"] == "user"
        return
    call = await caller.call("@default", "test.Echo")
    await call.write(Stream.STDIN, b"asked", end=True)
    assert (await call.result())[1] == b"asked"


async def test_half_close_each_way(house):
    stages = asyncio.Queue()

    async def talk(session: FakeSession) -> None:
        await session.write(Stream.STDOUT, b"first", end=True)
        stages.put_nowait(await session.read_all(Stream.STDIN))
        await session.write(Stream.STDERR, b"late")
        await session.exit(0)

    caller = await house.qubes.start("work")
    await house.qubes.start("vault", **{"test.Talk+": talk})
    call = await caller.call("vault", "test.Talk")
    assert await call.read_all(Stream.STDOUT) == b"first"
    await call.write(Stream.STDIN, b"still open", end=True)
    assert await stages.get() == b"still open"
    assert await call.result() == (0, b"", b"late")


async def test_many_bytes_and_slow_readers(house):
    sizes = []

    async def slow(session: FakeSession) -> None:
        async for part in session.parts(Stream.STDIN):
            sizes.append(len(part))
            await asyncio.sleep(0.001)
        await session.exit(0)

    caller = await house.qubes.start("work")
    await house.qubes.start("vault", **{"test.Slow+": slow})
    call = await caller.call("vault", "test.Slow")
    await call.write(Stream.STDIN, bytes(8 << 20), end=True)
    assert (await call.result())[0] == 0
    assert sum(sizes) == 8 << 20


async def test_bulk_in_all_directions_at_once(house):
    work = await house.qubes.start("work")
    vault = await house.qubes.start("vault")

    async def exchange(caller, target: str) -> int:
        call = await caller.call(target, "test.Echo")
        writing = asyncio.create_task(call.write(Stream.STDIN, bytes(3 << 20), end=True))
        code, output, _ = await call.result()
        await writing
        assert code == 0
        return len(output)

    sizes = await asyncio.gather(*(exchange(*pair) for pair in [(work, "vault"), (vault, "work")] * 4))
    assert sizes == [3 << 20] * 8


@pytest.mark.parametrize("seed", range(6))
async def test_frames_may_come_in_pieces_of_any_size(house, seed):
    dice = random.Random(seed)
    work = await house.qubes.start("work")
    vault = await house.qubes.start("vault")
    work.chop = vault.chop = lambda: dice.choice([1, 5, 11, 12, 13, 100, 4096, 32768, 65536, 200_000])
    parts = [dice.randbytes(dice.choice([1, 2, 1000, 65535, 65536])) for _ in range(12)]
    call = await work.call("vault", "test.Echo")

    async def feed() -> None:
        for part in parts:
            await call.write(Stream.STDIN, part)
        await call.write(Stream.STDIN, b"", end=True)

    feeding = asyncio.create_task(feed())
    assert (await call.result())[1] == b"".join(parts)
    await feeding


async def test_a_stuck_call_holds_up_no_other(house):
    async def never(session: FakeSession) -> None:
        await asyncio.sleep(3600)

    caller = await house.qubes.start("work")
    await house.qubes.start("vault", **{"test.Never+": never})
    stuck = await caller.call("vault", "test.Never")
    filling = asyncio.create_task(stuck.write(Stream.STDIN, bytes(8 << 20)))
    await asyncio.sleep(0.05)
    for _ in range(20):
        call = await caller.call("vault", "test.Echo")
        await call.write(Stream.STDIN, b"quick", end=True)
        assert (await call.result())[1] == b"quick"
    assert not filling.done()
    filling.cancel()


async def test_the_service_hears_that_the_caller_vanished(house):
    heard = asyncio.Queue()

    async def wait(session: FakeSession) -> None:
        try:
            await session.next_event()
        except Ended as error:
            heard.put_nowait(str(error))

    caller = await house.qubes.start("work")
    await house.qubes.start("vault", **{"test.Wait+": wait})
    await caller.call("vault", "test.Wait")
    await caller.hang_up()
    assert "gone" in await heard.get()
    await house.until(lambda: "ended" in house.audit.events())
    assert house.audit.lines[-1]["exit_code"] is None


async def test_the_caller_hears_that_the_target_died(house):
    async def die(session: FakeSession) -> None:
        await session.agent.hang_up()

    caller = await house.qubes.start("work")
    await house.qubes.start("vault", **{"test.Die+": die})
    call = await caller.call("vault", "test.Die")
    with pytest.raises(Ended):
        await call.result()


async def test_killing_a_relay_ends_its_calls_and_no_others_and_another_takes_over(house):
    async def wait(session: FakeSession) -> None:
        await session.read_all(Stream.STDIN)
        await session.exit(0)

    caller = await house.qubes.start("work")
    agent = await house.qubes.start("vault", **{"test.Wait+": wait})
    await house.qubes.start("other", **{"test.Wait+": wait})
    doomed = await caller.call("vault", "test.Wait")
    safe = await caller.call("other", "test.Wait")
    link = house.qubes.links["vault"]
    pid = link.pid
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(Ended):
        await doomed.result()
    await safe.write(Stream.STDIN, b"", end=True)
    assert (await safe.result())[0] == 0
    await house.until(lambda: link.is_up and link.pid != pid)
    assert (await link.run_service("test.Echo+", stdin=b"back", timeout_s=5)).stdout == b"back"
    again = await agent.call("other", "test.Echo")
    await again.write(Stream.STDIN, b"mine too", end=True)
    assert (await again.result())[1] == b"mine too"


@pytest.mark.parametrize("half", [b"", pack_frame(Kind.NOTICE, 0, b'{"event":"' + b"x" * 30 + b'"}')[:20]])
async def test_an_agent_that_was_started_anew_is_found_again(house, half):
    agent = await house.qubes.start("work")
    link = house.qubes.links["work"]
    pid = link.pid
    await agent.send_raw(half + FILLER)
    agent.connection.restart()
    await house.until(lambda: link.is_up and link.pid != pid)
    assert (await link.run_service("test.Echo+", stdin=b"hello", timeout_s=5)).stdout == b"hello"


async def test_a_link_ends_with_its_machine(house):
    agent = await house.qubes.start("work")
    await agent.__aexit__()
    async with asyncio.timeout(5):
        await house.qubes.links["work"].wait_closed()
    with pytest.raises(BackendFailed, match="out of reach"):
        await house.qubes.links["work"].control("configure", {}, timeout_s=1)


async def test_a_killed_fork_server_is_started_again(house):
    await house.qubes.start("work")
    link = house.qubes.links["work"]
    pid = link.pid
    os.kill(house.spawner.pid, signal.SIGKILL)
    await house.until(lambda: link.is_up and link.pid != pid)
    assert (await link.run_service("test.Echo+", stdin=b"x", timeout_s=5)).stdout == b"x"


async def test_a_new_relay_finds_the_thread_again_after_half_frames(house):
    agent = await house.qubes.start("work")
    await house.qubes.links["work"].close()
    # The old daemon died in the middle of a frame: the agent is fed the header of a long one.
    await agent.hang_up()
    link = await house.connector.connect("work", agent.path, ready_timeout_s=5, resync=True)
    assert (await link.run_service("test.Echo+", stdin=b"again", timeout_s=5)).stdout == b"again"
    await link.close()


async def test_calls_can_be_seen_and_ended(house):
    async def wait(session: FakeSession) -> None:
        await session.write(Stream.STDOUT, b"12345")
        await asyncio.sleep(3600)

    caller = await house.qubes.start("work")
    await house.qubes.start("vault", **{"test.Wait+": wait})
    call = await caller.call("vault", "test.Wait")
    assert await call.read(Stream.STDOUT) == b"12345"
    (view,) = await house.broker.calls()
    assert (view.source, view.target, view.service, view.stdout_bytes) == ("work", "vault", "test.Wait", 5)
    assert house.broker.kill(view.id)
    with pytest.raises(Ended, match="ended by the user"):
        await call.result()
    await house.until(lambda: "ended" in house.audit.events())
    assert await house.broker.calls() == []
    assert not house.broker.kill(view.id)


async def test_a_caller_that_gives_up_early_stops_the_preparation(house):
    caller = await house.qubes.start("work")
    house.qubes.halted.add("vault")
    gate = asyncio.Event()
    started = []

    async def slow_start(name):
        try:
            started.append(name)
            await gate.wait()
        except asyncio.CancelledError:
            started.append("cancelled")
            raise

    house.qubes.ensure_running = slow_start
    number = caller.connection.new_session()
    await caller.send(Call(number, "vault", "test.Echo"))
    await house.until(lambda: started)
    await caller.send(Reset(number, "changed my mind"))
    await house.until(lambda: "cancelled" in started)
    assert house.audit.events() == ["allowed", "failed"]


async def test_an_echo_through_two_relays_is_quick(house):
    """Not a benchmark: a generous limit that a lost wake-up or a polling loop would break."""

    async def pingpong(session: FakeSession) -> None:
        while part := await session.read(Stream.STDIN):
            await session.write(Stream.STDOUT, part)
        await session.exit(0)

    caller = await house.qubes.start("work")
    await house.qubes.start("vault", **{"test.Ping+": pingpong})
    call = await caller.call("vault", "test.Ping")
    started = time.perf_counter()
    for _ in range(100):
        await call.write(Stream.STDIN, b"ping")
        assert await call.read(Stream.STDOUT) == b"ping"
    assert (time.perf_counter() - started) / 100 < 0.05


async def test_a_relay_that_does_not_come_back_is_told_of_with_a_reason(house, caplog, monkeypatch):
    await house.qubes.start("work")
    link = house.qubes.links["work"]

    async def never(*_: object, **__: object) -> None:
        raise TimeoutError

    monkeypatch.setattr(house.connector, "connect_again", never)
    os.kill(link.first.pid, signal.SIGKILL)
    await house.until(lambda: "another one failed" in caplog.text)
    assert "another one failed: no answer" in caplog.text


async def test_an_order_that_the_kernel_does_not_take_at_the_moment_is_given_again(house, monkeypatch):
    caller = await house.qubes.start("work")
    await house.qubes.start("vault")
    send_fds, refused = socket.send_fds, []

    def full(*arguments: object) -> int:
        if len(refused) < 3:
            refused.append(arguments)
            raise OSError(errno.ETOOMANYREFS, "Too many references")
        return send_fds(*arguments)

    monkeypatch.setattr(socket, "send_fds", full)
    call = await caller.call("vault", "test.Echo")
    await call.write(Stream.STDIN, b"hello", end=True)
    assert (await call.result())[1] == b"hello" and len(refused) == 3
