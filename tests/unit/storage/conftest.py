"""A pool in a temporary directory, and a guest that is only qemu-io: it reads and writes real images."""

from __future__ import annotations

import json
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cloison.drivers.storage.base import Chain, VolumeSpec
from cloison.drivers.storage.qcow2 import Qcow2Pool
from cloison.model.volumes import VolumeKind

MIB = 1 << 20


class Guest:
    """Opens a chain as the hypervisor does: by path, every layer named, secrets beside."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def run(self, chain: Chain, *commands: str) -> str:
        arguments, node = [], None
        for depth in reversed(range(len(chain))):
            layer = chain[depth]
            this: dict[str, object] = {
                "driver": layer.format,
                "file": {"driver": "file", "filename": str(layer.path), "locking": "off"},
                "backing": node,
            }
            if layer.secret is not None:
                key = self._directory / f"key{depth}"
                key.write_bytes(layer.secret)
                arguments += ["--object", f"secret,id=key{depth},file={key}"]
                this["encrypt"] = {"format": "luks", "key-secret": f"key{depth}"}
            node = this
        for command in commands:
            arguments += ["-c", command]
        done = subprocess.run(["qemu-io", *arguments, "json:" + json.dumps(node)], capture_output=True, text=True)
        assert done.returncode == 0 and "failed" not in done.stdout + done.stderr, done.stdout + done.stderr
        return done.stdout

    def write(self, chain: Chain, pattern: int, at: int = MIB, length: int = 65536) -> None:
        self.run(chain, f"write -P {pattern} {at} {length}", "flush")

    def shows(self, chain: Chain, pattern: int, at: int = MIB, length: int = 65536) -> bool:
        return "Pattern verification failed" not in self.run_loose(chain, f"read -P {pattern} {at} {length}")

    def shows_all(self, chain: Chain, patterns: dict[int, int]) -> bool:
        """Like ``shows``, for several places at once: offset -> pattern."""
        reads = [f"read -P {pattern} {at} 65536" for at, pattern in patterns.items()]
        return "Pattern verification failed" not in self.run_loose(chain, *reads)

    def run_loose(self, chain: Chain, *commands: str) -> str:
        try:
            return self.run(chain, *commands)
        except AssertionError as error:
            return str(error)


@pytest.fixture
def guest(tmp_path: Path) -> Guest:
    directory = tmp_path / "guest"
    directory.mkdir()
    return Guest(directory)


@pytest.fixture
async def pool(tmp_path: Path) -> AsyncIterator[Qcow2Pool]:
    pool = Qcow2Pool("main", tmp_path / "pool")
    pool.wake()
    yield pool
    await pool.close()


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A small template image: pattern 1 at 1 MiB."""
    path = tmp_path / "image.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(path), "64M"], check=True)
    subprocess.run(["qemu-io", "-c", "write -P 1 1M 1M", str(path)], check=True, stdout=subprocess.DEVNULL)
    path.chmod(0o444)
    return path


def kept(vid: str = "appvms/work/private", size: int = 64 * MIB, **more: object) -> VolumeSpec:
    return VolumeSpec(vid, VolumeKind.KEPT, size, **more)  # type: ignore[arg-type]


def shared(vid: str, size: int = 64 * MIB, **more: object) -> VolumeSpec:
    """A volume whose image may be shared: not encrypted, like the roots of templates."""
    return kept(vid, size, encrypted=False, **more)


def snapshot(vid: str, source: str, **more: object) -> VolumeSpec:
    return VolumeSpec(vid, VolumeKind.SNAPSHOT, 64 * MIB, source, **more)  # type: ignore[arg-type]


def volatile(vid: str = "appvms/work/volatile", **more: object) -> VolumeSpec:
    return VolumeSpec(vid, VolumeKind.VOLATILE, 64 * MIB, **more)  # type: ignore[arg-type]


def run_tool(*command: str | Path) -> str:
    """A program that must end well; what it printed."""
    return subprocess.run([str(word) for word in command], capture_output=True, text=True, check=True).stdout
