"""The one file of this room that touches the disk: reading, listing, watching and replacing policy files.

In: paths. Out: bytes, names, stamps by which a later change shows. May import: nothing of ours.

``Disk`` remembers a stamp of everything it was asked for, also of what was missing, so that "would the same load give
the same result?" is a handful of stat calls. ``Overlay`` shows the disk as it would be after a change.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

MAX_FILE_BYTES = 16 * 1024 * 1024  # a thousand times the largest real policy file; a bound on memory, not on policies
RACY_S = 0.05  # the kernel stamps files with its tick, at worst 10 ms: changes within one tick look alike
PASSING = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.EINTR, errno.EAGAIN})

Stamp = tuple[int, int, int, int, int]


class FileTooLarge(OSError):
    pass


class PolicyFiles(Protocol):
    def list_names(self, directory: str) -> list[str]:
        """The names in a directory, in no order; OSError if it cannot be listed."""
        ...

    def read_file(self, path: str) -> bytes | None:
        """The content of a regular file (links followed); None if it is not a regular file; OSError otherwise."""
        ...


class Disk:
    """The real files, and what they looked like when they were read."""

    def __init__(self) -> None:
        self._stamps: dict[Path, Stamp | None] = {}
        self._youngest_change_s = 0.0
        self._is_shaky = False

    def list_names(self, directory: str) -> list[str]:
        self._note(directory)
        with self._remembering_shakiness(), os.scandir(directory) as entries:
            return [entry.name for entry in entries]

    def read_file(self, path: str) -> bytes | None:
        status = self._note(path)
        if status is not None and not stat.S_ISREG(status.st_mode):
            return None
        with self._remembering_shakiness():
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            with open(descriptor, "rb") as opened:
                if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                    return None
                content = opened.read(MAX_FILE_BYTES + 1)
        if len(content) > MAX_FILE_BYTES:
            raise FileTooLarge(0, f"larger than {MAX_FILE_BYTES} bytes")
        return content

    def is_unchanged(self) -> bool:
        """Whether everything that was read is still what it was (one stat call for each file and directory)."""
        if self._is_shaky:
            return False
        for path, stamp in self._stamps.items():
            try:
                status = path.stat()
            except OSError:
                if stamp is not None:
                    return False
                continue
            if stamp != _stamp(status):
                return False
        return True

    def is_settled(self) -> bool:
        """Whether all changes lie so far back that a further one is sure to have another stamp."""
        return abs(time.time() - self._youngest_change_s) > RACY_S

    @contextmanager
    def _remembering_shakiness(self) -> Iterator[None]:
        """A failure that has nothing to do with the file may be over at the next look, and nothing would show it."""
        try:
            yield
        except OSError as error:
            self._is_shaky = self._is_shaky or error.errno in PASSING
            raise

    def _note(self, path: str) -> os.stat_result | None:
        watched = Path(path)
        try:
            status = watched.stat()
        except OSError:
            self._stamps[watched] = None
            return None
        except ValueError as error:  # a path that no file can have, such as one with a NUL
            raise OSError(errno.EINVAL, str(error), path) from None
        self._stamps[watched] = _stamp(status)
        self._youngest_change_s = max(self._youngest_change_s, status.st_ctime_ns / 1e9)
        return status


class Overlay:
    """Files as they would be with ``changes`` applied: path to new content, or None for removed."""

    def __init__(self, below: PolicyFiles, changes: Mapping[str, bytes | None]) -> None:
        self._below = below
        self._changes = changes

    def list_names(self, directory: str) -> list[str]:
        names = set(self._below.list_names(directory))
        for path, content in self._changes.items():
            folder, name = os.path.split(path)
            if folder == directory:
                names.discard(name)
                if content is not None:
                    names.add(name)
        return list(names)

    def read_file(self, path: str) -> bytes | None:
        if path not in self._changes:
            return self._below.read_file(path)
        content = self._changes[path]
        if content is None:
            raise FileNotFoundError(2, os.strerror(2), path)
        return content


def read_present(path: Path) -> bytes | None:
    """The content of a regular file; None if there is none."""
    try:
        return Disk().read_file(str(path))
    except FileNotFoundError:
        return None


def list_regular(directory: Path) -> list[str]:
    """The names of the regular files in a directory, in no order; none if the directory is missing."""
    try:
        with os.scandir(directory) as entries:
            return [entry.name for entry in entries if entry.is_file()]
    except FileNotFoundError:
        return []


def make_directory(directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)


@contextmanager
def open_locked(directory: Path) -> Iterator[None]:
    """Hold the editing lock of a policy directory (waits for another editor's single change)."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def replace_file(path: Path, content: bytes) -> None:
    """Put the content under its name whole or not at all; the temporary name is one that no policy loader reads."""
    path.parent.mkdir(exist_ok=True)
    temporary = path.with_name(f".{path.name}.new")
    try:
        with open(temporary, "wb") as opened:
            opened.write(content)
            opened.flush()
            os.fsync(opened.fileno())
        temporary.chmod(stat.S_IMODE(path.stat().st_mode) if path.exists() else 0o644)
        temporary.rename(path)
    except OSError:
        with suppress(OSError):
            temporary.unlink()
        raise
    _sync_directory(path.parent)


def create_file(path: Path, content: bytes) -> bool:
    """Put a new file there; False if something of that name exists (which is left alone)."""
    if path.is_symlink() or path.exists():
        return False
    replace_file(path, content)
    return True


def remove_file(path: Path) -> None:
    path.unlink()
    _sync_directory(path.parent)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _stamp(status: os.stat_result) -> Stamp:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
