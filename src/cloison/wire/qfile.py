"""The stream of qubes.Filecopy (files, directories, symlinks) without I/O.

In: untrusted bytes, or entries. Out: entries, or QfileRefused with the number that the sender is told. May import:
the standard library and this package.

Stream: for each entry a 32-byte header, the name (NUL at its end), the data; a header of zeros ends it. A directory
comes twice: before its contents, and after them with its final mode and times.
"""

from __future__ import annotations

import errno
import stat
import struct
import zlib
from typing import Final, NamedTuple

from cloison.wire.display_ranges import is_display_safe

HEADER: Final = struct.Struct("<IIQIIII")
RESULT: Final = struct.Struct("<IIQ")
END: Final = bytes(HEADER.size)
MAX_NAME_BYTES: Final = 16384
"""With the NUL; four times PATH_MAX, as in the reference."""
MAX_TARGET_BYTES: Final = 16384
MAX_FILE_BYTES: Final = 2**63 - 1
MAX_NANOSECONDS: Final = 999_999_999
TRUNCATED: Final = 31415926
"""Told to the sender when its stream ended inside an entry."""
ALLOW_ALL_NAMES: Final = "allow-all-names"


class QfileRefused(Exception):
    """The receiver refuses the stream; ``code`` (an errno or TRUNCATED) goes back to the sender.

    ``code`` None: the stream is so broken that no answer is given at all.
    """

    def __init__(self, code: int | None, name: bytes = b"") -> None:
        super().__init__(f"{errno.errorcode.get(code or 0, code)} at {name[-80:]!a}")
        self.code, self.name = code, name


class Entry(NamedTuple):
    """A file (``Content`` follows until ``size_bytes`` have come), a directory, or a symlink with its ``target``."""

    name: bytes
    mode: int
    size_bytes: int = 0
    atime_ns: int = 0
    mtime_ns: int = 0
    target: bytes = b""

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.mode)

    @property
    def is_symlink(self) -> bool:
        return stat.S_ISLNK(self.mode)


class Content(NamedTuple):
    """Bytes of the current file (a view: use before the next ``receive_data``)."""

    data: bytes | memoryview
    is_last: bool


class End(NamedTuple):
    """The stream is complete; ``crc32`` is over all of it."""

    crc32: int


class Result(NamedTuple):
    code: int
    crc32: int
    last_name: bytes = b""


def check_name(untrusted_name: bytes, *, allow_all: bool) -> None:
    """Relative, canonical, and fit to be shown unless ``allow_all``; raises QfileRefused(EILSEQ)."""
    parts = untrusted_name.split(b"/")
    if any(part in (b"", b".", b"..") for part in parts) or b"\0" in untrusted_name:
        raise QfileRefused(errno.EILSEQ, untrusted_name)
    if not allow_all and not is_display_safe(untrusted_name):
        raise QfileRefused(errno.EILSEQ, untrusted_name)


def check_target(name: bytes, untrusted_target: bytes, *, allow_all: bool) -> None:
    """A symlink must stay inside its top-level directory; raises QfileRefused(ENOLINK or EILSEQ)."""
    depth = name.count(b"/") + 1
    if depth < 2 or not untrusted_target or untrusted_target.startswith(b"/") or b"\0" in untrusted_target:
        raise QfileRefused(errno.ENOLINK, name)
    climbed, down = 0, False
    for part in untrusted_target.split(b"/"):
        if part == b"..":
            climbed += 1
            if down or climbed > depth - 2:
                raise QfileRefused(errno.ENOLINK, name)
        elif part not in (b"", b"."):
            down = True
    if not allow_all and not is_display_safe(untrusted_target):
        raise QfileRefused(errno.EILSEQ, name)


class QfileDecoder:
    """Bytes in, entries out. Only QfileRefused is raised; after it, or after ``End``, nothing more may be given.

    ``max_bytes``/``max_files``: limits of the whole stream (QfileRefused(EDQUOT)); 0 = none.
    """

    def __init__(self, *, allow_all_names: bool = False, max_bytes: int = 0, max_files: int = 0) -> None:
        self.crc32 = 0
        self.last_name = b""
        self._allow_all = allow_all_names
        self._max_bytes, self._max_files = max_bytes, max_files
        self._bytes = self._files = 0
        self._rest = b""
        self._position = 0
        self._needed = HEADER.size
        self._header: tuple[int, ...] | None = None
        self._link: Entry | None = None
        self._left = 0
        self.ended = False

    def receive_data(self, data: bytes) -> list[Entry | Content | End]:
        if self._rest:
            data = self._rest + data
            self._rest = b""
        view, end = memoryview(data), len(data)
        self._position = 0
        events: list[Entry | Content | End] = []
        try:
            while not self.ended:
                position = self._position
                if self._left:
                    if position == end:
                        break
                    piece = view[position : position + self._left]
                    self._left -= len(piece)
                    self._position = position + len(piece)
                    events.append(Content(piece, not self._left))
                    continue
                if end - position < self._needed:
                    self._rest = data[position:]
                    break
                self._position = position + self._needed
                if event := self._take(data[position : self._position]):
                    events.append(event)
        finally:
            # One sum over all that was taken: small entries are many.
            self.crc32 = zlib.crc32(view[: self._position], self.crc32)
        if self.ended:
            events[-1] = End(self.crc32)
        return events

    def receive_eof(self) -> None:
        """The sender closed; raises QfileRefused unless the end was seen."""
        if not self.ended:
            inside = self._rest or self._left or self._header is not None or self._link is not None
            raise QfileRefused(TRUNCATED if inside else errno.EREMOTEIO, self.last_name)

    def _take(self, piece: bytes) -> Entry | Content | End | None:
        """A whole header, name or symlink target has come."""
        if self._header is None and self._link is None:
            return self._take_header(piece)
        if self._link is not None:
            entry, self._link, self._needed = self._link, None, HEADER.size
            check_target(entry.name, piece, allow_all=self._allow_all)
            return entry._replace(target=piece)
        assert self._header is not None
        _, mode, size_bytes, atime, atime_ns, mtime, mtime_ns = self._header
        self._header, self._needed = None, HEADER.size
        return self._take_name(
            Entry(piece[:-1], mode, size_bytes, atime * 10**9 + atime_ns, mtime * 10**9 + mtime_ns), piece[-1]
        )

    def _take_header(self, piece: bytes) -> End | None:
        header = HEADER.unpack(piece)
        name_bytes, _, size_bytes, _, atime_ns, _, mtime_ns = header
        if name_bytes == 0:
            self.ended = True
            return End(self.crc32)
        if name_bytes >= MAX_NAME_BYTES:
            raise QfileRefused(errno.ENAMETOOLONG, self.last_name)
        if atime_ns > MAX_NANOSECONDS or mtime_ns > MAX_NANOSECONDS:
            raise QfileRefused(None, self.last_name)
        if size_bytes > MAX_FILE_BYTES:
            raise QfileRefused(errno.EDQUOT, self.last_name)
        self._header, self._needed = header, name_bytes
        return None

    def _take_name(self, entry: Entry, terminator: int) -> Entry | None:
        self.last_name = entry.name
        if terminator != 0:
            raise QfileRefused(errno.EILSEQ, entry.name)
        check_name(entry.name, allow_all=self._allow_all)
        self._files += 1
        self._bytes += entry.size_bytes if not entry.is_directory else 0
        if (self._max_files and self._files > self._max_files) or (self._max_bytes and self._bytes > self._max_bytes):
            raise QfileRefused(errno.EDQUOT, entry.name)
        if stat.S_ISREG(entry.mode):
            self._left = entry.size_bytes
            return entry
        if entry.is_directory:
            return entry
        if not entry.is_symlink:
            raise QfileRefused(errno.EINVAL, entry.name)
        if not 0 < entry.size_bytes < MAX_TARGET_BYTES:
            raise QfileRefused(errno.ENAMETOOLONG if entry.size_bytes else errno.ENOLINK, entry.name)
        self._link, self._needed = entry, entry.size_bytes
        return None


def encode_entry(entry: Entry) -> bytes:
    """Header and name (and a symlink's target); a file's content follows."""
    size_bytes = len(entry.target) if entry.is_symlink else 0 if entry.is_directory else entry.size_bytes
    times = (*divmod(entry.atime_ns, 10**9), *divmod(entry.mtime_ns, 10**9))
    seconds = (min(max(times[0], 0), 2**32 - 1), times[1], min(max(times[2], 0), 2**32 - 1), times[3])
    header = HEADER.pack(len(entry.name) + 1, entry.mode, size_bytes, *seconds)
    return b"".join((header, entry.name, b"\0", entry.target))


def encode_result(result: Result) -> bytes:
    packed = RESULT.pack(result.code & 0xFFFFFFFF, 0, result.crc32)
    if result.last_name:
        packed += struct.pack("<I", len(result.last_name)) + result.last_name
    return packed


def parse_result(untrusted_data: bytes) -> Result | None:
    """The receiver's answer, or None while (or because) it is not whole."""
    if len(untrusted_data) < RESULT.size:
        return None
    code, _, crc32 = RESULT.unpack_from(untrusted_data)
    rest = untrusted_data[RESULT.size :]
    name = b""
    if len(rest) >= 4:
        length = struct.unpack_from("<I", rest)[0]
        if length < MAX_NAME_BYTES and len(rest) >= 4 + length:
            name = rest[4 : 4 + length]
    return Result(code, crc32, name)
