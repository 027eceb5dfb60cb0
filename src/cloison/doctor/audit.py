"""Can the audit log be written, and is it whole?

In: the log's directory. Out: a finding. May import: ``qrexec.audit``, which reads it without a daemon.
"""

from __future__ import annotations

import os
import shutil

from cloison.doctor.result import Finding, Ground, Status
from cloison.qrexec.audit.segments import list_segments
from cloison.qrexec.audit.verify import verify_directory

NEEDED_BYTES = 1 << 20
"""Below this the next calls may be the last."""
VERIFIED_BYTES = 32 << 20
"""A few seconds' work; more of it is left to `cloison audit verify`."""


def find_audit(ground: Ground) -> Finding:
    directory = ground.layout.audit
    if not directory.exists():
        if ground.layout.database.exists():
            return Finding(Status.WARNING, f"{directory} is missing", "the daemon's next start makes a new one")
        return Finding(Status.OK, "none yet; the daemon's first start makes it")
    if problem := _problem_with_writing(ground):
        return Finding(Status.FAILED, f"every call is denied: {problem}", "make room, or make it writable again")
    if (size := sum(segment.path.stat().st_size for segment in list_segments(directory))) > VERIFIED_BYTES:
        return Finding(Status.OK, f"{size >> 20} MiB; `cloison audit verify` checks it, which takes a while")
    report = verify_directory(directory)
    if report.fault is not None:
        return Finding(Status.WARNING, f"not whole: {report.fault.why}", "see docs/audit.md on what this may mean")
    return Finding(Status.OK, f"whole: {report.lines} records, signed up to {report.signed_until}")


def _problem_with_writing(ground: Ground) -> str:
    directory = ground.layout.audit
    try:
        if not os.access(directory, os.W_OK | os.X_OK) or os.statvfs(directory).f_flag & os.ST_RDONLY:
            return f"{directory} cannot be written"
        free = shutil.disk_usage(directory).free
    except OSError as error:
        return f"{directory} cannot be read: {error.strerror}"
    return f"{free >> 10} KiB are free under {directory}" if free < NEEDED_BYTES else ""
