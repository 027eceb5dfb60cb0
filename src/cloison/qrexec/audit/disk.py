"""Every step by which a file of the record changes, one method each.

In: paths and bytes. Out: changed files, or OSError. May import: nothing of ours. Tests put a crash before each step.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


class Disk:
    """The real files."""

    def open_to_append(self, path: Path) -> int:
        return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)

    def write(self, descriptor: int, data: bytes) -> int:
        """How much was written: less than all where room runs out."""
        return os.write(descriptor, data)

    def truncate(self, descriptor: int, size_bytes: int) -> None:
        os.ftruncate(descriptor, size_bytes)

    def sync(self, descriptor: int) -> None:
        os.fdatasync(descriptor)

    def sync_directory(self, directory: Path) -> None:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def rename(self, source: Path, target: Path) -> None:
        source.rename(target)

    def unlink(self, path: Path) -> None:
        path.unlink(missing_ok=True)

    def replace_secret(self, path: Path, content: bytes) -> None:
        """Put ``content`` in place whole or not at all, and overwrite what was there before with zeros.

        When this returns (or fails after the new content came into place) the old content is not on the disk any more,
        as far as a file system that writes in place can tell.
        """
        fresh = path.with_name(path.name + ".new")
        self._discard(fresh)
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            if self.write(descriptor, content) != len(content):
                raise OSError(28, "no space left for a key", str(path))
            self.sync(descriptor)
        finally:
            os.close(descriptor)
        old = -1
        with suppress(FileNotFoundError):
            old = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            self.rename(fresh, path)
            self.sync_directory(path.parent)
            if old >= 0:
                self.scrub(old)
        finally:
            if old >= 0:
                os.close(old)

    def _discard(self, path: Path) -> None:
        """What a crash left half-made may hold keys as well."""
        try:
            left = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return
        try:
            self.scrub(left)
        finally:
            os.close(left)
        self.unlink(path)

    def scrub(self, descriptor: int) -> None:
        os.pwrite(descriptor, bytes(os.fstat(descriptor).st_size), 0)
        self.sync(descriptor)
