"""The command line is a pure function of the plan, and forks match what they are forked from.

``UPDATE_GOLDEN=1 pytest tests/unit/hypervisor`` rewrites the golden files; read the difference before you keep it.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from cloison.drivers.hypervisor.base import Accelerator, Disk, MachineSpec
from cloison.drivers.hypervisor.plan import (
    Descriptors,
    Host,
    Start,
    cpu_model,
    find_handed,
    plan_command,
    plan_kernel_options,
)
from cloison.drivers.storage.base import DiskLayer
from cloison.errors import BadRequest

GOLDEN = Path(__file__).parent / "golden"
SPEC = MachineSpec(512, 2, Path("/images/vmlinuz"), Path("/images/initrd"), "quiet")
CARD = "0000:02:00.0"
WITH_CARD = replace(SPEC, pci=(CARD,))
DISKS = (
    Disk(
        "root",
        (
            DiskLayer(Path("/run/top.qcow2"), "qcow2", unlinked=True),
            DiskLayer(Path("/pool/revision.qcow2"), "qcow2"),
            DiskLayer(Path("/pool/base.raw"), "raw"),
        ),
    ),
    Disk("private", (DiskLayer(Path("/pool/private.qcow2"), "qcow2", secret=b"key"),)),
)
FDS = Descriptors(
    qmp=10,
    agent=11,
    console=12,
    layers={"root": (20, 21, 22), "private": (23,)},
    secrets={"root": (None, None, None), "private": (24,)},
    device_state=30,
)
HOSTS = {
    "kvm": Host(Accelerator.KVM, (10, 0), "QEMU emulator version 10.0.2"),
    "tcg": Host(Accelerator.EMULATION, (7, 2), "QEMU emulator version 7.2.22"),
}


def plan(host: str, start: Start, spec: MachineSpec = SPEC, disks: tuple[Disk, ...] = DISKS) -> list[str]:
    return plan_command(spec, HOSTS[host], disks, FDS, start, name="work")


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("start", Start)
def test_the_command_line_is_the_golden_one(host: str, start: Start) -> None:
    golden = GOLDEN / f"{host}-{start.name.lower().replace('_', '-')}.txt"
    text = "\n".join(plan(host, start)) + "\n"
    if os.environ.get("UPDATE_GOLDEN"):
        golden.write_text(text)
    assert text == golden.read_text()


def test_a_machine_with_a_card_of_the_host_is_the_golden_one() -> None:
    golden = GOLDEN / "kvm-boot-with-pci.txt"
    text = "\n".join(plan("kvm", Start.BOOT, WITH_CARD)) + "\n"
    if os.environ.get("UPDATE_GOLDEN"):
        golden.write_text(text)
    assert text == golden.read_text()


def test_a_card_of_the_host_adds_itself_and_takes_the_balloon_away() -> None:
    with_card, without = plan("kvm", Start.BOOT, WITH_CARD), plan("kvm", Start.BOOT)
    (added,) = set(with_card) - set(without)
    assert added.startswith("vfio-pci,") and f"sysfsdev=/pci/{CARD}," in added
    (gone,) = set(without) - set(with_card)
    assert gone.startswith("virtio-balloon")


def test_a_card_is_found_again_by_its_id() -> None:
    (device,) = [word for word in plan("kvm", Start.BOOT, WITH_CARD) if word.startswith("vfio-pci")]
    name = device.split("id=")[1].split(",")[0]
    assert find_handed(name) == (CARD, "0000:00:10.3")
    assert find_handed("nic-uplink") is None


@pytest.mark.parametrize(
    ("host", "start", "why"),
    [
        ("tcg", Start.BOOT, "that needs KVM"),
        ("kvm", Start.FORK, "can only boot"),
        ("kvm", Start.BOOT_TO_FREEZE, "can only boot"),
    ],
)
def test_a_card_of_the_host_needs_kvm_and_a_boot(host: str, start: Start, why: str) -> None:
    with pytest.raises(BadRequest, match=why):
        plan(host, start, WITH_CARD)


def test_there_are_no_more_cards_than_places() -> None:
    with pytest.raises(BadRequest, match="room for 4"):
        plan("kvm", Start.BOOT, replace(SPEC, pci=(CARD,) * 5))


@pytest.mark.parametrize("host", HOSTS)
def test_a_fork_has_the_devices_of_the_machine_it_was_frozen_from(host: str) -> None:
    def devices(start: Start) -> list[str]:
        command = plan(host, start)
        return [command[i + 1] for i, word in enumerate(command) if word in ("-device", "-cpu", "-smp", "-m", "-accel")]

    assert devices(Start.FORK) == devices(Start.BOOT_TO_FREEZE)


@pytest.mark.parametrize("start", Start)
def test_every_device_has_an_id_and_every_pci_device_an_address(start: Start) -> None:
    command = plan("tcg", start)
    devices = [command[i + 1] for i, word in enumerate(command) if word == "-device"]
    assert all(",id=" in device for device in devices)
    pci = [device for device in devices if "pci" in device]
    assert pci and all("bus=pcie.0,addr=" in device for device in pci)
    addresses = [device.partition("addr=")[2].split(",")[0] for device in pci]
    assert len(set(addresses)) == len(addresses)


def test_no_host_path_and_no_key_is_on_the_command_line() -> None:
    text = " ".join(plan("tcg", Start.BOOT))
    assert "/pool" not in text and "/images" not in text and "/run" not in text and "=key" not in text


def test_only_the_top_layer_is_writable() -> None:
    command = plan("tcg", Start.FORK)
    nodes = [json.loads(command[i + 1]) for i, word in enumerate(command) if word == "-blockdev"]
    writable = {node["node-name"] for node in nodes if not node["read-only"]}
    assert writable == {"root0", "root0-file", "private0", "private0-file"}


def test_a_chain_ends_at_its_base_whatever_the_image_file_says() -> None:
    command = plan("tcg", Start.FORK)
    nodes = {n["node-name"]: n for n in (json.loads(command[i + 1]) for i, w in enumerate(command) if w == "-blockdev")}
    assert nodes["root0"]["backing"] == "root1" and nodes["root1"]["backing"] == "root2"
    assert nodes["private0"]["backing"] is None
    assert all("locking" in node for node in nodes.values() if node["driver"] == "file")


def test_only_data_that_is_thrown_away_is_not_flushed() -> None:
    command = plan("tcg", Start.FORK)
    nodes = [json.loads(command[i + 1]) for i, word in enumerate(command) if word == "-blockdev"]
    assert {node["node-name"] for node in nodes if node["cache"]["no-flush"]} == {"root0", "root0-file"}


def test_the_broken_instruction_of_an_old_emulator_is_hidden_from_guests() -> None:
    assert "-cx16" in cpu_model(HOSTS["tcg"])
    assert "cx16" not in cpu_model(replace(HOSTS["tcg"], qemu_version=(10, 0)))
    assert cpu_model(HOSTS["kvm"]).startswith("host")


def test_the_qubes_own_kernel_options_come_last_and_win() -> None:
    options = plan_kernel_options(replace(SPEC, kernel_options="root=/dev/vdb  debug"), HOSTS["kvm"]).split()
    assert options[-2:] == ["root=/dev/vdb", "debug"] and options[0] == "root=/dev/vda"
    assert "mitigations=off" not in options


def test_a_fork_that_may_not_share_memory_copies_it() -> None:
    command = plan("tcg", Start.FORK, replace(SPEC, share_memory=False))
    assert any("share=off,prealloc=on" in word for word in command)


def test_an_imported_system_boots_from_its_own_disk() -> None:
    command = plan("tcg", Start.BOOT, replace(SPEC, kernel=None, initrd=None))
    assert "-kernel" not in command and "-append" not in command
    assert any("serial=root" in word and "bootindex=" in word for word in command)


def test_a_comma_in_a_name_does_not_start_another_option() -> None:
    command = plan_command(SPEC, HOSTS["tcg"], (), FDS, Start.BOOT, name="a,debug-threads=on")
    assert command[command.index("-name") + 1] == "guest=a,,debug-threads=on"


@pytest.mark.parametrize(
    "spec",
    [
        replace(SPEC, memory_mib=0),
        replace(SPEC, memory_mib=1 << 30),
        replace(SPEC, vcpus=0),
        replace(SPEC, vcpus=1000),
        replace(SPEC, kernel_options="a\nb"),
        replace(SPEC, kernel_options="a\0b"),
    ],
)
def test_a_machine_that_cannot_be_is_refused(spec: MachineSpec) -> None:
    with pytest.raises(BadRequest):
        plan("tcg", Start.BOOT, spec)


@pytest.mark.parametrize("slots", [("cdrom",), ("root", "root")])
def test_disks_are_at_known_places_once(slots: tuple[str, ...]) -> None:
    with pytest.raises(BadRequest):
        plan("tcg", Start.BOOT, disks=tuple(Disk(slot, DISKS[1].chain) for slot in slots))
