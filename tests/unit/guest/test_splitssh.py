"""Split SSH: real ssh tools, the real relay and the real service with the machine's own agent, joined by a broker."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import struct
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.guest.joined import Joined, joined_qube

from cloison_tools import sshagent

needs_ssh = pytest.mark.skipif(shutil.which("ssh-agent") is None, reason="no ssh-agent here: the live test has one")
DEADLINE_S = 60


@pytest.fixture
def qube(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Joined]:
    """A vault with the key of an agent "work"; agents that it started end with the test."""
    with joined_qube(tmp_path, monkeypatch) as joined:
        keys = joined.home / ".ssh" / "split-ssh" / "work"
        keys.mkdir(parents=True)
        script = f'#!/bin/sh\n{shutil.which("ssh-agent")} "$@" > {tmp_path}/started; cat {tmp_path}/started\n'
        joined.add_program("ssh-agent", script)
        yield joined
        if (tmp_path / "started").exists():
            os.kill(
                int((tmp_path / "started").read_text().partition("SSH_AGENT_PID=")[2].partition(";")[0]), signal.SIGTERM
            )


def ssh(qube: Joined, *command: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """Run a program that finds its agent behind the relay, as the socket unit would have it."""
    path = str(qube.home / "client")
    with socket.socket(socket.AF_UNIX) as listener:
        Path(path).unlink(missing_ok=True)
        listener.bind(path)
        listener.listen()

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                subprocess.run(
                    qube.command("split-ssh-relay"), stdin=connection, env=qube.environment, timeout=DEADLINE_S
                )
                connection.close()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        environment = qube.environment | {"SSH_AUTH_SOCK": path}
        try:
            return subprocess.run(
                command, input=stdin, capture_output=True, env=environment, cwd=qube.home, timeout=DEADLINE_S
            )
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(DEADLINE_S)


@needs_ssh
def test_keys_of_the_vault_sign_and_stay_there(qube: Joined, monkeypatch: pytest.MonkeyPatch) -> None:
    client = qube.home / "split-ssh"
    relay = qube.directory / "bin" / "split-ssh-relay"
    relay.write_text(relay.read_text().replace("\nfrom cloison", "\nimport cloison_tools.sshagent as s\nfrom cloison"))
    relay.write_text(relay.read_text().replace("sys.exit(", f"s.CLIENT_SETTINGS = {str(client)!r}\nsys.exit("))
    client.write_text("vault work\n")
    key = qube.home / ".ssh" / "split-ssh" / "work" / "id_ed25519"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "of the vault", "-f", key], check=True)
    listed = ssh(qube, "ssh-add", "-l")
    assert listed.returncode == 0 and b"of the vault (ED25519)" in listed.stdout, listed.stderr
    assert qube.calls == ["vault qubes.SshAgent+work"]
    public = qube.home / "key.pub"
    public.write_text(key.with_suffix(".pub").read_text())
    signed = ssh(qube, "ssh-keygen", "-Y", "sign", "-n", "file", "-f", str(public), stdin=b"a text")
    assert signed.stdout.startswith(b"-----BEGIN SSH SIGNATURE-----"), signed.stderr
    (qube.home / "sig").write_bytes(signed.stdout)
    check = ["ssh-keygen", "-Y", "check-novalidate", "-n", "file", "-s", "sig"]
    done = subprocess.run(check, input=b"a text", cwd=qube.home, capture_output=True, timeout=DEADLINE_S)
    assert done.returncode == 0, done.stderr
    other = qube.home / "other"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", other], check=True)
    for forbidden in (["ssh-add", str(other)], ["ssh-add", "-D"], ["ssh-add", "-s", "/tmp/lib.so"]):
        assert ssh(qube, *forbidden).returncode != 0
    assert ssh(qube, "ssh-add", "-l").stdout == listed.stdout
    told = qube.run("cloison-ssh-agent", "work")
    assert told.stdout.decode().strip() == f"{qube.environment['XDG_RUNTIME_DIR']}/split-ssh/work"
    qube.refused.add("qubes.SshAgent")
    assert ssh(qube, "ssh-add", "-l").returncode != 0


@pytest.mark.parametrize("argument", ["../x", "a/b", "x" * 33, "a b", "ä", "nobody"])
def test_an_agent_that_nobody_made_is_an_error(qube: Joined, argument: str) -> None:
    service = str(qube.directory / "rpc" / "qubes.SshAgent")
    environment = qube.environment | {"QREXEC_SERVICE_ARGUMENT": argument}
    done = subprocess.run([service], input=b"", capture_output=True, env=environment, timeout=DEADLINE_S)
    assert done.returncode == 1 and done.stderr.startswith(b"qubes.SshAgent: ")
    assert not (Path(qube.environment["XDG_RUNTIME_DIR"]) / "split-ssh").exists()


def passed(requests: bytes, answers: bytes) -> tuple[int, bytes, bytes]:
    """Exit code (-1: an error), what the client gets, what reaches the agent."""
    stdin_read, stdin_write = os.pipe()
    stdout_read, stdout_write = os.pipe()
    agent, far = socket.socketpair()
    os.write(stdin_write, requests)
    os.close(stdin_write)
    far.sendall(answers)
    far.shutdown(socket.SHUT_WR)
    try:
        code = sshagent.pass_requests(agent, stdin_read, stdout_write)
    except sshagent.NoAgent:
        code = -1
    agent.close()
    os.close(stdout_write)
    reached = b""
    with contextlib.suppress(ConnectionResetError):  # answers that nobody read
        while piece := far.recv(65536):
            reached += piece
    far.close()
    os.close(stdin_read)
    with os.fdopen(stdout_read, "rb") as file:
        return code, file.read(), reached


LIST, SIGN, NO = b"\0\0\0\1\x0b", b"\0\0\0\3\x0dxy", b"\0\0\0\1\5"
ANSWER = b"\0\0\0\2\x0cz"


@pytest.mark.parametrize(
    ("requests", "answers", "expected"),
    [
        (b"", b"", (0, b"", b"")),
        (LIST + SIGN, ANSWER + ANSWER, (0, ANSWER * 2, LIST + SIGN)),
        *(
            (struct.pack(">IB", 3, kind) + b"xy", b"", (0, NO, b""))
            for kind in (1, 9, 17, 18, 19, 20, 22, 25, 26, 27, 255)
        ),
        (struct.pack(">IB", 3, 11) + b"xy", b"", (0, NO, b"")),
        (LIST[:3], b"", (1, b"", b"")),
        (SIGN[:-1], b"", (1, b"", b"")),
        (b"\0\0\0\0\x0b", b"", (-1, b"", b"")),
        (b"\xff\xff\xff\xff\x0b", b"", (-1, b"", b"")),
        (LIST, b"", (-1, b"", LIST)),
        (LIST, b"\xff\xff\xff\xff", (-1, b"", LIST)),
        (LIST, ANSWER[:-1], (-1, b"", LIST)),
    ],
)
def test_only_two_requests_pass(requests: bytes, answers: bytes, expected: tuple[int, bytes, bytes]) -> None:
    assert passed(requests, answers) == expected


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 255), st.binary(max_size=20)), max_size=6), st.binary(max_size=20))
def test_whatever_comes_the_agent_sees_only_these(messages: list[tuple[int, bytes]], tail: bytes) -> None:
    requests = b"".join(struct.pack(">IB", len(body) + 1, kind) + body for kind, body in messages)
    _, _, reached = passed(requests + tail, ANSWER * 10)
    while reached:
        length, kind = struct.unpack(">IB", reached[:5])
        assert kind == 13 or (kind == 11 and length == 1)
        reached = reached[4 + length :]
