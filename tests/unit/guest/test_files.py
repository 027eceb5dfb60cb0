"""Copying files between qubes: the sender and the receiver joined, and hostile streams against the receiver."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from cloison.wire.qfile import END, HEADER, Content, Entry, Result, encode_entry, parse_result
from cloison_agent.receiving import Unpacker, find_limits
from cloison_tools.packing import CannotSend, Packer, Survey, last_name

ROOT = Path(__file__).resolve().parents[3]
FILE, DIRECTORY, LINK = stat.S_IFREG | 0o644, stat.S_IFDIR | 0o755, stat.S_IFLNK | 0o777
RECEIVER = (
    "import sys; from cloison_agent.builtins import run_service; sys.exit(run_service('qubes.Filecopy', sys.argv[1]))"
)


def receive(home: Path, stream: bytes, argument: str = "", source: str = "work") -> Result | None:
    """What the receiver tells the sender about the stream."""
    environment = {
        "HOME": str(home),
        "QREXEC_REMOTE_DOMAIN": source,
        "PATH": os.defpath,
        "PYTHONPATH": f"{ROOT / 'guest'}:{ROOT / 'src'}",
    }
    command = [sys.executable, "-c", RECEIVER, argument]
    done = subprocess.run(command, input=stream, capture_output=True, env=environment, timeout=60)
    result = parse_result(done.stdout)
    assert result is None or done.returncode == result.code & 255
    return result


def pack(paths: Sequence[Path]) -> bytes:
    """The stream that the sender makes of the paths."""
    return b"".join(Packer().pieces([os.fsencode(path) for path in paths]))


def test_a_tree_arrives_with_modes_times_and_links(tmp_path: Path) -> None:
    source = tmp_path / "tree"
    (source / "sub").mkdir(parents=True)
    (source / "one").write_bytes(b"1" * 200_000)
    (source / "sub" / "empty").touch()
    os.symlink("../one", source / "sub" / "link")
    (source / "one").chmod(0o640)
    os.utime(source / "one", ns=(1_500_000_000_000_000_001, 1_400_000_000_000_000_002))
    (source / "sub").chmod(0o750)
    home = tmp_path / "home"
    home.mkdir()
    result = receive(home, pack([source]))
    assert result is not None and result.code == 0
    arrived = home / "QubesIncoming" / "work" / "tree"
    assert (arrived / "one").read_bytes() == b"1" * 200_000
    assert stat.S_IMODE((arrived / "one").stat().st_mode) == 0o640
    assert (arrived / "one").stat().st_mtime_ns == 1_400_000_000_000_000_002
    assert stat.S_IMODE((arrived / "sub").stat().st_mode) == 0o750
    assert os.readlink(arrived / "sub" / "link") == "../one"
    assert (arrived / "sub" / "empty").read_bytes() == b""
    assert stat.S_IMODE((home / "QubesIncoming").stat().st_mode) == 0o700


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    stream = encode_entry(Entry(b"f", FILE, 3)) + b"new" + END
    incoming = tmp_path / "QubesIncoming" / "work"
    incoming.mkdir(parents=True)
    (incoming / "f").write_text("old")
    result = receive(tmp_path, stream)
    assert result is not None and (result.code, result.last_name) == (errno.EEXIST, b"f")
    assert (incoming / "f").read_text() == "old"
    os.symlink("/etc/passwd", incoming / "g")
    result = receive(tmp_path, encode_entry(Entry(b"g", FILE, 1)) + b"x" + END)
    assert result is not None and result.code == errno.EEXIST


@pytest.mark.parametrize(
    ("entries", "code"),
    [
        ([Entry(b"missing/f", FILE)], errno.ENOENT),
        ([Entry(b"../f", FILE)], errno.EILSEQ),
        ([Entry(b"/tmp/f", FILE)], errno.EILSEQ),
        ([Entry(b"link", LINK, target=b"/etc")], errno.ENOLINK),
        ([Entry(b"d", DIRECTORY), Entry(b"d/up", LINK, target=b"..")], errno.ENOLINK),
        ([Entry(b"d", DIRECTORY), Entry(b"d/l", LINK, target=b"x"), Entry(b"d/l/f", FILE)], errno.ENOTDIR),
        ([Entry(b"d", DIRECTORY), Entry(b"d/l", LINK, target=b"."), Entry(b"d/l/f", FILE)], errno.ENOTDIR),
        ([Entry(b"d", DIRECTORY), Entry(b"d/l", LINK, target=b"x"), Entry(b"d/l", DIRECTORY)], errno.ENOTDIR),
        ([Entry(b"f", FILE), Entry(b"f", FILE)], errno.EEXIST),
        ([Entry(b"f", FILE), Entry(b"f/g", FILE)], errno.ENOTDIR),
        ([Entry(b"dev", stat.S_IFCHR | 0o666)], errno.EINVAL),
        ([Entry("שם".encode(), FILE)], errno.EILSEQ),
    ],
)
def test_a_hostile_stream_is_refused_with_the_right_number(tmp_path: Path, entries: list[Entry], code: int) -> None:
    result = receive(tmp_path, b"".join(map(encode_entry, entries)) + END)
    assert result is not None and result.code == code
    inside = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert all((tmp_path / "QubesIncoming" / "work") in path.parents for path in inside)


def test_all_names_are_taken_when_the_sender_says_so(tmp_path: Path) -> None:
    result = receive(tmp_path, encode_entry(Entry("שם".encode(), FILE)) + END, "allow-all-names")
    assert result is not None and result.code == 0
    assert receive(tmp_path, END, "unknown") is None


def test_a_file_that_is_not_whole_never_appears(tmp_path: Path) -> None:
    result = receive(tmp_path, encode_entry(Entry(b"f", FILE, 100)) + b"only this")
    assert result is not None and result.code == 31415926
    left = [path for path in tmp_path.rglob("f") if path.stat().st_mode & 0o777]
    assert left == []


@pytest.mark.parametrize("source", ["", "..", "a/b", ".hidden"])
def test_a_source_that_is_no_name_is_refused(tmp_path: Path, source: str) -> None:
    assert receive(tmp_path, END, source=source) is None
    assert list(tmp_path.iterdir()) == []


def test_an_incoming_directory_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    elsewhere, home = tmp_path / "elsewhere", tmp_path / "home"
    elsewhere.mkdir()
    home.mkdir()
    os.symlink(elsewhere, home / "QubesIncoming")
    result = receive(home, encode_entry(Entry(b"f", FILE)) + END)
    assert result is not None and result.code != 0
    assert list(elsewhere.iterdir()) == []


def test_a_name_is_told_before_and_after_what_is_inside_it(tmp_path: Path) -> None:
    os.chdir(tmp_path)
    for _ in range(1200):  # deeper than Python's stack
        os.mkdir("d")
        os.chdir("d")
    os.chdir("/")
    home = tmp_path / "home"
    home.mkdir()
    try:
        result = receive(home, b"".join(Packer().pieces([os.fsencode(tmp_path / "d")])))
        assert result is not None and result.code == 0
    finally:  # pytest's own cleaning recurses
        subprocess.run(["rm", "-rf", tmp_path / "d", home], check=True)


def test_what_changes_while_it_is_read_ends_the_stream(tmp_path: Path) -> None:
    path = tmp_path / "shrinks"
    path.write_bytes(bytes(1 << 20))
    pieces = Packer().pieces([os.fsencode(path)])
    next(pieces)
    path.write_bytes(b"")
    with pytest.raises(CannotSend, match="shorter"):
        list(pieces)
    link = tmp_path / "link"
    os.symlink("/etc/passwd", link)
    assert HEADER.unpack(b"".join(Packer().pieces([os.fsencode(link)]))[:32])[1] == stat.S_IFLNK | 0o777


def test_a_survey_counts_and_finds_what_is_odd(tmp_path: Path) -> None:
    (tmp_path / "t" / "sub").mkdir(parents=True)
    (tmp_path / "t" / "file").write_bytes(bytes(1000))
    (tmp_path / "t" / "sub" / "שם").write_bytes(bytes(24))
    os.symlink("zu\nhause", tmp_path / "t" / "link")
    os.mkfifo(tmp_path / "t" / "sub" / "fifo")
    found = Survey([os.fsencode(tmp_path / "t")])
    assert found.total_bytes == 1024
    assert sorted(found.names) == [b"zu\nhause", "שם".encode()]
    assert found.odd == [os.fsencode(tmp_path / "t" / "sub" / "fifo")]
    assert [last_name(name) for name in (b"/", os.fsencode(tmp_path / "t" / "."), b"a/b")] == [b"root", b"t", b"b"]


@pytest.mark.parametrize(
    ("header", "code"),
    [
        (HEADER.pack(2, FILE, 2**62, 0, 0, 0, 0) + b"f\0", errno.EDQUOT),
        (HEADER.pack(2, FILE, 2**64 - 1, 0, 0, 0, 0) + b"f\0", errno.EDQUOT),
        (HEADER.pack(2**32 - 1, FILE, 0, 0, 0, 0, 0), errno.ENAMETOOLONG),
        (HEADER.pack(16384, FILE, 0, 0, 0, 0, 0), errno.ENAMETOOLONG),
        (HEADER.pack(2, FILE, 0, 0, 10**9, 0, 0) + b"f\0", None),
        (HEADER.pack(2, FILE, 0, 0, 0, 0, 2**32 - 1) + b"f\0", None),
        (HEADER.pack(2, FILE, 0, 0, 0, 0, 0) + b"ff", errno.EILSEQ),
        (HEADER.pack(4, FILE, 0, 0, 0, 0, 0) + b"a\0b\0", errno.EILSEQ),
        (HEADER.pack(4, FILE, 0, 0, 0, 0, 0) + b"a\nb\0", errno.EILSEQ),
        (HEADER.pack(6, FILE, 0, 0, 0, 0, 0) + "a\u202eb\0".encode(), errno.EILSEQ),
        (HEADER.pack(5, FILE, 0, 0, 0, 0, 0) + b"a\x1b[m\0", errno.EILSEQ),
        (HEADER.pack(2, LINK, 2**40, 0, 0, 0, 0) + b"f\0", errno.EDQUOT),
        (HEADER.pack(2, LINK, 16384, 0, 0, 0, 0) + b"f\0", errno.ENAMETOOLONG),
        (HEADER.pack(2, 0, 0, 0, 0, 0, 0) + b"f\0", errno.EINVAL),
        (HEADER.pack(2, stat.S_IFSOCK, 0, 0, 0, 0, 0) + b"f\0", errno.EINVAL),
        (b"", errno.EREMOTEIO),
        (b"\1", 31415926),
    ],
)
def test_absurd_headers_are_answered_with_the_right_number(tmp_path: Path, header: bytes, code: int | None) -> None:
    result = receive(tmp_path, header)
    assert (result and result.code) == code
    assert [path for path in tmp_path.rglob("*") if not path.is_dir()] == []


def test_one_copy_has_its_limits(tmp_path: Path) -> None:
    settings = tmp_path / "filecopy.conf"
    directory = os.open(tmp_path, os.O_RDONLY)
    _, files = find_limits(directory, (str(settings),))
    assert 0 < files <= 1_000_000
    settings.write_text("# mine\nmax-bytes = 1000\nmax-files=3\nmax-bytes = lots\n")
    assert find_limits(directory, (str(settings),)) == (1000, 3)
    settings.write_text("max-bytes = 0\n")
    free = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize
    assert 0 < find_limits(directory, (str(settings),))[0] < free
    os.close(directory)


def test_a_directory_that_is_swapped_for_a_link_leads_nowhere(tmp_path: Path) -> None:
    """The user's own programs may be anything: the receiver holds on to directories, not to their names."""
    elsewhere, top = tmp_path / "elsewhere", tmp_path / "top"
    elsewhere.mkdir()
    top.mkdir()
    unpacker = Unpacker(os.open(top, os.O_RDONLY | os.O_DIRECTORY))
    unpacker.take(Entry(b"d", DIRECTORY))
    unpacker.take(Entry(b"d/e", DIRECTORY))
    unpacker.take(Entry(b"d/e/f", FILE, 1))
    (top / "d").rename(top / "old")
    os.symlink(elsewhere, top / "d")
    unpacker.take(Content(b"x", True))
    with pytest.raises(OSError) as error:
        unpacker.take(Entry(b"d/g", FILE, 0))
    assert error.value.errno == errno.ENOTDIR
    unpacker.abandon()
    assert list(elsewhere.iterdir()) == []
    assert (top / "old" / "e" / "f").read_bytes() == b"x"


def test_where_files_need_names_at_once_an_unfinished_one_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cloison_agent.receiving._can_link_open_files", lambda _: False)
    unpacker = Unpacker(os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY))
    unpacker.take(Entry(b"half", FILE, 10))
    unpacker.take(Content(b"x", False))
    assert stat.S_IMODE((tmp_path / "half").stat().st_mode) == 0
    unpacker.abandon()
    assert list(tmp_path.iterdir()) == []
