"""dom0 as caller and as callee: the host client socket, services in files and in the daemon, the audit file."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import struct
from pathlib import Path

import pytest
from conftest import House
from fakes import FakeSession

from cloison.errors import BadRequest, NotNow
from cloison.policy import PolicySource
from cloison.qrexec.calls import CallAllowed, CallEnded, CallRefused
from cloison.qrexec.ports import Fed, Limits
from cloison.wire import (
    LEG_SESSION,
    Accepted,
    Call,
    Connection,
    Credit,
    CreditCounter,
    Data,
    Exit,
    Refused,
    Role,
    Signal,
    Stream,
    Tty,
    WindowSize,
)


class HostClient:
    """What ``cloison run`` does, in short."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.connection = Connection(Role.LEG_CALLER)
        self.waiting = []

    @classmethod
    async def connect(cls, house: House) -> HostClient:
        return cls(*await asyncio.open_unix_connection(house.host_socket))

    async def ask(self, target: str, service: str = "", **fields) -> None:
        self.writer.write(self.connection.send(Call(LEG_SESSION, target, service, **fields)))
        answer = await self.event()
        if isinstance(answer, Refused):
            raise PermissionError(answer.reason)
        assert isinstance(answer, Accepted)

    async def event(self):
        while not self.waiting:
            data = await self.reader.read(1 << 18)
            if not data:
                raise ConnectionError
            self.waiting += self.connection.receive_data(data)
        return self.waiting.pop(0)

    async def send(self, event) -> None:
        self.writer.write(self.connection.send(event))
        await self.writer.drain()

    async def run(self, stdin: bytes = b"") -> tuple[int, bytes, bytes]:
        if stdin:
            await self.send(Data(LEG_SESSION, Stream.STDIN, stdin))
        await self.send(Data(LEG_SESSION, Stream.STDIN, b""))
        outputs, counter = {1: b"", 2: b""}, CreditCounter()
        while True:
            event = await self.event()
            if isinstance(event, Exit):
                return event.code, outputs[1], outputs[2]
            if isinstance(event, Data):
                outputs[event.stream] += event.payload
                if credit := counter.consumed(len(event.payload)):
                    await self.send(Credit(LEG_SESSION, event.stream, credit))


async def run(house: House, target: str, service: str = "", stdin: bytes = b"", **fields) -> tuple[int, bytes, bytes]:
    client = await HostClient.connect(house)
    try:
        await client.ask(target, service, **fields)
        return await client.run(stdin)
    finally:
        client.writer.close()


async def test_the_socket_is_for_this_user_only(house):
    assert stat.S_IMODE(house.host_socket.stat().st_mode) == 0o600


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")
async def test_another_user_is_turned_away(house):
    house.host_socket.chmod(0o666)
    for directory in (house.directory, *house.directory.parents):
        if directory.stat().st_mode & 0o11 != 0o11:
            directory.chmod(0o755)

    def knock() -> bytes:
        read, write = os.pipe()
        if os.fork() == 0:
            try:
                os.setuid(65534)
                with socket.socket(socket.AF_UNIX) as client:
                    client.connect(str(house.host_socket))
                    os.write(write, b"got:" + client.recv(10))
            except OSError as error:
                os.write(write, str(error).encode())
            finally:
                os._exit(0)
        os.close(write)
        return os.read(read, 100)

    assert await asyncio.get_running_loop().run_in_executor(None, knock) == b"got:"


async def test_dom0_calls_a_qube_without_asking_any_policy(house):
    await house.qubes.start("work")
    assert await run(house, "work", "test.Echo+", b"hello") == (0, b"hello", b"")
    assert house.policy.requests == []
    await house.until(lambda: "ended" in house.audit.events())
    assert house.audit.lines[0]["source"] == "dom0"


async def test_dom0_runs_a_command_on_a_terminal_with_signals(house):
    opened = []

    async def terminal(session: FakeSession) -> None:
        opened.append(session.opened)
        while not isinstance(event := await session.next_event(), Signal):
            opened.append(event)
        await session.exit(128 + event.number)

    await house.qubes.start("work", **{"command:top": terminal})
    client = await HostClient.connect(house)
    await client.ask("work", command="top", user="root", tty=Tty("xterm", 24, 80), nogui=True)
    await client.send(WindowSize(LEG_SESSION, 50, 100))
    await client.send(Signal(LEG_SESSION, 2))
    assert (await client.run())[0] == 130
    assert opened[0].tty == Tty("xterm", 24, 80) and opened[0].user == "root" and opened[0].nogui
    assert (opened[1].rows, opened[1].cols) == (50, 100)


async def test_dom0_starts_a_halted_qube(house):
    house.qubes.halted.add("work")
    assert (await run(house, "work", "test.Echo+", b"x"))[1] == b"x"


async def test_dom0_may_say_not_to_start_it(house):
    house.qubes.halted.add("work")
    with pytest.raises(PermissionError, match="not running"):
        await run(house, "work", "test.Echo+", autostart=False)


@pytest.mark.parametrize("target", ["@dispvm", "@dispvm:default-dvm"])
async def test_dom0_uses_a_disposable(house, target):
    assert (await run(house, target, "test.Echo+", b"x"))[1] == b"x"
    await house.until(lambda: house.qubes.released == ["disp1"])


async def test_a_failing_start_is_said_to_the_client_with_its_reason(house):
    house.qubes.halted.add("work")

    async def fail(name: str) -> None:
        raise NotNow("no memory left", hint="stop something")

    house.qubes.ensure_running = fail
    with pytest.raises(PermissionError, match=r"no memory left \(hint: stop something\)"):
        await run(house, "work", "test.Echo+")
    assert house.audit.events() == ["allowed", "failed"]


@pytest.mark.parametrize("target", ["nobody", "@default", "", "@dispvm:work"])
async def test_an_unknown_target_is_refused(house, target):
    with pytest.raises(PermissionError, match="no qube is named"):
        await run(house, target, "test.Echo+")


@pytest.mark.parametrize("junk", [b"GET / HTTP/1.0\r\n\r\n", bytes(64), struct.pack("<III", 2, 1, 17) + b"{}", b""])
async def test_nonsense_on_the_socket_is_dropped(house, junk):
    reader, writer = await asyncio.open_unix_connection(house.host_socket)
    writer.write(junk)
    writer.write_eof()
    assert await reader.read() == b""
    await house.qubes.start("work")
    assert (await run(house, "work", "test.Echo+", b"x"))[0] == 0


async def test_a_client_that_hangs_up_while_the_qube_starts_gives_the_call_up(house):
    house.qubes.halted.add("work")
    stages = []

    async def slow(name: str) -> None:
        stages.append("starting")
        try:
            await asyncio.sleep(3600)
        finally:
            stages.append("given up")

    house.qubes.ensure_running = slow
    client = await HostClient.connect(house)
    client.writer.write(client.connection.send(Call(LEG_SESSION, "work", "test.Echo+")))
    await house.until(lambda: stages)
    client.writer.close()
    await house.until(lambda: "given up" in stages)
    await house.until(lambda: house.audit.events() == ["allowed", "failed"])


async def test_a_client_that_dies_releases_its_disposable(house):
    client = await HostClient.connect(house)
    await client.ask("@dispvm", "test.Echo+")
    client.writer.close()
    await house.until(lambda: house.qubes.released == ["disp1"])


async def test_bulk_to_and_from_a_host_client(house):
    async def produce(session: FakeSession) -> None:
        await session.write(Stream.STDOUT, bytes(8 << 20))
        await session.exit(0)

    await house.qubes.start("work", **{"test.Produce+": produce})
    code, output, _ = await run(house, "work", "test.Produce+")
    assert (code, len(output)) == (0, 8 << 20)


async def test_a_slow_client_loses_nothing_when_the_service_ends_first(house):
    async def produce(session: FakeSession) -> None:
        await session.write(Stream.STDOUT, bytes(200_000))
        await session.exit(0)

    house.qubes.services["test.Produce+"] = produce
    client = await HostClient.connect(house)
    await client.ask("@dispvm", "test.Produce+")
    await asyncio.sleep(0.2)
    assert house.qubes.released == []
    code, output, _ = await client.run(b"too late")
    assert (code, len(output)) == (0, 200_000)
    client.writer.write(client.connection.data_to_send())
    await house.until(lambda: house.qubes.released)


# Services of dom0


def install(house: House, name: str, text: str) -> None:
    path = house.services_directory / name
    path.write_text("#!/bin/sh\n" + text)
    path.chmod(0o700)


async def test_a_qube_calls_an_executable_of_dom0(house):
    install(house, "test.Script", 'cat; echo "$1 $QREXEC_REMOTE_DOMAIN $QREXEC_SERVICE_FULL_NAME '
            '$QREXEC_REQUESTED_TARGET_TYPE $QREXEC_REQUESTED_TARGET_KEYWORD"; echo hidden >&2; exit 4')  # fmt: skip
    caller = await house.qubes.start("work")
    call = await caller.call("@adminvm", "test.Script+an+arg")
    await call.write(Stream.STDIN, b"input ", end=True)
    assert await call.result() == (4, b"input an+arg work test.Script+an+arg keyword adminvm\n", b"")
    await house.until(lambda: "ended" in house.audit.events())
    assert house.audit.lines[-1]["exit_code"] == 4 and house.audit.lines[-1]["stdin_bytes"] == 6


async def test_the_file_with_the_argument_goes_first(house):
    install(house, "test.Two", "echo general")
    install(house, "test.Two+x", "echo special")
    caller = await house.qubes.start("work")
    outputs = [(await (await caller.call("dom0", service)).result())[1] for service in ("test.Two+x", "test.Two+y")]
    assert outputs == [b"special\n", b"general\n"]


@pytest.mark.parametrize("service", ["test.None", "..", ".", "test.NotExecutable"])
async def test_what_is_not_an_executable_file_is_not_found(house, service):
    (house.services_directory / "test.NotExecutable").write_text("x")
    caller = await house.qubes.start("work")
    house.policy.verdicts[service] = None
    assert (await (await caller.call("dom0", service)).result())[0] == 127


async def test_a_script_that_reads_nothing_and_writes_much(house):
    install(house, "test.Much", "head -c 4000000 /dev/zero; kill -9 $$")
    caller = await house.qubes.start("work")
    call = await caller.call("dom0", "test.Much")
    feeding = asyncio.create_task(call.write(Stream.STDIN, bytes(4 << 20)))
    code, output, _ = await call.result()
    assert (code, len(output)) == (137, 4_000_000)
    feeding.cancel()


async def test_a_script_ends_when_its_caller_is_gone(house):
    install(house, "test.Long", f"echo $$ > {house.directory}/pid; exec sleep 3600")
    caller = await house.qubes.start("work")
    await caller.call("dom0", "test.Long")
    pid_file = house.directory / "pid"
    await house.until(lambda: pid_file.exists() and pid_file.read_text().strip())
    await caller.hang_up()
    await house.until(lambda: not Path(f"/proc/{pid_file.read_text().strip()}").exists())


async def test_a_service_in_the_daemon(house):
    async def answer(call, stdin: bytes) -> bytes:
        return f"{call.source} {call.service} {call.argument} {call.requested_target} ".encode() + stdin

    house.builtins["admin.vm.List"] = answer
    caller = await house.qubes.start("work")
    call = await caller.call("dom0", "admin.vm.List+x")
    await call.write(Stream.STDIN, b"payload", end=True)
    assert await call.result() == (0, b"work admin.vm.List x dom0 payload", b"")


async def test_a_service_in_the_daemon_may_answer_piece_by_piece(house):
    async def answer(call, stdin: bytes):
        async def pieces():
            for _ in range(10):
                yield bytes(100_000)

        return pieces()

    house.builtins["test.Pieces"] = answer
    caller = await house.qubes.start("work")
    call = await caller.call("dom0", "test.Pieces")
    await call.write(Stream.STDIN, b"", end=True)
    assert len((await call.result())[1]) == 1_000_000


@pytest.mark.parametrize("error", [ValueError("bug"), BadRequest("nonsense"), OSError(5, "disk")])
async def test_a_service_that_raises_is_125_and_says_nothing(house, error):
    async def answer(call, stdin: bytes) -> bytes:
        raise error

    house.builtins["test.Bug"] = answer
    caller = await house.qubes.start("work")
    call = await caller.call("dom0", "test.Bug")
    await call.write(Stream.STDIN, b"", end=True)
    assert await call.result() == (125, b"", b"")


async def test_a_service_that_is_fed_too_much_is_125(house):
    async def answer(call, stdin: bytes) -> bytes:
        return b"never"

    house.builtins["test.Small"] = answer
    caller = await house.qubes.start("work")
    call = await caller.call("dom0", "test.Small")
    feeding = asyncio.create_task(call.write(Stream.STDIN, bytes(3 << 20), end=True))
    assert await call.result() == (125, b"", b"")
    feeding.cancel()


async def test_a_service_that_reads_in_pieces_takes_any_amount_and_notices_a_caller_that_dies(house):
    ended = []

    async def serve(call, more) -> bytes:
        count = 0
        try:
            while piece := await more():
                count += len(piece)
        except BaseException as error:
            ended.append(type(error).__name__)
            raise
        ended.append(count)
        return str(count).encode()

    house.builtins["test.Large"] = Fed(serve)
    caller = await house.qubes.start("work")
    call = await caller.call("dom0", "test.Large")
    await call.write(Stream.STDIN, bytes(3 << 20), end=True)
    assert await call.result() == (0, b"3145728", b"")
    call = await caller.call("dom0", "test.Large")
    await call.write(Stream.STDIN, b"half")
    await caller.hang_up()
    await house.until(lambda: len(ended) == 2)
    assert ended[0] == 3 << 20 and ended[1] in ("CancelledError", "LegLost")


async def test_a_service_in_the_daemon_is_cancelled_when_its_caller_is_gone(house):
    stages = []

    async def answer(call, stdin: bytes) -> bytes:
        stages.append("asked")
        try:
            await asyncio.sleep(3600)
        finally:
            stages.append("cancelled")
        return b""

    house.builtins["test.Slow"] = answer
    caller = await house.qubes.start("work")
    call = await caller.call("dom0", "test.Slow")
    await call.write(Stream.STDIN, b"", end=True)
    await house.until(lambda: stages)
    await caller.hang_up()
    await house.until(lambda: stages == ["asked", "cancelled"])


async def test_dom0_calls_its_own_services_too(house):
    install(house, "test.Here", "echo here")
    assert await run(house, "dom0", "test.Here") == (0, b"here\n", b"")


# Limits, events, audit


async def test_one_qube_has_so_many_calls_and_no_more(tmp_path):
    async def wait(session: FakeSession) -> None:
        await session.read_all(Stream.STDIN)
        await session.exit(0)

    async with House(tmp_path, limits=Limits(calls_per_source=3)) as house:
        caller = await house.qubes.start("work")
        other = await house.qubes.start("other")
        await house.qubes.start("vault", **{"test.Wait+": wait})
        calls = [await caller.call("vault", "test.Wait") for _ in range(3)]
        with pytest.raises(PermissionError):
            await caller.call("vault", "test.Wait")
        await other.call("vault", "test.Wait")
        await calls[0].write(Stream.STDIN, b"", end=True)
        await calls[0].result()
        await house.until(lambda: "ended" in house.audit.events())
        await caller.call("vault", "test.Wait")


async def test_one_qube_holds_so_many_disposables_and_no_more(tmp_path):
    async with House(tmp_path, limits=Limits(disposables_per_source=2)) as house:
        caller = await house.qubes.start("work")
        for _ in range(2):
            await caller.call("@dispvm:default-dvm", "test.Echo")
        with pytest.raises(PermissionError):
            await caller.call("@dispvm:default-dvm", "test.Echo")
        assert house.audit.lines[-1]["reason"] == "work holds 2 disposables already"
        with pytest.raises(PermissionError):
            await house.qubes.agents["disp1"].call("@dispvm:default-dvm", "test.Echo")
        other = await house.qubes.start("other")
        await other.call("@dispvm:default-dvm", "test.Echo")


async def test_a_question_that_nobody_answers_is_a_no(tmp_path):
    async with House(tmp_path, limits=Limits(ask_timeout_s=0.1)) as house:
        (tmp_path / "policy.d").mkdir()
        (tmp_path / "policy.d" / "30-user.policy").write_text("* * @anyvm @anyvm ask\n")
        house.policy.files = PolicySource(tmp_path / "policy.d")

        async def never(ask, request, owner):
            await asyncio.sleep(3600)

        house.broker._ask = never
        caller = await house.qubes.start("work")
        await house.qubes.start("vault")
        with pytest.raises(PermissionError):
            await caller.call("vault", "test.Echo")
        assert "in time" in house.audit.lines[-1]["reason"]


async def test_what_happens_is_told(house):
    caller = await house.qubes.start("work")
    await house.qubes.start("vault")
    call = await caller.call("vault", "test.Echo")
    await call.write(Stream.STDIN, b"", end=True)
    await call.result()
    with pytest.raises(PermissionError):
        await caller.call("nobody", "test.Echo")
    await house.until(lambda: len(house.events) == 3)
    assert sorted(type(event).__name__ for event in house.events) == ["CallAllowed", "CallEnded", "CallRefused"]
    assert {CallAllowed, CallEnded, CallRefused} == {type(event) for event in house.events}


async def test_the_broker_closes_with_everything_released(tmp_path):
    house = await House(tmp_path).__aenter__()
    caller = await house.qubes.start("work")
    await caller.call("@dispvm:default-dvm", "test.Echo")
    client = await HostClient.connect(house)
    await client.ask("@dispvm", "test.Echo+")
    await house.__aexit__()
    assert sorted(house.qubes.released) == ["disp1", "disp2"]
    assert not house.host_socket.exists()
