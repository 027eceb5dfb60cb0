"""``cloison audit`` on a log that no daemon serves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from auditlogs import LogBench

from cloison.cli.audit import parse_moment
from cloison.cli.entry import run_program
from cloison.doctor.audit import find_audit
from cloison.doctor.result import Ground, Status
from cloison.layout import Layout
from cloison.qrexec.audit.query import Filter, find_entries, follow_entries


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LogBench:
    monkeypatch.setenv("CLOISON_ROOT", str(tmp_path))
    it = LogBench(tmp_path / "data" / "audit", segment_bytes=2000)
    it.call(1, "work", "vault")
    denied = {"event": "denied", "call": 2, "rule": "90-default.policy:9", "reason": "no rule \x1b[31m"}
    it.log.write({**denied, "source": "untrusted", "requested_target": "vault", "service": "qubes.VMShell+"})
    it.log.write({"kind": "prompt", "event": "answered", "call": 3, "source": "work", "target": "untrusted",
                  "service": "qubes.Filecopy", "verdict": "allow", "who": "user"})  # fmt: skip
    it.log.write({"event": "ended", "call": 1, "source": "work", "target": "vault", "service": "test.Service+arg1",
                  "exit_code": 0, "seconds": 1.25, "stdin_bytes": 2048})  # fmt: skip
    it.log.write(
        {"kind": "change", "event": "set", "target": "work", "argument": "memory", "value": "500", "old": "400"}
    )
    it.log.write({"kind": "qube", "event": "started", "qube": "vault"})
    it.log.settle()
    return it


def shown(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> str:
    assert run_program(["audit", *words]) == code
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "events"),
    [
        ([], ["allowed", "denied", "answered", "ended", "set", "started"]),
        (["--source", "work"], ["allowed", "answered", "ended"]),
        (["--target", "vault"], ["allowed", "denied", "ended"]),
        (["--qube", "vault"], ["allowed", "denied", "ended", "started"]),
        (["--qube", "un*", "--verdict", "deny"], ["denied"]),
        (["--verdict", "ask"], ["answered"]),
        (["--verdict", "deny", "--verdict", "ask"], ["denied", "answered"]),
        (["--service", "qubes.*"], ["denied", "answered"]),
        (["--kind", "qube", "--kind", "change"], ["set", "started"]),
        (["-n", "2"], ["set", "started"]),
        (["-n", "1", "--kind", "call"], ["ended"]),
        (
            ["--since", "2023-11-01", "--until", "2023-11-30"],
            ["allowed", "denied", "answered", "ended", "set", "started"],
        ),
        (["--until", "2020-01-01"], []),
        (["--since", "1h"], []),
    ],
)
def test_records_are_found_by_what_they_are_about(
    log: LogBench, capsys: pytest.CaptureFixture[str], words: list[str], events: list[str]
) -> None:
    assert [row["event"] for row in json.loads(shown(capsys, *words, "--json"))] == events


def test_the_table_is_for_people_and_shows_no_control_characters(
    log: LogBench, capsys: pytest.CaptureFixture[str]
) -> None:
    text = shown(capsys)
    assert "\x1b" not in text
    lines = text.splitlines()
    assert lines[0].split() == ["TIME", "WHAT", "FROM", "TO", "SERVICE", "DETAIL"]
    assert "asked: allow" in text and "exit 0, 1.25 s, in 2.0 KiB" in text and "400 → 500" in text
    assert "test.Service+arg1" in lines[1] and "30-user.policy:1" in lines[1]
    assert "\x1b[31;1mdeny" in shown(capsys) or run_program(["--color", "always", "audit"]) == 0
    assert "\x1b[31;1mdeny" in capsys.readouterr().out


def test_what_was_written_late_is_shown_when_it_happened(log: LogBench, capsys: pytest.CaptureFixture[str]) -> None:
    log.log.write({"kind": "qube", "event": "stopped", "qube": "vault", "at_ns": 86_400 * 10**9})
    (line,) = shown(capsys, "-n", "1").splitlines()[1:]
    assert line.startswith("01-0") and "written late" in line


def test_verify_answers_with_its_exit_code(log: LogBench, capsys: pytest.CaptureFixture[str]) -> None:
    key = shown(capsys, "key").strip()
    assert "whole: records 1 to" in shown(capsys, "verify")
    head = json.loads(shown(capsys, "verify", "--json"))["head"]
    shown(capsys, "verify", "--key", " ".join(key[i : i + 4] for i in range(0, 64, 4)), "--includes", head)
    shown(capsys, "verify", "--key", "0" * 64, code=1)
    shown(capsys, "verify", "--key", "short", code=2)
    path = log.files()[0]
    path.write_bytes(path.read_bytes().replace(b'"n":3,', b'"n":3 ,'))
    assert "not whole: record 3 was altered" in shown(capsys, "verify", code=1)
    found = json.loads(shown(capsys, "verify", "--json", code=1))
    assert found["fault"]["record"] == 3 and not found["whole"]


def test_following_goes_on_over_segments(log: LogBench) -> None:
    newest = find_entries(log.directory, Filter(), 1)[-1]
    coming = follow_entries(log.directory, Filter(kinds=("call",)), newest.number)
    for number in range(10, 30):
        log.call(number)
    assert len(log.files()) > 2
    assert [next(coming).fields["call"] for _ in range(20)] == list(range(10, 30))  # type: ignore[index]
    log.call(99)
    assert next(coming).fields["call"] == 99  # type: ignore[index]


def test_the_newest_are_found_over_segments(log: LogBench) -> None:
    for number in range(10, 40):
        log.call(number)
    found = find_entries(log.directory, Filter(kinds=("call",)), 25)
    assert [entry.fields["call"] for entry in found if entry.fields] == list(range(15, 40))


def test_without_a_log_there_is_nothing_and_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CLOISON_ROOT", str(tmp_path))
    assert shown(capsys, "--json") == "[]\n"
    assert "no record yet" in shown(capsys, "verify")
    assert run_program(["audit", "key"]) != 0
    assert run_program(["audit", "erase", "--yes", "work"]) != 0


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("90s", 910),
        ("2m", 880),
        ("1h", -2600),
        ("nonsense", None),
        ("2h3", None),
        ("1970-13-01", None),
        ("99:99", None),
    ],
)
def test_times(text: str, moment: float | None) -> None:
    assert parse_moment(text, 1000.0) == moment


def test_times_of_the_clock_are_local() -> None:
    now = 1_700_000_000.0
    today = parse_moment("today", now)
    assert today is not None and 0 <= now - today < 90_000
    assert parse_moment("00:00", now) == today


def test_the_doctor_knows_the_log(log: LogBench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ground = Ground(Layout.from_environment({"CLOISON_ROOT": str(tmp_path)}))
    assert find_audit(ground).status is Status.OK
    monkeypatch.setattr("cloison.doctor.audit.NEEDED_BYTES", 1 << 60)
    assert find_audit(ground).status is Status.FAILED and "every call is denied" in find_audit(ground).found
    monkeypatch.undo()
    log.files()[0].unlink()
    assert find_audit(ground).status is Status.WARNING
    for path in log.directory.iterdir():
        path.unlink()
    log.directory.rmdir()
    assert find_audit(ground).status is Status.OK
