"""`cloison update`: what a qube says is data, what failed is taken back, and dom0 is only looked at."""

from __future__ import annotations

import json
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


@pytest.mark.parametrize(("fails", "packages"), [(True, []), (False, []), (False, [("bash", "1", "2")])])
def test_a_halted_template_changes_only_if_all_went_well(
    monkeypatch: pytest.MonkeyPatch, fails: bool, packages: list[tuple[str, str, str]]
) -> None:
    done: list[str] = []
    revisions = [["1"], ["1", "2"]]

    class FakeSession:
        def do(self, call: Any, **_: Any) -> Any:
            done.append(call.what)
            if "forkpoint.List" in call.method:
                return [{"template": "debian-13", "qube": "work"}, {"template": "other", "qube": "web"}]
            return revisions.pop(0) if "ListSnapshots" in call.method else None

        def say(self, text: str) -> None: ...

    def run(session: Any, result: Result, *, check: bool) -> None:
        result.packages = packages
        if fails:
            raise BackendFailed("no")

    monkeypatch.setattr(update, "_run", run)
    monkeypatch.setattr(update, "shut_down", lambda session, name, **how: done.append(f"shut down {name}"))
    result = Result("debian-13")
    try:
        update._one(FakeSession(), result, begun := {}, was_halted=True, check=False)  # type: ignore[arg-type]
    except BackendFailed:
        assert fails
    assert begun == {}
    taken_back = "admin.vm.volume.Revert+root debian-13" in done and "admin.vm.Kill debian-13" in done
    assert taken_back == (not packages) and ("shut down debian-13" in done) == bool(packages)
    assert [what for what in done if "forkpoint.Make" in what] == ["cloison.forkpoint.Make work"] * bool(packages)
    assert ("admin.vm.feature.Set+last-update debian-13" in done) == (not fails)


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


def test_an_interrupted_update_is_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[str] = []

    def one(session: Any, result: Result, begun: dict[str, set[str]], **_: Any) -> None:
        begun[result.name] = {"1"}

    def join(thread: Any, timeout: float | None = None) -> None:
        raise KeyboardInterrupt

    class Silent:
        def say(self, text: str) -> None: ...

    monkeypatch.setattr(update, "_one", one)
    monkeypatch.setattr(update, "_take_back", lambda session, name, before: taken.append(name))
    monkeypatch.setattr("threading.Thread.start", lambda thread: thread.run())
    monkeypatch.setattr("threading.Thread.join", join)
    with pytest.raises(KeyboardInterrupt):
        update._all(Silent(), ["a"], {"a": {"state": "Halted"}}, check=False)  # type: ignore[arg-type]
    assert taken == ["a"]
