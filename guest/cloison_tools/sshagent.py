"""Split SSH: the keys are in an agent of the vault, other qubes have it sign.

In the vault: the service qubes.SshAgent[+AGENT]. In the client: the relay behind the socket that ``ssh`` finds. May
import: the standard library.

The service lets two requests through, "which keys are there" and "sign this" (draft-ietf-sshm-ssh-agent: 11 and 13),
and answers every other one with "failure": a client cannot add, remove or lock keys, or have the agent load a library.
"""

from __future__ import annotations

import fcntl
import os
import re
import socket
import struct
import subprocess
import sys

from cloison_tools.client import REFUSED, TROUBLE, CallRefused, RemoteCall, complain, write_all

REQUEST_IDENTITIES, SIGN_REQUEST = 11, 13
FAILURE = struct.pack(">IB", 1, 5)
MAX_MESSAGE = 256 * 1024
"""As OpenSSH has it."""
KEYS_DIRECTORY = "~/.ssh/split-ssh"
CLIENT_SETTINGS = "/rw/config/split-ssh"
START_LIMIT_S = 60


class NoAgent(Exception):
    """There is no agent of that name, or it does not answer."""


def serve(arguments: list[str]) -> int:
    """qubes.SshAgent[+AGENT]: requests on standard input, answers on standard output."""
    try:
        with open_agent(parse_agent(os.environ.get("QREXEC_SERVICE_ARGUMENT", ""))) as agent:
            return pass_requests(agent)
    except (NoAgent, OSError) as error:
        print(f"qubes.SshAgent: {error}", file=sys.stderr)
        return 1


def tell(arguments: list[str]) -> int:
    """cloison-ssh-agent [AGENT]: print where the agent listens, after starting it if need be."""
    if len(arguments) > 1 or arguments[:1] in (["-h"], ["--help"]):
        complain("usage: SSH_AUTH_SOCK=$(cloison-ssh-agent [AGENT]) ssh-add KEY")
        return 1
    try:
        name = parse_agent(arguments[0] if arguments else "")
        open_agent(name).close()
    except (NoAgent, OSError) as error:
        complain(f"cloison-ssh-agent: {error}")
        return 1
    print(socket_path(name))
    return 0


def relay(arguments: list[str]) -> int:
    """One connection of the client's socket (our standard input): it becomes a call of the vault's service."""
    target, agent = "@default", ""
    try:
        with open(CLIENT_SETTINGS, encoding="utf-8") as file:
            words = file.readline(200).split()
            target, agent = [*words, *("@default", "")[len(words) :]][:2]
    except FileNotFoundError:
        pass
    try:
        call = RemoteCall(target, f"qubes.SshAgent+{agent}" if agent else "qubes.SshAgent")
        call.connect()
        return call.pump(0, 0, 2, half_close=True)
    except CallRefused:
        complain("Request refused")
        return REFUSED
    except OSError as error:
        complain(f"split SSH: {error}")
        return TROUBLE


def parse_agent(untrusted_argument: str) -> str:
    """The name of an agent; nothing said is "default"."""
    if not re.fullmatch(r"[A-Za-z0-9_-]{0,32}", untrusted_argument, re.ASCII):
        raise NoAgent("this is no name of an agent")
    return untrusted_argument or "default"


def socket_path(name: str) -> str:
    """Where the agent of that name listens: the user's own for "default" if there is one, else one of ours."""
    if name == "default" and (own := os.environ.get("SSH_AUTH_SOCK")):
        return own
    return os.path.join(os.environ.get("XDG_RUNTIME_DIR") or os.path.expanduser("~/.cache"), "split-ssh", name)


def open_agent(name: str) -> socket.socket:
    """A connection to the agent. One of ours is started if it does not run, and given the keys that lie ready for it:
    those of ``~/.ssh/split-ssh/NAME``, or the user's usual ones for "default". Only names with such keys exist."""
    path = socket_path(name)
    if agent := _connect(path):
        return agent
    keys = _keys(name)
    if name != "default" and keys is None:
        raise NoAgent(f"there is no agent {name} (hint: put its keys into {KEYS_DIRECTORY}/{name})")
    directory = os.path.dirname(path)
    os.makedirs(directory, mode=0o700, exist_ok=True)
    with open(os.path.join(directory, f".{name}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if agent := _connect(path):
            return agent
        if os.path.lexists(path):
            os.unlink(path)
        _run("ssh-agent", "-a", path, sock="")
        if keys is None or keys:
            _run("ssh-add", "-q", *(["--", *keys] if keys else []), sock=path)
    if agent := _connect(path):
        return agent
    raise NoAgent(f"the agent {name} could not be started")


def _connect(path: str) -> socket.socket | None:
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(path)
        return connection
    except OSError:
        connection.close()
        return None


def _keys(name: str) -> list[str] | None:
    """The private keys that lie ready for this agent; None when it has no directory."""
    directory = os.path.join(os.path.expanduser(KEYS_DIRECTORY), name)
    try:
        names = sorted(os.listdir(directory))
    except OSError:
        return None
    return [os.path.join(directory, file) for file in names if not file.endswith(".pub") and not file.startswith(".")]


def _run(*command: str, sock: str) -> None:
    """Run a program of OpenSSH without a terminal. Keys with a passphrase stay out: nobody is there to type it."""
    environment = {**os.environ, "SSH_ASKPASS_REQUIRE": "never", "SSH_AUTH_SOCK": sock}
    nothing = subprocess.DEVNULL
    subprocess.run(
        command, stdin=nothing, stdout=nothing, stderr=nothing, env=environment, timeout=START_LIMIT_S,
        start_new_session=True,
    )  # fmt: skip


def pass_requests(agent: socket.socket, stdin: int = 0, stdout: int = 1) -> int:
    """One request after the other, each answered before the next is read, until the client ends."""
    while True:
        untrusted_header = _read(stdin, 5)
        if len(untrusted_header) < 5:
            return 1 if untrusted_header else 0
        length, kind = struct.unpack(">IB", untrusted_header)
        if not 1 <= length <= MAX_MESSAGE:
            raise NoAgent("a request has an impossible length")
        body = _read(stdin, length - 1)
        if len(body) < length - 1:
            return 1
        if (kind == REQUEST_IDENTITIES and length == 1) or kind == SIGN_REQUEST:
            agent.sendall(untrusted_header + body)
            write_all(stdout, _answer(agent))
        else:
            write_all(stdout, FAILURE)


def _answer(agent: socket.socket) -> bytes:
    header = _read(agent.fileno(), 4)
    length = struct.unpack(">I", header)[0] if len(header) == 4 else 0
    if not 1 <= length <= MAX_MESSAGE:
        raise NoAgent("the agent ended")
    body = _read(agent.fileno(), length)
    if len(body) != length:
        raise NoAgent("the agent ended")
    return header + body


def _read(fd: int, count: int) -> bytes:
    data = b""
    while len(data) < count and (piece := os.read(fd, count - len(data))):
        data += piece
    return data
