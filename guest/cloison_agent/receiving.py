"""qubes.Filecopy, the receiving side: files of another qube into ~/QubesIncoming/SOURCE, and nowhere else.

Everything on stdin is hostile. The decoder checks names and symlinks; here every step of a path is opened relative to
its parent without following links, nothing is overwritten, and a file appears only when it is whole.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import sys

from cloison.wire.qfile import (
    ALLOW_ALL_NAMES,
    Content,
    End,
    Entry,
    QfileDecoder,
    QfileRefused,
    Result,
    encode_result,
)
from cloison_agent import syscalls

READ_BYTES = 1 << 17
INCOMING = "QubesIncoming"
LIMITS = ("/etc/qubes/filecopy.conf", "/rw/config/filecopy.conf")
"""Lines ``max-bytes = N`` and ``max-files = N``, for one copy; 0 = none. The later file goes before."""
MAX_FILES = 1_000_000
SPARE_BYTES, SPARE_FILES = 16 << 20, 1000
"""A copy never fills the disk to the brim: the qube's owner must still be able to work in it."""
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def receive_files(argument: str) -> int:
    """The service: returns its exit code; the result goes to stdout."""
    if argument not in ("", ALLOW_ALL_NAMES):
        print(f"unknown argument {argument!a}", file=sys.stderr)
        return 1
    source = os.environ.get("QREXEC_REMOTE_DOMAIN", "")
    if not source or "/" in source or source.startswith("."):
        return 1
    crc32, last_name = 0, b""
    try:
        incoming = _open_incoming(source)
        max_bytes, max_files = find_limits(incoming)
        allow_all = argument == ALLOW_ALL_NAMES
        decoder = QfileDecoder(allow_all_names=allow_all, max_bytes=max_bytes, max_files=max_files)
        unpacker = Unpacker(_confine(incoming))
        try:
            _receive(decoder, unpacker)
        finally:
            unpacker.abandon()
            crc32, last_name = decoder.crc32, decoder.last_name
        code = 0
    except QfileRefused as refused:
        if refused.code is None:
            return 1
        code = refused.code
    except OSError as error:
        code = error.errno or errno.EIO
    _write_all(1, encode_result(Result(code, crc32, last_name)))
    return code & 255


def find_limits(directory: int, paths: tuple[str, ...] = LIMITS) -> tuple[int, int]:
    """Bytes and files that one copy may bring: what the configuration says, and never more than the disk has left."""
    limits = {"max-bytes": 0, "max-files": MAX_FILES}
    for path in paths:
        try:
            with open(path, encoding="utf-8", errors="replace") as file:
                text = file.read(65536)
        except OSError:
            continue
        for key, value in re.findall(r"^(max-bytes|max-files)[ \t]*=[ \t]*([0-9]{1,18})[ \t]*$", text, re.MULTILINE):
            limits[key] = int(value)
    disk = os.fstatvfs(directory)
    free_bytes = max(1, disk.f_bavail * disk.f_frsize - SPARE_BYTES)
    free_files = max(1, disk.f_favail - SPARE_FILES) if disk.f_files else 0
    return _smaller(limits["max-bytes"], free_bytes), _smaller(limits["max-files"], free_files)


def _smaller(one: int, other: int) -> int:
    """Of two limits of which 0 is none."""
    return min(one or other, other or one)


def _open_incoming(source: str) -> int:
    """~/QubesIncoming/SOURCE as a directory descriptor, made if missing."""
    home = os.open(os.path.expanduser("~"), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    for name in (INCOMING, source):
        try:
            os.mkdir(name, 0o700, dir_fd=home)
        except FileExistsError:
            pass
        inner = os.open(name, _DIRECTORY, dir_fd=home)
        os.close(home)
        home = inner
    return home


def _confine(directory: int) -> int:
    """Lock the process into the directory, where the kernel lets an ordinary user do so; a second wall."""
    try:
        syscalls.enter_private_root(directory)
    except OSError:
        return directory
    os.close(directory)
    return os.open("/", _DIRECTORY)


def _receive(decoder: QfileDecoder, unpacker: Unpacker) -> None:
    while not decoder.ended:
        data = os.read(0, READ_BYTES)
        if not data:
            decoder.receive_eof()
            return
        for event in decoder.receive_data(data):
            unpacker.take(event)


class Unpacker:
    """Makes what the entries say below ``top`` (a directory descriptor)."""

    def __init__(self, top: int) -> None:
        self._top = top
        self._file = -1
        self._entry: Entry | None = None
        self._begun: list[bytes] = []
        """The directories that we are inside of, each in the one before: never more than a name has parts."""
        self._parent: tuple[bytes, int] = (b"", top)
        self._unnamed = _can_link_open_files(top)

    def take(self, event: Entry | Content | End) -> None:
        if isinstance(event, Content):
            _write_all(self._file, event.data)
            if event.is_last:
                self._finish_file()
        elif isinstance(event, End):
            self._open_parent(b"")
        elif event.is_directory:
            self._take_directory(event)
        elif event.is_symlink:
            os.symlink(event.target, _last(event.name), dir_fd=self._open_parent(event.name))
        else:
            self._begin_file(event)

    def abandon(self) -> None:
        """Nothing more comes: a file that is not whole goes away (one without a name does so by itself)."""
        if self._file < 0:
            return
        os.close(self._file)
        self._file = -1
        if not self._unnamed and self._entry is not None:
            try:
                os.unlink(_last(self._entry.name), dir_fd=self._open_parent(self._entry.name))
            except OSError:
                return

    def _open_parent(self, name: bytes) -> int:
        """Descriptor of the directory that holds ``name``: each step without following links. One is remembered."""
        directory = name.rpartition(b"/")[0]
        if directory == self._parent[0]:
            return self._parent[1]
        if self._parent[1] != self._top:
            os.close(self._parent[1])
        self._parent = (b"", self._top)
        current = self._top
        for part in directory.split(b"/") if directory else ():
            try:
                inner = os.open(part, _DIRECTORY, dir_fd=current)
            except OSError as error:
                # A link in the way: ELOOP from some kernels; the sender is told that it is no directory.
                raise OSError(errno.ENOTDIR if error.errno == errno.ELOOP else error.errno, "parent") from None
            finally:
                if current != self._top:
                    os.close(current)
            current = inner
        self._parent = (directory, current)
        return current

    def _begin_file(self, entry: Entry) -> None:
        parent = self._open_parent(entry.name)
        if self._unnamed:
            self._file = os.open(b".", os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o700, dir_fd=parent)
        else:
            flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
            self._file = os.open(_last(entry.name), flags, 0, dir_fd=parent)
        self._entry = entry
        if not entry.size_bytes:
            self._finish_file()

    def _finish_file(self) -> None:
        assert self._entry is not None
        entry, fd, self._entry, self._file = self._entry, self._file, None, -1
        try:
            _apply(entry, fd)
            if self._unnamed:
                syscalls.link_open_file(fd, self._open_parent(entry.name), _last(entry.name))
        finally:
            os.close(fd)

    def _take_directory(self, entry: Entry) -> None:
        """Comes twice: it is made before its contents, and gets its mode and times after them."""
        parent = self._open_parent(entry.name)
        while self._begun and self._begun[-1] != entry.name and not entry.name.startswith(self._begun[-1] + b"/"):
            self._begun.pop()
        if not self._begun or self._begun[-1] != entry.name:
            self._begun.append(entry.name)
            try:
                os.mkdir(_last(entry.name), 0o700, dir_fd=parent)
            except FileExistsError:
                pass
            os.close(os.open(_last(entry.name), _DIRECTORY, dir_fd=parent))
            return
        self._begun.pop()
        fd = os.open(_last(entry.name), _DIRECTORY, dir_fd=parent)
        try:
            _apply(entry, fd)
        finally:
            os.close(fd)


def _can_link_open_files(directory: int) -> bool:
    """Whether files may be written without a name and get it when they are whole (file system, kernel 6.10)."""
    try:
        fd = os.open(b".", os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o600, dir_fd=directory)
    except OSError:
        return False
    try:
        syscalls.link_open_file(fd, directory, b".")
    except OSError as error:
        return error.errno == errno.EEXIST
    finally:
        os.close(fd)
    return False


def _last(name: bytes) -> bytes:
    return name.rpartition(b"/")[2]


def _apply(entry: Entry, fd: int) -> None:
    os.fchmod(fd, stat.S_IMODE(entry.mode))
    os.utime(fd, ns=(entry.atime_ns, entry.mtime_ns))


def _write_all(fd: int, data: bytes | memoryview) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
