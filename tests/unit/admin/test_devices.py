"""What is exposed and attached, in the wire forms of clients; devices that keep real state, without machines."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cloison.admin.dispatch import Admin
from cloison.engine.devices import Attached, Exposed
from cloison.errors import BackendFailed
from cloison.model.names import DOM0, QubeName

STICK = Exposed("block", DOM0, "sda", ":None", {"serial": "It's mine", "interfaces": "b******"})
IMAGE = Exposed("block", DOM0, "loop0", "file:1")


class Shelf:
    """Devices of dom0."""

    def __init__(self) -> None:
        self.held: dict[str, Attached] = {}
        self.broken = False

    def exposed(self, backend, devclass):
        return [device for device in (STICK, IMAGE) if (backend, devclass) == (device.backend, device.devclass)]

    def trouble(self, backend, devclass, port):
        return ""

    def expose(self, path, port, *, read_only):
        self.given = (str(path), port, read_only)
        return Exposed("block", DOM0, port or path.name, "image:1")

    def hide(self, port):
        self.given = port

    def attached(self, devclass):
        return [held for held in self.held.values() if held.device.devclass == devclass]

    async def attach(self, frontend, device, options):
        if self.broken:
            raise BackendFailed("no place is free")
        assert device.port not in self.held
        self.held[device.port] = Attached(device, frontend, options)

    async def detach(self, attached):
        self.held.pop(attached.device.port, None)


@pytest.fixture
def shelf(house):
    found = Shelf()
    house.admin = Admin(replace(house.admin.desk, devices=found, shelf=found))
    return found


async def names_told(house, act):
    subscription = house.ledger.bus.subscribe()
    await act
    return [type(event).__name__ for event in subscription.take_waiting()]


async def test_what_is_there_is_listed_as_clients_read_it(house, shelf):
    first = "loop0:file:1 device_id='file:1' port_id='loop0' devclass='block' backend_domain='dom0'\n"
    second = (
        "sda::None device_id=':None' port_id='sda' devclass='block' backend_domain='dom0' serial='It\\'s mine' "
        "interfaces='b******'\n"
    )
    assert await house.ok("admin.vm.device.block.Available") == first + second
    assert await house.ok("admin.vm.device.block.Available", arg="sda") == second
    assert await house.ok("admin.vm.device.usb.Available") == ""
    assert await house.ok("admin.vm.device.block.Available", "work") == ""
    assert await house.error("admin.vm.device.block.Available", arg="../x") == "ProtocolError"


async def test_a_device_is_attached_and_detached(house, shelf):
    call = ("admin.vm.device.block.Attach", "work", "dom0+sda++None")
    assert await house.error(*call) == "QubesVMNotRunningError"
    await house.ok("admin.vm.Start", "work")
    await house.ok("admin.vm.Start", "dvm")
    told = await names_told(house, house.ok(*call, "_read-only='yes'"))
    assert told == ["DeviceAttachRequested", "DeviceAttached"]
    assert await house.ok("admin.vm.device.block.Attached", "work") == (
        "dom0+sda::None device_id=':None' port_id='sda' devclass='block' backend_domain='dom0' mode='manual' "
        "frontend_domain='work' _read-only='yes'\n"
    )
    assert await house.ok("admin.vm.device.block.Attached", "dvm") == ""
    assert await house.error(*call) == "DeviceAlreadyAttached"
    assert await house.error("admin.vm.device.block.Attach", "dvm", "dom0+sda") == "DeviceAlreadyAttached"
    assert await house.error("admin.vm.device.block.Detach", "dvm", "dom0+sda") == "DeviceNotAssigned"
    told = await names_told(house, house.ok("admin.vm.device.block.Detach", "work", "dom0+sda++None"))
    assert told == ["DeviceDetachRequested", "DeviceDetached"]
    assert await house.error("admin.vm.device.block.Detach", "work", "dom0+sda") == "DeviceNotAssigned"
    assert shelf.held == {}


@pytest.mark.parametrize(
    ("arg", "payload", "error"),
    [
        ("dom0+sdz+_", "", "UnrecognizedDevice"),
        ("dom0+_+_", "", "UnrecognizedDevice"),
        ("dom0+sda++other", "", "UnrecognizedDevice"),
        ("nobody+sda+_", "", "QubesVMNotFoundError"),
        ("dom0+sda+_", "_colour='red'", "QubesValueError"),
        ("dom0+sda+_", "_frontend-dev='private'", "QubesValueError"),
        ("dom0+sda+_", "_frontend-dev='xvda'", "QubesValueError"),
        ("dom0+sda+_", "_read-only='perhaps'", "QubesValueError"),
        ("dom0+sda+_", "port_id='sdb'", "ProtocolError"),
        ("dom0+sda+_", "garbage", "ProtocolError"),
    ],
)
async def test_what_cannot_be_attached(house, shelf, arg, payload, error):
    await house.ok("admin.vm.Start", "work")
    assert await house.error("admin.vm.device.block.Attach", "work", arg, payload) == error
    assert shelf.held == {}


async def test_denied_interfaces_required_devices_and_failures(house, shelf):
    await house.ok("admin.vm.device.denied.Add", "work", payload="b******")
    await house.ok("admin.vm.Start", "work")
    assert await house.error("admin.vm.device.block.Attach", "work", "dom0+sda+_") == "PermissionDenied"
    await house.ok("admin.vm.device.denied.Remove", "work", payload="all")
    shelf.broken = True
    told = await names_told(house, house.error("admin.vm.device.block.Attach", "work", "dom0+sda+_"))
    assert told == ["DeviceAttachRequested"]
    shelf.broken = False
    await house.ok("admin.vm.device.block.Assign", "work", "dom0+sda+_", "mode='required'")
    await house.ok("admin.vm.device.block.Attach", "work", "dom0+sda+_")
    assert "mode='required'" in await house.ok("admin.vm.device.block.Attached", "work", QubeName("dom0"))
    assert await house.error("admin.vm.device.block.Detach", "work", "dom0+sda+_") == "QubesVMNotHaltedError"


async def test_only_dom0_exposes_files(house, shelf):
    payload = '{"path": "/home/me/disk.img", "read_only": true}'
    assert await house.ok("cloison.block.Expose", payload=payload) == '{"device": "dom0:disk.img"}'
    assert shelf.given == ("/home/me/disk.img", "", True)
    assert await house.ok("cloison.block.Expose", arg="d", payload=payload) == '{"device": "dom0:d"}'
    await house.ok("cloison.block.Hide", arg="d")
    assert shelf.given == "d"
    assert await house.error("cloison.block.Expose", payload='{"path": 5}') == "ProtocolError"
    assert await house.error("cloison.block.Expose", payload=payload, source="work") == "PermissionDenied"


async def test_devices_that_come_and_go_are_events(house):
    from cloison.admin.eventnames import records
    from cloison.engine import events as e

    told = [e.DeviceAdded(DOM0, "block", "dom0:sda:x"), e.DeviceRemoved(DOM0, "block", "dom0:sda"),
            e.DeviceListChanged(DOM0, "block")]  # fmt: skip
    assert [record for event in told for record in records(event)] == [
        ("dom0", "device-added:block", {"device": "dom0:sda:x"}),
        ("dom0", "device-removed:block", {"port": "dom0:sda"}),
        ("dom0", "device-list-change:block", {}),
    ]
