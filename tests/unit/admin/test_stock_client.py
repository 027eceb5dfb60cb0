"""Conversations as the stock library has them, through the real server: many small calls, and caches that live on
events."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tests.unit.admin.stock import CachingStock, Stock, StockError

from cloison.model.classes import Klass

EXPLICIT = {
    "netvm": "fw", "provides_network": "True", "ip": "10.9.9.9", "mac": "00:16:3E:AA:BB:CC", "memory": "500",
    "maxmem": "2000", "vcpus": "3", "virt_mode": "hvm", "kernel": "6.12", "kernelopts": "quiet a\\b",
    "default_user": "me", "qrexec_timeout": "99", "shutdown_timeout": "98", "autostart": "True", "debug": "True",
    "include_in_backups": "False", "backup_timestamp": "1700000000", "default_dispvm": "dvm",
    "management_dispvm": "dvm", "guivm": "fw", "audiovm": "", "keyboard_layout": "de+nodeadkeys+ctrl:nocaps",
    "devices_denied": "b******u030000", "stubdom_mem": "64", "bootmode": "rescue", "start_mode": "boot",
    "share_memory": "False", "template_for_dispvms": "True", "prevent_remove": "True", "appvm_default_bootmode": "x",
    "audit": "metadata", "ip6": "fd09::9", "auto_cleanup": "True",
}  # fmt: skip


@pytest.fixture
async def full(house: Any) -> AsyncIterator[Any]:
    """Qubes of every class, each with everything set that can be set."""
    await house.create(Klass.APP, "net")
    await house.create(Klass.APP, "fw")
    await house.create(Klass.STANDALONE, "alone")
    await house.create(Klass.DISPOSABLE, "named", template="dvm")
    for name in ("net", "fw"):
        await house.ok("admin.vm.property.Set", name, "provides_network", "True")
    await house.ok("admin.vm.property.Set", "fw", "netvm", "net")
    for name in ("work", "deb", "alone", "named"):
        for prop, value in EXPLICIT.items():
            answer = await house.call("admin.vm.property.Set", name, prop, value)
            assert answer == b"0\0" or b"QubesNoSuchPropertyError" in answer, (name, prop, answer)
        for tag in ("one", "two-2", "guivm-dom0"):
            await house.ok("admin.vm.tag.Set", name, tag)
        for feature, value in (("service.cups", ""), ("os", "Linux"), ("net.fake-ip", "192.168.1.5"),
                               ("preload-dispvm-max", "0"), ("x.y-z_0", "%s 100% 'quoted'")):  # fmt: skip
            await house.ok("admin.vm.feature.Set", name, feature, value)
        await house.ok("admin.vm.notes.Set", name, "", "some\tnotes\nof 100 % use: ä\n")
        rules = "action=accept dst4=10.0.0.0/8 proto=tcp dstports=80-90 comment=a b\naction=drop\n"
        await house.ok("admin.vm.firewall.Set", name, "", rules)
        await house.ok(
            "admin.vm.device.block.Assign", name, "net+sda+_",
            "device_id='*' port_id='sda' devclass='block' backend_domain='net' mode='required' _read-only='yes'",
        )  # fmt: skip
    yield house


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("name", ["work", "deb", "alone", "named", "dvm"])
async def test_a_clone_in_many_calls_and_in_any_order(full: Any, socket_path: Path, name: str, seed: int) -> None:
    client = Stock(socket_path, shuffle=random.Random(seed).shuffle)
    await client.clone(name, "copy")
    assert len(client.calls) < 160
    old, new = await client.properties(name), await client.properties("copy")
    own = {"name", "qid", "uuid", "ip6", "installed_by_rpm", "visible_ip6", "gateway6", "dispid"}
    own |= set() if name != "dvm" else {"ip", "visible_ip", "gateway"}  # those follow from its number
    assert {key: value for key, value in new.items() if key not in own} == {
        key: value for key, value in old.items() if key not in own
    }
    for method in ("feature.List", "notes.Get", "firewall.Get", "volume.List"):
        assert await client.text("copy", f"admin.vm.{method}") == await client.text(name, f"admin.vm.{method}")
    tags = [tag for tag in await client.lines(name, "admin.vm.tag.List") if not tag.startswith("created-by-")]
    assert set(tags) <= set(await client.lines("copy", "admin.vm.tag.List"))
    assigned = await client.text(name, "admin.vm.device.block.Assigned")
    assert await client.text("copy", "admin.vm.device.block.Assigned") == assigned.replace(f"'{name}'", "'copy'")
    for volume in await client.lines(name, "admin.vm.volume.List"):
        theirs, ours = [await client.fields(n, "admin.vm.volume.Info", volume) for n in (name, "copy")]
        assert ours | {"vid": ""} == theirs | {"vid": ""}


async def test_a_clone_that_fails_leaves_nothing(full: Any, socket_path: Path) -> None:
    client = Stock(socket_path)
    await client.text("work", "admin.vm.property.Reset", "prevent_remove")
    full.pool.fail_after = 3
    with pytest.raises(StockError) as caught:
        await client.clone("work", "copy")
    full.pool.fail_after = None
    assert caught.value.kind == "QubesVMError"
    assert "copy" not in await client.qubes()


async def test_every_value_that_is_got_may_be_set_again(full: Any, socket_path: Path) -> None:
    """One row per settable thing of every qube and of the system: its Get, its Set, and Get again."""
    client = Stock(socket_path)
    rows: list[tuple[str, str, str, str, str]] = []
    for dest in await client.qubes():
        for prop, found in (await client.properties(dest)).items():
            rows.append((dest, "admin.vm.property", prop, found.value, ""))
        for feature in await client.lines(dest, "admin.vm.feature.List"):
            rows.append(
                (dest, "admin.vm.feature", feature, await client.text(dest, "admin.vm.feature.Get", feature), "")
            )
        if dest != "dom0":
            for family in ("admin.vm.notes", "admin.vm.firewall"):
                rows.append((dest, family, "", await client.text(dest, f"{family}.Get"), ""))
        for volume in await client.lines(dest, "admin.vm.volume.List"):
            info = await client.fields(dest, "admin.vm.volume.Info", volume)
            if volume != "kernel":
                rows.append((dest, "admin.vm.volume", volume, info["revisions_to_keep"], ".revisions_to_keep"))
                rows.append((dest, "admin.vm.volume", volume, info["rw"], ".rw"))
                if info["save_on_stop"] == info["snap_on_start"] == "False":
                    rows.append((dest, "admin.vm.volume", volume, info["ephemeral"], ".ephemeral"))
    for prop, found in (await client.properties(None)).items():
        rows.append(("dom0", "admin.property", prop, found.value, ""))
    info = await client.fields("dom0", "admin.pool.Info", "default")
    rows += [
        ("dom0", "admin.pool", "default", info[key], f".{key}") for key in ("revisions_to_keep", "ephemeral_volatile")
    ]
    refused: dict[str, set[str]] = {}
    for dest, family, arg, value, key in rows:
        try:
            await client.text(dest, f"{family}.Set{key}", arg, value)
        except StockError as error:
            assert error.kind == "QubesPropertyValueError", (dest, family, arg, value, error)
            refused.setdefault(family, set()).add(arg)
            continue
        if family.endswith(".property"):
            assert (await client.text(dest, f"{family}.Get", arg)).split(" ", 2)[2] == value
    assert len(rows) > 400
    assert refused == {"admin.vm.property": NOT_SETTABLE, "admin.property": {"maxmem", "no_cpus"}}


NOT_SETTABLE = {
    "name", "qid", "uuid", "klass", "icon", "is_preload", "dispid", "gateway", "gateway6", "visible_ip", "visible_ip6",
    "visible_gateway", "visible_gateway6", "visible_netmask", "dns", "updateable", "xid", "stubdom_xid", "stubdom_uuid",
    "start_time",
}  # fmt: skip
"""Those that are computed, or written once."""


async def test_what_a_manager_asks_when_it_starts(full: Any, socket_path: Path) -> None:
    client = Stock(socket_path)
    for name, row in (await client.qubes()).items():
        shown = await client.properties(name)
        assert {"label", "icon", "klass"} <= set(shown) and shown["klass"].value == row["class"]
        state = dict(word.split("=") for word in (await client.text(name, "admin.vm.CurrentState")).split(" "))
        assert set(state) == {"mem", "mem_static_max", "cputime", "power_state"}
        assert state["power_state"] == row["state"]
        for volume in await client.lines(name, "admin.vm.volume.List"):
            info = await client.fields(name, "admin.vm.volume.Info", volume)
            assert {"pool", "vid", "size", "usage", "rw", "source", "path", "save_on_stop", "snap_on_start",
                    "revisions_to_keep", "ephemeral"} <= set(info)  # fmt: skip
        for feature in ("internal", "prohibit-start", "skip-update", "updates-available", "os-eol", "servicevm"):
            with pytest.raises(StockError, match="QubesFeatureNotFoundError"):
                await client.text("dom0", "admin.vm.feature.Get", feature)
    for label in await client.lines("dom0", "admin.label.List"):
        assert int(await client.text("dom0", "admin.label.Index", label)) >= 1
        assert (await client.text("dom0", "admin.label.Get", label)).startswith("0x")
    for pool in await client.lines("dom0", "admin.pool.List"):
        assert {"name", "driver"} <= set(await client.fields("dom0", "admin.pool.Info", pool))
        assert all(int(v) >= 0 for v in (await client.fields("dom0", "admin.pool.UsageDetails", pool)).values())
    assert "6.12" in await client.lines("dom0", "admin.pool.volume.List", "linux-kernel")
    for prop in ("netvm", "maxmem", "kernel", "bootmode", "default_dispvm", "virt_mode"):
        assert (await client.text("work", "admin.vm.property.GetDefault", prop)).startswith("type=")
    with pytest.raises(StockError, match="QubesVMNotFoundError"):
        await client.text("nobody", "admin.vm.CurrentState")


NAMES = ("work", "dvm", "net", "fw", "alone", "named", "deb", "deb2", "new")
PROPERTIES: dict[str, tuple[str, ...]] = {
    "label": ("red", "green"), "template": ("deb", "deb2", "dvm"), "template_for_dispvms": ("True", "False"),
    "netvm": ("", "net", "fw"), "provides_network": ("True", "False"), "ip": ("10.1.1.1", "10.1.1.2"),
    "memory": ("400", "500"), "maxmem": ("0", "3000"), "vcpus": ("1", "2"), "virt_mode": ("hvm", "pvh"),
    "kernel": ("", "6.12", "template"), "kernelopts": ("", "quiet"), "default_user": ("user", "me"),
    "guivm": ("", "dom0", "fw"), "audiovm": ("", "fw"), "keyboard_layout": ("de++", "us++"),
    "bootmode": ("default", "x"),
    "default_dispvm": ("", "dvm"), "management_dispvm": ("", "dvm"), "auto_cleanup": ("True", "False"),
    "appvm_default_bootmode": ("default", "x"), "qrexec_timeout": ("50", "70"), "audit": ("full", "off"),
}  # fmt: skip
SETTINGS: dict[str, tuple[str, ...]] = {
    "default_netvm": ("", "net", "fw"), "default_dispvm": ("", "dvm"), "management_dispvm": ("", "dvm"),
    "default_guivm": ("", "dom0", "fw"), "default_audiovm": ("dom0", "fw"), "default_kernel": ("", "6.12"),
    "default_pool": ("default",), "default_qrexec_timeout": ("60", "61"), "default_audit": ("full", "metadata"),
    "clockvm": ("", "net"), "default_template": ("deb", "deb2"), "default_shutdown_timeout": ("60", "61"),
}  # fmt: skip
FEATURES = ("servicevm", "net.fake-ip", "net.fake-gateway", "net.fake-netmask", "ipv6", "os", "internal",
            "boot-mode.kernelopts.x", "boot-mode.active", "boot-mode.name.x")  # fmt: skip


async def one_change(house: Any, chance: random.Random) -> str:
    """Anything at all, by somebody else; many are refused."""
    name = chance.choice(NAMES)
    match chance.randrange(12):
        case 0 | 1 | 2 | 3:
            prop = chance.choice(sorted(PROPERTIES))
            call = ("admin.vm.property.Set", name, prop, chance.choice(PROPERTIES[prop]))
        case 4:
            call = ("admin.vm.property.Reset", name, chance.choice(sorted(PROPERTIES)), "")
        case 5:
            setting = chance.choice(sorted(SETTINGS))
            call = ("admin.property.Set", "dom0", setting, chance.choice(SETTINGS[setting]))
        case 6:
            call = ("admin.property.Reset", "dom0", chance.choice(sorted(SETTINGS)), "")
        case 7 | 8:
            feature, value = chance.choice(FEATURES), chance.choice(("", "1", "x", "10.0.0.9"))
            call = ("admin.vm.feature.Set", chance.choice((name, "dom0")), feature, value)
        case 9:
            call = ("admin.vm.feature.Remove", chance.choice((name, "dom0")), chance.choice(FEATURES), "")
        case 10:
            call = (f"admin.vm.{chance.choice(('Start', 'Kill', 'Pause', 'Unpause'))}", name, "", "")
        case _:
            klass = chance.choice(("AppVM", "TemplateVM", "DispVM"))
            wishes = [
                (f"admin.vm.Create.{klass}", "dom0", "", "name=new label=red"),
                ("admin.vm.Remove", "new", "", ""),
            ]
            call = chance.choice([*wishes, ("admin.vm.CreateDisposable", "dvm", "", "")])
    await house.call(*call)
    return " ".join(call)


@pytest.mark.parametrize("seed", range(5))
async def test_what_a_client_believes_is_true_after_every_change(house: Any, socket_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    for klass, name in ((Klass.APP, "net"), (Klass.APP, "fw"), (Klass.STANDALONE, "alone"), (Klass.TEMPLATE, "deb2")):
        await house.create(klass, name)
    await house.create(Klass.DISPOSABLE, "named", template="dvm")
    for name in ("net", "fw"):
        await house.ok("admin.vm.property.Set", name, "provides_network", "True")
    await house.ok("admin.vm.property.Set", "work", "netvm", "fw")
    client = CachingStock(socket_path)
    await client.connect()
    for number in range(40):
        await client.fill()
        done = [await one_change(house, chance) for _ in range(chance.choice((1, 1, 3)))]
        await house.ok("admin.vm.tag.Set", "dom0", f"mark-{number}")
        await client.until(lambda told, number=number: told.name == f"domain-tag-add:mark-{number}")
        lies = list(await client.lies())
        assert not lies, f"after {'; '.join(done)}: {'; '.join(lies[:5])}"
    await client.close()
