"""Kernels for direct boot, taken out of templates when they are built or committed.

In: kernel and initrd files. Out: named pairs that machines boot. May import: errors.

A kernel is a directory named ``VERSION-DIGEST``; it is immutable, so machines and fork points may rely on its name.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cloison.errors import BadRequest

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,79}", re.ASCII)


@dataclass(frozen=True)
class Kernel:
    name: str
    vmlinuz: Path
    initrd: Path


class Kernels:
    """The kernels of one system (the pool that the Admin API calls ``linux-kernel``)."""

    def __init__(self, directory: Path, *, told: Callable[[tuple[str, ...]], None] = lambda names: None) -> None:
        """``told`` hears the names of all kernels, now and whenever they change."""
        self._directory = directory
        self._told = told
        told(tuple(self.names()))

    def add(self, version: str, vmlinuz: Path, initrd: Path) -> Kernel:
        """Keep copies of the two files (hard links where possible); the same pair is kept once."""
        digest = hashlib.sha256()
        for path in (vmlinuz, initrd):
            digest.update(hashlib.sha256(path.read_bytes()).digest())
        label = re.sub(r"[^A-Za-z0-9._+-]", "_", version)[:60].lstrip("._+-") or "kernel"
        name = f"{label}-{digest.hexdigest()[:12]}"
        final = self._directory / name
        if not final.exists():
            self._directory.mkdir(parents=True, exist_ok=True)
            work = self._directory / f".{name}.{os.getpid()}"
            shutil.rmtree(work, ignore_errors=True)
            work.mkdir()
            try:
                _link_or_copy(vmlinuz, work / "vmlinuz")
                _link_or_copy(initrd, work / "initrd")
                with contextlib.suppress(FileExistsError):
                    work.rename(final)
            finally:
                shutil.rmtree(work, ignore_errors=True)
            self._told(tuple(self.names()))
        return Kernel(name, final / "vmlinuz", final / "initrd")

    def find(self, name: str) -> Kernel | None:
        if not _NAME.fullmatch(name) or not (self._directory / name / "vmlinuz").is_file():
            return None
        return Kernel(name, self._directory / name / "vmlinuz", self._directory / name / "initrd")

    def get(self, name: str) -> Kernel:
        """The kernel, or BadRequest naming the ones there are."""
        if (kernel := self.find(name)) is None:
            raise BadRequest(
                f"there is no kernel {name[:80]!a}", hint=f"there are: {', '.join(self.names()) or 'none'}"
            )
        return kernel

    def assign(self, template: str, kernel: Kernel) -> None:
        """From now on ``kernel`` is the template's own."""
        directory = self._directory / ".of"
        directory.mkdir(parents=True, exist_ok=True)
        work = directory / f".{template}.{os.getpid()}"
        work.write_text(kernel.name)
        work.replace(directory / template)

    def of_template(self, template: str) -> Kernel | None:
        """The kernel that came with the template's image, if it had one."""
        try:
            return self.find((self._directory / ".of" / template).read_text())
        except FileNotFoundError:
            return None

    def share(self, template: str, new: str) -> None:
        """What is known of ``template`` is known of ``new`` too (a clone, or its next name)."""
        if (kernel := self.of_template(template)) is not None:
            self.assign(new, kernel)

    def forget(self, template: str) -> None:
        """The qube is gone. Its kernel stays: others may boot it, and it is small."""
        (self._directory / ".of" / template).unlink(missing_ok=True)

    def names(self) -> list[str]:
        """All kernel names, sorted."""
        if not self._directory.is_dir():
            return []
        return sorted(p.name for p in self._directory.iterdir() if _NAME.fullmatch(p.name))

    def remove(self, name: str) -> None:
        """Forget a kernel; no error if there is none. Running machines have read it already."""
        if _NAME.fullmatch(name):
            shutil.rmtree(self._directory / name, ignore_errors=True)
            self._told(tuple(self.names()))


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
