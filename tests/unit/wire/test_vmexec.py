"""Command lines as arguments of qubes.VMExec."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloison.wire import LocalProtocolError, RemoteProtocolError
from cloison.wire.messages import Open, encode_message
from cloison.wire.vmexec import encode_command, parse_command


def test_the_reference_example() -> None:
    assert encode_command(["ls", "-a", "/home/user"]) == "ls+--a+-2Fhome-2Fuser"
    assert parse_command("ls+--a+-2Fhome-2Fuser") == [b"ls", b"-a", b"/home/user"]


@given(st.lists(st.binary(min_size=1).filter(lambda word: b"\0" not in word), min_size=1))
def test_every_command_survives_and_is_a_legal_service_name(words: list[bytes]) -> None:
    argument = encode_command(words)
    assert parse_command(argument) == words
    encode_message(Open(2, service=f"qubes.VMExec+{argument}"))


@pytest.mark.parametrize("argument", ["", "a b", "a-", "a-2", "a-2f", "a-zz", "ä", "+a", "a-00"])
def test_anything_else_is_refused(argument: str) -> None:
    with pytest.raises(RemoteProtocolError):
        parse_command(argument)


@given(st.text())
def test_random_text_raises_nothing_but_the_declared_error(noise: str) -> None:
    try:
        parse_command(noise)
    except RemoteProtocolError:
        pass


def test_no_words_are_our_own_mistake() -> None:
    with pytest.raises(LocalProtocolError):
        encode_command([])
