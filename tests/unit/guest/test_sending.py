"""qvm-copy and its twins as programs: a fake agent's socket before them, the real receiver behind it."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloison.wire import LEG_SESSION, Accepted, Call, Connection, Credit, Data, Exit, Refused, Role, Stream

ROOT = Path(__file__).resolve().parents[3]
PATHS = f"{ROOT / 'guest'}:{ROOT / 'src'}"
RECEIVER = "import sys; from cloison_agent.builtins import run_service; sys.exit(run_service(*sys.argv[1:]))"
TOOL = "import sys; from cloison_tools import client, sending; client.AGENT_SOCKET = sys.argv[1]; {patch}; \
sys.exit(getattr(sending, sys.argv[2])(sys.argv[3:]))"


class Agent:
    """Accepts calls, runs the receiver on what it was sent, gives credit piece by piece."""

    def __init__(self, path: Path, home: Path) -> None:
        self.path, self.home = path, home
        self.calls: list[Call] = []
        self.refuse = False
        self.early = b""
        self.credit = True
        self.code: int | None = None
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                peer, _ = self._listener.accept()
            except OSError:
                return
            with peer, contextlib.suppress(OSError):  # tools may go before they were told all
                self._one(peer)

    def _one(self, peer: socket.socket) -> None:
        wire, stream = Connection(Role.LEG_SERVICE), bytearray()
        while data := peer.recv(1 << 16):
            for event in wire.receive_data(data):
                if isinstance(event, Call):
                    self.calls.append(event)
                    peer.sendall(wire.send(Refused(LEG_SESSION) if self.refuse else Accepted(LEG_SESSION)))
                    if self.early:
                        peer.sendall(wire.send(Data(LEG_SESSION, Stream.STDOUT, self.early)))
                elif isinstance(event, Data):
                    stream += event.payload
                    if event.payload and self.credit:
                        peer.sendall(wire.send(Credit(LEG_SESSION, 0, len(event.payload))))
                    if not event.payload:
                        self._answer(peer, wire, bytes(stream))
                        return

    def _answer(self, peer: socket.socket, wire: Connection, stream: bytes) -> None:
        environment = {"HOME": str(self.home), "QREXEC_REMOTE_DOMAIN": "work", "PYTHONPATH": PATHS}
        command = [sys.executable, "-c", RECEIVER, *self.calls[-1].service.split("+"), ""][:5]
        done = subprocess.run(command, input=stream, capture_output=True, env=environment, timeout=60)
        code = done.returncode if self.code is None else self.code
        if not self.early:
            peer.sendall(wire.send(Data(LEG_SESSION, Stream.STDOUT, done.stdout)))
        peer.sendall(wire.send(Exit(LEG_SESSION, code)))
        peer.recv(1)


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    home = tmp_path / "home"
    home.mkdir()
    fake = Agent(tmp_path / "agent", home)
    yield fake
    fake.close()


def tool(agent: Agent, name: str, *words: str, patch: str = "pass", **environment: str) -> tuple[int, str, str]:
    command = [sys.executable, "-c", TOOL.format(patch=patch), str(agent.path), name, *words]
    done = subprocess.run(command, capture_output=True, timeout=60, text=True,
                          env={"PYTHONPATH": PATHS, "PATH": os.defpath, **environment})  # fmt: skip
    return done.returncode, done.stdout, done.stderr


# The default of RemoteCall's agent_socket is bound when the class is made.
POINT = "client.RemoteCall.__init__.__kwdefaults__['agent_socket'] = sys.argv[1]"


def test_files_larger_than_any_window_arrive_and_names_choose_the_argument(agent: Agent, tmp_path: Path) -> None:
    big, odd = tmp_path / "big", tmp_path / "a \x1b[m"
    big.write_bytes(os.urandom(3_000_001))
    odd.write_text("odd")
    assert tool(agent, "copy_to", "$dispvm", str(big), patch=POINT) == (0, "", "")
    assert tool(agent, "move", "--without-progress", "--", str(odd), patch=POINT) == (0, "", "")
    assert [(call.target, call.service) for call in agent.calls] == [
        ("@dispvm", "qubes.Filecopy"),
        ("@default", "qubes.Filecopy+allow-all-names"),
    ]
    incoming = agent.home / "QubesIncoming" / "work"
    assert (incoming / "big").read_bytes() == big.read_bytes()
    assert (incoming / odd.name).exists() and not odd.exists()


def test_progress_is_told_as_it_was_asked_for(agent: Agent, tmp_path: Path) -> None:
    big = tmp_path / "big"
    big.write_bytes(bytes(1_000_000))
    code, out, err = tool(agent, "copy", str(big), patch=POINT, PROGRESS_TYPE="console")
    assert code == 0 and "100%" in err and "1.0 of 1.0 MiB" in err and out == ""
    big.rename(tmp_path / "big2")
    code, out, err = tool(agent, "copy", str(tmp_path / "big2"), patch=POINT, PROGRESS_TYPE="gui", SAVED_FD_1="1")
    assert code == 0 and out.split()[-1] == "1000000" and err == ""


def test_nothing_is_removed_unless_all_is_well(agent: Agent, tmp_path: Path) -> None:
    note, pipe = tmp_path / "note", tmp_path / "pipe"
    note.write_text("x")
    os.mkfifo(pipe)
    assert tool(agent, "move", str(pipe), patch=POINT)[0] == 1
    agent.refuse = True
    assert tool(agent, "move_to", "there", str(note), patch=POINT) == (126, "", "Request refused\n")
    agent.refuse = False
    assert tool(agent, "move", str(note), str(tmp_path / "absent"), patch=POINT)[0] == 1
    agent.early = bytes(16)
    code, _, err = tool(agent, "move", str(note), patch=POINT)
    assert code == 1 and "damaged" in err
    agent.early = b"x" * 65536
    assert tool(agent, "move", str(note), patch=POINT)[0] != 0
    assert note.exists()


def test_a_directory_is_moved_by_its_real_name(agent: Agent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tree" / "sub").mkdir(parents=True)
    (tmp_path / "link").symlink_to("tree")
    monkeypatch.chdir(tmp_path / "tree")
    assert tool(agent, "move", ".", patch=POINT) == (0, "", "")
    assert (agent.home / "QubesIncoming" / "work" / "tree" / "sub").is_dir()
    assert not (tmp_path / "tree").exists() and (tmp_path / "link").is_symlink()


def test_an_early_answer_ends_the_sending(agent: Agent, tmp_path: Path) -> None:
    big = tmp_path / "big"
    with big.open("wb") as file:
        file.truncate(1 << 32)
    agent.early = b"\x11\0\0\0" + bytes(12)
    code, _, err = tool(agent, "copy", str(big), patch=POINT)
    assert code == 1 and "is there already" in err
