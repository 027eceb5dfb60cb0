"""New files that are whole or not there: written under a hidden name, then put in place in one step."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import BinaryIO


@contextmanager
def new_file(path: str, *, replace: bool = False) -> Iterator[BinaryIO]:
    """A file to write to; at the end of the block it takes its name, and on any error it is gone.

    Raises FileExistsError (before the block, or at its end when another was quicker) unless ``replace``.
    """
    directory, name = os.path.split(path)
    if not replace and os.path.lexists(path):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
    hidden = os.path.join(directory, f".{name[:200]}.{os.getpid()}.part")
    file = os.fdopen(os.open(hidden, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666), "wb")
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if replace:
            os.rename(hidden, path)
        else:
            os.link(hidden, path)
    finally:
        with suppress(FileNotFoundError):
            os.unlink(hidden)


def move_without_replacing(path: str, directory: str) -> str:
    """Move a file into a directory (made if needed) as ``NAME``, else ``NAME.2``...; returns where it is now."""
    os.makedirs(directory, mode=0o700, exist_ok=True)
    name = os.path.basename(path)
    for number in range(1, 10_000):
        place = os.path.join(directory, name if number == 1 else f"{name}.{number}")
        try:
            os.link(path, place, follow_symlinks=False)
        except FileExistsError:
            continue
        os.unlink(path)
        return place
    raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), os.path.join(directory, name))
