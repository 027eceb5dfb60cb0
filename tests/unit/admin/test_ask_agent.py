"""The ask-agent as a process of its own: through a pty and through pipes, against the real desk and server."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pty
import re
import signal
import subprocess
import sys
import termios
from dataclasses import replace
from pathlib import Path

import pytest

from cloison.admin.server import AdminServer
from cloison.daemon.door import Door
from cloison.engine import events as e
from cloison.errors import Refused
from cloison.policy import Ask, PolicySource, Request, SystemInfo, evaluate
from cloison.policy.remember import Memory
from cloison.policy.store import PolicyStore
from cloison.policy.verdicts import Cause
from cloison.qrexec.asking import AskDesk
from cloison.qrexec.calls import CallRefused, CallState, CallView
from cloison.qrexec.ports import Answer

CLOISON = str(Path(sys.executable).with_name("cloison"))
SYSTEM = SystemInfo.parse({"domains": {name: {"type": "AppVM"} for name in ("work", "vault", "personal")}})


class Place:
    """The real desk of questions behind the real server."""

    def __init__(self, house) -> None:
        self.house = house
        self.directory = house.tmp / "config" / "policy.d"
        self.directory.mkdir(parents=True)
        self.user = self.directory / "30-user.policy"
        self.user.write_text("# mine\n")
        (self.directory / "90-default.policy").write_text("* * @anyvm @anyvm ask default_target=vault\n")
        self.policy = PolicySource(self.directory)
        self.desk = AskDesk(Memory(PolicyStore(self.directory), self.policy), lambda: SYSTEM,
                            lambda name: ("blue", "0x0000cc"), timeout_s=120)  # fmt: skip
        self.door = Door(house.ledger, self.desk)
        house.admin.desk = replace(house.admin.desk, door=self.door)
        self.environment = {**os.environ, "CLOISON_ROOT": str(house.tmp), "TERM": "xterm", "LANG": "C.UTF-8"}

    def ask(self, service: str = "qubes.Filecopy") -> asyncio.Task[Answer]:
        request = Request("work", "@default", service, "+")
        verdict = evaluate(self.policy.current(), SYSTEM, request)
        assert isinstance(verdict, Ask)
        return asyncio.create_task(self.desk.ask(verdict, request, request.source))

    async def until(self, condition, what: str = "") -> None:
        async with asyncio.timeout(20):
            while not condition():  # noqa: ASYNC110 - conditions of many kinds
                await asyncio.sleep(0.02)


@pytest.fixture
async def server(house):
    server = AdminServer(house.tmp / "run" / "qubesd.sock", house.admin)
    await server.start()
    yield server
    await server.close()


@pytest.fixture
async def place(house, server):
    place = Place(house)
    yield place
    place.door.close()


class Terminal:
    """An ask-agent on a terminal of 80 by 24."""

    def __init__(self, place: Place) -> None:
        self.master, slave = pty.openpty()
        termios.tcsetwinsize(self.master, (24, 80))
        self.process = subprocess.Popen([CLOISON, "ask-agent"], stdin=slave, stdout=slave, stderr=slave,
                                        env=place.environment, start_new_session=True)  # fmt: skip
        os.close(slave)
        os.set_blocking(self.master, False)
        self.raw = b""

    def text(self) -> str:
        with contextlib.suppress(BlockingIOError, OSError):
            while data := os.read(self.master, 65536):
                self.raw += data
        return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", " ", self.raw.decode(errors="replace"))

    def sees(self, words: str):
        return lambda: words in self.text()

    def type(self, keys: bytes) -> None:
        os.write(self.master, keys)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.master)


@pytest.fixture
async def terminal(place):
    terminal = Terminal(place)
    await place.until(lambda: place.desk.agents == 1)
    yield terminal
    terminal.close()


async def test_a_question_is_seen_and_answered_with_yes_after_a_moment(place, terminal):
    terminal.type(b"aaaadd")  # typed before there is a question: means nothing
    asking = place.ask()
    terminal.type(b"a")
    await place.until(terminal.sees("wants to copy files to another qube"))
    terminal.type(b"a")
    await place.until(terminal.sees("a lets work copy files to vault"))
    assert not asking.done()
    terminal.type(b"a")
    async with asyncio.timeout(10):
        answer = await asking
    assert answer.chosen == "vault" and answer.by.startswith("ask-agent on /dev/pts/")
    await place.until(terminal.sees("No question is open"))


async def test_another_target_is_chosen_and_remembered(place, terminal):
    asking = place.ask()
    await place.until(terminal.sees("a lets work copy files to vault"))
    terminal.type(b"\x1b[A")
    await place.until(terminal.sees("a lets work copy files to personal"))
    terminal.type(b"r")
    line = "qubes.Filecopy + work @default allow target=personal"
    await place.until(terminal.sees(line))
    await asyncio.sleep(1.1)
    terminal.type(b"a")
    async with asyncio.timeout(10):
        assert (await asking).chosen == "personal"
    assert place.user.read_text() == f"# mine\n{line}\n"


async def test_no_and_quit(place, terminal):
    asking = place.ask()
    await place.until(terminal.sees("d says no"))
    terminal.type(b"d")
    async with asyncio.timeout(10):
        assert (await asking).chosen is None
    asking = place.ask("qubes.Gpg")
    await place.until(terminal.sees("use the secret GPG keys in another qube"))
    terminal.type(b"q")
    await place.until(lambda: terminal.process.poll() is not None)
    assert terminal.process.returncode == 0
    with pytest.raises(Refused, match="went away"):
        async with asyncio.timeout(10):
            await asking
    assert terminal.text() and terminal.raw.rstrip().endswith(b"\x1b[?1049l"), "the old screen is back"


async def test_an_agent_that_is_killed_in_the_middle_is_a_no(place, terminal):
    asking = place.ask()
    await place.until(terminal.sees("wants to copy files"))
    terminal.process.send_signal(signal.SIGKILL)
    with pytest.raises(Refused, match="went away"):
        async with asyncio.timeout(10):
            await asking


async def test_a_caller_that_gives_up_clears_the_screen(place, terminal):
    asking = place.ask()
    await place.until(terminal.sees("wants to copy files"))
    asking.cancel()
    await place.until(terminal.sees("No question is open"))


async def test_an_agent_finds_the_next_daemon(place, terminal, server):
    asking = place.ask()
    await place.until(terminal.sees("wants to copy files"))
    await server.close()
    with pytest.raises(Refused, match="went away"):
        await asking
    await place.until(terminal.sees("The daemon is not there"))
    await server.start()
    await place.until(lambda: place.desk.agents == 1)
    asking = place.ask("qubes.Gpg")
    await place.until(terminal.sees("a lets work use the secret GPG keys in vault"))
    terminal.type(b"a")
    async with asyncio.timeout(10):
        assert (await asking).chosen == "vault"


async def test_refusals_are_shown_and_are_events(place, terminal):
    seen = place.house.ledger.bus.subscribe()
    view = CallView(1, "work", "vault", "qubes.VMShell", "", "", "f:1", CallState.DECIDING, 0.0)
    for _ in range(30):
        place.door.tell(CallRefused(view, "denied by f:1", True, cause=Cause.RULE))
    place.door.tell(CallRefused(replace(view, service="quiet"), "denied by f:1", False))
    await place.until(terminal.sees("denied: a call by work of qubes.VMShell to vault (denied by f:1)"))
    (event,) = seen.take_waiting()
    assert event == e.CallNoticed("work", "denied", "qubes.VMShell", "vault", "denied by f:1", 1)


async def test_the_protocol_of_lines(place):
    process = await asyncio.create_subprocess_exec(
        CLOISON, "ask-agent", "--json", stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=place.environment
    )

    async def hear() -> dict:
        async with asyncio.timeout(20):
            return json.loads(await process.stdout.readline())

    async def say(value: object) -> None:
        process.stdin.write(json.dumps(value).encode() + b"\n")
        await process.stdin.drain()

    assert (await hear())["event"] == "ready"
    asking = place.ask()
    prompt = await hear()
    assert prompt["event"] == "prompt" and prompt["words"] == "copy files to {}" and prompt["default_target"] == "vault"
    await say({"id": prompt["id"], "allow": "vault"})
    early = await hear()
    assert early["event"] == "error" and "seen for 1 s" in early["message"]
    for wrong in (
        {"id": prompt["id"]},
        {"id": prompt["id"], "allow": "vault", "deny": True},
        [],
        {"id": 5, "deny": True},
    ):
        await say(wrong)
        assert "that is no answer" in (await hear())["message"]
    await asyncio.sleep(1.1)
    line = prompt["remember"]["allow"]["vault"]
    await say({"id": prompt["id"], "allow": "vault", "remember": line})
    assert {(await hear())["event"], (await hear())["event"]} == {"answered", "gone"}
    assert (await asking).chosen == "vault" and line in place.user.read_text()
    process.stdin.close()
    async with asyncio.timeout(10):
        assert await process.wait() == 0
    await place.until(lambda: place.desk.agents == 0)


async def test_calls_through_the_admin_api(place):
    view = CallView(7, "work", "vault", "qubes.Gpg", "vault", "", "f:1", CallState.RUNNING, 0.0, 1, 2, 3)

    class Broker:
        async def calls(self):
            return [view]

        def kill(self, number: int) -> bool:
            return number == 7

        def revoke(self, *, dry_run: bool):
            return [(view, f"dry: {dry_run}")]

    place.door.broker = Broker()
    (row,) = json.loads(await place.house.ok("cloison.call.List"))
    assert (row["id"], row["state"], row["stderr_bytes"]) == (7, "running", 3)
    assert await place.house.ok("cloison.call.Kill", payload='{"id":7}') == "{}"
    assert await place.house.error("cloison.call.Kill", payload='{"id":8}') == "QubesValueError"
    assert (
        json.loads(await place.house.ok("cloison.policy.Apply", payload='{"dry_run":true}'))[0]["reason"] == "dry: True"
    )
    for method in ("cloison.policy.Apply", "cloison.ask.Listen", "cloison.ask.Answer"):
        payload = "{}" if method.endswith("Answer") else ""
        assert await place.house.error(method, payload=payload, source="work") == "PermissionDenied"
