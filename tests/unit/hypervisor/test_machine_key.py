"""The key of a fork point holds everything that must be equal, and nothing that need not be."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from cloison.drivers.hypervisor import probe
from cloison.drivers.hypervisor.base import Accelerator, Frozen, MachineSpec
from cloison.drivers.hypervisor.plan import Host
from cloison.drivers.hypervisor.process import read_boot_id
from cloison.drivers.hypervisor.qemu import QemuHypervisor
from cloison.errors import BackendFailed

HOST = Host(Accelerator.EMULATION, (7, 2), "QEMU emulator version 7.2.22", "cpu one")


def hypervisor(monkeypatch: pytest.MonkeyPatch, host: Host = HOST) -> QemuHypervisor:
    async def find_host(cache: Path, *, wished: Accelerator | None = None) -> Host:
        return host

    monkeypatch.setattr(probe, "find_host", find_host)
    return QemuHypervisor(Path("/nowhere"))


@pytest.fixture
def spec(tmp_path: Path) -> MachineSpec:
    (tmp_path / "kernel").write_bytes(b"kernel")
    (tmp_path / "initrd").write_bytes(b"initrd")
    return MachineSpec(512, 1, tmp_path / "kernel", tmp_path / "initrd", "quiet")


async def test_what_shapes_the_machine_changes_the_key(spec: MachineSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = hypervisor(monkeypatch, replace(HOST, accelerator=Accelerator.KVM))
    others = [
        replace(spec, memory_mib=1024),
        replace(spec, vcpus=2),
        replace(spec, kernel_options="debug"),
        replace(spec, kernel=spec.initrd),
        replace(spec, initrd=None),
    ]
    keys = [await driver.machine_key(each) for each in (spec, *others)]
    assert len(set(keys)) == len(keys)


async def test_an_old_emulator_has_one_processor_for_every_machine(
    spec: MachineSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    for version, alike in (((7, 2), True), ((8, 1), False)):
        driver = hypervisor(monkeypatch, replace(HOST, accelerator=Accelerator.EMULATION, qemu_version=version))
        one, two = [await driver.machine_key(replace(spec, vcpus=vcpus)) for vcpus in (1, 2)]
        assert (one == two) is alike


async def test_another_qemu_or_accelerator_changes_the_key(spec: MachineSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    hosts = [
        HOST,
        replace(HOST, qemu_text="QEMU emulator version 7.2.23"),
        replace(HOST, accelerator=Accelerator.KVM),
        replace(HOST, accelerator=Accelerator.KVM, cpu_identity="cpu two"),
    ]
    keys = [await hypervisor(monkeypatch, host).machine_key(spec) for host in hosts]
    assert len(set(keys)) == len(keys)


async def test_an_emulated_guest_does_not_care_about_the_physical_processor(
    spec: MachineSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = replace(HOST, cpu_identity="cpu two", why="else")
    assert await hypervisor(monkeypatch).machine_key(spec) == await hypervisor(monkeypatch, other).machine_key(spec)


async def test_the_kernels_bytes_count_and_not_its_path(
    spec: MachineSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = hypervisor(monkeypatch)
    before = await driver.machine_key(spec)
    (tmp_path / "copy").write_bytes(b"kernel")
    assert await driver.machine_key(replace(spec, kernel=tmp_path / "copy")) == before
    (tmp_path / "kernel").write_bytes(b"a newer one")
    assert await driver.machine_key(spec) != before


async def test_one_fork_point_serves_with_and_without_sharing(
    spec: MachineSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = hypervisor(monkeypatch)
    assert await driver.machine_key(spec) == await driver.machine_key(replace(spec, share_memory=False))


async def test_a_fork_of_another_machine_is_refused(
    spec: MachineSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BackendFailed, match="different machine"):
        frozen = Frozen(tmp_path / "memory", tmp_path / "state", "another key")
        await hypervisor(monkeypatch).fork(spec, (), frozen, tmp_path, name="work")


@pytest.mark.parametrize(
    "changed", [{"driver": "xen"}, {"boot": "another"}, {"pid": "1"}, {"started": None}, {"pid": 1, "started": -1}]
)
async def test_a_record_of_something_else_is_not_adopted(
    changed: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    record = {"driver": "qemu", "boot": read_boot_id(), "pid": 1, "started": 1, "directory": "/x", "name": "x"}
    assert await hypervisor(monkeypatch).adopt({**record, **changed}) is None  # type: ignore[dict-item]
