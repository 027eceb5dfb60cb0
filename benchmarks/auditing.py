"""Row: what the record of a call costs: two lines, one before it and one after; in the daemon, no guest needed."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.bench import Bench
from benchmarks.figures import Figure, Samples
from cloison.qrexec.audit.record import Level, Subject
from cloison.qrexec.audit.store import AuditLog
from cloison.qrexec.audit.verify import verify_directory
from cloison.qrexec.ports import AuditValue

CALLS = 2000
SYNCED = 200
CALL: dict[str, AuditValue] = {
    "source": "work", "requested_target": "vault", "service": "qubes.Filecopy+report", "target": "vault",
    "user": "user", "rule": "30-user.policy:12", "policy": f"sha256:{'0' * 64}",
}  # fmt: skip
BEFORE: dict[str, AuditValue] = {**CALL, "event": "allowed", "reason": "allowed by a rule"}
AFTER: dict[str, AuditValue] = {**CALL, "event": "ended", "exit_code": 0, "seconds": 0.071, "stdin_bytes": 65536,
                                "stdout_bytes": 12, "stderr_bytes": 0}  # fmt: skip


def measure_audit(bench: Bench) -> Iterator[Figure]:
    bench.tell("the audit log")
    off = Samples.of(_times(Level.OFF, CALLS), "us")
    for level in (Level.FULL, Level.METADATA):
        ours = Samples.of(_times(level, CALLS), "us")
        yield Figure(f"audit: the two lines of a call, {level.value}", ours, off, "audit off")
    with tempfile.TemporaryDirectory(dir=Path.home()) as scratch:
        ours = Samples.of(_times(Level.FULL, SYNCED, directory=Path(scratch), wait_for_disk=True), "us")
        yield Figure("audit: the same, if each line waited for the disk", ours, note="not done: see docs/audit.md")
        log = _open(Level.FULL, Path(scratch, "signed"))
        samples = []
        for _ in range(50):
            log.write(BEFORE)
            started = time.perf_counter()
            log.settle()
            samples.append((time.perf_counter() - started) * 1000)
        yield Figure("audit: a checkpoint (every 2 s at most, in a thread)", Samples.of(samples, "ms"))
        for _ in range(5000):
            log.write(BEFORE)
        log.settle()
        started = time.perf_counter()
        report = verify_directory(Path(scratch, "signed"))
        took = (time.perf_counter() - started) * 1e6 / report.lines
        yield Figure("audit: verify, each line", Samples.of([took], "us"))


def _open(level: Level, directory: Path) -> AuditLog:
    subjects = {name: Subject(f"uuid-{name}", name, level) for name in ("work", "vault")}
    return AuditLog(directory, subjects.get)


def _times(level: Level, calls: int, *, directory: Path | None = None, wait_for_disk: bool = False) -> list[float]:
    """Microseconds of each call's two lines."""
    with tempfile.TemporaryDirectory(dir=directory) as scratch:
        log = _open(level, Path(scratch, "audit"))
        log.write(BEFORE)
        samples = []
        for _ in range(calls):
            started = time.perf_counter()
            for record in (BEFORE, AFTER):
                log.write(record)
                if wait_for_disk:
                    os.fdatasync(log.descriptor)
            samples.append((time.perf_counter() - started) * 1e6)
        return samples
