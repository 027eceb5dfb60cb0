"""Volumes and pools on the wire, and devices as far as they are kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from cloison.admin.devices import parse_device, parse_pairs
from cloison.admin.dispatch import METHODS
from cloison.admin.methods import Dest, Need
from cloison.errors import ProtocolError


async def test_volumes_of_an_app_qube(house):
    assert await house.ok("admin.vm.volume.List", "work") == "root\nprivate\nvolatile\nkernel\n"
    assert await house.ok("admin.vm.volume.List", "dom0") == ""
    assert (await house.ok("admin.vm.volume.Info", "work", "root")).splitlines() == [
        "pool=default", "vid=appvms/work/root", "size=10737418240", "usage=4096", "rw=True",
        "source=vm-templates/deb/root", "path=", "save_on_stop=False", "snap_on_start=True", "revisions_to_keep=1",
        "ephemeral=False", "is_outdated=False",
    ]  # fmt: skip
    assert "save_on_stop=True\nsnap_on_start=False" in await house.ok("admin.vm.volume.Info", "work", "private")
    assert (await house.ok("admin.vm.volume.Info", "work", "kernel")).startswith("pool=linux-kernel\nvid=template\n")
    assert await house.error("admin.vm.volume.Info", "work", "cache") == "StoragePoolException"
    assert await house.error("admin.vm.volume.Info", "dom0", "root") == "StoragePoolException"


async def test_resizing_grows_what_starts_from_it_too(house):
    await house.ok("admin.vm.volume.Resize", "deb", "root", str(20 * 2**30))
    assert "size=21474836480" in await house.ok("admin.vm.volume.Info", "deb", "root")
    assert house.ledger.inventory.qube("work").volumes["root"].size_bytes == 20 * 2**30
    assert await house.error("admin.vm.volume.Resize", "deb", "root", "5") == "QubesValueError"
    assert await house.error("admin.vm.volume.Resize", "work", "root", str(2**40)) == "QubesValueError"
    for number in ("", "0x5", "05", "-1", "9" * 20, "1e9"):
        assert await house.error("admin.vm.volume.Resize", "deb", "root", number) == "ProtocolError"


async def test_revisions(house):
    house.pool.revisions["appvms/work/private"] = ["r1", "r2"]
    assert await house.ok("admin.vm.volume.ListSnapshots", "work", "private") == "r1\nr2\n"
    await house.ok("admin.vm.volume.Revert", "work", "private", "r1\n")
    assert house.pool.content["appvms/work/private"] == "r1"
    assert await house.error("admin.vm.volume.Revert", "work", "private", "r9") == "StoragePoolException"
    assert await house.error("admin.vm.volume.Revert", "work", "private", "../x") == "ProtocolError"
    await house.ok("admin.vm.volume.Set.revisions_to_keep", "work", "private", "3")
    assert "revisions_to_keep=3" in await house.ok("admin.vm.volume.Info", "work", "private")
    assert await house.error("admin.vm.volume.Set.revisions_to_keep", "work", "private", "-2") == "QubesValueError"


async def test_switches(house):
    await house.ok("admin.vm.volume.Set.rw", "work", "private", "False")
    assert "rw=False" in await house.ok("admin.vm.volume.Info", "work", "private")
    await house.ok("admin.vm.volume.Set.ephemeral", "work", "volatile", "True")
    assert await house.error("admin.vm.volume.Set.ephemeral", "work", "private", "True") == "QubesValueError"
    assert await house.error("admin.vm.volume.Set.rw", "work", "private", "perhaps") == "ProtocolError"
    await house.ok("admin.vm.Start", "work")
    assert await house.error("admin.vm.volume.Set.rw", "work", "private", "True") == "QubesVMNotHaltedError"


async def test_a_volume_is_cloned_by_a_token_that_works_once(house):
    house.pool.content["appvms/work/private"] = "data"
    token = await house.ok("admin.vm.volume.CloneFrom", "work", "private")
    assert len(token) == 32 and token.isalnum()
    await house.ok("admin.vm.volume.CloneTo", "dvm", "private", token)
    vid = house.ledger.inventory.qube("dvm").volumes["private"].vid
    assert house.pool.content[vid] == "data"
    assert "appvms/dvm/private" not in house.pool.specs or vid == "appvms/dvm/private"
    assert await house.error("admin.vm.volume.CloneTo", "dvm", "private", token) == "ProtocolError"
    assert house.store.doomed_volumes() == frozenset()


async def test_a_used_token_is_gone_even_if_it_did_not_work(house):
    token = await house.ok("admin.vm.volume.CloneFrom", "work", "private")
    assert await house.error("admin.vm.volume.CloneTo", "dvm", "root", token) == "QubesValueError"
    assert await house.error("admin.vm.volume.CloneTo", "dvm", "private", token) == "ProtocolError"


async def test_replacing_a_template_root_moves_the_snapshots_along(house):
    token = await house.ok("admin.vm.volume.CloneFrom", "deb", "root")
    await house.ok("admin.vm.volume.CloneTo", "deb", "root", token)
    vid = house.ledger.inventory.qube("deb").volumes["root"].vid
    assert house.pool.specs["appvms/work/root"].source == vid
    await house.ok("admin.vm.Start", "work")
    assert await house.error("admin.vm.volume.Clear", "deb", "root") == "QubesVMNotHaltedError"


async def test_an_import_replaces_the_content_whole_or_not_at_all(house):
    size, path = (await house.ok("internal.vm.volume.ImportBegin", "work", "private", "1024")).split(" ", 1)
    assert size == "1024" and Path(path).stat().st_size == 1024
    with Path(path).open("r+b") as file:
        file.write(b"imported")
    assert await house.error("internal.vm.volume.ImportEnd", "work", "private", "fail\ndisk full") == "QubesValueError"
    assert house.pool.content["appvms/work/private"] == "blank" and not Path(path).exists()
    _, path = (await house.ok("internal.vm.volume.ImportBegin", "work", "private", "1024")).split(" ", 1)
    with Path(path).open("r+b") as file:
        file.write(b"imported")
    await house.ok("internal.vm.volume.ImportEnd", "work", "private", "ok")
    volume = house.ledger.inventory.qube("work").volumes["private"]
    assert house.pool.content[volume.vid] == "imported" and volume.size_bytes == 1024
    assert await house.error("internal.vm.volume.ImportEnd", "work", "private", "ok") == "ProtocolError"
    assert await house.error("internal.vm.volume.ImportBegin", "work", "private", source="dvm") == "PermissionDenied"


async def test_pools(house):
    assert await house.ok("admin.pool.List") == "default\nlinux-kernel\n"
    assert await house.ok("admin.pool.volume.List", arg="linux-kernel") == "template\n6.12\n"
    assert "appvms/work/private\n" in await house.ok("admin.pool.volume.List", arg="default")
    info = (await house.ok("admin.pool.Info", arg="default")).splitlines()
    assert info == ["driver=qcow2", "ephemeral_volatile=False", "name=default", "revisions_to_keep=1", "size=1000",
                    "usage=10"]  # fmt: skip
    assert await house.ok("admin.pool.UsageDetails", arg="default") == "data_size=1000\ndata_usage=10\n"
    assert await house.ok("admin.pool.ListDrivers") == "needy dir_path\nqcow2 dir_path\n"
    await house.ok("admin.pool.Add", arg="needy", payload="name=fast\ndir_path=/fast\n")
    await house.ok("admin.vm.CreateInPool.AppVM", arg="deb", payload="name=x label=red pool:private=fast")
    assert house.ledger.inventory.qube("x").volumes["private"].pool == "fast"
    assert await house.error("admin.pool.Remove", arg="fast") == "QubesPoolInUseError"
    await house.ok("admin.vm.Remove", "x")
    await house.ok("admin.pool.Remove", arg="fast")
    assert await house.error("admin.pool.Remove", arg="default") == "QubesPoolInUseError"


@pytest.mark.parametrize(
    ("arg", "payload", "error"),
    [
        ("cloud", "name=x\n", "StoragePoolException"),
        ("needy", "name=x\n", "QubesValueError"),
        ("qcow2", "name=x\ncolour=red\n", "QubesValueError"),
        ("qcow2", "name=default\n", "QubesValueError"),
        ("qcow2", "name=linux-kernel\n", "QubesValueError"),
        ("qcow2", "dir_path=/x\n", "ProtocolError"),
        ("qcow2", "name=x\nname=y\n", "ProtocolError"),
        ("qcow2", "name=a b\n", "QubesPropertyValueError"),
    ],
)
async def test_a_pool_is_refused(house, arg, payload, error):
    assert await house.error("admin.pool.Add", arg=arg, payload=payload) == error


async def test_a_snapshot_must_be_in_its_sources_pool(house):
    await house.ok("admin.pool.Add", arg="qcow2", payload="name=fast\n")
    payload = "name=x label=red pool:root=fast"
    assert await house.error("admin.vm.CreateInPool.AppVM", arg="deb", payload=payload) == "QubesValueError"
    payload = "name=x label=red pool=fast pool:private=fast"
    assert await house.error("admin.vm.CreateInPool.AppVM", arg="deb", payload=payload) == "ProtocolError"


# -- devices ---------------------------------------------------------------------------------------------------------


async def test_an_assignment_on_the_wire(house):
    await house.ok("admin.vm.device.block.Assign", "work", "dvm+sda+_", "mode='auto-attach' _read-only='yes'")
    expected = (
        "dvm+sda:* device_id='*' port_id='sda' devclass='block' backend_domain='dvm' mode='auto-attach' "
        "frontend_domain='work' _read-only='yes'\n"
    )
    assert await house.ok("admin.vm.device.block.Assigned", "work") == expected
    assert await house.ok("admin.vm.device.block.Assigned", "work", "dvm+sdb") == ""
    assert await house.ok("admin.vm.device.usb.Assigned", "work") == ""
    await house.ok("admin.vm.device.block.Set.assignment", "work", "dvm+sda+_", "required")
    assert "mode='required'" in await house.ok("admin.vm.device.block.Assigned", "work")
    again = await house.error("admin.vm.device.block.Assign", "work", "dvm+sda+_", "mode='required'")
    assert again == "DeviceAlreadyAssigned"
    assert await house.error("admin.vm.device.block.Unassign", "work", "dvm+sdb+_") == "DeviceNotAssigned"


@pytest.mark.parametrize(
    ("arg", "payload", "error"),
    [
        ("dvm+sda+_", "mode='manual'", "QubesValueError"),
        ("dvm+sda+_", "mode='required' port_id='sdb'", "ProtocolError"),
        ("dvm+sda+_", "mode=required", "ProtocolError"),
        ("dvm+sda+_", "mode='required' _colour='red'", "QubesValueError"),
        ("nobody+sda+_", "mode='required'", "QubesVMNotFoundError"),
        ("dvm+s/da+_", "mode='required'", "ProtocolError"),
    ],
)
async def test_an_assignment_is_refused(house, arg, payload, error):
    assert await house.error("admin.vm.device.block.Assign", "work", arg, payload) == error


def test_device_arguments_and_pairs():
    assert parse_device("sys-usb+sda++None") == ("sys-usb", "sda", ":None")
    assert parse_device("sys-usb+sda+_") == ("sys-usb", "sda", "*")
    assert parse_device("sys-usb+_+0951+1666++b02") == ("sys-usb", "*", "0951:1666::b02")
    assert parse_device("sys-usb+1-1+0000+0000++_______") == ("sys-usb", "1-1", "0000:0000::?******")
    assert parse_pairs(r"a='it\'s' b=''") == {"a": "it's", "b": ""}
    for bad in ("a", "a=b", "a='x", "a='x' a='y'", "a='x'b='y'", "'a'='b'"):
        with pytest.raises(ProtocolError):
            parse_pairs(bad)


async def test_denied_interfaces_show_as_a_property(house):
    await house.ok("admin.vm.device.denied.Add", "work", payload="u03****b******")
    assert await house.ok("admin.vm.device.denied.List", "work") == "b******\nu03****"
    assert await house.ok("admin.vm.property.Get", "work", "devices_denied") == (
        "default=False type=str b******u03****"
    )
    await house.ok("admin.vm.device.denied.Remove", "work", payload="b******")
    await house.ok("admin.vm.device.denied.Remove", "work", payload="all")
    assert await house.ok("admin.vm.device.denied.List", "work") == ""


# -- the table -------------------------------------------------------------------------------------------------------


async def test_arguments_and_payloads_are_there_or_not_as_every_row_says(house):
    for method, row in METHODS.items():
        dest = "dom0" if row.dest is Dest.DOM0 else "work"
        wrong_dest = {Dest.DOM0: "work", Dest.QUBE: "dom0"}.get(row.dest)
        arg, payload = "x" * (row.arg is Need.REQUIRED), "x" * (row.payload is Need.REQUIRED)
        breaches = [(wrong_dest, arg, payload)] if wrong_dest else []
        if row.arg is not Need.OPTIONAL:
            breaches.append((dest, "" if arg else "surplus", payload))
        if row.payload is not Need.OPTIONAL:
            breaches.append((dest, arg, "" if payload else "surplus"))
        for breach in breaches:
            assert await house.error(method, *breach) == "ProtocolError", (method, breach)
