"""`cloison compat install`, `status` and `uninstall`, in a directory that is the host."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., Any]


@pytest.fixture
def host(tmp_path: Path) -> Path:
    for name in ("etc", "run", "usr/lib", "usr/local/bin"):
        (tmp_path / "host" / name).mkdir(parents=True)
    (tmp_path / "host/etc/group").write_text("root:x:0:\n")
    return tmp_path / "host"


def files_of(host: Path) -> set[str]:
    return {str(path.relative_to(host)) for path in host.rglob("*") if path.is_symlink() or path.is_file()}


def test_what_was_installed_is_seen_and_goes_again(cloison: Run, host: Path, system: Any) -> None:
    assert cloison("compat", "status", "--prefix", str(host)).code == 1
    assert cloison("compat", "install", "--prefix", str(host)).code == 0
    assert (host / "run/qubesd.sock").readlink() == system.admin_socket
    assert os.access(host / "usr/lib/qubes/qrexec-client", os.X_OK)
    assert (host / "etc/group").read_text().startswith("root:x:0:\nqubes:x:98:")
    seen = cloison("compat", "status", "--json", "--prefix", str(host))
    assert (seen.code, set(json.loads(seen.out)["paths"].values())) == (0, {"ours"})
    assert cloison("compat", "install", "--prefix", str(host)).code == 0  # again is fine
    assert cloison("compat", "uninstall", "--prefix", str(host)).code == 0
    assert files_of(host) == {"etc/group"}
    assert not (host / "usr/lib/qubes").exists()
    assert (host / "usr/lib").exists()


def test_what_is_not_ours_is_never_replaced(cloison: Run, host: Path) -> None:
    (host / "etc/qubes-release").write_text("the real one\n")
    before = files_of(host)
    outcome = cloison("compat", "install", "--prefix", str(host))
    assert (outcome.code, "in the way: /etc/qubes-release" in outcome.err) == (1, True)
    assert files_of(host) == before


def test_what_was_changed_since_is_left(cloison: Run, host: Path) -> None:
    cloison("compat", "install", "--prefix", str(host))
    (host / "usr/lib/qubes/qrexec-client").write_text("mine\n")
    assert "foreign" in cloison("compat", "status", "--prefix", str(host)).out
    outcome = cloison("compat", "uninstall", "--prefix", str(host))
    assert (outcome.code, "/usr/lib/qubes/qrexec-client" in outcome.err) == (1, True)
    assert (host / "usr/lib/qubes/qrexec-client").read_text() == "mine\n"
    assert not (host / "etc/qubes-release").exists()


def test_a_helper_that_the_host_has_does_its_work(cloison: Run, host: Path) -> None:
    (host / "usr/local/bin/qvm-appmenus").write_text("theirs\n")
    assert cloison("compat", "install", "--prefix", str(host)).code == 0
    cloison("compat", "uninstall", "--prefix", str(host))
    assert (host / "usr/local/bin/qvm-appmenus").read_text() == "theirs\n"


def test_the_system_of_another_user_is_reached_as_that_user(cloison: Run, host: Path, monkeypatch: Any) -> None:
    monkeypatch.delenv("CLOISON_ROOT")
    assert cloison("compat", "install", "--user", "daemon", "--prefix", str(host)).code == 0
    program = host / "usr/lib/qubes/qrexec-client"
    assert "setpriv --reuid daemon" in program.read_text()
    assert subprocess.run(["sh", "-n", program]).returncode == 0
    assert str((host / "run/qubesd.sock").readlink()) == "/run/user/1/cloison/qubesd.sock"
    assert "L+ /run/qubesd.sock" in (host / "etc/tmpfiles.d/cloison-compat.conf").read_text()
    assert cloison("compat", "install", "--user", "no-such-user", "--prefix", str(host)).code == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root may")
def test_only_root_changes_the_host(cloison: Run) -> None:
    assert "only root" in cloison("compat", "install").err
