"""The agent on a socket pair instead of a virtio port, as the user who runs the tests, with real programs."""

from __future__ import annotations

import contextlib
import os
import pwd
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cloison.wire import (
    LEG_SESSION,
    WINDOW,
    Accepted,
    Call,
    Connection,
    Control,
    Credit,
    Data,
    Event,
    Exit,
    Hello,
    Notice,
    Open,
    Refused,
    Reply,
    Reset,
    Role,
    Signal,
    Tty,
    WindowSize,
)
from cloison_agent import agent as agent_module
from cloison_agent import builtins, logins
from cloison_agent.agent import Agent, listen
from cloison_agent.control import VERBS

GUEST = Path(__file__).resolve().parents[3] / "guest"
ME = pwd.getpwuid(os.getuid()).pw_name
DEADLINE_S = 20


class Host:
    """The host's end: sends events, waits for events."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.connection = Connection(Role.HOST, nonce=os.urandom(16))
        self.queue: list[Event] = []
        sock.sendall(self.connection.data_to_send())
        self.wait(lambda event: isinstance(event, Hello))

    def send(self, event: Event) -> None:
        self.sock.sendall(self.connection.send(event))

    def wait(self, wanted: Callable[[Event], bool]) -> list[Event]:
        """All events up to the wanted one."""
        self.sock.settimeout(DEADLINE_S)
        seen: list[Event] = []
        while True:
            while self.queue:
                seen.append(self.queue.pop(0))
                if wanted(seen[-1]):
                    return seen
            for event in self.connection.receive_data(self.sock.recv(1 << 18)):
                self.queue.append(event._replace(payload=bytes(event.payload)) if isinstance(event, Data) else event)
            self.sock.sendall(self.connection.data_to_send())

    def start(self, **fields: object) -> int:
        number = self.connection.new_session()
        self.send(Open(number, source="dom0", **fields))  # type: ignore[arg-type]
        return number

    def finish(self, number: int, stdin: bytes | None = b"") -> tuple[int, bytes, bytes]:
        if stdin is not None:
            if stdin:
                self.send(Data(number, 0, stdin))
            self.send(Data(number, 0, b""))
        seen = self.wait(lambda event: isinstance(event, (Exit, Reset)) and event.session == number)
        last = seen[-1]
        assert isinstance(last, Exit)
        output = [b"".join(e.payload for e in seen if isinstance(e, Data) and e.stream == n) for n in (1, 2)]
        return last.code, output[0], output[1]

    def run(self, stdin: bytes = b"", **fields: object) -> tuple[int, bytes, bytes]:
        return self.finish(self.start(**fields), stdin)


@pytest.fixture
def agent_socket(tmp_path: Path) -> Path:
    return tmp_path / "agent"


@pytest.fixture
def host(tmp_path: Path, agent_socket: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    services = tmp_path / "rpc"
    services.mkdir()
    monkeypatch.setenv("QREXEC_SERVICE_PATH", str(services))
    monkeypatch.setenv("QUBES_RPC_CONFIG_PATH", str(tmp_path / "rpc-config"))
    ours, theirs = socket.socketpair()
    agent = Agent(theirs.detach(), listen(str(agent_socket)), VERBS, default_user=ME)
    stop_reader, stop_writer = os.pipe()
    agent.loop.add(stop_reader, select.EPOLLIN, lambda mask: sys.exit())
    thread = threading.Thread(target=lambda: _until_stopped(agent), daemon=True)
    thread.start()
    yield Host(ours)
    os.write(stop_writer, b"x")
    thread.join(DEADLINE_S)
    ours.close()


def _until_stopped(agent: Agent) -> None:
    with contextlib.suppress(SystemExit):
        agent.loop.run()


def add_service(tmp_path: Path, name: str, script: str) -> None:
    path = tmp_path / "rpc" / name
    path.write_text(script)
    path.chmod(0o755)


def test_a_command_has_its_streams_and_its_exit_code(host: Host) -> None:
    assert host.run(b"in", command="cat; echo err >&2; exit 7") == (7, b"in", b"err\n")


def test_a_command_killed_by_a_signal_says_so(host: Host) -> None:
    assert host.run(command="kill -TERM $$")[0] == 128 + 15


def test_a_service_gets_its_argument_and_its_environment(host: Host, tmp_path: Path) -> None:
    add_service(tmp_path, "my.Service", '#!/bin/sh\necho "$1"; env | grep QREXEC | grep -v -e PID -e PATH | sort\n')
    code, output, _ = host.run(service="my.Service+a+b")
    assert code == 0
    assert output.decode().split("\n") == [
        "a+b",
        "QREXEC_REMOTE_DOMAIN=dom0",
        "QREXEC_REQUESTED_TARGET_TYPE=",
        "QREXEC_SERVICE_ARGUMENT=a+b",
        "QREXEC_SERVICE_FULL_NAME=my.Service+a+b",
        "",
    ]


def test_the_second_call_finds_the_environment_of_a_login(host: Host) -> None:
    first = host.run(command="echo $HOME $USER")[1]
    for _ in range(3):
        assert host.run(command="echo $HOME $USER")[1] == first
        time.sleep(0.1)


def test_a_changed_profile_is_seen_by_the_very_next_call(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    profile = tmp_path / "profile"
    monkeypatch.setattr("cloison_agent.users.PROFILES", (str(profile),))
    read = f"[ -e {profile} ] && . {profile}; "
    monkeypatch.setattr(logins, "LOGIN_SHELL", ("/bin/sh", "-c", read + 'exec "$0" "$@"'))
    monkeypatch.setattr(logins, "_HOLD", (*logins._HOLD[:2], read + logins._HOLD[2]))
    assert host.run(command="echo $COLOUR")[1] == b"\n"
    for colour in ("red", "green"):
        profile.write_text(f"export COLOUR={colour} # {colour}\n")
        for _ in range(3):
            assert host.run(command="echo $COLOUR")[1] == f"{colour}\n".encode()
            time.sleep(0.1)


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"service": "no.Such"}, 127),
        ({"service": "not.Executable"}, 125),
        ({"service": "bad.Config"}, 125),
        ({"command": "true", "user": "no-such-user"}, 125),
        ({"service": "wrong.Interpreter"}, 127),
    ],
)
def test_what_cannot_be_started_ends_with_the_code_of_its_reason(
    host: Host, tmp_path: Path, fields: dict[str, str], code: int
) -> None:
    (tmp_path / "rpc" / "not.Executable").write_text("")
    add_service(tmp_path, "bad.Config", "#!/bin/sh\n")
    add_service(tmp_path, "wrong.Interpreter", "#!/no/such/interpreter\n")
    (tmp_path / "rpc-config").mkdir()
    (tmp_path / "rpc-config" / "bad.Config").write_text("nonsense")
    host.run(command="true")
    time.sleep(0.3)
    assert host.run(**fields)[0] == code
    assert host.run(command="exit 3")[0] == 3


def test_a_script_without_interpreter_is_run_by_the_shell(host: Host, tmp_path: Path) -> None:
    add_service(tmp_path, "plain.Script", "echo ran $1\n")
    host.run(command="true")
    time.sleep(0.3)
    assert host.run(service="plain.Script+x")[1] == b"ran x\n"


def test_built_in_services_stand_behind_links_to_the_archive(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = tmp_path / "agent.pyz"
    archive.write_text("#!/bin/sh\nexit 99\n")
    archive.chmod(0o755)
    monkeypatch.setattr(builtins, "ARCHIVE", str(archive))
    for name in ("qubes.VMShell", "qubes.VMExec", "qubes.GetDate"):
        os.symlink(archive, tmp_path / "rpc" / name)
    assert host.run(b"echo $((6*7)); exit 4\n", service="qubes.VMShell") == (4, b"42\n", b"")
    assert host.run(service="qubes.VMExec+printf+-25s+a-20b") == (0, b"a b", b"")
    assert host.run(service="qubes.VMExec+no-2Dsuch-2Dprogram")[0] in (125, 127)
    assert len(host.run(service="qubes.GetDate")[1]) == 26
    assert len(host.run(service="qubes.GetDate+nanoseconds")[1]) == 36


def test_a_missing_service_is_named(host: Host) -> None:
    assert host.run(service="no.Such+x") == (127, b"", b"no.Such: no such service in this qube\n")


def test_the_end_of_output_is_told_when_the_program_goes_on(host: Host) -> None:
    number = host.start(command="exec >&- 2>&-; read line; exit 4")
    ends = host.wait(lambda event: isinstance(event, Data) and event.stream == 2)
    assert [event.stream for event in ends if isinstance(event, Data)] == [1, 2]
    host.send(Data(number, 0, b"\n"))
    assert host.wait(lambda event: isinstance(event, Exit))[-1] == Exit(number, 4)


def test_a_login_gives_its_limits_and_umask_to_every_call(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    profile = "umask 027; ulimit -n 333; ulimit -S -c 0; export FROM_PROFILE=yes; echo a greeting; "
    hold = (*logins._HOLD[:2], profile + logins._HOLD[2])
    monkeypatch.setattr(logins, "_HOLD", hold)
    ask = "umask; ulimit -n; echo $FROM_PROFILE"
    deadline = time.monotonic() + DEADLINE_S
    while (said := host.run(command=ask)[1]) != b"0027\n333\nyes\n":
        assert time.monotonic() < deadline, said
        time.sleep(0.05)
    assert os.umask(0o022) == 0o022, "the agent's own is as it was"


def test_a_login_may_have_fewer_descriptors_than_the_agent_has_open(
    host: Host, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(logins, "_HOLD", (*logins._HOLD[:2], f"ulimit -n 64; {logins._HOLD[2]}"))
    held = [os.open(os.devnull, os.O_RDONLY) for _ in range(80)]
    try:
        deadline = time.monotonic() + DEADLINE_S
        while (said := host.run(command="ulimit -n")[1]) != b"64\n":
            assert time.monotonic() < deadline, said
            time.sleep(0.05)
    finally:
        for fd in held:
            os.close(fd)


def test_a_socket_service_gets_the_descriptor_first(host: Host, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "rpc" / "my.Socket"))
        listener.listen()
        number = host.start(service="my.Socket+arg")
        host.send(Data(number, 0, b"question"))
        host.send(Data(number, 0, b""))
        connected, _ = listener.accept()
        with connected:
            received = b""
            while piece := connected.recv(100):
                received += piece
            connected.sendall(b"answer")
        assert received == b"my.Socket+arg dom0\0question"
        assert host.finish(number, None) == (0, b"answer", b"")


def test_a_tcp_service_is_a_link_to_its_address(host: Host, tmp_path: Path) -> None:
    (tmp_path / "rpc-config").mkdir()
    (tmp_path / "rpc-config" / "my.Tcp").write_text("skip-service-descriptor = true\nexit-on-service-eof = true\n")
    os.symlink("/dev/tcp/127.0.0.1", tmp_path / "rpc" / "my.Tcp")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        number = host.start(service=f"my.Tcp+{port}")
        host.send(Data(number, 0, b"question"))
        connected, _ = listener.accept()
        with connected:
            assert connected.recv(100) == b"question"
            connected.sendall(b"answer")
        assert host.finish(number, None) == (0, b"answer", b"")
    assert host.run(service=f"my.Tcp+{port}")[0] == 125


def test_a_service_that_waits_for_the_session_gets_what_came_meanwhile(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_service(tmp_path, "my.Late", "#!/bin/sh\ncat\n")
    (tmp_path / "rpc-config").mkdir()
    (tmp_path / "rpc-config" / "my.Late").write_text("wait-for-session = true\n")
    monkeypatch.setattr(agent_module, "SESSION_MARK", "/")
    monkeypatch.setattr(agent_module, "WAIT_FOR_SESSION", ("/bin/sh", "-c", "sleep 0.5; exit 1"))
    assert host.run(b"early", service="my.Late") == (0, b"early", b"")
    abandoned = host.start(service="my.Late")
    host.send(Signal(abandoned, 15))
    host.send(Reset(abandoned))
    assert host.run(command="echo alive")[1] == b"alive\n"


def test_a_socket_service_ends_when_the_service_hangs_up(host: Host, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "rpc" / "my.Socket"))
        listener.listen()
        number = host.start(service="my.Socket")
        listener.accept()[0].close()
        assert host.finish(number, None)[0] == 0


def test_much_output_waits_for_credit(host: Host) -> None:
    number = host.start(command="head -c 4000000 /dev/zero")
    got = 0
    deadline = time.monotonic() + DEADLINE_S
    while got < WINDOW and time.monotonic() < deadline:
        got += sum(len(e.payload) for e in host.wait(lambda e: isinstance(e, Data)) if isinstance(e, Data))
    time.sleep(0.2)
    assert got == WINDOW
    host.send(Credit(number, 1, WINDOW))
    while got < 2 * WINDOW:
        got += sum(len(e.payload) for e in host.wait(lambda e: isinstance(e, Data)) if isinstance(e, Data))
    host.send(Reset(number))


def test_much_input_gets_credit_back(host: Host) -> None:
    number = host.start(command="wc -c")
    sent = 0
    while sent < 2_000_000:
        if (window := host.connection.window(number, 0)) >= 50_000:
            host.send(Data(number, 0, bytes(50_000)))
            sent += 50_000
        else:
            assert window < 50_000
            host.wait(lambda event: isinstance(event, Credit))
    assert host.finish(number)[1].strip() == str(sent).encode()


def test_a_service_that_does_not_read_does_not_block_the_others(host: Host) -> None:
    stuck = host.start(command="sleep 60")
    while window := host.connection.window(stuck, 0):
        host.send(Data(stuck, 0, bytes(min(window, 65536))))
    assert host.run(command="echo fine")[1] == b"fine\n"
    host.send(Reset(stuck))


def test_signals_reach_the_service(host: Host) -> None:
    number = host.start(command="trap 'echo caught; exit 9' USR1; echo ready; while :; do sleep 0.05; done")
    host.wait(lambda event: isinstance(event, Data))
    host.send(Signal(number, 10))
    assert host.finish(number, None)[:2] == (9, b"caught\n")


def test_a_caller_that_goes_away_takes_the_service_with_it(host: Host) -> None:
    number = host.start(command="echo $$; sleep 1000 & sleep 1001")
    (said,) = [e for e in host.wait(lambda event: isinstance(event, Data)) if isinstance(e, Data)]
    host.send(Reset(number, "gone"))
    deadline = time.monotonic() + DEADLINE_S
    while (
        subprocess.run(["ps", "-o", "pid", "-s", bytes(said.payload).decode().strip()], capture_output=True).returncode
        == 0
    ):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_terminal_has_a_size_and_ctrl_c(host: Host) -> None:
    number = host.start(
        command="stty size; tty >/dev/null && echo tty; read x; echo $(stty size); exec cat", tty=Tty("xterm", 30, 100)
    )
    host.wait(lambda event: isinstance(event, Data) and b"tty" in bytes(event.payload))
    host.send(WindowSize(number, 40, 120))
    host.send(Data(number, 0, b"\n"))
    host.wait(lambda event: isinstance(event, Data) and b"40 120" in bytes(event.payload))
    host.send(Data(number, 0, b"\x03"))
    assert host.finish(number, None)[0] == 130


def test_a_new_host_ends_the_calls_of_the_old_one(host: Host) -> None:
    number = host.start(command="echo $$; exec sleep 1000")
    (said,) = [e for e in host.wait(lambda event: isinstance(event, Data)) if isinstance(e, Data)]
    again = Host(host.sock)
    assert again.run(command="echo again")[1] == b"again\n"
    pid = bytes(said.payload).decode().strip()
    deadline = time.monotonic() + DEADLINE_S
    while os.path.exists(f"/proc/{pid}") and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not os.path.exists(f"/proc/{pid}") and number


def test_unknown_and_failing_verbs_are_answered(host: Host) -> None:
    host.send(Control(1, "no-such-verb", {}))
    host.send(Control(2, "configure", {"entropy": "not base64!"}))
    replies = [host.wait(lambda event: isinstance(event, Reply))[-1] for _ in range(2)]
    assert [(reply.id, reply.ok) for reply in replies if isinstance(reply, Reply)] == [(1, False), (2, False)]


# Calls from this qube


def client(agent_socket: Path, *arguments: str, stdin: bytes = b"") -> subprocess.Popen[bytes]:
    program = "import sys; from cloison_tools.client import main; sys.exit(main(sys.argv[1:]))"
    process = subprocess.Popen(
        [sys.executable, "-c", program, f"--agent-socket={agent_socket}", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": f"{GUEST}:{GUEST.parent / 'src'}"},
    )
    if stdin:
        assert process.stdin is not None
        process.stdin.write(stdin)
        process.stdin.close()
        process.stdin = None
    return process


def accept_call(host: Host) -> Call:
    call = host.wait(lambda event: isinstance(event, Call))[-1]
    assert isinstance(call, Call)
    return call


def test_a_call_from_inside_carries_bytes_both_ways_and_the_exit_code(host: Host, agent_socket: Path) -> None:
    process = client(agent_socket, "-p", "prefix ", "work", "my.Service+x", stdin=b"question")
    call = accept_call(host)
    assert (call.target, call.service) == ("work", "my.Service+x")
    host.send(Accepted(call.session))
    seen = host.wait(lambda event: isinstance(event, Data) and not event.payload)
    assert b"".join(bytes(event.payload) for event in seen if isinstance(event, Data)) == b"prefix question"
    host.send(Data(call.session, 1, b"answer"))
    host.send(Data(call.session, 2, b"complaint"))
    host.send(Exit(call.session, 5))
    assert process.communicate(timeout=DEADLINE_S) == (b"answer", b"complaint")
    assert process.returncode == 5


def test_a_pipe_that_is_a_callers_input_is_read_by_the_agent_as_credit_allows(host: Host, agent_socket: Path) -> None:
    process = client(agent_socket, "work", "my.Service")
    call = host.wait(lambda event: isinstance(event, Call))[-1]
    assert isinstance(call, Call)
    host.send(Accepted(call.session))
    assert process.stdin is not None
    writer = threading.Thread(target=lambda: (process.stdin.write(b"x" * (WINDOW + 100)), process.stdin.close()))  # type: ignore[union-attr, func-returns-value]
    writer.start()
    size = 0

    def came(event: Event, wanted: int) -> bool:
        nonlocal size
        if isinstance(event, Data):
            size += len(event.payload)
        return size == wanted

    host.wait(lambda event: came(event, WINDOW))
    host.send(Credit(call.session, 0, 512 * 1024))
    host.wait(lambda event: came(event, WINDOW + 100))
    host.wait(lambda event: isinstance(event, Data) and event.stream == 0 and not event.payload)
    host.send(Exit(call.session, 5))
    writer.join(DEADLINE_S)
    assert process.wait(DEADLINE_S) == 5, process.stderr.read() if process.stderr else ""


def test_a_caller_that_hands_over_what_is_no_pipe_of_its_own_has_no_input(
    host: Host, agent_socket: Path, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "fifo")
    reader = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    for path, flags in ((tmp_path / "fifo", os.O_WRONLY), (Path("/etc/passwd"), os.O_RDONLY)):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(agent_socket))
            leg = Connection(Role.LEG_CALLER)
            given = os.open(path, flags)
            socket.send_fds(sock, [leg.send(Call(LEG_SESSION, "work", "my.Service"))], [given])
            os.close(given)
            call = host.wait(lambda event: isinstance(event, Call))[-1]
            assert isinstance(call, Call)
            host.send(Accepted(call.session))
            last = host.wait(lambda event: isinstance(event, Data))[-1]
            assert isinstance(last, Data) and last.payload == b""
        host.wait(lambda event: isinstance(event, Reset))
    os.close(reader)


def test_a_refused_call_ends_with_126(host: Host, agent_socket: Path) -> None:
    process = client(agent_socket, "$default", "my.Service")
    call = accept_call(host)
    assert call.target == "@default"
    host.send(Refused(call.session))
    assert process.communicate(timeout=DEADLINE_S)[1] == b"Request refused\n"
    assert process.returncode == 126


def test_a_local_program_can_speak_to_the_service(host: Host, agent_socket: Path) -> None:
    process = client(agent_socket, "work", "my.Service", "sh", "-c", "echo hello; cat >&$SAVED_FD_1; exit 3")
    call = accept_call(host)
    host.send(Accepted(call.session))
    host.wait(lambda event: isinstance(event, Data) and event.payload == b"hello\n")
    host.send(Data(call.session, 1, b"from afar"))
    host.send(Exit(call.session, 0))
    assert process.communicate(timeout=DEADLINE_S)[0] == b"from afar"
    assert process.returncode == 3


def test_a_local_program_may_end_its_output_and_go_on_reading(host: Host, agent_socket: Path) -> None:
    process = client(agent_socket, "work", "my.Service", "sh", "-c", "echo asked; exec >&-; cat >&$SAVED_FD_1; exit 3")
    call = accept_call(host)
    host.send(Accepted(call.session))
    seen = host.wait(lambda event: isinstance(event, Data) and not event.payload)
    assert b"".join(bytes(event.payload) for event in seen if isinstance(event, Data)) == b"asked\n"
    host.send(Data(call.session, 1, b"answer"))
    host.send(Exit(call.session, 0))
    assert process.communicate(timeout=DEADLINE_S)[0] == b"answer"
    assert process.returncode == 3


def test_a_caller_whose_output_nobody_reads_ends_its_call(host: Host, agent_socket: Path) -> None:
    process = client(agent_socket, "work", "my.Service")
    call = accept_call(host)
    host.send(Accepted(call.session))
    assert process.stdout is not None
    process.stdout.close()
    host.send(Data(call.session, 1, b"output"))
    host.wait(lambda event: isinstance(event, Reset) and event.session == call.session)
    assert process.wait(DEADLINE_S) == 141


def test_a_caller_that_is_killed_resets_its_call(host: Host, agent_socket: Path) -> None:
    process = client(agent_socket, "work", "my.Service")
    call = accept_call(host)
    host.send(Accepted(call.session))
    process.kill()
    assert isinstance(host.wait(lambda event: isinstance(event, Reset))[-1], Reset)
    process.wait()


def test_a_hostile_local_program_is_cut_off_and_hurts_nobody(host: Host, agent_socket: Path) -> None:
    for garbage in (b"\xff" * 100, b"\0" * 100):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(agent_socket))
            sock.sendall(garbage)
            sock.settimeout(DEADLINE_S)
            assert sock.recv(1) == b""
    leg = Connection(Role.LEG_CALLER)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(agent_socket))
        sock.sendall(leg.send(Call(LEG_SESSION, "a", "b", user="root", command="")))
        call = accept_call(host)
        assert call.user == ""
    assert host.run(command="echo fine")[1] == b"fine\n"


def test_the_ready_notice_is_repeated_to_every_new_host(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    ours.settimeout(DEADLINE_S)
    agent = Agent(theirs.detach(), listen(str(tmp_path / "s")), VERBS, default_user=ME)
    agent.announce_ready(state="running")
    for _ in range(2):
        connection = Connection(Role.HOST, nonce=os.urandom(16))
        ours.sendall(connection.data_to_send())
        events: list[Event] = []
        while len(events) < 2:
            agent.loop.step(0.1)
            events += connection.receive_data(ours.recv(1 << 18))
        assert events[1:] == [Notice("ready", {"state": "running"})]
