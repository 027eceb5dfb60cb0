"""Which file serves a call, and how its configuration is read."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloison_agent import lookup
from cloison_agent.lookup import (
    LookupProblem,
    Program,
    ServiceConfig,
    TcpAddress,
    UnixSocket,
    find_config,
    find_service,
    parse_config,
    parse_tcp,
)


@pytest.fixture
def directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Two service directories, the first wins."""
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    monkeypatch.setenv("QREXEC_SERVICE_PATH", f"{first}:{second}")
    monkeypatch.setenv("QUBES_RPC_CONFIG_PATH", f"{first}/config:{second}")
    return first, second


def make_program(path: Path) -> str:
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return str(path)


def test_a_file_for_the_argument_in_a_later_directory_beats_the_plain_one(directories: tuple[Path, Path]) -> None:
    make_program(directories[0] / "a.Service")
    special = make_program(directories[1] / "a.Service+arg")
    assert find_service("a.Service+arg") == Program(special)
    assert find_service("a.Service+other") == Program(str(directories[0] / "a.Service"))


def test_a_call_without_argument_is_one_with_an_empty_argument(directories: tuple[Path, Path]) -> None:
    make_program(directories[0] / "a.Service")
    empty = make_program(directories[0] / "a.Service+")
    assert find_service("a.Service") == Program(empty) == find_service("a.Service+")


def test_a_service_that_is_not_there(directories: tuple[Path, Path]) -> None:
    os.symlink("/nonexistent", directories[0] / "dangling")
    for name in ("a.Service+", "dangling+", "x" * 300):
        with pytest.raises(LookupProblem) as problem:
            find_service(name)
        assert problem.value.exit_code == 127


def test_an_argument_too_long_for_a_file_name_is_looked_up_without_it(directories: tuple[Path, Path]) -> None:
    program = make_program(directories[0] / "a.Service")
    assert find_service("a.Service+" + "x" * 5000) == Program(program)


def test_a_file_that_cannot_be_run_is_trouble(directories: tuple[Path, Path]) -> None:
    (directories[0] / "a.Service").write_text("")
    (directories[0] / "a.Directory").mkdir()
    for name in ("a.Service", "a.Directory"):
        with pytest.raises(LookupProblem) as problem:
            find_service(name)
        assert problem.value.exit_code == 125


def test_sockets_and_tcp_links(directories: tuple[Path, Path]) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(directories[0] / "s"))
        assert find_service("s+x") == UnixSocket(str(directories[0] / "s"))
    os.symlink("/dev/tcp/127.0.0.1", directories[0] / "t")
    assert find_service("t+8080") == TcpAddress("127.0.0.1", 8080)


@pytest.mark.parametrize(
    ("link", "argument", "address"),
    [
        ("/dev/tcp/127.0.0.1/22", "", ("127.0.0.1", 22)),
        ("/dev/tcp/127.0.0.1/22", "x", None),
        ("/dev/tcp/127.0.0.1", "65535", ("127.0.0.1", 65535)),
        ("/dev/tcp/127.0.0.1", "65536", None),
        ("/dev/tcp/127.0.0.1", "0", None),
        ("/dev/tcp/127.0.0.1", "022", None),
        ("/dev/tcp/127.0.0.1", "", None),
        ("/dev/tcp/localhost", "22", None),
        ("/dev/tcp", "10.0.0.1+80", ("10.0.0.1", 80)),
        ("/dev/tcp", "fe80++1+80", ("fe80::1", 80)),
        ("/dev/tcp", "10.0.0.1", None),
        ("/dev/tcp", "a_b+80", None),
        ("/dev/tcp/a/b/c", "", None),
    ],
)
def test_tcp_addresses(link: str, argument: str, address: tuple[str, int] | None) -> None:
    if address is None:
        with pytest.raises(LookupProblem):
            parse_tcp(link, argument)
    else:
        assert parse_tcp(link, argument) == TcpAddress(*address)


def test_a_configuration_with_all_that_is_allowed() -> None:
    text = (
        "# a comment\r\n\nwait-for-session = 1 # yes\nskip-service-descriptor=true\n"
        "future.key = 'x'\nexit-on-client-eof=false"
    )
    assert parse_config(text) == ServiceConfig(wait_for_session=True, skip_service_descriptor=True)
    assert parse_config("force-user = 'root'\n") == ServiceConfig(force_user="root")


@pytest.mark.parametrize(
    "text",
    [
        "[section]",
        " force-user = 'root'",
        'force-user = "root"',
        "force-user = '''root'''",
        "force-user = root",
        "force-user = 'root",
        "force-user = 1",
        "wait-for-session = 2",
        "wait-for-session = 01",
        "skip-service-descriptor = 1",
        "a = true\na = true",
        "force-user = 'root'\nskip-service-descriptor = true",
        "1a = true",
        "a = true b",
        "a",
    ],
)
def test_a_configuration_that_is_not_understood_stops_the_call(text: str) -> None:
    with pytest.raises(LookupProblem):
        parse_config(text)


@given(st.text())
def test_random_configurations_raise_nothing_but_the_declared_error(noise: str) -> None:
    try:
        parse_config(noise)
    except LookupProblem:
        pass


def test_one_configuration_file_is_used_without_merging(directories: tuple[Path, Path]) -> None:
    (directories[0] / "config").mkdir()
    (directories[0] / "config" / "s").write_text("wait-for-session = true")
    (directories[1] / "s+x").write_text("force-user = 'root'")
    assert find_config("s+x") == ServiceConfig(force_user="root")
    assert find_config("s+y") == ServiceConfig(wait_for_session=True)
    assert find_config("other") == ServiceConfig()


def test_directories_are_looked_at_again_when_they_changed(
    directories: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lookup, "SETTLED_NS", 0)
    later = make_program(directories[1] / "a.Service")
    assert find_service("a.Service+x") == Program(later)
    first = make_program(directories[0] / "a.Service")
    assert find_service("a.Service+x") == Program(first)
    os.rename(directories[0], directories[0].with_name("aside"))
    assert find_service("a.Service+x") == Program(later)
    directories[0].mkdir()
    special = make_program(directories[0] / "a.Service+x")
    assert find_service("a.Service+x") == Program(special)
    os.unlink(special)
    assert find_service("a.Service+x") == Program(later)


def test_a_directory_that_just_changed_is_not_remembered(directories: tuple[Path, Path]) -> None:
    names = [make_program(directories[0] / f"s{number}") for number in range(50)]
    for number, path in enumerate(names):
        assert find_service(f"s{number}+") == Program(path)
        os.unlink(path)
        with pytest.raises(LookupProblem):
            find_service(f"s{number}+")
