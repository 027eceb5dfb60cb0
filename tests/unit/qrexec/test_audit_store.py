"""Writing: crashes at every step, full disks, other people's hands, sizes, privacy and erasure."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from auditlogs import Crash, CrashingDisk, FullDisk, LogBench, PowerCutDisk

from cloison.qrexec.audit.chain import Tip, parse_line
from cloison.qrexec.audit.record import Level
from cloison.qrexec.audit.signing import Signing, find_signing
from cloison.qrexec.audit.store import AuditLog

Bench = Callable[..., LogBench]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """A record in a directory, written as the daemon writes it, without a loop: ``settle`` is called by hand."""
    return lambda name="audit", **options: LogBench(tmp_path / name, **options)


def busy_day(log: AuditLog, bench: LogBench, done: list[int]) -> None:
    """Records, settlements and full segments; ``done`` holds the calls that were let through."""
    for number in range(1, 13):
        bench.call(number, log=log)
        done.append(number)
        if number % 4 == 0:
            log.settle()


def steps_of_a_busy_day(bench: Bench) -> int:
    disk = CrashingDisk(-1)
    it = bench("count", segment_bytes=1200, limit_bytes=3000)
    busy_day(it.open(disk), it, [])
    return disk.steps


@pytest.mark.parametrize("half", [False, True])
def test_a_crash_at_any_step_leaves_a_record_that_goes_on_and_verifies(bench: Bench, half: bool) -> None:
    """``done`` calls are in it (or were removed for want of room); the next daemon repairs the rest."""
    total = steps_of_a_busy_day(bench)
    assert total > 60
    for step in range(1, total + 1):
        it = bench(f"at{step}", segment_bytes=1200, limit_bytes=3000)
        done: list[int] = []
        try:
            busy_day(it.open(CrashingDisk(step, half=half)), it, done)
        except Crash:
            pass
        crashed = it.verify()
        assert crashed.fault is None, (step, crashed.fault)
        after = it.open()
        it.call(100, log=after)
        after.settle()
        report = it.verify()
        assert report.fault is None, (step, report.fault)
        assert report.notes == [] or "want of room" in report.notes[0]
        kept = it.calls()
        assert kept[-1] == 100 and kept[:-1] == sorted(kept[:-1])
        if report.first == 1:
            assert kept[: len(done)] == done
        it.remove()


def test_a_crash_leaves_no_old_signing_key_in_any_file(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever step the crash came at: once the next daemon has settled, only the present key is there."""
    used: list[str] = []
    succeed = Signing.succeed

    def remember(self: Signing, tip: Tip) -> Signing:
        used.append(self.key.private_bytes_raw().hex())
        made = succeed(self, tip)
        used.append(made.key.private_bytes_raw().hex())
        return made

    monkeypatch.setattr(Signing, "succeed", remember)
    for step in range(1, steps_of_a_busy_day(bench) + 1, 2):
        it = bench(f"at{step}")
        with contextlib.suppress(Crash):
            busy_day(it.open(CrashingDisk(step)), it, [])
        after = it.open()
        it.call(100, log=after)
        after.settle()
        present = find_signing(it.directory)
        assert present is not None
        everything = b"".join(path.read_bytes() for path in it.directory.iterdir())
        old = [key for key in used if key != present.key.private_bytes_raw().hex() and key.encode() in everything]
        assert old == [], step
        it.remove()


@pytest.mark.parametrize("keep", [0.0, 0.6, 1.0])
def test_a_power_cut_at_any_step_loses_at_most_what_was_not_settled(bench: Bench, keep: float) -> None:
    total = steps_of_a_busy_day(bench)
    for step in range(2, total + 1):
        it = bench(f"cut{step}", segment_bytes=1 << 20)
        disk = PowerCutDisk(step, keep)
        done: list[int] = []
        try:
            busy_day(it.open(disk), it, done)
        except Crash:
            disk.cut_power()
        after = it.open()
        it.call(100, log=after)
        after.settle()
        report = it.verify()
        assert report.fault is None, (step, report.fault)
        settled = len(done) // 4 * 4
        assert it.calls()[:settled][: max(settled - 4, 0)] == done[: max(settled - 4, 0)]
        it.remove()


def test_a_torn_last_line_is_told_cut_off_and_recorded(bench: Bench) -> None:
    it = bench()
    it.call(1)
    it.log.settle()
    it.call(2)
    (path,) = it.files()
    for torn in (path.read_bytes()[:-9], path.read_bytes()[:-9] + b"\0" * 30):
        path.write_bytes(torn)
        report = it.verify()
        assert report.is_whole and "unfinished" in report.notes[0]
    it.call(3, log=it.open())
    assert it.calls() == [1, 3]
    repaired = [entry.fields for entry in it.entries() if entry.fields and entry.fields["event"] == "repaired"]
    assert len(repaired) == 1 and "unfinished line" in repaired[0]["reason"]
    assert it.verify().is_whole and it.verify().notes == []


def test_signed_records_that_are_gone_are_never_papered_over(bench: Bench) -> None:
    """The next daemon goes on, but what it finds missing stays missing."""
    it = bench()
    for number in range(4):
        it.call(number)
        it.log.settle()
    (path,) = it.files()
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:4]))
    after = it.open()
    it.call(50, log=after)
    after.settle()
    fault = it.verify().fault
    assert fault is not None and fault.number == 5
    assert it.calls()[-1] == 50


def test_without_a_log_that_was_there_the_next_daemon_says_so(bench: Bench) -> None:
    it = bench()
    it.call(1)
    it.log.settle()
    it.files()[0].unlink()
    after = it.open()
    it.call(2, log=after)
    after.settle()
    fault = it.verify().fault
    assert fault is not None and fault.number == 1
    assert any(e.fields and e.fields.get("reason") == "the log was gone" for e in it.entries())


# -- where nothing can be written


def test_on_a_full_disk_nothing_is_allowed_until_there_is_room(bench: Bench) -> None:
    disk = FullDisk()
    it = bench(disk=disk)
    it.call(1)
    for room in (0, 1, 50, 200):
        disk.full, disk.room = True, room
        with pytest.raises(OSError, match="space"):
            it.call(2)
        assert it.verify().is_whole
    assert it.told == ["No space left on device"] and it.log.trouble
    it.log.note({"kind": "change", "event": "asked", "who": "dom0", "target": "work", "service": "admin.vm.Remove"})
    disk.full = False
    it.call(3)
    assert it.told == ["No space left on device", ""] and not it.log.trouble
    it.log.settle()
    assert it.verify().is_whole and it.verify().notes == []
    resumed = [e.fields for e in it.entries() if e.fields and e.fields["event"] == "resumed"]
    assert resumed[0]["refused"] == 4 and "space" in resumed[0]["reason"]
    late = [e.fields for e in it.entries() if e.fields and e.fields.get("service") == "admin.vm.Remove"]
    assert len(late) == 1 and late[0]["at_ns"] > 0
    assert it.calls() == [1, 3]


def test_a_limit_of_the_process_is_a_full_disk_too(tmp_path: Path) -> None:
    """With the kernel's own refusal (RLIMIT_FSIZE) instead of ours."""
    import subprocess
    import sys

    code = """
import resource, signal, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from auditlogs import LogBench
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
it = LogBench(Path(sys.argv[2]))
it.call(1)
size = it.files()[0].stat().st_size
resource.setrlimit(resource.RLIMIT_FSIZE, (size + 100, resource.RLIM_INFINITY))
try:
    it.call(2)
except OSError as error:
    print("refused", it.files()[0].stat().st_size == size)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
it.call(3)
it.log.settle()
print(it.verify().is_whole, it.calls())
"""
    tools = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-c", code, str(tools), str(tmp_path / "audit")], capture_output=True, text=True, check=True
    )
    assert done.stdout == "refused True\nTrue [1, 3]\n"


def test_a_directory_that_is_gone_refuses_calls_and_is_not_made_again(bench: Bench) -> None:
    it = bench()
    it.call(1)
    it.directory.rename(it.directory.with_name("away"))
    for _ in range(2):
        with pytest.raises(OSError):
            it.call(2)
    assert not it.directory.exists()
    it.directory.with_name("away").rename(it.directory)
    it.call(3)
    it.log.settle()
    assert it.verify().is_whole and it.calls() == [1, 3]


def test_what_others_do_to_the_open_file_is_recorded_and_stays_visible(bench: Bench) -> None:
    it = bench()
    for number in range(3):
        it.call(number)
    it.log.settle()
    it.files()[0].unlink()
    it.call(10)
    it.log.settle()
    assert it.calls() == [10]
    fault = it.verify().fault
    assert fault is not None and fault.number == 1
    assert any(e.fields and e.fields["event"] == "changed" for e in it.entries())


def test_opening_never_fails_and_writing_says_why(tmp_path: Path, bench: Bench) -> None:
    (tmp_path / "audit").write_text("a file")
    it = bench()
    with pytest.raises(OSError):
        it.call(1)
    (tmp_path / "audit").unlink()
    it.call(2)
    assert it.calls() == [2]


def test_a_damaged_signing_key_does_not_stop_the_daemon_but_verify_tells(bench: Bench) -> None:
    it = bench()
    it.call(1)
    it.log.settle()
    (it.directory / "signing-key").write_text("{}")
    after = it.open()
    it.call(2, log=after)
    after.settle()
    assert it.calls() == [1, 2] and it.verify().fault is not None


def test_nobody_else_may_read_it(bench: Bench) -> None:
    it = bench()
    it.call(1)
    it.log.settle()
    assert {path.stat().st_mode & 0o077 for path in (it.directory, *it.directory.iterdir())} == {0}


# -- sizes


def test_full_segments_are_linked_and_old_ones_removed_with_a_record(bench: Bench) -> None:
    it = bench(segment_bytes=1500, limit_bytes=6000)
    for number in range(60):
        it.call(number)
        if number % 2:
            it.log.settle()
    report = it.verify()
    assert report.is_whole and report.first > 1 and "want of room" in report.notes[0]
    assert sum(path.stat().st_size for path in it.files()) < 6000 + 3 * 1500
    assert it.calls()[-1] == 59
    files = it.files()
    held = files[1].read_bytes()
    files[1].unlink()
    assert it.verify().fault is not None
    files[1].write_bytes(held)
    files[0].unlink()  # one more than the record says
    fault = it.verify().fault
    assert fault is not None and "missing" in fault.why
    it2 = bench("again", segment_bytes=1500)
    for number in range(30):
        it2.call(number)
        it2.log.settle()
    it2.files()[0].unlink()
    fault = it2.verify().fault
    assert fault is not None and fault.number == 1


def test_the_next_daemon_goes_on_in_the_last_segment(bench: Bench) -> None:
    it = bench(segment_bytes=1500)
    for number in range(20):
        it.call(number)
    it.log.settle()
    count = len(it.files())
    for daemon in range(3):
        log = it.open()
        it.call(100 + daemon, log=log)
        log.settle()
    assert it.calls() == [*range(20), 100, 101, 102] and len(it.files()) <= count + 2
    assert it.verify().is_whole and it.verify().notes == []


# -- privacy


def test_metadata_leaves_out_what_may_quote_a_qube(bench: Bench) -> None:
    it = bench()
    it.levels["vault"] = Level.METADATA
    it.call(1)
    (entry,) = it.entries()
    assert entry.fields is not None
    assert "argument" not in entry.fields and entry.fields["service"] == "test.Service"
    it.call(2, target="untrusted")
    assert it.entries()[-1].fields["argument"] == "arg2"  # type: ignore[index]


def test_off_keeps_nothing_but_who_switched_it_off(bench: Bench) -> None:
    it = bench()
    it.levels["vault"] = Level.OFF
    it.call(1)
    it.log.write({"kind": "change", "event": "set", "target": "vault", "argument": "memory", "value": "1"})
    assert not it.directory.exists() or it.entries() == []
    it.log.write({"kind": "change", "event": "set", "target": "vault", "argument": "audit", "value": "off"})
    assert [e.fields["value"] for e in it.entries() if e.fields] == ["off"]


async def test_erasing_a_qube_makes_its_records_unreadable_and_the_chain_stays_whole(bench: Bench) -> None:
    it = bench()
    it.call(1, "work", "vault")
    it.call(2, "work", "untrusted")
    it.call(3, "untrusted", "vault")
    it.call(4, "work", "@dispvm:vault")
    key = next(json.loads(line) for line in (it.directory / "record-keys").read_bytes().splitlines()
               if b'"vault"' in line)  # fmt: skip
    assert await it.log.erase("vault", who="dom0") == 1
    report = it.verify()
    assert report.is_whole and report.erased == 3
    assert it.calls() == [2]
    assert [e.fields is None for e in it.entries()] == [True, False, True, True, False]
    everything = b"".join(path.read_bytes() for path in it.directory.iterdir())
    assert key["key"].encode() not in everything and b"vault" not in everything
    it.call(5, "work", "vault")
    assert it.calls() == [2, 5], "what it does from now on is under a new key"
    assert await it.log.erase("nobody", who="dom0") == 0
    after = it.open()
    it.call(6, "work", "vault", log=after)
    assert it.calls() == [2, 5, 6]
    await it.log.close()


def test_a_renamed_qube_keeps_its_key_and_is_erased_by_its_last_name(bench: Bench) -> None:
    it = bench()
    it.call(1, "work", "vault")
    find = it.find

    def renamed(name: str):  # type: ignore[no-untyped-def]
        found = find("vault" if name == "safe" else name)
        return found and type(found)(found.uuid, name, found.level)

    it.log._find_subject = renamed
    it.call(2, "work", "safe")
    asyncio.run(it.log.erase("safe", who="dom0"))
    assert it.calls() == []


def test_last_words_about_a_qube_that_is_gone_are_under_its_own_key(bench: Bench) -> None:
    it = bench()
    it.call(1, "work", "vault")
    del it.levels["vault"]
    it.log.write({"kind": "qube", "event": "removed", "qube": "vault"})
    line = parse_line(it.lines()[-1].rstrip(b"\n"))
    assert "x" in line.fields and "r" not in line.fields


# -- with a loop


async def test_records_are_signed_a_moment_later_without_anybody_waiting(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cloison.qrexec.audit.store.SETTLE_DELAY_S", 0.02)
    it = bench()
    for number in range(200):
        it.call(number)
        if number % 20 == 0:
            await asyncio.sleep(0.01)
    await asyncio.sleep(0.2)
    report = it.verify()
    assert report.is_whole and report.signed_until == report.lines - 1
    lines = report.lines
    await asyncio.sleep(0.1)
    assert it.verify().lines == lines, "an idle log does not sign itself again and again"
    it.call(1000)
    await it.log.close()
    assert it.verify().signed_until == it.verify().lines - 1


async def test_a_key_that_cannot_be_replaced_is_tried_again(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cloison.qrexec.audit.store.SETTLE_DELAY_S", 0.01)
    monkeypatch.setattr("cloison.qrexec.audit.store.RETRY_S", 0.02)
    disk = FullDisk()
    it = bench(disk=disk)
    it.call(1)
    disk.full = True
    await asyncio.sleep(0.1)
    assert it.verify().is_whole and it.verify().checkpoints == 0
    disk.full = False
    await asyncio.sleep(0.2)
    assert it.verify().checkpoints == 1
    await it.log.close()
