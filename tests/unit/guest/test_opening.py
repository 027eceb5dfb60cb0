"""The serving side of qubes.OpenInVM and qubes.OpenURL: payloads of whoever calls."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
SERVE = """
import sys
from cloison_agent import opening
opening._OPENER = sys.argv[1]
sys.exit(getattr(opening, sys.argv[2])(""))
"""


def serve(
    tmp_path: Path, what: str, payload: bytes, opener: str = 'printf %s "$1" > "$HOME/seen"'
) -> tuple[int, bytes]:
    program = tmp_path / "opener"
    program.write_text(f"#!/bin/sh\n{opener}\n")
    program.chmod(0o755)
    environment = {"HOME": str(tmp_path), "TMPDIR": str(tmp_path / "tmp"), "QREXEC_REMOTE_DOMAIN": "work",
                   "PYTHONPATH": f"{ROOT / 'guest'}:{ROOT / 'src'}", "PATH": os.defpath}  # fmt: skip
    (tmp_path / "tmp").mkdir(exist_ok=True)
    done = subprocess.run([sys.executable, "-c", SERVE, str(program), what], input=payload, capture_output=True,
                          env=environment, timeout=30)  # fmt: skip
    return done.returncode, done.stdout


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        (b"letter.txt", "letter.txt"),
        (b"../../etc/passwd", "_._.._etc_passwd"),
        (b"/etc/passwd", "_etc_passwd"),
        (b"..", "_."),
        (b".bashrc", "_bashrc"),
        (b"", "file"),
        (b"a b\x1b[31m\n.txt", "a_b__31m_.txt"),
        ("l\u202etxt.exe".encode(), "l___txt.exe"),
        (b"--help", "--help"),
        (b"x" * 256, "x" * 255),
    ],
)
def test_a_name_becomes_plain_letters_in_a_directory_of_its_own(tmp_path: Path, name: bytes, safe: str) -> None:
    assert serve(tmp_path, "serve_open", name.ljust(256, b"\0") + b"content") == (0, b"")
    seen = Path((tmp_path / "seen").read_text())
    assert seen.name == safe
    assert seen.parent.parent == tmp_path / "tmp" and seen.parent.name.startswith("work-")
    assert seen.read_bytes() == b"content"


def test_only_a_changed_file_goes_back(tmp_path: Path) -> None:
    header = b"note".ljust(256, b"\0")
    edit, swap = 'echo more >> "$1"', 'echo new > "$1.tmp"; mv "$1.tmp" "$1"'
    assert serve(tmp_path, "serve_open", header + b"text\n", edit) == (0, b"text\nmore\n")
    assert serve(tmp_path, "serve_open", header + b"text\n", swap) == (0, b"new\n")
    assert serve(tmp_path, "serve_open", header + b"text\n", 'rm "$1"; ln -s /etc/passwd "$1"') == (0, b"")
    view_only = b"view-only-note".ljust(256, b"\0")
    assert serve(tmp_path, "serve_open", view_only + b"text\n", f'chmod 600 "$1"; {edit}') == (0, b"")
    assert serve(tmp_path, "serve_open", header + b"text\n", "exit 4") == (4, b"")


@pytest.mark.parametrize("line", [b"http://x.org/a?b#c\n", b"https://x", b"ftp://x\r\n"])
def test_addresses_of_the_web_are_opened(tmp_path: Path, line: bytes) -> None:
    assert serve(tmp_path, "serve_url", line)[0] == 0
    assert (tmp_path / "seen").read_bytes() == line.strip()


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"file:///etc/passwd\n",
        b"javascript:x()\n",
        b"HTTP://x\n",
        b"http://\n",
        b"http://x y\n",
        b"http://x\x1b[m\n",
        b"http://x\0\n",
        "http://x\u202e\n".encode(),
        b"-http://x\n",
        b"\nhttp://x\n",
        b"http://" + b"x" * (1 << 20),
    ],
    ids=lambda line: repr(line[:20]),
)
def test_nothing_else_is(tmp_path: Path, line: bytes) -> None:
    assert serve(tmp_path, "serve_url", line)[0] == 1
    assert not (tmp_path / "seen").exists()
