"""Any stream at all against the real receiver: only two errors may leave it, and only its own directory may change."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from cloison.wire.qfile import END, Entry, QfileDecoder, QfileRefused, encode_entry
from cloison_agent.receiving import Unpacker

PARTS = st.sampled_from([b"a", b"b", b"..", b"..", b".", b"", b"a" * 256, b"x\0y", b"\x1b[m", b"\xff"])
NAMES = st.one_of(
    st.sampled_from([b"a", b"a/b", b"a/b/c", b"a/l", b"a/l/x", b"a/b/l", b"a/b/l/x", b"l"]),
    st.sampled_from([b"../x", b"a/../../x", b"..", b"/tmp/x", b"a/..", b"../outside/x", b"../outside/secret"]),
    st.lists(PARTS, min_size=1, max_size=4).map(b"/".join),
)
MODES = st.sampled_from([stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFREG, stat.S_IFLNK, stat.S_IFIFO])
TARGETS = st.sampled_from(
    [b"a", b"b", b"..", b"../..", b"../../outside", b"../../../outside", b"/etc", b"b/../..", b"."]
)
GOOD = b"".join(encode_entry(Entry(name, stat.S_IFDIR | 0o755)) for name in (b"a", b"a/b"))


@st.composite
def streams(draw: st.DrawFn) -> bytes:
    """Entries as a sender with bad intentions would choose them; some of the streams are cut or damaged, too."""
    whole = GOOD if draw(st.booleans()) else b""
    for _ in range(draw(st.integers(1, 4))):
        mode = draw(MODES) | 0o644
        content = draw(st.binary(max_size=20)) if stat.S_ISREG(mode) else b""
        target = draw(TARGETS) if stat.S_ISLNK(mode) else b""
        whole += encode_entry(Entry(draw(NAMES), mode, len(content), target=target)) + content
    whole += END
    match draw(st.integers(0, 7)):
        case 0:
            return whole[: draw(st.integers(0, len(whole)))]
        case 1:
            place = draw(st.integers(0, len(whole) - 1))
            return whole[:place] + bytes([draw(st.integers(0, 255))]) + whole[place + 1 :]
    return whole


@settings(max_examples=500, deadline=None)
@given(streams(), st.integers(1, 64), st.booleans())
def test_no_stream_leads_out_of_its_directory(stream: bytes, piece: int, allow_all: bool) -> None:
    top = Path(tempfile.mkdtemp(dir="/dev/shm" if os.path.isdir("/dev/shm") else None))
    try:
        outside = top / "outside"
        outside.mkdir()
        (outside / "secret").write_text("secret")
        inside = top / "inside"
        inside.mkdir()
        unpacker = Unpacker(os.open(inside, os.O_RDONLY | os.O_DIRECTORY))
        decoder = QfileDecoder(allow_all_names=allow_all, max_bytes=1 << 20, max_files=100)
        refused = True
        try:
            for start in range(0, len(stream), piece):
                if not decoder.ended:
                    for event in decoder.receive_data(stream[start : start + piece]):
                        unpacker.take(event)
            decoder.receive_eof()
            refused = False
        except (QfileRefused, OSError):
            pass
        unpacker.abandon()
        os.close(unpacker._top)
        assert refused or decoder.ended
        assert sorted(path.name for path in top.iterdir()) == ["inside", "outside"]
        assert [path.name for path in outside.iterdir()] == ["secret"]
        assert (outside / "secret").read_text() == "secret"
        for path in _below(inside):
            if path.is_symlink():
                assert Path(os.path.normpath(path.parent / path.readlink())).is_relative_to(inside)
    finally:
        subdirectories = [path for path in _below(top) if path.is_dir() and not path.is_symlink()]
        for path in subdirectories:
            path.chmod(0o700)
        shutil.rmtree(top, ignore_errors=True)


def _below(top: Path) -> list[Path]:
    return [Path(directory) / name for directory, inner, files in os.walk(top) for name in (*inner, *files)]
