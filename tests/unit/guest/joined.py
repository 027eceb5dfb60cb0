"""A qube that calls itself: an agent with real services, and a broker of some lines that joins callers to them."""

from __future__ import annotations

import contextlib
import os
import pwd
import select
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from cloison.guest_tree import TOOLS, guest_directory, guest_tree
from cloison.wire import Accepted, Call, Connection, Credit, Data, Exit, Hello, Open, Refused, Reset, Role
from cloison_agent.agent import Agent, listen
from cloison_agent.control import VERBS
from cloison_agent.launch import PLAIN_MANNERS
from cloison_agent.logins import Login

ME = pwd.getpwuid(os.getuid()).pw_name
DEADLINE_S = 60
_WITH_SOCKET = (
    "import sys; sys.path.insert(0, {guest!r}); import cloison_tools.client as c;"
    " c.RemoteCall.__init__.__kwdefaults__['agent_socket'] = c.AGENT_SOCKET = {agent!r}\n"
)


@dataclass
class Joined:
    """``run`` starts a tool of the guest; what it calls is served here, by the services of the guest."""

    directory: Path
    home: Path
    environment: dict[str, str]
    calls: list[str] = field(default_factory=list)
    """``TARGET SERVICE`` of every call that was made."""
    refused: set[str] = field(default_factory=set)
    """Services that the policy denies."""

    def command(self, tool: str, *arguments: str) -> list[str]:
        return [sys.executable, "-IS", str(self.directory / "bin" / tool), *arguments]

    def run(
        self, tool: str, *arguments: str, stdin: bytes = b"", more: Mapping[str, str] | None = None, **options: object
    ) -> subprocess.CompletedProcess[bytes]:
        environment = self.environment | dict(more or {})
        return subprocess.run(  # type: ignore[call-overload,no-any-return]
            self.command(tool, *arguments),
            input=stdin,
            capture_output=True,
            env=environment,
            cwd=self.home,
            timeout=DEADLINE_S,
            **options,
        )

    def add_service(self, name: str, script: str) -> None:
        path = self.directory / "rpc" / name
        path.unlink(missing_ok=True)
        path.write_text(script)
        path.chmod(0o755)

    def add_program(self, name: str, script: str) -> None:
        """A program on the path of tools and services, before those of the machine."""
        path = self.directory / "path" / name
        path.write_text(script)
        path.chmod(0o755)


def _install(directory: Path, agent_socket: Path) -> None:
    """The tools and services as they lie in a guest, but for the places of their modules and of the agent."""
    first = _WITH_SOCKET.format(guest=str(guest_directory()), agent=str(agent_socket))
    for name in ("bin", "rpc", "path"):
        (directory / name).mkdir()
    for path, (_, content) in guest_tree().items():
        parent, _, name = path.rpartition("/")
        place = {"/usr/bin": "bin", "/usr/lib/cloison": "bin", "/etc/qubes-rpc": "rpc"}.get(parent)
        if place and content.startswith(b"#!/usr/bin/python3 -IS") and TOOLS.encode() in content:
            file = directory / place / name
            lines = content.decode().splitlines(keepends=True)
            file.write_text(f"#!{sys.executable} -IS\n{first}{''.join(lines[1:])}")
            file.chmod(0o755)


class _Broker:
    """Joins each call to a service of the same agent: as ``work``, whatever target it names."""

    def __init__(self, sock: socket.socket, joined: Joined) -> None:
        self._sock, self._joined = sock, joined
        self._connection = Connection(Role.HOST, nonce=os.urandom(16))
        self._peers: dict[int, int] = {}

    def run(self) -> None:
        self._sock.sendall(self._connection.data_to_send())
        with contextlib.suppress(OSError):
            while data := self._sock.recv(1 << 18):
                for event in self._connection.receive_data(data):
                    self._handle(event)
                if more := self._connection.data_to_send():
                    self._sock.sendall(more)

    def _send(self, event: object) -> None:
        self._sock.sendall(self._connection.send(event))  # type: ignore[arg-type]

    def _handle(self, event: object) -> None:
        if isinstance(event, Hello):
            return
        if isinstance(event, Call):
            self._join(event)
        elif isinstance(event, (Data, Credit, Exit, Reset)) and event.session in self._peers:
            peer = self._peers[event.session]
            if isinstance(event, Data):
                event = event._replace(payload=bytes(event.payload))
            if isinstance(event, (Exit, Reset)):
                self._peers.pop(event.session)
                self._peers.pop(peer, None)
            self._send(event._replace(session=peer))

    def _join(self, call: Call) -> None:
        self._joined.calls.append(f"{call.target} {call.service}")
        if call.service.partition("+")[0] in self._joined.refused:
            self._send(Refused(call.session))
            return
        number = self._connection.new_session()
        self._peers |= {call.session: number, number: call.session}
        self._send(Accepted(call.session))
        self._send(Open(number, source="work", service=call.service))


@contextlib.contextmanager
def joined_qube(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Joined]:
    directory, home = tmp_path / "joined", tmp_path / "home"
    directory.mkdir()
    home.mkdir()
    agent_socket = tmp_path / "agent"
    _install(directory, agent_socket)
    path = f"{directory / 'path'}:{os.environ.get('PATH', os.defpath)}"
    runtime = tmp_path / "run"
    runtime.mkdir(mode=0o700)
    environment = {
        "PATH": path,
        "HOME": str(home),
        "LANG": "C.UTF-8",
        "XDG_RUNTIME_DIR": str(runtime),
        "GNUPGHOME": str(home / ".gnupg"),
    }
    joined = Joined(directory, home, environment)
    monkeypatch.setenv("QREXEC_SERVICE_PATH", str(directory / "rpc"))
    monkeypatch.setenv("QUBES_RPC_CONFIG_PATH", str(directory / "config"))
    login = Login(environment, PLAIN_MANNERS)
    monkeypatch.setattr("cloison_agent.logins.Logins.when_known", lambda self, user, act: act(login))
    ours, theirs = socket.socketpair()
    agent = Agent(theirs.detach(), listen(str(agent_socket)), VERBS, default_user=ME)
    stop_reader, stop_writer = os.pipe()
    agent.loop.add(stop_reader, select.EPOLLIN, lambda mask: sys.exit())

    def serve() -> None:
        with contextlib.suppress(SystemExit):
            agent.loop.run()

    threads = [threading.Thread(target=work, daemon=True) for work in (serve, _Broker(ours, joined).run)]
    for thread in threads:
        thread.start()
    yield joined
    os.write(stop_writer, b"x")
    threads[0].join(DEADLINE_S)
    ours.shutdown(socket.SHUT_RDWR)
    threads[1].join(DEADLINE_S)
    ours.close()
