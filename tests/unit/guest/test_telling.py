"""What a qube was told, what it tells of itself, and the time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cloison.wire.dates import format_date
from cloison_agent import clock
from cloison_agent.told import Told
from cloison_tools.announcing import known_features
from cloison_tools.database import entries

ROOT = Path(__file__).resolve().parents[3]


def test_what_was_told_is_kept_without_its_secrets(tmp_path: Path) -> None:
    told = Told(str(tmp_path / "run" / "told"))
    told.remember({"name": "work", "entropy": "secret", "services": {"x": True}, "long": "x" * 1000})
    told.remember({"name": "vault", "long": ""})
    known = json.loads((tmp_path / "run" / "told").read_text())
    assert known == {"name": "vault", "services": {"x": True}, "long": ""}


def test_an_agent_that_takes_over_knows_what_its_forerunner_was_told(tmp_path: Path) -> None:
    path = tmp_path / "run" / "told"
    Told(str(path)).remember({"name": "work", "default_user": "jo", "services": {"x": True}})
    after = Told(str(path))
    assert after.text("default_user") == "jo" and after.text("template") == ""
    assert after.services() == {"x": True}
    after.remember({"vm_config": {}})
    assert json.loads(path.read_text())["name"] == "work"
    path.write_text('{"name": "wo')
    assert Told(str(path)).text("name") == ""


@pytest.mark.parametrize(
    ("klass", "kind", "persistence", "updateable"),
    [
        ("AppVM", "AppVM", "rw-only", "False"),
        ("DispVM", "DispVM", "none", "False"),
        ("TemplateVM", "TemplateVM", "full", "True"),
        ("StandaloneVM", "StandaloneVM", "full", "True"),
    ],
)
def test_scripts_find_what_they_look_for(klass: str, kind: str, persistence: str, updateable: str) -> None:
    told = {
        "name": "work",
        "klass": klass,
        "template": "debian-13",
        "default_user": "user",
        "timezone": "Europe/Paris",
        "services": {"cups": True, "network-manager": False},
        "vm_config": {"colour": "blue"},
    }
    found = entries(told, {"/mine": "1"})
    assert found["/name"] == "work" and found["/type"] == klass and found["/qubes-vm-type"] == kind
    assert (found["/qubes-vm-persistence"], found["/qubes-vm-updateable"]) == (persistence, updateable)
    assert (found["/qubes-service/cups"], found["/qubes-service/network-manager"]) == ("1", "0")
    assert (found["/vm-config/colour"], found["/mine"]) == ("blue", "1")
    assert "/qubes-base-template" in found and "/qubes-ip" not in found
    assert entries({**told, "provides_network": True}, {})["/qubes-vm-type"] == "ProxyVM"


def database(tool: str, tmp_path: Path, *words: str) -> tuple[int, str]:
    code = f"import sys; from cloison_tools import database as d; d.TOLD, d.WRITTEN = {str(tmp_path / 'told')!r}, \
{str(tmp_path / 'written')!r}; sys.exit(d.{tool}(sys.argv[1:]))"
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=30,
                          env={"PYTHONPATH": str(ROOT / "guest"), "PATH": os.defpath})  # fmt: skip
    return done.returncode, done.stdout


def test_the_tools_of_qubes_scripts_answer(tmp_path: Path) -> None:
    (tmp_path / "told").write_text('{"name": "work", "services": {"a": true, "b": false}}')
    assert database("read", tmp_path, "/name") == (0, "work\n")
    assert database("read", tmp_path, "-q", "/absent") == (1, "")
    assert database("read", tmp_path) == (2, "")
    assert database("list_paths", tmp_path, "/qubes-service/") == (0, "a\nb\n")
    assert database("list_paths", tmp_path, "-f", "/qubes-service/") == (0, "/qubes-service/a\n/qubes-service/b\n")
    assert database("multiread", tmp_path, "/qubes-service/") == (0, "a = 1\nb = 0\n")
    assert database("write", tmp_path, "/x", "1", "/y", "2") == (0, "")
    assert database("remove", tmp_path, "/x") == (0, "")
    assert database("multiread", tmp_path, "-f", "/y") == (0, "/y = 2\n")
    (tmp_path / "told").write_text("{broken")
    assert database("read", tmp_path, "/qubes-gui-enabled") == (0, "False\n")


def test_a_guest_announces_what_is_installed(tmp_path: Path) -> None:
    release, services, units = tmp_path / "os-release", tmp_path / "qubes-rpc", tmp_path / "units"
    release.write_text('ID=debian\nVERSION_ID="13"\nNAME="Odd $(name)"\nID_LIKE="a;b"\n')
    services.mkdir()
    for name in ("qubes.Filecopy", "qubes.VMShell+WaitForSession", "mine", "od d"):
        (services / name).touch()
    units.mkdir()
    (units / "cups.service").write_text("[Unit]\nConditionPathExists=/var/run/qubes-service/cups\n")
    (units / "other.service").write_text("[Unit]\nConditionPathExists=!/run/qubes-service/no\n")
    found = known_features(str(release), (str(services), "/nowhere"), (str(units),))
    assert {name: value for name, value in found.items() if "." in name or name.startswith("os")} == {
        "os": "Linux",
        "os-distribution": "debian",
        "os-version": "13",
        "supported-rpc.qubes.Filecopy": "1",
        "supported-rpc.mine": "1",
        "supported-service.cups": "1",
    }


def test_the_clock_is_set_only_if_it_is_off(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted: list[int] = []
    monkeypatch.setattr(time, "clock_settime_ns", lambda _, value: wanted.append(value))
    now = time.time_ns()
    assert clock.set_clock(format_date(now, exact=False)) == 0
    assert wanted == []
    later = now + 3600 * 10**9
    assert clock.set_clock(format_date(later, exact=True)) == 0
    assert wanted == [later]
    assert clock.set_clock(b"now\n") == 1
