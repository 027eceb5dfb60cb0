"""The policy of this moment: what the files say counts from the next call on."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cloison.policy import Allow, BrokenPolicy, Cause, Deny, PolicySet, PolicySource, Request, SystemInfo
from cloison.policy.files import RACY_S, Disk

Write = Callable[[str, str], Path]
CALL = Request("work", "vault", "s", "+")


@pytest.fixture
def source(policy_dir: Path) -> PolicySource:
    runtime = policy_dir.parent / "run"
    runtime.mkdir()
    return PolicySource(policy_dir, runtime)


def test_new_changed_and_removed_files_count_at_the_next_call(source: PolicySource, system: SystemInfo, write: Write):
    assert isinstance(source.evaluate(system, CALL), Deny)
    path = write("policy.d/10-x.policy", "s * * * allow")
    assert isinstance(source.evaluate(system, CALL), Allow)
    write("run/05-x.policy", "!include include/x")
    write("run/include/x", "s * * * deny")
    assert isinstance(source.evaluate(system, CALL), Deny)
    write("run/include/x", "t * * * deny")
    assert isinstance(source.evaluate(system, CALL), Allow)
    path.unlink()
    assert isinstance(source.evaluate(system, CALL), Deny)


def test_a_second_change_within_one_tick_of_the_clock_is_seen(
    source: PolicySource, system: SystemInfo, write: Write, monkeypatch: pytest.MonkeyPatch
):
    """Older kernels stamp files with a coarse clock: here, all stamps are alike."""
    monkeypatch.setattr("cloison.policy.files._stamp", lambda status: (0, 0, 0, 0, 0))
    write("policy.d/10-x.policy", "s * * * allow")
    assert isinstance(source.evaluate(system, CALL), Allow)
    write("policy.d/10-x.policy", "s * * * deny ")
    assert isinstance(source.evaluate(system, CALL), Deny)


def test_a_broken_policy_denies_until_it_is_mended_and_says_where(
    source: PolicySource, system: SystemInfo, write: Write
):
    write("policy.d/10-x.policy", "s * * * allow")
    assert isinstance(source.evaluate(system, CALL), Allow)
    bad = write("policy.d/90-x.policy", "# comment\nbroken\n")
    verdict = source.evaluate(system, CALL)
    assert isinstance(verdict, Deny) and verdict.cause is Cause.BROKEN_POLICY
    assert f"{bad}:2: " in verdict.reason and not verdict.notify
    write("policy.d/90-x.policy", "!include include/late\n")
    assert isinstance(source.current(), BrokenPolicy)
    write("policy.d/include/late", "")
    assert isinstance(source.evaluate(system, CALL), Allow)


def test_missing_directories_are_noticed_both_ways(source: PolicySource, system: SystemInfo, write: Write):
    write("policy.d/10-x.policy", "s * * * allow")
    assert isinstance(source.evaluate(system, CALL), Allow)
    assert source.runtime is not None
    source.runtime.rmdir()
    assert isinstance(source.current(), BrokenPolicy)
    source.runtime.mkdir()
    assert isinstance(source.evaluate(system, CALL), Allow)


def test_nothing_is_read_again_while_nothing_changes(source: PolicySource, write: Write):
    path = write("policy.d/10-x.policy", "s * * * allow")
    policy = source.current()
    path.touch()
    assert source.current() is policy
    assert policy.digest.startswith("sha256:")


def test_a_failure_that_passes_does_not_outlast_its_reason(source: PolicySource, write: Write):
    """No descriptor was left at the moment in which the files had changed: nobody will touch them again for that."""
    write("policy.d/10-x.policy", "s * * * allow")
    time.sleep(2 * RACY_S)
    most = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, most[1]))
        broken = source.current()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, most)
    assert isinstance(broken, BrokenPolicy) and "Too many open files" in str(broken.error)
    assert isinstance(source.current(), PolicySet)


def test_who_asks_while_the_files_are_read_gets_the_new_policy(
    source: PolicySource, system: SystemInfo, write: Write, monkeypatch: pytest.MonkeyPatch
):
    """As a thread does that writes down an answer meanwhile."""
    path = write("policy.d/10-x.policy", "s * * * allow")
    time.sleep(2 * RACY_S)
    assert isinstance(source.evaluate(system, CALL), Allow)
    path.write_text("s * * * deny")
    time.sleep(2 * RACY_S)
    is_settled, meanwhile = Disk.is_settled, []

    def ask_meanwhile(disk: Disk) -> bool:
        if not meanwhile:
            meanwhile.append(None)
            meanwhile.append(source.evaluate(system, CALL))
        return is_settled(disk)

    monkeypatch.setattr(Disk, "is_settled", ask_meanwhile)
    assert isinstance(source.evaluate(system, CALL), Deny)
    assert isinstance(meanwhile[1], Deny)
