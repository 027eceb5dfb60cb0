"""The daemon as a systemd service: against a `systemctl` that writes down what it was asked."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from cloison.client import unit
from cloison.errors import BackendFailed

Asked = Callable[[], list[str]]


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Asked:
    """A session with a systemd user manager."""
    runtime, programs, asked = tmp_path / "runtime", tmp_path / "bin", tmp_path / "asked"
    (runtime / "systemd").mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as private:
        private.bind(str(runtime / "systemd/private"))
    programs.mkdir()
    (programs / "systemctl").write_text(
        f'#!/bin/sh\necho "$@" >> {asked}\n[ ! -e {tmp_path}/broken ] || {{ echo "Failed: no bus" >&2; exit 1; }}\n'
    )
    (programs / "systemctl").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("CLOISON_ROOT", raising=False)
    return lambda: asked.read_text().splitlines() if asked.exists() else []


def test_the_unit_is_installed_once_and_taken_back(manager: Asked) -> None:
    assert not unit.is_installed()
    assert unit.install()
    assert manager() == ["--user daemon-reload", "--user enable cloisond.service"]
    assert unit.is_installed()
    assert not unit.install()
    assert len(manager()) == 2
    assert unit.uninstall()
    assert manager()[2:] == ["--user disable cloisond.service", "--user daemon-reload"]
    assert not unit.is_installed()
    assert not unit.uninstall()


def test_stopping_the_service_spares_the_qubes(manager: Asked) -> None:
    unit.install()
    assert "KillMode=process" in unit.unit_path().read_text().splitlines()


def test_a_unit_of_another_place_is_replaced(manager: Asked) -> None:
    unit.install()
    unit.unit_path().write_text("[Service]\nExecStart=/gone/python -m cloison.daemon\n")
    assert unit.install()
    assert "/gone/" not in unit.unit_path().read_text()


def test_a_moved_system_is_never_a_service(manager: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    unit.install()
    monkeypatch.setenv("CLOISON_ROOT", "/elsewhere")
    assert not unit.is_installed()


def test_without_a_manager_there_is_no_service(manager: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    unit.install()
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert not unit.is_installed()


def test_a_manager_that_fails_is_quoted(manager: Asked, tmp_path: Path) -> None:
    (tmp_path / "broken").touch()
    with pytest.raises(BackendFailed, match=r"`systemctl --user daemon-reload` failed: Failed: no bus"):
        unit.install()
