"""Files opened elsewhere: what is sent, and what may come back."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cloison_tools import asking
from cloison_tools.client import REFUSED

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def remote(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[bytes]]:
    """Stands for the other qube: gets the stream, answers bytes and a code."""

    def answers(data: bytes, code: int = 0, meanwhile: Callable[[], object] = lambda: None) -> list[bytes]:
        seen: list[bytes] = []

        def call(target: str, service: str, stdin: int, stdout: int, prefix: bytes = b"") -> int:
            seen.append(prefix + os.read(stdin, 1 << 20))
            try:
                os.write(stdout, data)
            except OSError:
                return 125
            meanwhile()
            return code

        monkeypatch.setattr(asking, "_call", call)
        return seen

    return answers


def test_an_edited_file_takes_the_place_of_the_first_and_keeps_its_mode(
    tmp_path: Path, remote: Callable[..., list[bytes]]
):
    note, link = tmp_path / "note.txt", tmp_path / "link"
    note.write_text("old")
    note.chmod(0o640)
    os.symlink("note.txt", link)
    seen = remote(b"new")
    assert asking.open_in_disposable([str(link)]) == 0
    assert seen == [b"link".ljust(256, b"\0") + b"old"]
    assert (note.read_text(), note.stat().st_mode & 0o777, link.is_symlink()) == ("new", 0o640, True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "note.txt"]


def test_nothing_comes_back_from_a_look_a_failure_or_an_unchanged_file(
    tmp_path: Path, remote: Callable[..., list[bytes]], capfd: pytest.CaptureFixture[str]
):
    note = tmp_path / "note"
    note.write_text("old")
    seen = remote(b"new")
    assert asking.open_in_vm(["--view-only", "there", str(note)]) == 0
    assert seen[0].startswith(b"view-only-note\0")
    remote(b"half of the n", code=255)
    assert asking.open_in_disposable([str(note)]) == 255
    assert "not whole" in capfd.readouterr().err
    remote(b"")
    assert asking.open_in_disposable([str(note)]) == 0
    assert note.read_text() == "old"
    assert asking.open_in_disposable([str(tmp_path / "absent")]) == 1


def test_a_file_that_changed_here_meanwhile_is_not_overwritten(
    tmp_path: Path, remote: Callable[..., list[bytes]], capfd: pytest.CaptureFixture[str]
):
    note = tmp_path / "note"
    note.write_text("old")
    remote(b"new", meanwhile=lambda: note.write_text("changed here"))
    assert asking.open_in_disposable([str(note)]) == 0
    assert note.read_text() == "changed here"
    (kept,) = [path for path in tmp_path.iterdir() if path != note]
    assert kept.read_text() == "new" and kept.name in capfd.readouterr().err


def test_an_answer_without_end_is_cut_off_and_thrown_away(
    tmp_path: Path, remote: Callable[..., list[bytes]], monkeypatch: pytest.MonkeyPatch
):
    note = tmp_path / "note"
    note.write_text("old")
    monkeypatch.setattr(asking, "MAX_GROWTH_BYTES", 100)
    remote(b"x" * 1000, code=125)
    assert asking.open_in_disposable([str(note)]) == 125
    assert note.read_text() == "old"


def test_a_qube_that_shows_a_file_makes_no_further_disposable_unasked(tmp_path: Path) -> None:
    code = "import sys; from cloison_tools.asking import open_in_disposable; sys.exit(open_in_disposable(sys.argv[1:]))"
    for service in ("qubes.OpenInVM", "qubes.OpenURL"):
        environment = {"PYTHONPATH": str(ROOT / "guest"), "QREXEC_SERVICE_FULL_NAME": service}
        done = subprocess.run([sys.executable, "-c", code, "/etc/hostname"], env=environment, capture_output=True,
                              stdin=subprocess.DEVNULL, timeout=30)  # fmt: skip
        assert done.returncode == REFUSED and b"already" in done.stderr


def test_a_file_that_fills_the_disk_is_not_kept_by_the_qube_that_shows_it(tmp_path: Path):
    script = "import sys; from cloison_agent import opening as o; o.SPARE_BYTES = 1 << 62; sys.exit(o.serve_open(''))"
    environment = {"PYTHONPATH": f"{ROOT / 'guest'}:{ROOT / 'src'}", "TMPDIR": str(tmp_path), "PATH": os.defpath}
    stream = b"note".ljust(256, b"\0") + b"more than there is space for"
    done = subprocess.run(
        [sys.executable, "-c", script], input=stream, capture_output=True, env=environment, timeout=60
    )
    assert (done.returncode, done.stdout) == (1, b"") and b"larger than the space" in done.stderr
    assert list(tmp_path.iterdir()) == []
