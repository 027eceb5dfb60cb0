"""What goes into an image."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

from cloison.guest_tree import ARCHIVE, TOOLS, build_agent, guest_commands, guest_digest, guest_services, guest_tree
from cloison_agent.identity import parse_binds


def test_the_tree_is_the_same_every_time() -> None:
    assert guest_tree() == guest_tree()
    assert guest_digest() == guest_digest()


def test_every_link_leads_to_something_in_the_tree() -> None:
    tree = guest_tree()
    for path, (mode, target) in tree.items():
        if stat.S_ISLNK(mode) and not target.startswith(b"/dev/tcp/"):  # those name TCP services
            assert os.path.normpath(os.path.join(os.path.dirname(path), target.decode())) in tree, path


def test_what_only_dom0_may_ask_runs_as_root_and_is_known_to_the_policy() -> None:
    from cloison.policy.store import default_policy

    as_root = {path.rpartition("/")[2] for path, (_, text) in guest_tree().items() if b"force-user = 'root'" in text}
    assert {"qubes.SetDateTime", "qubes.PostInstall", "qubes.SuspendPreAll"} <= as_root <= set(guest_services())
    denied = {rule.service for rule in default_policy().rules}
    assert as_root - denied == set(), "a service that runs as root has a rule of its own"


def test_programs_may_be_run_and_settings_may_not() -> None:
    for path, (mode, content) in guest_tree().items():
        if stat.S_ISREG(mode):
            assert bool(mode & 0o100) == content.startswith(b"#!"), path


def test_archive_and_tools_run_before_and_after_they_were_compiled(tmp_path: Path) -> None:
    archive = tmp_path / "agent.pyz"
    build_agent(archive)
    for path, (mode, content) in guest_tree().items():
        if path.startswith(TOOLS):
            place = tmp_path / "tools" / path.removeprefix(f"{TOOLS}/")
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(content)
            place.chmod(stat.S_IMODE(mode))
    tool = tmp_path / "qrexec-client-vm"
    script = guest_tree()["/usr/bin/qrexec-client-vm"][1].decode()
    tool.write_text(script.replace(TOOLS, str(tmp_path / "tools")))
    service = tmp_path / "qubes.GetDate"
    service.symlink_to(archive)
    for _ in range(2):
        done = subprocess.run([sys.executable, "-IS", tool, "--help"], capture_output=True, timeout=60)
        assert done.returncode == 0 and done.stdout.startswith(b"usage: qrexec-client-vm")
        done = subprocess.run([sys.executable, "-IS", service], capture_output=True, timeout=60)
        assert done.returncode == 0 and len(done.stdout) == 26
        (command,) = guest_commands()
        words = [sys.executable, *(str(archive) if word == ARCHIVE else word for word in command[1:])]
        subprocess.run(words, check=True, timeout=60)
    assert archive.stat().st_mode & 0o111 and list(tmp_path.rglob("client*.pyc"))


def test_bind_dirs_are_read_without_a_shell() -> None:
    wanted: list[str] = []
    parse_binds("binds+=( '/a b' /c )\n# binds+=( /no )\n  binds+=( \"/d\" ) # why\n", wanted)
    assert wanted == ["/a b", "/c", "/d"]
    parse_binds("binds=()\nbinds+=( /e $(reboot) )", wanted)
    assert "/e" in wanted and "/a b" not in wanted
