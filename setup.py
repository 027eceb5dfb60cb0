"""A wheel carries the guest's sources beside the package: templates are made with them."""

from __future__ import annotations

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithGuest(build_py):
    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            place = Path(self.build_lib) / "cloison/_guest"
            shutil.rmtree(place, ignore_errors=True)
            shutil.copytree("guest", place, ignore=shutil.ignore_patterns("__pycache__"))


setup(cmdclass={"build_py": BuildWithGuest})
