"""DNS answers: believed when they answer our question, and never more than that."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloison.wire.dns import AAAA, CNAME, A, DnsError, parse_answer, question, spell

ASKED = question(0x1234, "ExAmple.com", A)


def name(text: str) -> bytes:
    return b"".join(bytes([len(label)]) + label.encode() for label in text.split(".")) + b"\0"


def record(owner: bytes, kind: int, ttl_s: int, data: bytes) -> bytes:
    return owner + struct.pack("!HHIH", kind, 1, ttl_s, len(data)) + data


def answer(*records: bytes, asked: bytes = ASKED, flags: int = 0x8180, identifier: int | None = None) -> bytes:
    number = int.from_bytes(asked[:2], "big") if identifier is None else identifier
    end = asked.index(b"\0", 12) + 5
    return struct.pack("!HHHHHH", number, flags, 1, len(records), 0, 0) + asked[12:end] + b"".join(records)


POINTER = b"\xc0\x0c"


def test_addresses_and_the_shortest_time() -> None:
    heard = parse_answer(answer(record(POINTER, A, 300, bytes([9, 9, 9, 9])),
                                record(POINTER, A, 60, bytes([9, 9, 9, 8]))), ASKED)  # fmt: skip
    assert heard.addresses == ("9.9.9.8", "9.9.9.9") and heard.ttl_s == 60


def test_aliases_are_followed_and_count_for_the_time() -> None:
    heard = parse_answer(answer(record(POINTER, CNAME, 30, name("cdn.example.net")),
                                record(name("cdn.example.net"), A, 300, bytes([9, 9, 9, 9]))), ASKED)  # fmt: skip
    assert heard.addresses == ("9.9.9.9",) and heard.ttl_s == 30


def test_addresses_of_other_names_are_not_believed() -> None:
    assert parse_answer(answer(record(name("other.example"), A, 300, bytes([9, 9, 9, 9]))), ASKED).addresses == ()
    assert parse_answer(answer(record(POINTER, AAAA, 300, bytes(16))), ASKED).addresses == ()


def test_aliases_in_a_circle_end() -> None:
    circle = answer(record(POINTER, CNAME, 9, name("a.b")), record(name("a.b"), CNAME, 9, name("example.com")))
    assert parse_answer(circle, ASKED).addresses == ()


def test_sixteen_byte_addresses() -> None:
    asked = question(7, "example.com", AAAA)
    data = bytes.fromhex("20010db8000000000000000000000001")
    assert parse_answer(answer(record(POINTER, AAAA, 5, data), asked=asked), asked).addresses == ("2001:db8::1",)


def test_no_such_name_is_an_answer_and_trouble_is_none() -> None:
    assert parse_answer(answer(flags=0x8183), ASKED) == ((), 60, False, False)
    assert parse_answer(answer(flags=0x8182), ASKED).failed
    assert parse_answer(answer(flags=0x8380), ASKED).truncated


@pytest.mark.parametrize(
    "untrusted",
    [
        b"", b"\x12\x34", answer(identifier=0x1235), answer(flags=0x0180), answer(flags=0x9980),
        answer(asked=question(0x1234, "example.com", A)),  # not in the case that we spelled
        answer(asked=question(0x1234, "ExAmple.org", A)), answer(asked=question(0x1234, "ExAmple.com", AAAA)),
        answer(record(b"\xc0\x7f", A, 1, bytes(4))), answer(record(b"\xc0\x1d", A, 1, bytes(4))),
        answer(record(b"\x80abc", A, 1, bytes(4))), answer(record(POINTER, A, 1, bytes(4)))[:-1],
        answer(record(POINTER, A, 1, bytes(4)))[:-8], answer(b"\x3f"),
    ],
)  # fmt: skip
def test_what_does_not_answer_the_question_is_refused(untrusted: bytes) -> None:
    with pytest.raises(DnsError):
        parse_answer(untrusted, ASKED)


@given(st.binary(max_size=300))
def test_any_bytes_are_an_answer_or_an_error(tail: bytes) -> None:
    for untrusted in (tail, answer()[:6] + b"\0\x09" + answer()[8:] + tail):
        try:
            parse_answer(untrusted, ASKED)
        except DnsError:
            pass


@pytest.mark.parametrize("bad", ["", ".", "a..b", "x" * 64, ".".join(["abcdefgh"] * 32)])
def test_names_that_cannot_be_asked_for(bad: str) -> None:
    with pytest.raises(DnsError):
        question(1, bad, A)


def test_the_case_of_letters_is_thrown_anew() -> None:
    assert len({spell("abcdefghijklmnop.example") for _ in range(20)}) > 10
