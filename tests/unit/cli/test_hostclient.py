"""The host's RPC client program, called as the stock library calls it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cloison.client.compat.fixedpaths import with_group
from cloison.client.compat.hostclient import parse_command
from cloison.client.compat.namespace import find_rebuilt
from cloison.errors import BackendFailed

Program = Callable[..., subprocess.CompletedProcess[bytes]]


@pytest.fixture
def program(daemon: Any, broker: Any) -> Program:
    def run(*words: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        command = [sys.executable, "-m", "cloison.client.compat.hostclient", *words]
        return subprocess.run(command, input=stdin, capture_output=True, timeout=60)

    return run


@pytest.mark.parametrize(
    ("text", "service", "command", "user"),
    [
        ("DEFAULT:QUBESRPC qubes.VMShell+ dom0", "qubes.VMShell", "", ""),
        ("root:QUBESRPC qubes.VMExec+ls+-2Dl dom0", "qubes.VMExec+ls+-2Dl", "", "root"),
        ("user:ls -l: x", "", "ls -l: x", "user"),
        ("nogui:DEFAULT:id", "", "id", ""),
    ],
)
def test_the_command_says_user_and_service(text: str, service: str, command: str, user: str) -> None:
    call = parse_command("work", text)
    assert (call.target, call.service, call.command, call.user) == ("work", service, command, user)
    assert call.nogui is text.startswith("nogui:")


@pytest.mark.parametrize("text", ["", "id", ":", "user:", "user:QUBESRPC ", "user:QUBESRPC + dom0"])
def test_what_names_nothing_is_wrong_use(text: str) -> None:
    with pytest.raises(ValueError, match=r"no service|is not USER:COMMAND"):
        parse_command("work", text)


def test_streams_and_exit_code_are_those_of_the_call(program: Program) -> None:
    done = program("-d", "work", "DEFAULT:cat; echo err >&2; exit 3", stdin=b"in")
    assert (done.returncode, done.stdout, done.stderr) == (3, b"in", b"err\n")


def test_data_go_before_standard_input(program: Program, broker: Any) -> None:
    assert program("-d", "work", "-p", "first\n", "DEFAULT:cat", stdin=b"then").stdout == b"first\nthen"


def test_control_characters_are_replaced(program: Program) -> None:
    assert program("-d", "work", "-t", "-T", "DEFAULT:printf 'a\\033b'").stdout == b"a_b"
    assert program("-d", "work", "DEFAULT:printf 'a\\033b'").stdout == b"a\033b"


def test_a_local_program_is_joined_to_it(program: Program, tmp_path: Path) -> None:
    done = program("-d", "work", "-l", f"echo out; exec >&-; cat > {tmp_path}/got", "DEFAULT:cat; exit 4")
    assert (done.returncode, (tmp_path / "got").read_text()) == (4, "out\n")


def test_without_waiting_it_goes_on_alone(program: Program, tmp_path: Path) -> None:
    began = time.monotonic()
    done = program("-d", "work", "-e", "-p", "data", f"DEFAULT:cat > {tmp_path}/got.new; sleep 3; "
                   f"mv {tmp_path}/got.new {tmp_path}/got")  # fmt: skip
    assert (done.returncode, done.stderr) == (0, b"")
    assert time.monotonic() - began < 3
    while not (tmp_path / "got").exists():
        assert time.monotonic() - began < 30
        time.sleep(0.05)
    assert (tmp_path / "got").read_text() == "data"


def test_refusals_are_told(program: Program, broker: Any) -> None:
    broker.refuse = "refused by policy"
    done = program("-d", "work", "-e", "DEFAULT:QUBESRPC qubes.VMShell+ dom0")
    assert (done.returncode, done.stderr) == (126, b"qrexec-client: refused by policy\n")
    broker.refuse = "no such qube"
    assert program("-d", "nope", "DEFAULT:id").returncode == 125


def test_it_waits_no_longer_than_asked(program: Program, broker: Any) -> None:
    broker.slow_s = 5
    done = program("-d", "work", "-w", "0.3", "DEFAULT:id")
    assert done.returncode == 255


def test_the_qube_is_killed_if_asked(program: Program, daemon: Any) -> None:
    assert program("-d", "work", "-k", "DEFAULT:true").returncode == 0
    assert daemon.calls() == ["admin.vm.Kill work"]


def test_use_is_explained(program: Program) -> None:
    assert program("--help").returncode == 0
    assert program("DEFAULT:id").returncode == 2
    assert program("-d", "work", "id").returncode == 2


@pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed")
def test_it_stands_where_the_library_looks(program: Program) -> None:
    call = ["/usr/lib/qubes/qrexec-client", "-d", "work", "-T", "-p", "echo hello; exit\n"]
    view = [sys.executable, "-m", "cloison.cli", "compat", "run", "--"]
    environment = {**os.environ, "HOME": "/nowhere"}
    done = subprocess.run([*view, *call, "DEFAULT:sh"], input=b"", capture_output=True, timeout=60, env=environment)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"hello\n", b"")


def test_a_group_has_a_member() -> None:
    assert with_group("root:x:0:\nusers:x:98:a\n", "me") == "root:x:0:\nusers:x:98:a\nqubes:x:99:me\n"
    assert with_group("qubes:x:5:a,b\nroot:x:0:\n", "me") == "qubes:x:5:me,a,b\nroot:x:0:\n"
    assert with_group("qubes:x:5:\n", "me") == "qubes:x:5:me\n"


def test_directories_are_rebuilt_where_the_host_has_them(tmp_path: Path) -> None:
    (tmp_path / "etc/qubes-rpc").mkdir(parents=True)
    (tmp_path / "usr/lib").mkdir(parents=True)
    paths = ["/etc/qubes-release", "/etc/qubes-rpc/x", "/etc/qubes/policy.d", "/usr/lib/qubes/qrexec-client"]
    assert find_rebuilt(paths, tmp_path) == {"/etc", "/etc/qubes-rpc", "/usr/lib"}
    with pytest.raises(BackendFailed):
        find_rebuilt(["/new/x"], tmp_path)
