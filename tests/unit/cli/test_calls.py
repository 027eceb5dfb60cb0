"""``cloison calls``, ``cloison limits``, ``cloison policy apply``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., Any]
ROW = {
    "id": 17, "state": "running", "source": "work", "requested_target": "@default", "target": "vault",
    "service": "qubes.Gpg+", "user": "", "rule": "f:1", "started_at": 0.0, "age_s": 65.2,
    "stdin_bytes": 2048, "stdout_bytes": 1, "stderr_bytes": 2,
}  # fmt: skip


def test_running_calls_are_a_table(cloison: Run, daemon: Any) -> None:
    daemon.answers("cloison.call.List", daemon.ok([ROW]))
    heading, line = cloison("calls").out.splitlines()
    assert heading.split() == ["ID", "SOURCE", "TARGET", "SERVICE", "STATE", "SENT", "ANSWERED", "AGE"]
    assert line.split("  ")[0] == "17" and "2.0 KiB" in line and "3 B" in line and "1 min 5 s" in line
    assert json.loads(cloison("calls", "--json").out) == [ROW]


def test_what_a_guest_named_does_nothing_to_the_terminal(cloison: Run, daemon: Any) -> None:
    daemon.answers(
        "cloison.call.List", daemon.ok([ROW | {"service": "x\x1b[2J", "target": "", "requested_target": "\r"}])
    )
    assert "\x1b" not in cloison("calls").out and "\r" not in cloison("calls").out


def test_calls_are_followed(cloison: Run, daemon: Any) -> None:
    events = daemon.event("", "connection-established") + daemon.event("", "began", json=json.dumps(ROW))
    events += daemon.event("", "ended", json=json.dumps({**ROW, "exit_code": 3, "reason": "ended by the user"}))
    events += daemon.event("", "denied", json=json.dumps({**ROW, "reason": "denied by f:2"}))
    daemon.answers("cloison.call.Follow", events)
    began, ended, denied = cloison("calls", "--follow").out.splitlines()
    assert began.endswith("began  17 work to vault: qubes.Gpg+")
    assert ended.endswith("(exit code 3, 2.0 KiB sent, 3 B answered, after 1 min 5 s, ended by the user)")
    assert denied.endswith("denied 17 work to vault: qubes.Gpg+ (denied by f:2)")
    lines = [json.loads(line) for line in cloison("calls", "--follow", "--json").out.splitlines()]
    assert [line["event"] for line in lines] == ["began", "ended", "denied"] and lines[1]["exit_code"] == 3


def test_calls_are_ended_by_their_id(cloison: Run, daemon: Any) -> None:
    assert cloison("calls", "kill", "17", "18").code == 0
    assert daemon.calls() == ['cloison.call.Kill dom0 {"id":17}', 'cloison.call.Kill dom0 {"id":18}']
    assert cloison("calls", "kill", "x").code == 2
    daemon.answers("cloison.call.Kill", daemon.refused("QubesValueError", "no call has the id 9"))
    done = cloison("calls", "kill", "9")
    assert done.code == 1 and "no call has the id 9" in done.err


def test_ids_are_completed(daemon: Any) -> None:
    from cloison.cli.calls import CallIdType

    daemon.answers("cloison.call.List", daemon.ok([ROW, ROW | {"id": 2}]))
    found = CallIdType().shell_complete(None, None, "1")  # type: ignore[arg-type]
    assert [(item.value, item.help) for item in found] == [("17", "work to vault: qubes.Gpg+")]


@pytest.mark.parametrize(
    ("words", "asked", "said"),
    [
        ((), '{"dry_run":true}', "would end: 17 work to vault: qubes.Gpg+ (denied by f:2)"),
        (("--revoke", "--dry-run"), '{"dry_run":true}', "would end: 17"),
        (("--revoke",), '{"dry_run":false}', "ended: 17"),
    ],
)
def test_a_changed_policy_is_applied_to_what_runs(cloison: Run, daemon: Any, words, asked, said) -> None:
    daemon.answers("cloison.policy.Apply", daemon.ok([ROW | {"reason": "denied by f:2"}]))
    done = cloison("policy", "apply", *words)
    assert done.out.startswith(said) and daemon.calls() == [f"cloison.policy.Apply dom0 {asked}"]


def test_limits_are_listed_and_checked(cloison: Run, system: Any, tmp_path: Path) -> None:
    system.limits.mkdir(parents=True)
    (system.limits / "30-user.limits").write_text("qubes.Filecopy * work * calls=2 bytes=1G\n")
    lines = cloison("limits", "list").out.splitlines()
    assert lines[1].split()[:6] == ["qubes.Filecopy", "*", "work", "*", "calls=2", "bytes=1G"]
    assert lines[1].endswith("30-user.limits:1") and lines[2].endswith("built-in")
    first, last = json.loads(cloison("limits", "list", "--json").out)
    assert (first["calls"], first["bytes"], first["line"]) == ("2", "1G", 1) and last["line"] is None
    assert cloison("limits", "check").code == 0
    (system.limits / "30-user.limits").write_text("\nqubes.Filecopy * work * calls=few\n")
    for command in ("list", "check"):
        done = cloison("limits", command)
        assert done.code == 1 and "30-user.limits:2: 'calls=few'" in done.err
    (found,) = json.loads(cloison("limits", "check", "--json").out)
    assert found["line"] == 2 and found["message"].startswith("'calls=few'")
    (tmp_path / "new.limits").write_text("a b c\n")
    assert "new.limits:1: a limit needs" in cloison("limits", "check", str(tmp_path / "new.limits")).err


def test_without_a_terminal_nobody_is_asked(cloison: Run) -> None:
    done = cloison("ask-agent")
    assert done.code == 2 and "--json" in done.err
