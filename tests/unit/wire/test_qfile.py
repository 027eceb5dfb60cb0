"""qubes.Filecopy streams: what an honest sender sends arrives, and what a hostile one sends is named and refused."""

from __future__ import annotations

import errno
import stat
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloison.wire.qfile import (
    END,
    HEADER,
    TRUNCATED,
    Content,
    End,
    Entry,
    QfileDecoder,
    QfileRefused,
    Result,
    check_name,
    check_target,
    encode_entry,
    encode_result,
    parse_result,
)

FILE, DIRECTORY, LINK = stat.S_IFREG | 0o644, stat.S_IFDIR | 0o755, stat.S_IFLNK | 0o777
TIMES = {"atime_ns": 1_700_000_000_123_456_789, "mtime_ns": 1_600_000_000_000_000_001}
STREAM = [
    Entry(b"d", DIRECTORY, **TIMES),
    Entry("d/Grüße 漢字.txt".encode(), FILE, 5, **TIMES),
    b"hello",
    Entry(b"d/empty", FILE, 0),
    Entry(b"d/sub/l", LINK, 6, target=b"../one"),
    Entry(b"d", DIRECTORY, **TIMES),
]
BYTES = b"".join(item if isinstance(item, bytes) else encode_entry(item) for item in STREAM) + END


def read_in_pieces(data: bytes, piece: int, **options: bool | int) -> list[Entry | bytes | End]:
    decoder = QfileDecoder(**options)  # type: ignore[arg-type]
    events: list[Entry | bytes | End] = []
    for start in range(0, len(data), piece):
        for event in decoder.receive_data(data[start : start + piece]):
            events.append(bytes(event.data) if isinstance(event, Content) else event)
    decoder.receive_eof()
    return events


def joined(events: list[Entry | bytes | End]) -> list[Entry | bytes | End]:
    """Neighbouring pieces of content put together."""
    result: list[Entry | bytes | End] = []
    for event in events:
        if isinstance(event, bytes) and result and isinstance(result[-1], bytes):
            result[-1] += event
        else:
            result.append(event)
    return result


@pytest.mark.parametrize("piece", [1, 2, 3, 31, 32, 33, 10_000])
def test_a_tree_arrives_whole_in_pieces_of(piece: int) -> None:
    assert joined(read_in_pieces(BYTES, piece)) == [*STREAM, End(zlib.crc32(BYTES))]


@pytest.mark.parametrize("length", range(0, len(BYTES) - 1, 7))
def test_a_stream_that_ends_early_is_told_apart_from_one_that_never_began_an_entry(length: int) -> None:
    with pytest.raises(QfileRefused) as refused:
        read_in_pieces(BYTES[:length], 50)
    assert refused.value.code in (TRUNCATED, errno.EREMOTEIO)


@pytest.mark.parametrize(
    ("name", "code"),
    [
        (b"", errno.EILSEQ),
        (b"/etc/passwd", errno.EILSEQ),
        (b"a/", errno.EILSEQ),
        (b"a//b", errno.EILSEQ),
        (b".", errno.EILSEQ),
        (b"..", errno.EILSEQ),
        (b"a/../b", errno.EILSEQ),
        (b"a/./b", errno.EILSEQ),
        (b"a\0b", errno.EILSEQ),
    ],
)
@pytest.mark.parametrize("allow_all", [False, True])
def test_a_name_that_leads_elsewhere_is_refused_always(name: bytes, code: int, allow_all: bool) -> None:
    with pytest.raises(QfileRefused) as refused:
        check_name(name, allow_all=allow_all)
    assert refused.value.code == code


@pytest.mark.parametrize(
    "name",
    [
        b"a\nb",
        b"\x1b[2J",
        b"\xff\xfe",
        b"a\x7f",
        "שלום".encode(),
        "evil\u202etxt.exe".encode(),
        "e\u0301".encode(),
        "\ue000".encode(),
        "😀".encode(),
        "\u200b".encode(),
        b"\xed\xa0\x80",
    ],
)
def test_a_name_that_may_deceive_the_eye_needs_permission(name: bytes) -> None:
    with pytest.raises(QfileRefused):
        check_name(name, allow_all=False)
    check_name(name, allow_all=True)


@pytest.mark.parametrize(
    "name", ["report.pdf", "Übung 1 (neu).txt", "Отчёт", "λόγος", "한글", "ひらがな", "漢字", "x+y=2 €"]
)
def test_ordinary_names_of_many_languages_are_fine(name: str) -> None:
    check_name(name.encode(), allow_all=False)


@pytest.mark.parametrize(
    ("name", "target", "allowed"),
    [
        (b"link", b"x", False),
        (b"d/link", b"x", True),
        (b"d/link", b"/etc/passwd", False),
        (b"d/link", b"../x", False),
        (b"d/e/link", b"../x", True),
        (b"d/e/link", b"../../x", False),
        (b"d/e/link", b"x/../..", False),
        (b"d/e/link", b"./x//y/", True),
        (b"d/e/link", b"", False),
        (b"d/e/link", b"a\0b", False),
        (b"d/e/f/link", b"../../x", True),
        (b"d/e/f/link", b"../a/../../../x", False),
    ],
)
def test_a_symlink_stays_inside_its_top_level_directory(name: bytes, target: bytes, allowed: bool) -> None:
    if allowed:
        check_target(name, target, allow_all=False)
        return
    with pytest.raises(QfileRefused) as refused:
        check_target(name, target, allow_all=True)
    assert refused.value.code == errno.ENOLINK


@pytest.mark.parametrize(
    ("header", "code"),
    [
        (HEADER.pack(16384, FILE, 0, 0, 0, 0, 0), errno.ENAMETOOLONG),
        (HEADER.pack(2, FILE, 0, 0, 10**9, 0, 0), None),
        (HEADER.pack(2, FILE, 0, 0, 0, 0, 2**32 - 1), None),
        (HEADER.pack(2, FILE, 2**63, 0, 0, 0, 0), errno.EDQUOT),
        (HEADER.pack(2, stat.S_IFIFO, 0, 0, 0, 0, 0) + b"a\0", errno.EINVAL),
        (HEADER.pack(2, stat.S_IFBLK, 0, 0, 0, 0, 0) + b"a\0", errno.EINVAL),
        (HEADER.pack(2, FILE, 0, 0, 0, 0, 0) + b"ab", errno.EILSEQ),
        (HEADER.pack(4, LINK, 2**40, 0, 0, 0, 0) + b"a/b\0", errno.ENAMETOOLONG),
    ],
)
def test_an_impossible_header_is_refused(header: bytes, code: int | None) -> None:
    with pytest.raises(QfileRefused) as refused:
        QfileDecoder().receive_data(header)
    assert refused.value.code == code


def test_limits_count_the_whole_stream() -> None:
    files = b"".join(encode_entry(Entry(b"f%d" % n, FILE, 3)) + b"abc" for n in range(4)) + END
    assert read_in_pieces(files, 100, max_bytes=12, max_files=4)
    for limits in ({"max_bytes": 11}, {"max_files": 3}):
        with pytest.raises(QfileRefused) as refused:
            read_in_pieces(files, 100, **limits)
        assert refused.value.code == errno.EDQUOT


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1), st.binary(max_size=50))
def test_a_result_survives_the_way_back(code: int, crc32: int, name: bytes) -> None:
    assert parse_result(encode_result(Result(code, crc32, name))) == Result(code, crc32, name)


@given(st.binary(max_size=400))
def test_random_bytes_raise_nothing_but_a_refusal(noise: bytes) -> None:
    parse_result(noise)
    for data in (noise, encode_entry(STREAM[0]) + noise, HEADER.pack(5, LINK, 4, 0, 0, 0, 0) + noise):  # type: ignore[arg-type]
        try:
            read_in_pieces(data, 10)
        except QfileRefused:
            pass
