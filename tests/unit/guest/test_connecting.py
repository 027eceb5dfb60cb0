"""qvm-connect-tcp: what its words mean."""

from __future__ import annotations

import socket

import pytest

from cloison_tools import connecting
from cloison_tools.connecting import BadAddress, connect_tcp, parse_address


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ("8080:work:80", (8080, "work", 80)),
        (":work:80", (80, "work", 80)),
        ("::80", (80, "", 80)),
        ("1:$dispvm:65535", (1, "@dispvm", 65535)),
    ],
)
def test_ports_and_qube_may_be_left_out(text: str, meaning: tuple[int, str, int]) -> None:
    assert parse_address(text) == meaning


@pytest.mark.parametrize(
    "text", ["", "80", "work:80", "a:work:80", "0:work:80", ":work:65536", ":work:", ":w:٣", "1:2:3:4"]
)
def test_what_is_no_address_is_said(text: str) -> None:
    with pytest.raises(BadAddress):
        parse_address(text)


def test_a_port_in_use_is_said(capfd: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert connect_tcp([f"{port}:work:80"]) == 125
    assert f"cannot listen on port {port}" in capfd.readouterr().err
    assert connect_tcp([]) == 125
    assert connect_tcp(["--help"]) == 0


def test_a_connection_is_one_call_and_ends_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    class Call:
        def __init__(self, target: str, service: str) -> None:
            asked.append((target, service))

        def connect(self) -> None:
            raise connecting.CallRefused

    monkeypatch.setattr(connecting, "RemoteCall", Call)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert connecting.carry(theirs, "", 80) == 126
    assert asked == [("@default", "qubes.ConnectTCP+80")]
