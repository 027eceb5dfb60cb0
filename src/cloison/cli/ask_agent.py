"""``cloison ask-agent``: shows the questions of the policy's ``ask`` rules and sends the answers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import termios
import time
from collections.abc import Coroutine, Iterator
from typing import Any

import click

from cloison.cli.asking import FOCUS_REPORTS_OFF, FOCUS_REPORTS_ON, KeyReader, draw
from cloison.cli.command import command, is_interactive
from cloison.cli.rawterminal import raw_terminal
from cloison.cli.session import Session
from cloison.client import calls
from cloison.client.aio import AsyncClient
from cloison.client.asking import AskState, Key, Reply
from cloison.client.framing import Event
from cloison.client.servicewords import words_for
from cloison.errors import CloisonError

RETRY_S = 1.0
TICK_S = 0.25
READ_BYTES = 4096
MAX_LINE_BYTES = 1 << 20


@command("ask-agent", examples=(
    ("cloison ask-agent", "in a terminal that you keep in view"),
    ("cloison ask-agent --json", "for other front ends: a JSON object per line, both ways"),
))  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Questions out, answers in: one JSON object per line.")
def COMMAND(session: Session, as_json: bool) -> None:
    """Answer the questions that qubes' calls raise. While no agent runs, whatever would be asked is denied.

    Several may run: each shows every question, and the first answer counts.
    """
    if as_json:
        asyncio.run(_JsonAgent(session).run())
    elif is_interactive() and os.environ.get("TERM", "dumb") != "dumb":
        asyncio.run(_TerminalAgent(session).run())
    else:
        raise click.UsageError("nobody can answer here: run it in a terminal that can move its cursor, or give --json")


class _Agent:
    """What both kinds do: listen (again, when the daemon was away) and answer."""

    def __init__(self, session: Session, name: str) -> None:
        self._client = AsyncClient(session.layout)
        self._quiet_client = AsyncClient(session.layout, start_daemon=False)
        self._name = name

    async def listen(self) -> None:
        """For ever; the first time a daemon is started if there is none."""
        client = self._client
        while True:
            self.connecting()
            with contextlib.suppress(CloisonError):
                await client.do(calls.ask_listen(), on_event=self._take)
            client = self._quiet_client
            await asyncio.sleep(RETRY_S)

    async def send(self, prompt_id: str, chosen: str | None, line: str | None) -> str:
        """Why the daemon did not take the answer; "" if it did."""
        try:
            await self._quiet_client.do(calls.ask_answer(prompt_id, chosen, by=self._name, line=line))
        except CloisonError as error:
            return str(error)
        return ""

    def _take(self, event: Event) -> None:
        with contextlib.suppress(ValueError):  # another version's words: whatever it is, nobody can say yes to it
            value = json.loads(event.fields.get("json", "{}"))
            if isinstance(value, dict):
                self.told(event.name, value)

    def connecting(self) -> None:
        raise NotImplementedError

    def told(self, name: str, value: dict[str, Any]) -> None:
        raise NotImplementedError


class _JsonAgent(_Agent):
    """Lines out: ``{"event": "prompt" | "gone" | "notice" | "ready" | "lost" | "answered" | "error", ...}``.

    Lines in: ``{"id": ID, "allow": TARGET}`` or ``{"id": ID, "deny": true}``, with ``"remember": LINE`` to write the
    rule that the prompt showed. Ends at the end of its input.
    """

    def __init__(self, session: Session) -> None:
        super().__init__(session, f"ask-agent --json, process {os.getpid()}")
        self._was_ready = False

    async def run(self) -> None:
        lines: asyncio.Queue[bytes] = asyncio.Queue()
        try:
            asyncio.get_running_loop().add_reader(0, _read_lines, lines, bytearray())
        except PermissionError:  # a file, or /dev/null: all is there at once
            for line in sys.stdin.buffer:
                lines.put_nowait(line.strip() or b"{}")
            lines.put_nowait(b"")
        await _until_first(self.listen(), self._answer_all(lines))

    async def _answer_all(self, lines: asyncio.Queue[bytes]) -> None:
        while line := await lines.get():
            await self._answer(line)

    def connecting(self) -> None:
        if self._was_ready:
            self._was_ready = False
            self._say("lost", {})

    def told(self, name: str, value: dict[str, Any]) -> None:
        if name == "ready":
            self._was_ready = True
        if name == "prompt":
            value["words"] = words_for(str(value.get("service")))
        self._say(name, value)

    async def _answer(self, line: bytes) -> None:
        try:
            wish = json.loads(line)
            prompt_id, allow, deny = wish["id"], wish.get("allow"), wish.get("deny")
            remember = wish.get("remember")
            if not isinstance(prompt_id, str) or (allow is None) == (deny is not True):
                raise ValueError('give "allow" or "deny": true')
            if not isinstance(allow, str | None) or not isinstance(remember, str | None):
                raise ValueError('"allow" and "remember" are text')
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            self._say("error", {"id": None, "message": f"that is no answer: {error}"})
            return
        if why := await self.send(prompt_id, allow, remember):
            self._say("error", {"id": prompt_id, "message": why})
        else:
            self._say("answered", {"id": prompt_id, "allow": allow})

    def _say(self, name: str, value: dict[str, Any]) -> None:
        click.echo(json.dumps({"event": name, **value}))


def _read_lines(lines: asyncio.Queue[bytes], rest: bytearray) -> None:
    """Standard input has something: whole lines into the queue, b"" at its end."""
    data = os.read(0, READ_BYTES)
    rest += data
    while (end := rest.find(b"\n")) >= 0:
        if line := bytes(rest[:end]).strip():
            lines.put_nowait(line)
        del rest[: end + 1]
    if not data or len(rest) > MAX_LINE_BYTES:
        asyncio.get_running_loop().remove_reader(0)
        lines.put_nowait(b"")


class _TerminalAgent(_Agent):
    """A full screen: the question in view, its targets, what was refused lately."""

    def __init__(self, session: Session) -> None:
        super().__init__(session, f"ask-agent on {_terminal_name()}")
        self._palette = session.palette
        self._state = AskState(time.monotonic)
        self._keys = KeyReader()
        self._shown: list[str] = []
        self._in_view = ""
        self._replies: asyncio.Queue[Reply] = asyncio.Queue()

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        ending = asyncio.Event()
        with raw_terminal(0), _screen():
            for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
                loop.add_signal_handler(number, ending.set)
            loop.add_signal_handler(signal.SIGWINCH, self._redraw)
            loop.add_reader(0, self._typed, ending)
            try:
                await _until_first(ending.wait(), self.listen(), self._answer(), self._tick())
            finally:
                loop.remove_reader(0)

    def connecting(self) -> None:
        self._state.connecting()
        self._draw()

    def told(self, name: str, value: dict[str, Any]) -> None:
        if self._state.told(name, value):
            sys.stdout.write("\a")
        self._draw()

    async def _answer(self) -> None:
        while True:
            reply = await self._replies.get()
            if why := await self.send(reply.id, reply.chosen, reply.line):
                self._state.refused(reply.id, why)
                self._draw()

    async def _tick(self) -> None:
        """What changes by itself: the moment before keys count."""
        while True:
            await asyncio.sleep(TICK_S)
            if self._state.current is not None:
                self._draw()

    def _typed(self, ending: asyncio.Event) -> None:
        try:
            typed = os.read(0, READ_BYTES)
        except OSError:
            typed = b""
        if not typed:
            ending.set()
            return
        for key in self._keys.read(typed):
            if not isinstance(key, Key):
                self._state.focused()
            elif key is Key.QUIT:
                ending.set()
            elif (reply := self._state.press(key)) is not None:
                self._replies.put_nowait(reply)
        self._draw()

    def _redraw(self) -> None:
        self._shown = []
        sys.stdout.write("\x1b[2J")
        self._draw()

    def _draw(self) -> None:
        in_view = self._state.current.id if self._state.current else ""
        if in_view != self._in_view:
            self._in_view = in_view
            termios.tcflush(0, termios.TCIFLUSH)  # it was not meant for this question
        size = os.get_terminal_size(1)
        lines = draw(self._state, self._palette, size.columns or 80, size.lines or 24)
        lines += [""] * (len(self._shown) - len(lines))
        for row, line in enumerate(lines, 1):
            if row > len(self._shown) or self._shown[row - 1] != line:
                sys.stdout.write(f"\x1b[{row};1H{line}\x1b[K")
        self._shown = lines
        sys.stdout.flush()


def _terminal_name() -> str:
    try:
        return os.ttyname(0)
    except OSError:  # a terminal of another namespace
        return "a terminal"


async def _until_first(*work: Coroutine[Any, Any, object]) -> None:
    """Run all until one of them ends, and end the others; raises what that one raised."""
    tasks = [asyncio.create_task(part) for part in work]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()


@contextlib.contextmanager
def _screen() -> Iterator[None]:
    """A screen of our own, without cursor; the old one comes back afterwards."""
    sys.stdout.write(f"\x1b[?1049h\x1b[?25l\x1b[2J{FOCUS_REPORTS_ON}")
    try:
        yield
    finally:
        sys.stdout.write(f"{FOCUS_REPORTS_OFF}\x1b[?25h\x1b[?1049l")
        sys.stdout.flush()
