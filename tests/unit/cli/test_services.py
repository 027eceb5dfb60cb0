"""Commands that ask qubes' services: programs, clocks, sleep."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Cloison = Callable[..., Any]
MENU = "a.desktop:Name=Aleph\na.desktop:Exec=x\na.desktop:Comment=First\n"


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Makes a program that the fake broker runs as a service."""
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")

    def make(name: str, script: str) -> None:
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    return make


def test_programs_are_asked_for_kept_and_listed(cloison: Cloison, daemon: Any, broker: Any, service: Any) -> None:
    service("qubes.GetAppmenus", f"printf '{MENU}'")
    done = cloison("apps", "refresh", "work")
    assert done.code == 0 and "Aleph" in done.out
    (kept,) = [call for call in daemon.calls() if call.startswith("admin.vm.feature.Set")]
    name, _, value = kept.partition(" work ")
    assert name == "admin.vm.feature.Set+menu-available"
    daemon.answers("admin.vm.feature.CheckWithTemplate", daemon.ok(value))
    assert json.loads(cloison("apps", "list", "--json", "work").out)[0]["id"] == "a"
    assert "First" in cloison("apps", "list", "work").out


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("echo garbage", "cannot be used"),
        ("exit 7", "exit code 7"),
        ("head -c 2000000 /dev/zero", "cannot be used"),
        ("printf '../x.desktop:Exec=y\\n'", "cannot be used"),
    ],
)
def test_programs_that_no_honest_qube_has_are_not_kept(
    cloison: Cloison, daemon: Any, broker: Any, service: Any, script: str, why: str
) -> None:
    service("qubes.GetAppmenus", script)
    done = cloison("apps", "refresh", "work")
    assert done.code == 1 and why in done.err
    assert not [call for call in daemon.calls() if "feature.Set" in call]


def test_a_list_that_is_not_there_says_how_to_get_it(cloison: Cloison, daemon: Any) -> None:
    daemon.answers("admin.vm.feature.CheckWithTemplate", daemon.refused("QubesFeatureNotFoundError", "no such"))
    done = cloison("apps", "list", "work")
    assert done.code == 1 and "cloison apps refresh work" in done.err


def test_a_program_is_started_by_its_name(cloison: Cloison, broker: Any, service: Any) -> None:
    service("qubes.StartApp+a", "exit 5")
    assert cloison("apps", "start", "work", "a").code == 5
    assert broker.calls[0].service == "qubes.StartApp+a" and not broker.calls[0].nogui


def test_clocks_are_shown_and_set(cloison: Cloison, broker: Any, service: Any, tmp_path: Path) -> None:
    service("qubes.GetDate+nanoseconds", "date -u -Ins -d '+100 seconds' | sed 's/\\./,/'")
    shown = json.loads(cloison("clock", "show", "--json").out)
    assert {row["qube"] for row in shown} == {"sys-firewall", "sys-net", "work"}
    assert all(99 < row["ahead_s"] < 101 for row in shown)
    service("qubes.SetDateTime", f"cat > {tmp_path}/set")
    assert cloison("clock", "sync", "work").code == 0
    assert (tmp_path / "set").read_text()[:10] == time.strftime("%Y-%m-%d", time.gmtime())
    service("qubes.SetDateTime", "echo no >&2; exit 1")
    done = cloison("clock", "sync", "work")
    assert done.code == 1 and "no" in done.err


@pytest.mark.parametrize("answer", ["echo now", "date -u -Iseconds -d 1999-01-01", "yes", "exit 3"])
def test_a_clock_that_tells_nonsense_is_not_believed(cloison: Cloison, broker: Any, service: Any, answer: str) -> None:
    service("qubes.GetDate+nanoseconds", f"{answer} | head -c 1000000" if "exit" not in answer else answer)
    assert cloison("clock", "show", "work").code == 1


def test_hooks_around_sleep_are_the_daemons(cloison: Cloison, daemon: Any) -> None:
    assert cloison("suspend-hooks", "pre").code == 0
    assert cloison("suspend-hooks", "post").code == 0
    assert daemon.calls() == ["internal.SuspendPre dom0", "internal.SuspendPost dom0"]
    assert cloison("suspend-hooks", "soon").code == 2
