"""The doctor: what it finds, what it advises, and that no host can make it fall over."""

from __future__ import annotations

import getpass
import os
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest

from cloison.doctor import CheckResult, Ground, Status, exit_status, host, packages, run_checks, system
from cloison.doctor.checkup import CHECKS, Check, Topic
from cloison.doctor.result import Finding
from cloison.layout import Layout


@pytest.fixture
def ground(tmp_path: Path) -> Ground:
    return Ground(Layout.from_environment({"CLOISON_ROOT": str(tmp_path), "HOME": str(tmp_path)}, uid=1000))


def check(finding: Finding) -> Check:
    return Check("one", Topic.ROOM, lambda ground: finding)


def test_results_come_in_the_order_of_the_table(ground: Ground) -> None:
    table = [check(Finding(Status.OK, "a")), check(Finding(Status.WARNING, "b", "mend b"))]
    assert [result.found for result in run_checks(ground.layout, checks=table)] == ["a", "b"]


def test_a_check_that_raises_is_a_failed_line(ground: Ground) -> None:
    def fall_over(ground: Ground) -> Finding:
        raise ZeroDivisionError("oh")

    (result,) = run_checks(ground.layout, checks=[Check("one", Topic.ROOM, fall_over)])
    assert result.status is Status.FAILED
    assert "ZeroDivisionError: oh" in result.found


@pytest.mark.parametrize(
    ("statuses", "expected"),
    [([], 0), ([Status.OK, Status.WARNING], 0), ([Status.OK, Status.FAILED], 1)],
)
def test_only_failures_count_for_the_exit_status(statuses: list[Status], expected: int) -> None:
    assert exit_status([CheckResult("n", "t", status, "", "", 0.0) for status in statuses]) == expected


def test_a_result_as_json_is_plain() -> None:
    result = CheckResult("disk", "room", Status.WARNING, "3 GiB", "free some", 0.01234)
    assert result.as_json() == {
        "name": "disk",
        "topic": "room",
        "status": "warning",
        "found": "3 GiB",
        "mend": "free some",
        "duration_s": 0.012,
    }


def test_names_of_checks_are_unique() -> None:
    assert len({check.name for check in CHECKS}) == len(CHECKS)


def test_a_missing_program_names_its_package(ground: Ground, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(packages, "SYSTEM_PATH", str(tmp_path))
    assert "qemu-system-x86" in host.find_qemu(ground).mend
    assert "qemu-utils" in host.find_qemu_img(ground).mend
    assert "mmdebstrap" in packages.find_template_tools(ground).mend
    assert host.find_jail(ground).status is Status.FAILED


@pytest.mark.parametrize(
    ("version", "status"),
    [
        ("QEMU emulator version 6.2.0 (Debian 1:6.2)", Status.FAILED),
        ("QEMU emulator version 7.2.22 (Debian 1:7.2)", Status.OK),
        ("QEMU emulator version 10.0.3", Status.OK),
        ("something else", Status.FAILED),
    ],
)
def test_the_version_of_qemu_decides(
    ground: Ground, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, version: str, status: Status
) -> None:
    devices = ["virtio-blk-pci", "virtio-serial-pci", "virtio-rng-pci", "virtio-balloon-pci", "vmgenid"]
    listing = "\n".join(f'name "{name}", bus PCI' for name in devices)
    fake = tmp_path / "qemu-system-x86_64"
    fake.write_text(
        f"#!/bin/sh\ncase $1 in --version) echo '{version}';; -device) echo '{listing}';; *) echo -sandbox;; esac\n"
    )
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert host.find_qemu(ground).status is status


class FakeDisk(NamedTuple):
    total: int
    used: int
    free: int


@pytest.mark.parametrize(("gib", "status"), [(1, Status.FAILED), (5, Status.WARNING), (50, Status.OK)])
def test_free_space_is_judged_by_what_a_template_needs(
    ground: Ground, monkeypatch: pytest.MonkeyPatch, gib: int, status: Status
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda place: FakeDisk(1, 1, gib << 30))
    assert host.find_disk(ground).status is status


def test_a_user_without_subordinate_ids_is_told_the_command(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 1234)
    monkeypatch.setattr(getpass, "getuser", lambda: "nobody-we-know")
    found = host.find_subordinate_ids(ground)
    assert found.status is Status.FAILED
    assert "usermod --add-subuids" in found.mend


def test_subordinate_ids_are_found_by_name_and_by_number(tmp_path: Path) -> None:
    file = tmp_path / "subuid"
    file.write_text("ada:100000:65536\n1001:200000:65536\nbroken line\n")
    assert host._subordinate_ids(file, "ada", 1000) == 65536
    assert host._subordinate_ids(file, "bea", 1001) == 65536
    assert host._subordinate_ids(file, "cem", 1002) == 0


def test_a_root_too_deep_for_sockets_is_refused(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 80)
    ground = Ground(Layout.from_environment({"CLOISON_ROOT": str(deep), "HOME": "/"}, uid=1000))
    assert system.find_directories(ground).status is Status.FAILED


def test_a_directory_of_somebody_else_is_named(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    ground.layout.data.mkdir(parents=True)
    monkeypatch.setattr(system, "MAX_SOCKET_PATH", 4096)
    monkeypatch.setattr(os, "getuid", lambda: 4321)
    found = system.find_directories(ground)
    assert found.status is Status.FAILED
    assert str(ground.layout.data) in found.found


def test_a_broken_policy_is_shown_with_file_and_line(ground: Ground) -> None:
    ground.layout.policy.mkdir(parents=True)
    (ground.layout.policy / "30-user.policy").write_text("# fine\nnonsense\n")
    found = system.find_policy(ground)
    assert found.status is Status.FAILED
    assert "30-user.policy:2" in found.found


def test_no_daemon_is_fine(ground: Ground) -> None:
    assert system.find_daemon(ground).status is Status.OK


@pytest.mark.parametrize(
    ("exists", "may_open", "advice"),
    [(False, False, "firmware"), (True, False, "usermod"), (True, True, "nothing to do here")],
)
def test_the_advice_for_no_kvm_fits_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exists: bool, may_open: bool, advice: str
) -> None:
    device = tmp_path / "kvm"
    if exists:
        device.touch()
    monkeypatch.setattr(os, "access", lambda path, mode: may_open)
    assert advice in host._mend_kvm(device)


@pytest.mark.parametrize(
    ("mode", "group", "advice"),
    [(0o660, 5, "usermod"), (0o666, 0, "groupadd"), (0o600, 0, "groupadd"), (0o600, 5, "groupadd")],
)
def test_joining_a_group_is_advised_where_it_opens_the_device(mode: int, group: int, advice: str) -> None:
    device = os.stat_result((0o020000 | mode, 0, 0, 1, 0, group, 0, 0, 0, 0))
    assert host._open_device_to("me", device).startswith(advice)


def test_broken_limits_are_shown_with_file_and_line(ground: Ground) -> None:
    assert system.find_limits(ground).status is Status.OK
    ground.layout.limits.mkdir(parents=True)
    (ground.layout.limits / "30-user.limits").write_text("* * work * calls=3\n")
    assert system.find_limits(ground).found.startswith("1 limits of calls in")
    (ground.layout.limits / "30-user.limits").write_text("# fine\nnonsense\n")
    found = system.find_limits(ground)
    assert found.status is Status.FAILED and "30-user.limits:2" in found.found
