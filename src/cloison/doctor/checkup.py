"""The table of checks, and running them.

In: a layout. Out: results in the table's order. May import: layout, this package.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum

from cloison.doctor import audit, host, packages, system
from cloison.doctor.result import CheckResult, Finding, Ground, Status
from cloison.layout import Layout

__all__ = ["CHECKS", "Check", "CheckResult", "Ground", "Status", "exit_status", "run_checks"]


class Topic(Enum):
    PROCESSOR = "processor"
    PROGRAMS = "programs"
    ISOLATION = "isolation"
    ROOM = "room"
    SYSTEM = "system"


@dataclass(frozen=True)
class Check:
    name: str
    topic: Topic
    find: Callable[[Ground], Finding]


CHECKS: tuple[Check, ...] = (
    Check("virtualisation", Topic.PROCESSOR, host.find_accelerator),
    Check("QEMU", Topic.PROGRAMS, host.find_qemu),
    Check("qemu-img", Topic.PROGRAMS, host.find_qemu_img),
    Check("passt", Topic.PROGRAMS, host.find_passt),
    Check("template tools", Topic.PROGRAMS, packages.find_template_tools),
    Check("package sources", Topic.PROGRAMS, packages.find_package_sources),
    Check("jail", Topic.ISOLATION, host.find_jail),
    Check("subordinate ids", Topic.ISOLATION, host.find_subordinate_ids),
    Check("IOMMU", Topic.ISOLATION, host.find_iommu),
    Check("memory", Topic.ROOM, host.find_memory),
    Check("disk", Topic.ROOM, host.find_disk),
    Check("inodes", Topic.ROOM, host.find_inodes),
    Check("directories", Topic.SYSTEM, system.find_directories),
    Check("daemon", Topic.SYSTEM, system.find_daemon),
    Check("policy", Topic.SYSTEM, system.find_policy),
    Check("audit log", Topic.SYSTEM, audit.find_audit),
    Check("limits", Topic.SYSTEM, system.find_limits),
)


def run_checks(layout: Layout | None = None, *, checks: Sequence[Check] = CHECKS) -> list[CheckResult]:
    """Run every check (the first may take some seconds: it runs a guest).

    Never raises: a check that fails in an unforeseen way is itself a failed line.
    """
    ground = Ground(layout or Layout.from_environment())
    results = []
    for check in checks:
        started = time.monotonic()
        try:
            finding = check.find(ground)
        except Exception as error:  # the border of the doctor: whatever a host may do must become a line
            finding = Finding(Status.FAILED, f"the check itself failed: {type(error).__name__}: {error}", "report this")
        took = time.monotonic() - started
        results.append(CheckResult(check.name, check.topic.value, finding.status, finding.found, finding.mend, took))
    return results


def exit_status(results: Sequence[CheckResult]) -> int:
    """1 if anything failed that qubes need; warnings do not count."""
    return int(any(result.status is Status.FAILED for result in results))
