"""Tools of the audit log's tests: a small system of qubes, and disks that fail at a chosen step."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from cloison.qrexec.audit.disk import Disk
from cloison.qrexec.audit.record import Level, Subject
from cloison.qrexec.audit.recordkeys import RecordKeys
from cloison.qrexec.audit.segments import Entry, list_segments, read_entry, read_lines
from cloison.qrexec.audit.store import AuditLog, Clocks
from cloison.qrexec.audit.verify import Report, verify_directory


class Crash(BaseException):
    """The process ends here."""


class Ticks:
    def __init__(self) -> None:
        self.now = 1_700_000_000_000_000_000

    def __call__(self) -> int:
        self.now += 1_000_000
        return self.now


class LogBench:
    """One audit log; ``again`` is the next daemon's."""

    def __init__(
        self, directory: Path, *, segment_bytes: int = 4 << 20, limit_bytes: int = 0, disk: Disk | None = None
    ):
        self.directory = directory
        self.levels = dict.fromkeys(("work", "vault", "untrusted"), Level.FULL)
        self.segment_bytes, self.limit_bytes = segment_bytes, limit_bytes
        self.told: list[str] = []
        self.ticks = Ticks()
        self._opened: list[AuditLog] = []
        self.log = self.open(disk)

    def open(self, disk: Disk | None = None) -> AuditLog:
        log = AuditLog(self.directory, self.find, limit_bytes=lambda: self.limit_bytes, tell=self.told.append,
                       segment_bytes=self.segment_bytes, disk=disk,
                       clocks=Clocks(self.ticks, self.ticks, "boot"))  # fmt: skip
        self._opened.append(log)
        return log

    def remove(self) -> None:
        """The files, and the descriptors that the death of the processes would have closed."""
        for log in self._opened:
            for descriptor in {log._fd, *log._unsynced} - {-1}:
                os.close(descriptor)
        self._opened.clear()
        shutil.rmtree(self.directory)

    def find(self, name: str) -> Subject | None:
        return Subject(f"uuid-{name}", name, self.levels[name]) if name in self.levels else None

    def call(self, number: int, source: str = "work", target: str = "vault", log: AuditLog | None = None) -> None:
        (log or self.log).write({"event": "allowed", "call": number, "source": source, "target": target,
                                 "requested_target": target, "service": f"test.Service+arg{number}",
                                 "rule": "30-user.policy:1", "reason": "", "user": ""})  # fmt: skip

    def verify(self, **options: object) -> Report:
        return verify_directory(self.directory, **options)  # type: ignore[arg-type]

    def files(self) -> list[Path]:
        return [segment.path for segment in list_segments(self.directory)]

    def lines(self) -> list[bytes]:
        return [line for path in self.files() for line in path.read_bytes().splitlines(keepends=True)]

    def put_lines(self, lines: list[bytes]) -> None:
        """As the one and only segment."""
        (path,) = self.files()
        path.write_bytes(b"".join(lines))

    def entries(self) -> list[Entry]:
        keys = RecordKeys(self.directory)
        found = [read_entry(line, keys) for path in self.files() for line in read_lines(path)]
        return [entry for entry in found if entry is not None]

    def calls(self) -> list[int]:
        return [e.fields["call"] for e in self.entries() if e.fields and "call" in e.fields]


class CrashingDisk(Disk):
    """Ends the process at the ``at``-th step: before it, or (``half``) with half of a write done."""

    def __init__(self, at: int, *, half: bool = False) -> None:
        self.at, self.half, self.steps = at, half, 0

    def _step(self) -> bool:
        self.steps += 1
        if self.steps == self.at and not self.half:
            raise Crash
        return self.steps == self.at

    def open_to_append(self, path: Path) -> int:
        self._step()
        return super().open_to_append(path)

    def write(self, descriptor: int, data: bytes) -> int:
        if self._step():
            super().write(descriptor, data[: len(data) // 2])
            raise Crash
        return super().write(descriptor, data)

    def truncate(self, descriptor: int, size_bytes: int) -> None:
        self._step()
        super().truncate(descriptor, size_bytes)

    def sync(self, descriptor: int) -> None:
        self._step()

    def sync_directory(self, directory: Path) -> None:
        self._step()

    def rename(self, source: Path, target: Path) -> None:
        self._step()
        super().rename(source, target)

    def unlink(self, path: Path) -> None:
        self._step()
        super().unlink(path)

    def scrub(self, descriptor: int) -> None:
        if self._step():
            os.pwrite(descriptor, b"\0" * 8, 0)
            raise Crash
        super().scrub(descriptor)


class PowerCutDisk(CrashingDisk):
    """A crash that also loses what was not synced: every file that is appended to falls back to its synced size."""

    def __init__(self, at: int, keep: float = 0.0) -> None:
        super().__init__(at)
        self.keep = keep
        self.synced: dict[tuple[int, int], int] = {}
        self.paths: dict[tuple[int, int], Path] = {}

    @staticmethod
    def _id(descriptor: int) -> tuple[int, int]:
        status = os.fstat(descriptor)
        return status.st_dev, status.st_ino

    def open_to_append(self, path: Path) -> int:
        descriptor = super().open_to_append(path)
        self.synced.setdefault(self._id(descriptor), os.fstat(descriptor).st_size)
        self.paths[self._id(descriptor)] = path
        return descriptor

    def sync(self, descriptor: int) -> None:
        super().sync(descriptor)
        self.synced[self._id(descriptor)] = os.fstat(descriptor).st_size

    def cut_power(self) -> None:
        for identity, path in self.paths.items():
            if path.exists() and (path.stat().st_dev, path.stat().st_ino) == identity:
                size, synced = path.stat().st_size, self.synced[identity]
                if size > synced:
                    os.truncate(path, synced + int((size - synced) * self.keep))


class FullDisk(Disk):
    """No room while ``full``: writes fit ``room`` bytes and then fail."""

    def __init__(self) -> None:
        self.full, self.room = False, 0

    def write(self, descriptor: int, data: bytes) -> int:
        if not self.full:
            return super().write(descriptor, data)
        if not self.room:
            raise OSError(28, "No space left on device")
        part = data[: self.room]
        self.room = 0
        return super().write(descriptor, part)
