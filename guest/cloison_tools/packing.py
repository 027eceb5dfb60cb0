"""Files and directories as the stream of qubes.Filecopy, in pieces worth sending.

In: paths. Out: bytes. What is read changes while it is read: a file counts as long as it was when it was opened.
"""

import errno
import posix
import zlib
from _stat import S_ISDIR, S_ISLNK, S_ISREG
from struct import Struct

PIECE_BYTES = 1 << 16
READ_BYTES = 1 << 18
HEADER = Struct("<IIQIIII")
END = bytes(HEADER.size)
_NS = 10**9
_LATEST = 2**32 - 1
_OPEN = posix.O_RDONLY | posix.O_CLOEXEC | posix.O_NOFOLLOW | posix.O_NONBLOCK

TYPE_CHECKING = False
"""Importing typing or collections.abc takes longer than most calls; the type checker knows this name."""
if TYPE_CHECKING:
    from collections.abc import Iterator


class CannotSend(Exception):
    """A path that cannot be sent, and why."""


class Survey:
    """A look at everything that would be sent: names, how much it is, and whether anything cannot be sent."""

    def __init__(self, paths: "list[bytes]", *, sizes: bool = True) -> None:
        self.names: list[bytes] = []
        """File names and symlink targets that no plain terminal could show; empty if all are printable ASCII."""
        self.total_bytes = 0
        self.odd: list[bytes] = []
        """Neither files nor directories nor symlinks."""
        waiting = []
        for path in paths:
            status = posix.lstat(path)
            self._know(path, last_name(path), status.st_mode, status.st_size)
            if S_ISDIR(status.st_mode):
                waiting.append(path)
        while waiting:
            directory = waiting.pop()
            with posix.scandir(directory) as found:
                for entry in found:
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
                        self._know(entry.path, entry.name, 0o040000, 0)
                    elif entry.is_file(follow_symlinks=False):
                        size = entry.stat(follow_symlinks=False).st_size if sizes else 0
                        self._know(entry.path, entry.name, 0o100000, size)
                    else:
                        self._know(entry.path, entry.name, 0o120000 if entry.is_symlink() else 0, 0)

    def _know(self, path: bytes, name: bytes, mode: int, size_bytes: int) -> None:
        self._know_name(name)
        if S_ISREG(mode):
            self.total_bytes += size_bytes
        elif S_ISLNK(mode):
            self._know_name(posix.readlink(path))
        elif not S_ISDIR(mode):
            self.odd.append(path)

    def _know_name(self, name: bytes) -> None:
        if not (name.isascii() and name.decode().isprintable()):
            self.names.append(name)


def last_name(path: bytes) -> bytes:
    """The name under which the receiver gets it; what has none of its own gets the one it really has."""
    name = path.rstrip(b"/").rpartition(b"/")[2]
    if name in (b"", b".", b".."):
        import os

        name = os.path.realpath(path).rpartition(b"/")[2] or b"root"
    return name


class Packer:
    """``pieces`` is the stream; ``crc32`` and ``sent_bytes`` (of contents) are of what was taken from it so far."""

    def __init__(self) -> None:
        self.crc32 = 0
        self.sent_bytes = 0
        self.is_complete = False
        """The end of the stream was taken, too."""
        self.skipped: list[bytes] = []
        self._parts: list[bytes] = []
        self._size = 0

    def pieces(self, paths: "list[bytes]") -> "Iterator[bytes]":
        """Raises CannotSend; the stream then has no end, and the receiver knows that it broke off."""
        for path in paths:
            try:
                yield from self._walk(path, last_name(path))
            except OSError as error:
                name = error.filename if isinstance(error.filename, bytes) else path
                raise CannotSend(f"{name.decode('utf-8', 'replace')!a}: {error.strerror}") from None
        self._parts.append(END)
        self.is_complete = True
        yield self._take()

    def _walk(self, top: bytes, name: bytes) -> "Iterator[bytes]":
        """Without recursion: a tree may be deeper than Python's stack. Directories are told before and after."""
        waiting = [(top, name, False)]
        while waiting:
            path, name, is_done = waiting.pop()
            if is_done:
                self._add_header(name, posix.lstat(path), 0)
                continue
            status = posix.lstat(path)
            if S_ISDIR(status.st_mode):
                self._add_header(name, status, 0)
                waiting.append((path, name, True))
                waiting += [(path + b"/" + inner, name + b"/" + inner, False) for inner in posix.listdir(path)]
            elif S_ISREG(status.st_mode):
                yield from self._file(path, name)
            elif S_ISLNK(status.st_mode):
                target = posix.readlink(path)
                self._add_header(name, status, len(target))
                self._add(target)
            else:
                self.skipped.append(path)
            if self._size >= PIECE_BYTES:
                yield self._take()

    def _file(self, path: bytes, name: bytes) -> "Iterator[bytes]":
        fd = posix.open(path, _OPEN)
        try:
            status = posix.fstat(fd)
            if not S_ISREG(status.st_mode):
                raise OSError(errno.EINVAL, "was replaced while it was read", path)
            left = status.st_size
            self._add_header(name, status, left)
            while left:
                data = posix.read(fd, min(left, READ_BYTES))
                if not data:
                    raise OSError(errno.EIO, "became shorter while it was read", path)
                self._add(data)
                self.sent_bytes += len(data)
                left -= len(data)
                if self._size >= PIECE_BYTES:
                    yield self._take()
        finally:
            posix.close(fd)

    def _add_header(self, name: bytes, status: posix.stat_result, size_bytes: int) -> None:
        seen, seen_ns = divmod(status.st_atime_ns, _NS)
        changed, changed_ns = divmod(status.st_mtime_ns, _NS)
        seen, changed = min(max(seen, 0), _LATEST), min(max(changed, 0), _LATEST)
        self._add(HEADER.pack(len(name) + 1, status.st_mode, size_bytes, seen, seen_ns, changed, changed_ns))
        self._add(name + b"\0")

    def _add(self, data: bytes) -> None:
        self._parts.append(data)
        self._size += len(data)

    def _take(self) -> bytes:
        data = b"".join(self._parts)
        self._parts.clear()
        self._size = 0
        self.crc32 = zlib.crc32(data, self.crc32)
        return data
