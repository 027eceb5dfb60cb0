"""Whether KVM works is found out by running a guest, and asked again only when the answer may have changed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from cloison.drivers.hypervisor import probe, probe_guest
from cloison.drivers.hypervisor.base import Accelerator
from cloison.errors import BackendFailed

VERSION = "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every question put to KVM; it never works here."""
    questions: list[str] = []

    async def version() -> str:
        return VERSION

    async def ask() -> tuple[bool, str]:
        questions.append("kvm?")
        return False, "it hangs"

    monkeypatch.setattr(probe, "read_version", version)
    monkeypatch.setattr(probe, "probe_kvm", ask)
    return questions


async def test_the_answer_is_remembered(tmp_path: Path, asked: list[str]) -> None:
    first = await probe.find_host(tmp_path / "cache")
    second = await probe.find_host(tmp_path / "cache")
    assert first == second
    assert (first.accelerator, first.qemu_version, first.why) == (Accelerator.EMULATION, (7, 2), "it hangs")
    assert asked == ["kvm?"]


async def test_after_a_reboot_it_is_asked_again(
    tmp_path: Path, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    await probe.find_host(tmp_path)
    monkeypatch.setattr(probe, "read_boot_id", lambda: "another boot")
    await probe.find_host(tmp_path)
    assert len(asked) == 2


@pytest.mark.parametrize("nonsense", ["", "[]", "{", '{"key": 1}', "null"])
async def test_a_damaged_memory_is_no_answer(tmp_path: Path, asked: list[str], nonsense: str) -> None:
    (tmp_path / probe.ANSWER_FILE).write_text(nonsense)
    await probe.find_host(tmp_path)
    assert asked == ["kvm?"]


async def test_a_cache_that_cannot_be_written_is_no_error(tmp_path: Path, asked: list[str]) -> None:
    (tmp_path / "file").write_text("")
    await probe.find_host(tmp_path / "file")
    assert asked == ["kvm?"]


@pytest.mark.parametrize(("text", "version"), [(VERSION, (7, 2)), ("QEMU emulator version 10.0.2 (v10.0.2)", (10, 0))])
def test_versions_are_read(text: str, version: tuple[int, int]) -> None:
    assert probe.parse_version(text) == version


def test_a_program_that_is_no_qemu_is_refused() -> None:
    with pytest.raises(BackendFailed, match="does not tell its version"):
        probe.parse_version("hello")


def test_the_firmware_is_whole() -> None:
    image = probe_guest.build_firmware()
    assert len(image) == probe_guest.SIZE_BYTES
    assert image[0xFFF0] == 0xEA, "a far jump at the reset vector"
    assert probe_guest.exit_code(probe_guest.SUCCESS) == 85


@pytest.mark.skipif(shutil.which("as") is None or shutil.which("ld") is None, reason="no assembler here")
def test_the_bytes_are_those_of_the_source(tmp_path: Path) -> None:
    source = Path(probe_guest.__file__).with_suffix(".S")
    subprocess.run(["as", "--64", "-o", tmp_path / "o", source], check=True)
    subprocess.run(
        ["ld", "-e", "0", "-Ttext=0", "--oformat=binary", "-o", tmp_path / "bin", tmp_path / "o"], check=True
    )
    assert (tmp_path / "bin").read_bytes() == probe_guest.CODE
