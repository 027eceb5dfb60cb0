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

from cloison.wire.qfile import END, Entry, Result, encode_entry, parse_result
from cloison_tools.sending import Packer

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
    """The stream that the sender makes of the paths; it gets no answer."""
    stream_read, stream_write = os.pipe()
    answer_read, answer_write = os.pipe()
    pid = os.fork()
    if pid == 0:
        for fd in (stream_read, answer_write, 2):
            os.close(fd)
        Packer(stream_write, answer_read).pack([os.fsencode(path) for path in paths])
        os._exit(0)
    for fd in (stream_write, answer_read):
        os.close(fd)
    with os.fdopen(stream_read, "rb") as file:
        data = file.read()
    os.close(answer_write)
    os.waitpid(pid, 0)
    return data


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
