"""What pip installs is whole: the guest's sources and the default policy are in it."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from cloison.guest_tree import guest_directory

TOP = Path(__file__).parents[3]


def test_a_wheel_has_all_that_templates_are_made_of(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in ("src", "guest"):
        shutil.copytree(TOP / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(TOP / name, source)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*command, "-w", str(tmp_path), str(source)], check=True, timeout=120, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        packed = {info.filename: info.external_attr >> 16 & 0o777 for info in archive.infolist()}
    for path in guest_directory().rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            name = f"cloison/_guest/{path.relative_to(guest_directory())}"
            assert packed.get(name, 0) & 0o111 == path.stat().st_mode & 0o111, name
    assert "cloison/policy/defaults/90-default.policy" in packed
