"""Cards of the host: what sysfs says of them, what stands in the way, and the step that takes root.

The kernel is played by a tree of files and by a watch on what is written into it.
"""

from __future__ import annotations

import errno
import os
import pwd
import resource
from pathlib import Path

import pytest

from cloison.drivers.pci import handing, host
from cloison.drivers.pci.handing import give_device, take_device_back
from cloison.drivers.pci.host import count_groups, list_network_cards, read_device
from cloison.drivers.pci.ready import find_free_group, raise_memory_lock
from cloison.errors import BackendFailed, BadRequest, CloisonError, NotNow, Refused

CARD, DISK, BRIDGE = "0000:02:00.0", "0000:03:00.0", "0000:00:1c.0"
ME = pwd.getpwuid(os.getuid()).pw_name
MIB = 1 << 20


class Bus:
    """A host's PCI bus as files; ``drivers_probe`` and ``unbind`` do what the kernel would."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self.devices = top / "sys/bus/pci/devices"
        self.drivers = top / "sys/bus/pci/drivers"
        self.own = {CARD: "e1000e", DISK: "ahci"}
        self.refuses = False
        for path in (self.devices, self.drivers, top / "sys/class/net", top / "dev/vfio"):
            path.mkdir(parents=True)

    def add(self, address: str, kind: str, driver: str = "", group: int | None = None) -> None:
        directory = self.devices / address
        directory.mkdir()
        for name, text in (("class", kind), ("vendor", "0x8086"), ("device", "0x10d3")):
            (directory / name).write_text(f"{text}\n")
        if group is not None:
            together = self.top / f"sys/kernel/iommu_groups/{group}/devices"
            together.mkdir(parents=True, exist_ok=True)
            (together / address).symlink_to(directory)
            (directory / "iommu_group").symlink_to(together.parent)
        if driver:
            self.bind(address, driver)

    def add_interface(self, address: str, name: str, *, up: bool) -> None:
        of_device, of_all = self.devices / address / "net" / name, self.top / "sys/class/net" / name
        for directory in (of_device, of_all):
            directory.mkdir(parents=True)
        (of_device / "ifindex").write_text("2\n")
        (of_all / "flags").write_text("0x1003\n" if up else "0x1002\n")

    def bind(self, address: str, driver: str) -> None:
        (self.drivers / driver).mkdir(exist_ok=True)
        (self.devices / address / "driver").symlink_to(self.drivers / driver)
        if driver == "vfio-pci":
            (self.top / "dev/vfio" / (self.devices / address / "iommu_group").readlink().name).touch()

    def write(self, path: Path, text: str) -> None:
        address = path.parent.name
        match path.name:
            case "driver_override":
                (self.devices / address / "driver_override").write_text(text)
            case "unbind":
                assert (self.devices / text / "driver").readlink() == path.parent
                (self.devices / text / "driver").unlink()
            case "drivers_probe":
                wanted = (self.devices / text / "driver_override").read_text().strip() or self.own[text]
                if not (self.refuses and wanted == "vfio-pci"):
                    self.bind(text, wanted)
            case _:
                raise AssertionError(path)


@pytest.fixture
def bus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bus:
    """A card with a group of its own behind a bridge, and a disk controller; root asks."""
    bus = Bus(tmp_path)
    bus.add(BRIDGE, "0x060400", "pcieport", group=7)
    bus.add(CARD, "0x020000", "e1000e", group=7)
    bus.add(DISK, "0x010601", "ahci", group=8)
    (bus.drivers / "vfio-pci").mkdir()
    for module in (host, handing):
        monkeypatch.setattr(module, "SYSTEM", tmp_path)
    monkeypatch.setattr(handing, "_write", bus.write)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(handing, "APPEARS_WITHIN_S", 0.1)
    return bus


def driver_of(address: str) -> str:
    return read_device(address).driver


def test_cards_and_their_groups_are_read_from_sysfs(bus: Bus) -> None:
    bus.add_interface(CARD, "eth0", up=True)
    (card,) = list_network_cards()
    assert (card.address, card.model, card.driver, card.group) == (CARD, "8086:10d3", "e1000e", 7)
    assert (card.companions, card.interfaces, card.active) == ((), ("eth0",), ("eth0",))
    assert count_groups() == 2


def test_a_host_without_a_bus_has_no_cards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "SYSTEM", tmp_path)
    assert list_network_cards() == [] and count_groups() == 0


def test_a_card_is_given_to_a_user_and_taken_back(bus: Bus) -> None:
    assert give_device(CARD, ME).is_handed
    status = (bus.top / "dev/vfio/7").stat()
    assert status.st_uid == os.getuid() and status.st_mode & 0o777 == 0o600
    assert find_free_group(CARD, "sys-net") == 7
    assert give_device(CARD, ME).is_handed, "again is fine"
    assert take_device_back(CARD).driver == "e1000e"


def test_what_fails_on_the_way_gives_the_card_back(bus: Bus) -> None:
    bus.refuses = True
    with pytest.raises(BackendFailed, match=f"vfio-pci did not take PCI device {CARD}"):
        give_device(CARD, ME)
    assert driver_of(CARD) == "e1000e"


def test_a_kernel_without_the_driver_leaves_the_card_alone(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    (bus.drivers / "vfio-pci").rmdir()
    monkeypatch.setattr(handing, "MODPROBE", ("false",))
    with pytest.raises(BackendFailed, match="no driver vfio-pci"):
        give_device(CARD, ME)
    assert driver_of(CARD) == "e1000e"


@pytest.mark.parametrize(
    ("address", "user", "guilty", "why"),
    [
        ("0000:09:00.0", ME, BadRequest, "no PCI device 0000:09:00.0"),
        (DISK, ME, BadRequest, "is no network card"),
        (CARD, "nobody-of-that-name", BadRequest, "no user 'nobody-of-that-name'"),
    ],
)
def test_what_cannot_be_given_is_refused(
    bus: Bus, address: str, user: str, guilty: type[CloisonError], why: str
) -> None:
    with pytest.raises(guilty, match=why):
        give_device(address, user)
    assert driver_of(CARD) == "e1000e" and driver_of(DISK) == "ahci"


def test_only_root_gives_and_takes_back(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    for act, command in (
        (lambda: give_device(CARD, "anna"), f"sudo cloison pci give {CARD} --to anna"),
        (lambda: take_device_back(CARD), f"sudo cloison pci take-back {CARD}"),
    ):
        with pytest.raises(Refused) as caught:
            act()
        assert caught.value.hint == command


def test_a_card_that_is_up_stays_with_the_host(bus: Bus) -> None:
    bus.add_interface(CARD, "eth0", up=True)
    with pytest.raises(NotNow, match="in use by the host: eth0 is up") as caught:
        give_device(CARD, ME)
    assert "ip link set eth0 down" in caught.value.hint
    assert driver_of(CARD) == "e1000e"


def test_a_card_that_shares_its_group_is_named_with_its_companions(bus: Bus) -> None:
    bus.add("0000:02:00.1", "0x040300", group=7)
    with pytest.raises(NotNow, match=r"shares its IOMMU group 7 with 0000:02:00\.1"):
        give_device(CARD, ME)


def test_a_card_without_an_iommu_is_never_given(bus: Bus) -> None:
    (bus.devices / CARD / "iommu_group").unlink()
    with pytest.raises(NotNow, match="not behind an IOMMU"):
        give_device(CARD, ME)
    with pytest.raises(NotNow, match="not behind an IOMMU"):
        find_free_group(CARD, "sys-net")


def test_a_card_that_nobody_gave_is_not_started_with(bus: Bus) -> None:
    with pytest.raises(
        NotNow, match=f"sys-net cannot have PCI device {CARD}: the host's driver e1000e has it"
    ) as caught:
        find_free_group(CARD, "sys-net")
    assert caught.value.hint == f"sudo cloison pci give {CARD} --to {ME}"
    (bus.devices / CARD / "driver").unlink()
    with pytest.raises(NotNow, match="it was not given to anybody"):
        find_free_group(CARD, "sys-net")


@pytest.mark.parametrize(
    ("number", "why"),
    [(errno.EBUSY, "another qube has it"), (errno.EACCES, f"it was not given to {ME}"), (errno.EIO, "Input/output")],
)
def test_a_group_that_does_not_open_says_why(bus: Bus, monkeypatch: pytest.MonkeyPatch, number: int, why: str) -> None:
    give_device(CARD, ME)

    def refuse(path: object, flags: int) -> int:
        raise OSError(number, os.strerror(number), path)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(NotNow, match=why):
        find_free_group(CARD, "sys-net")


def test_a_card_in_a_running_qube_is_not_taken_back(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NotNow, match="is not handed over"):
        take_device_back(CARD)
    give_device(CARD, ME)
    monkeypatch.setattr(handing, "_is_open", lambda file: True)
    with pytest.raises(NotNow, match="is in a running qube"):
        take_device_back(CARD)
    assert driver_of(CARD) == "vfio-pci"


@pytest.mark.parametrize(
    ("soft", "hard", "raised"),
    [
        (8 * MIB, 1024 * MIB, 1024 * MIB),
        (8 * MIB, resource.RLIM_INFINITY, resource.RLIM_INFINITY),
        (resource.RLIM_INFINITY, resource.RLIM_INFINITY, None),
        (1024 * MIB, 1024 * MIB, None),
    ],
)
def test_lockable_memory_is_raised_as_far_as_the_user_may(
    monkeypatch: pytest.MonkeyPatch, soft: int, hard: int, raised: int | None
) -> None:
    limits: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda which: (soft, hard))
    monkeypatch.setattr(resource, "setrlimit", lambda which, limit: limits.append(limit))
    raise_memory_lock(512, "sys-net")
    assert limits == ([] if raised is None else [(raised, hard)])


def test_too_little_lockable_memory_is_named_with_what_allows_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda which: (8 * MIB, 8 * MIB))
    with pytest.raises(NotNow, match=r"sys-net needs 576 MiB .* may lock 8 MiB \(RLIMIT_MEMLOCK\)") as caught:
        raise_memory_lock(512, "sys-net")
    assert f"prlimit --pid {os.getpid()} --memlock={576 * MIB}" in caught.value.hint
    assert f"{ME} - memlock {576 * 1024}" in caught.value.hint
