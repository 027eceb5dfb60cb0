"""Requests and answers of the Admin API, as bytes."""

from __future__ import annotations

import pytest

from cloison.client import failures
from cloison.client.calls import property_get, property_get_all
from cloison.client.failures import OutcomeUnknown, Refused
from cloison.client.framing import MAX_EVENT, AnswerReader, Event, encode_request


def read(data: bytes, *, step: int = 0) -> tuple[list[Event], bytes]:
    reader, events = AnswerReader("it"), []
    for start in range(0, len(data), step or max(1, len(data))):
        events += reader.receive(data[start : start + (step or len(data))])
    return events, reader.finish()


def test_a_request_is_written_as_the_notes_say() -> None:
    assert encode_request("admin.vm.List", "", "dom0", b"") == b"admin.vm.List+ dom0 name dom0\0"
    assert encode_request("admin.vm.tag.Set", "x", "work", b"v") == b"admin.vm.tag.Set+x dom0 name work\0v"


@pytest.mark.parametrize("arg", ["a b", "a\0b", "ä", "\n"])
def test_what_no_header_can_carry_is_refused_before_it_is_sent(arg: str) -> None:
    with pytest.raises(Refused):
        encode_request("admin.vm.tag.Set", arg, "work", b"")


def test_a_request_that_the_daemon_would_drop_is_refused() -> None:
    with pytest.raises(Refused, match="longer than 65536"):
        encode_request("admin.vm.notes.Set", "", "work", b"x" * 65536)


ANSWER = b"".join(
    (
        b"1\x00work\x00progress\x00step\x00copying\x00text\x00\x00\x00",
        b"1\x00\x00connection-established\x00\x00",
        b'0\x00{"a": 1}',
    )
)


@pytest.mark.parametrize("step", [0, 1, 2, 7])
def test_events_then_an_answer_however_the_bytes_are_cut(step: int) -> None:
    events, data = read(ANSWER, step=step)
    assert events == [
        Event("work", "progress", {"step": "copying", "text": ""}),
        Event("", "connection-established", {}),
    ]
    assert data == b'{"a": 1}'


def test_an_answer_may_hold_what_looks_like_an_event() -> None:
    assert read(b"0\x001\0work\0") == ([], b"1\0work\0")


@pytest.mark.parametrize("cut", [b"", b"0", b"1\0work\0progress\0", b"nonsense", b"3\0"])
def test_no_whole_answer_means_that_nobody_knows(cut: bytes) -> None:
    with pytest.raises(OutcomeUnknown):
        read(cut)


def test_an_event_without_end_is_not_collected_for_ever() -> None:
    reader = AnswerReader("it")
    with pytest.raises(OutcomeUnknown):
        for _ in range(MAX_EVENT // 65536 + 2):
            reader.receive(b"1\0" if not reader._buffer else b"x" * 65536)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("QubesVMNotFoundError", failures.QubesVMNotFoundError),
        ("QubesVMNotRunningError", failures.QubesVMNotStartedError),
        ("PermissionDenied", failures.PermissionDenied),
        ("SomethingNew", Refused),
    ],
)
def test_an_exception_gets_the_class_of_its_name(name: str, kind: type[Refused]) -> None:
    with pytest.raises(kind) as caught:
        read(b"2\0" + name.encode() + b"\0\0no 100%% certainty\0")
    assert (caught.value.name, caught.value.message) == (name, "no 100% certainty")


def test_arguments_are_formatted_into_the_text() -> None:
    with pytest.raises(Refused, match="work has 3 users"):
        read(b"2\x00QubesVMInUseError\x00\x00%s has %d users\x00work\x003\x00")


def test_a_text_that_is_no_format_is_shown_as_it_came_without_control_characters() -> None:
    with pytest.raises(Refused) as caught:
        read(b"2\x00QubesException\x00\x00100% \x1b[31mred\x00")
    assert str(caught.value) == "100% _[31mred"


def test_the_hint_is_told_apart() -> None:
    with pytest.raises(Refused) as caught:
        read(b"2\0QubesException\0\0no (hint: try again)\0")
    assert (caught.value.message, caught.value.hint) == ("no", "try again")


@pytest.mark.parametrize(
    ("text", "value", "is_default"),
    [
        (b"default=True type=int 400", "400", True),
        (b"default=False type=vm ", None, False),
        (b"default=True type=str ", "", True),
        (b"default=True type=int ", None, True),
        (b"default=False type=str a b  c", "a b  c", False),
    ],
)
def test_a_property_is_read(text: bytes, value: str | None, is_default: bool) -> None:
    prop = property_get("work", "x").parse(text)
    assert (prop.value, prop.is_default) == (value, is_default)


def test_all_properties_are_read_with_their_escapes() -> None:
    found = property_get_all("work").parse(b"a default=True type=str one\\ntwo\\\\n\nb default=False type=bool True\n")
    assert (found["a"].value, found["b"].value) == ("one\ntwo\\n", "True")
