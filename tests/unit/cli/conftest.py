"""A daemon and a broker to talk to: the real sockets and framings, with a small world behind them."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import select
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cloison.layout import Layout
from cloison.wire import (
    LEG_SESSION,
    WINDOW,
    Accepted,
    Call,
    Connection,
    Credit,
    CreditCounter,
    Data,
    Event,
    Exit,
    Refused,
    Reset,
    Role,
    Signal,
    Stream,
    WindowSize,
)

Answer = bytes | Callable[[str, str, bytes], bytes]


def ok(text: str | bytes | Any = b"") -> bytes:
    data = text if isinstance(text, bytes) else text.encode() if isinstance(text, str) else json.dumps(text).encode()
    return b"0\0" + data


def refused(name: str, text: str) -> bytes:
    return b"2\0" + name.encode() + b"\0\0" + text.replace("%", "%%").encode() + b"\0"


def event(subject: str, name: str, **fields: str) -> bytes:
    pairs = b"".join(k.encode() + b"\0" + v.encode() + b"\0" for k, v in fields.items())
    return b"1\0" + subject.encode() + b"\0" + name.encode() + b"\0" + pairs + b"\0"


class FakeDaemon:
    """Answers by table; remembers what it was asked. ``rows`` is the world that the list methods show."""

    ok, refused, event = staticmethod(ok), staticmethod(refused), staticmethod(event)

    def __init__(self, path: Path) -> None:
        self.asked: list[tuple[str, str, str, bytes]] = []
        self.table: dict[tuple[str, str] | str, Answer] = {}
        self.rows: list[dict[str, Any]] = []
        self.points: list[dict[str, Any]] = [
            {"template": "debian-13", "qube": "debian-13", "state": "ready", "users": []}
        ]
        self.properties: dict[str, dict[str, tuple[str, str, bool]]] = {}
        self.hold: list[socket.socket] = []
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        self._listener.listen(64)
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for held in self.hold:
            held.close()

    def answers(self, method: str, answer: Answer, *, dest: str | None = None) -> None:
        self.table[method if dest is None else (method, dest)] = answer

    def calls(self) -> list[str]:
        return [f"{method}{'+' + arg if arg else ''} {dest} {payload.decode()}".rstrip()
                for method, arg, dest, payload in self.asked]  # fmt: skip

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._one, args=(connection,), daemon=True).start()

    def _one(self, connection: socket.socket) -> None:
        request = b""
        while data := connection.recv(65536):
            request += data
        if not request:
            connection.close()
            return
        header, _, payload = request.partition(b"\0")
        call, source, kind, dest = header.decode().split(" ")
        assert (source, kind) == ("dom0", "name")
        method, _, arg = call.partition("+")
        self.asked.append((method, arg, dest, payload))
        answer = self.table.get((method, dest), self.table.get(method, self._world))
        with contextlib.suppress(OSError):
            connection.sendall(answer(method, dest, payload) if callable(answer) else answer)
        if method == "admin.Events":
            self.hold.append(connection)
        else:
            connection.close()

    def _world(self, method: str, dest: str, payload: bytes) -> bytes:
        names = [row["name"] for row in self.rows]
        if dest != "dom0" and dest not in names:
            return refused("QubesVMNotFoundError", f"no qube is named '{dest}' (hint: `cloison list` shows them all)")
        arg = self.asked[-1][1]
        if method.endswith(("label.Index", "volume.Info")):
            return ok("7" if method.endswith("Index") else "size=1\nusage=1\n")
        if method == "admin.vm.List":
            rows = self.rows if dest == "dom0" else [row for row in self.rows if row["name"] == dest]
            return ok("".join(f"{r['name']} class={r['class']} state={r['state']} uuid={r['uuid']}\n" for r in rows))
        if method == "cloison.qube.List":
            return ok([self._row(row, json.loads(payload)) for row in self.rows])
        if method == "cloison.forkpoint.List":
            return ok(self.points)
        if method.startswith("cloison."):
            return ok([] if method.endswith(".List") else {})
        if method == "admin.vmclass.List":
            return ok("AppVM\nTemplateVM\n")
        if method.startswith(("admin.vm.property.", "admin.property.")):
            return self._property(method.rpartition(".")[2], "" if "vm" not in method else dest, arg, payload)
        return ok()

    def _row(self, row: dict[str, Any], asked: dict[str, Any]) -> dict[str, Any]:
        known = self.properties.get(row["name"], {})
        wanted = {n: {"value": known[n][1], "type": known[n][0], "default": known[n][2]}
                  for n in asked["properties"] if n in known}  # fmt: skip
        return {**row, "properties": wanted}

    def _property(self, verb: str, owner: str, name: str, payload: bytes) -> bytes:
        known = self.properties.setdefault(owner, {})
        if verb == "List":
            return ok("".join(f"{n}\n" for n in known))
        if verb == "GetAll":
            return ok("".join(f"{n} default={d} type={t} {v}\n" for n, (t, v, d) in known.items()))
        if name not in known:
            return refused("QubesNoSuchPropertyError", f"Invalid property '{name}' of {owner or 'dom0'}")
        kind, value, default = known[name]
        if verb == "Get":
            return ok(f"default={default} type={kind} {value}")
        if verb == "Help":
            return ok(f"What {name} is good for.\n")
        if verb == "Set":
            known[name] = (kind, payload.decode(), False)
        elif verb == "Reset":
            known[name] = (kind, "the default", True)
        return ok()


class FakeBroker:
    """Runs the calls it gets as local processes, through the real wire."""

    def __init__(self, path: Path) -> None:
        self.calls: list[Call] = []
        self.refuse = ""
        self.cut = False
        self.slow_s = 0.0
        self.events: list[Event] = []
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        self._listener.listen(64)
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._one, args=(connection,), daemon=True).start()

    def _one(self, peer: socket.socket) -> None:
        with peer, contextlib.suppress(OSError):
            wire = Connection(Role.LEG_SERVICE)
            if not (first := peer.recv(65536)):
                return  # somebody only looked whether we are there
            (call,) = wire.receive_data(first)
            assert isinstance(call, Call)
            self.calls.append(call)
            time.sleep(self.slow_s)
            if self.refuse:
                peer.sendall(wire.send(Refused(LEG_SESSION, self.refuse)))
                return
            peer.sendall(wire.send(Accepted(LEG_SESSION)))
            if self.cut:
                return
            try:
                _Service(peer, wire, call, self.events).run()
            except OSError:  # closed with something unread: as good as a reset
                self.events.append(Reset(LEG_SESSION, "gone"))


class _Service:
    """One running command behind a leg."""

    def __init__(self, peer: socket.socket, wire: Connection, call: Call, seen: list[Event]) -> None:
        self._peer, self._wire, self._seen = peer, wire, seen
        command = call.command or call.service
        if call.tty:
            self._pid, master = pty.fork()
            if self._pid == 0:
                os.execvp("sh", ["sh", "-c", command])
            self._stdin = self._out = master
            self._streams = {master: int(Stream.STDOUT)}
            self._wait: Callable[[], int] = lambda: os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])
        else:
            process = subprocess.Popen(["sh", "-c", command], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                       stderr=subprocess.PIPE, start_new_session=True)  # fmt: skip
            assert process.stdin and process.stdout and process.stderr
            self._process = process
            self._pid, self._stdin = process.pid, process.stdin.fileno()
            self._streams = {process.stdout.fileno(): int(Stream.STDOUT), process.stderr.fileno(): int(Stream.STDERR)}
            self._wait = process.wait
        self._queue, self._eof, self._counter = bytearray(), False, CreditCounter()
        os.set_blocking(self._stdin, False)

    def run(self) -> None:
        while self._streams:
            poll = select.poll()
            poll.register(self._peer, select.POLLIN)
            for descriptor, stream in self._streams.items():
                if self._wire.window(LEG_SESSION, stream) > 0:
                    poll.register(descriptor, select.POLLIN | (select.POLLOUT if descriptor == self._stdin else 0))
            for descriptor, _ in poll.poll(20 if self._queue else 10_000):
                if descriptor == self._peer.fileno():
                    if not self._receive():
                        return
                elif descriptor in self._streams:
                    self._read(descriptor)
            self._feed()
        code = self._wait()
        self._peer.sendall(self._wire.send(Exit(LEG_SESSION, code if code >= 0 else 128 - code)))
        self._peer.recv(65536)

    def _read(self, descriptor: int) -> None:
        stream = self._streams[descriptor]
        try:
            data = os.read(descriptor, min(65536, self._wire.window(LEG_SESSION, stream) or 1, WINDOW))
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            self._peer.sendall(self._wire.send(Data(LEG_SESSION, stream, data)))
        else:
            del self._streams[descriptor]

    def _receive(self) -> bool:
        data = self._peer.recv(65536)
        for happened in self._wire.receive_data(data) if data else [Reset(LEG_SESSION, "gone")]:
            match happened:
                case Data():
                    self._queue += happened.payload
                    self._eof = self._eof or not happened.payload
                case Signal():
                    os.killpg(self._pid, happened.number)
                case Reset():
                    self._seen.append(happened)
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(self._pid, 9)
                    return False
                case WindowSize() | Credit():
                    self._seen.append(happened)
                case _:
                    pass
        return True

    def _feed(self) -> None:
        try:
            while self._queue:
                written = os.write(self._stdin, self._queue[:65536])
                del self._queue[:written]
                if credit := self._counter.consumed(written):
                    self._peer.sendall(self._wire.send(Credit(LEG_SESSION, Stream.STDIN, credit)))
        except BlockingIOError:
            return
        except OSError:
            self._queue.clear()
        if self._eof and self._stdin not in self._streams and self._stdin >= 0:
            self._process.stdin.close()
            self._stdin = -1
            self._eof = False


WORLD = (
    ("dom0", "AdminVM", "Running", "black", None, None),
    ("debian-13", "TemplateVM", "Halted", "black", None, None),
    ("default-dvm", "AppVM", "Halted", "red", "debian-13", "sys-firewall"),
    ("sys-firewall", "AppVM", "Running", "green", "debian-13", "sys-net"),
    ("sys-net", "AppVM", "Running", "red", "debian-13", None),
    ("vault", "AppVM", "Halted", "black", "debian-13", None),
    ("work", "AppVM", "Running", "blue", "debian-13", "sys-firewall"),
)


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Layout:
    """An empty system of its own; nothing would be started."""
    root = tmp_path / "s"
    monkeypatch.setenv("CLOISON_ROOT", str(root))
    monkeypatch.delenv("NO_COLOR", raising=False)
    layout = Layout.from_environment()
    layout.runtime.mkdir(parents=True)
    return layout


@pytest.fixture
def daemon(system: Layout) -> Iterator[FakeDaemon]:
    fake = FakeDaemon(system.admin_socket)
    for number, (name, klass, state, label, template, netvm) in enumerate(WORLD):
        uuid = f"00000000-0000-0000-0000-{number:012}"
        fake.rows.append({"name": name, "class": klass, "state": state, "uuid": uuid, "label": label, "netvm": netvm,
                          "template": template, "tags": [], "outdated": name == "work"})  # fmt: skip
    fake.properties["work"] = {
        "label": ("label", "blue", False),
        "memory": ("int", "400", True),
        "netvm": ("vm", "", False),
        "autostart": ("bool", "False", True),
        "debug": ("bool", "False", True),
        "template_for_dispvms": ("bool", "False", True),
        "default_dispvm": ("vm", "default-dvm", True),
        "stubdom_mem": ("int", "", True),
    }
    fake.properties["default-dvm"] = {"template_for_dispvms": ("bool", "True", False)}
    fake.properties[""] = {"default_template": ("vm", "debian-13", False), "stats_interval": ("int", "3", True)}
    yield fake
    fake.close()


@pytest.fixture
def broker(system: Layout) -> Iterator[FakeBroker]:
    fake = FakeBroker(system.qrexec_socket)
    yield fake
    fake.close()


class Outcome:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


@pytest.fixture
def cloison(daemon: FakeDaemon, capfd: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Run one command line in this process, output as into a pipe."""
    from cloison.cli import main

    def run(*words: str) -> Outcome:
        capfd.readouterr()
        code = main(list(words))
        out, err = capfd.readouterr()
        return Outcome(int(code), out, err)

    return run
