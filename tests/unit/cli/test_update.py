"""`cloison update`: what a qube says is data, what failed is taken back, and dom0 is only looked at."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from cloison.cli import update
from cloison.cli.update import LineSink, LogSink, Result, look_at_host
from cloison.errors import BackendFailed


def test_lines_of_a_qube_are_cut_and_made_printable() -> None:
    lines: list[str] = []
    sink = LineSink(lines.append)
    sink.put(b"step 10 one\nstep 20 \x1b[31mred\n" + b"x" * 5000)
    sink.put(b"\nlast\n")
    assert lines[0] == "step 10 one" and lines[1] == "step 20 ?[31mred" and lines[3] == "last"
    assert len(lines[2]) <= update.MAX_LINE


def test_a_log_has_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(update, "MAX_LOG_BYTES", 10)
    sink = LogSink(tmp_path / "log")
    sink.put(b"12345678")
    sink.put(b"12345678")
    sink.close()
    assert (tmp_path / "log").read_bytes() == b"1234567812" and sink.flush() == 16


class Trying:
    """A session with a daemon that holds trials as the real one does: until they are settled, or the qube ends."""

    def __init__(self, done: list[str], failure: BackendFailed | None = None) -> None:
        self.done, self.failure = done, failure
        self.over = threading.Event()
        self.client = self

    def do(self, call: Any, *, on_event: Any = None, **_: Any) -> Any:
        self.done.append(call.what)
        if call.method == "cloison.trial.Hold":
            if self.failure is not None:
                raise self.failure
            on_event(None)
            assert self.over.wait(20)
        elif call.method in ("cloison.trial.Settle", "admin.vm.Kill"):
            self.over.set()
        elif call.method == "cloison.forkpoint.List":
            return [{"template": "debian-13", "qube": "work"}, {"template": "other", "qube": "web"}]
        return None

    def say(self, text: str) -> None: ...


@pytest.mark.parametrize(("fails", "packages"), [(True, []), (False, []), (False, [("bash", "1", "2")])])
def test_a_halted_template_changes_only_if_all_went_well(
    monkeypatch: pytest.MonkeyPatch, fails: bool, packages: list[tuple[str, str, str]]
) -> None:
    done: list[str] = []
    session = Trying(done)

    def run(session: Any, result: Result, *, check: bool) -> None:
        result.packages = packages
        if fails:
            raise BackendFailed("no")

    monkeypatch.setattr(update, "_run", run)
    monkeypatch.setattr(update, "shut_down", lambda session, name, **how: done.append(f"shut down {name}"))
    result = Result("debian-13")
    try:
        update._one(session, result, was_halted=True, check=False)  # type: ignore[arg-type]
    except BackendFailed:
        assert fails
    assert ("cloison.trial.Settle debian-13" in done) == bool(packages)
    assert ("admin.vm.Kill debian-13" in done) == (not packages), "what is settled is never killed"
    assert ("shut down debian-13" in done) == bool(packages)
    assert [what for what in done if "forkpoint.Make" in what] == ["cloison.forkpoint.Make work"] * bool(packages)
    assert ("admin.vm.feature.Set+last-update debian-13" in done) == (not fails)


@pytest.mark.parametrize(("was_halted", "check"), [(False, False), (True, True)])
def test_a_look_keeps_nothing_and_what_ran_before_is_no_trial(
    monkeypatch: pytest.MonkeyPatch, was_halted: bool, check: bool
) -> None:
    done: list[str] = []
    monkeypatch.setattr(update, "_run", lambda session, result, *, check: result.packages.append(("a", "1", "2")))
    session = Trying(done)
    update._one(session, Result("debian-13"), was_halted=was_halted, check=check)  # type: ignore[arg-type]
    assert ("cloison.trial.Hold debian-13" in done) == was_halted
    assert ("admin.vm.Kill debian-13" in done) == was_halted
    assert "cloison.trial.Settle debian-13" not in done


def test_a_trial_that_cannot_begin_is_a_failed_update(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(update, "_run", lambda *_, **__: pytest.fail("it must not be updated"))
    session = Trying([], BackendFailed("no memory"))
    with pytest.raises(BackendFailed, match="no memory"):
        update._one(session, Result("debian-13"), was_halted=True, check=False)  # type: ignore[arg-type]


def test_dom0_is_only_looked_at(tmp_path: Path) -> None:
    manager = tmp_path / "apt-get"
    manager.write_text('#!/bin/sh\n[ "$1" = -s ] || exit 1\necho "Inst bash [1] (2 x)"\necho "Conf bash (2 x)"\n')
    manager.chmod(0o755)
    assert look_at_host(str(manager)) == {
        "manager": str(manager), "waiting": 1, "packages": ["bash"], "why": "",
    }  # fmt: skip
    assert look_at_host("no-such-manager")["waiting"] is None


def test_nothing_but_templates_and_standalones_is_updated(cloison: Any, daemon: Any) -> None:
    done = cloison("update", "work")
    assert done.code == 2 and "no template or standalone" in done.err


def test_nothing_to_do_is_json_too(cloison: Any, daemon: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for row in daemon.rows:
        row.setdefault("features", {})["skip-update"] = "1"
    done = cloison("update", "--check", "--json")
    assert done.code == 0 and json.loads(done.out) == {"qubes": [], "dom0": None, "outdated": []}
