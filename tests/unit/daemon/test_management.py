"""A management qube: the real policy files, the real evaluator, the real methods, without machines."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from tests.unit.admin.conftest import House, build_house

from cloison.admin.dispatch import METHODS, Admin
from cloison.admin.reference import INCLUDES
from cloison.admin.system import picture_for_policy
from cloison.daemon.calls import admin_handlers, may_know
from cloison.model.classes import Klass
from cloison.model.names import QubeName
from cloison.policy import Allow, PolicySource, Request, SystemInfo, install_defaults, requested_target
from cloison.qrexec.ports import ServiceCall

EXAMPLE = Path(__file__).parents[3] / "examples/sys-admin/30-sys-admin.policy"
REFUSED = b"refused by the policy"
MINE = "created-by-sys-admin"


@dataclass
class Gate:
    """What stands between a qube and the methods: the policy's verdict, then the handler of dom0."""

    house: House
    policy: PolicySource

    def __post_init__(self) -> None:
        self.admin = Admin(replace(self.house.admin.desk, permits=may_know(self.policy, self)))
        self._handlers = admin_handlers(self.admin)

    def system_info(self) -> SystemInfo:
        return SystemInfo.parse(picture_for_policy(self.house.admin.desk))

    def write(self, name: str, text: str) -> None:
        (self.policy.policy / name).write_text(text)

    async def open(self, target: str, service: str, payload: str = "", source: str = "sys-admin"):
        """The answer's parts, or None if the policy refuses."""
        method, _, arg = service.partition("+")
        system = self.system_info()
        verdict = self.policy.evaluate(system, Request(source, target, method, f"+{arg}"))
        if not isinstance(verdict, Allow) or verdict.target != "dom0" or method not in self._handlers:
            return None
        call = ServiceCall(QubeName(source), method, arg, requested_target(system, target))
        return await self._handlers[method](call, payload.encode())

    async def call(self, target: str, service: str, payload: str = "", source: str = "sys-admin") -> bytes:
        parts = await self.open(target, service, payload, source)
        return REFUSED if parts is None else b"".join([part async for part in parts])

    async def listed(self, source: str = "sys-admin") -> list[str]:
        answer = (await self.call("dom0", "admin.vm.List", source=source)).decode()
        assert answer.startswith("0\0")
        return [line.split()[0] for line in answer[2:].splitlines()]


@pytest.fixture
async def gate(tmp_path: Path) -> AsyncIterator[Gate]:
    house = await build_house(tmp_path)
    await house.furnish()
    await house.create(Klass.APP, "sys-admin")
    directory = tmp_path / "policy"
    install_defaults(directory)
    shutil.copy(EXAMPLE, directory)
    yield Gate(house, PolicySource(directory))
    house.store.close()


def error_of(answer: bytes) -> tuple[str, str]:
    kind, name, _, text, _ = answer.split(b"\0")
    assert kind == b"2", answer
    return name.decode(), text.decode()


async def test_sys_admin_makes_starts_and_removes_its_own(gate):
    assert await gate.listed() == ["dom0", "deb", "sys-admin"]
    assert await gate.call("dom0", "admin.vm.Create.AppVM+deb", "name=shop label=red") == b"0\0"
    assert MINE in gate.house.ledger.inventory.qube("shop").tags
    assert await gate.listed() == ["dom0", "deb", "shop", "sys-admin"]
    assert await gate.call("shop", "admin.vm.Start") == b"0\0"
    assert (await gate.call("shop", "admin.vm.CurrentState")).endswith(b"power_state=Running")
    assert error_of(await gate.call("shop", "admin.vm.Remove"))[0] == "QubesVMNotHaltedError"
    assert await gate.call("shop", "admin.vm.Shutdown+wait") == b"0\0"
    assert await gate.call("shop", "admin.vm.Remove") == b"0\0"
    assert await gate.listed() == ["dom0", "deb", "sys-admin"]


async def test_what_is_not_its_own_is_refused_like_what_does_not_exist(gate):
    await gate.call("dom0", "admin.vm.Create.AppVM+deb", "name=shop label=red")
    uuid = f"uuid:{gate.house.ledger.inventory.qube('work').uuid}"
    before = gate.house.ledger.inventory
    for service in METHODS:
        for target in ("work", "nobody", "deb", "dvm", uuid, "uuid:00000000-0000-4000-8000-000000000000"):
            if (service, target) != ("admin.vm.List", "deb"):
                assert await gate.call(target, service) == REFUSED, (service, target)
    for service in ("admin.vm.tag.Set+x", "admin.vm.property.Set+netvm", "admin.vm.volume.CloneFrom+private"):
        assert await gate.call("shop", service) == REFUSED
    for service in ("admin.vm.Start", "admin.vm.Remove", "admin.property.Set+default_netvm", "admin.pool.List",
                    "cloison.qube.List", "internal.GetSystemInfo", "admin.vm.Create.TemplateVM"):  # fmt: skip
        assert await gate.call("dom0", service, "name=a label=red") == REFUSED
    assert gate.house.ledger.inventory is before, "nothing was changed"


async def test_another_qube_may_nothing(gate):
    for service in METHODS:
        for target in ("dom0", "work", "sys-admin", "@default"):
            assert await gate.call(target, service, source="work") == REFUSED


async def test_a_template_that_it_may_not_know_does_not_exist_for_it(gate):
    await gate.house.create(Klass.STANDALONE, "secret")
    unknown = error_of(await gate.call("dom0", "admin.vm.Create.AppVM+secret", "name=shop label=red"))
    missing = error_of(await gate.call("dom0", "admin.vm.Create.AppVM+absent", "name=shop label=red"))
    assert unknown[0] == missing[0] == "QubesVMNotFoundError"
    assert unknown[1].replace("secret", "") == missing[1].replace("absent", "")
    assert gate.house.ledger.inventory.find("shop") is None


async def test_a_qube_named_in_a_property_or_a_device_is_hidden_as_well(gate):
    gate.write("20-more.policy", "admin.vm.property.Set * sys-admin @tag:created-by-sys-admin allow target=dom0\n"
               "admin.vm.device.block.Assign * sys-admin @tag:created-by-sys-admin allow target=dom0\n"
               "admin.property.Set * sys-admin @adminvm allow target=dom0\n")  # fmt: skip
    await gate.call("dom0", "admin.vm.Create.AppVM+deb", "name=shop label=red")
    for target, service in (("shop", "admin.vm.property.Set+default_dispvm"), ("shop", "admin.vm.property.Set+netvm"),
                            ("shop", "admin.vm.property.Set+template"),
                            ("dom0", "admin.property.Set+clockvm")):  # fmt: skip
        unknown, missing = [error_of(await gate.call(target, service, name)) for name in ("work", "gone")]
        assert unknown[0] == "QubesVMNotFoundError" and unknown[1].replace("work", "gone") == missing[1]
    unknown, missing = [
        error_of(await gate.call("shop", f"admin.vm.device.block.Assign+{name}+sda+_", "mode='required'"))
        for name in ("work", "gone")
    ]
    assert unknown[0] == "QubesVMNotFoundError" and unknown[1].replace("work", "gone") == missing[1]
    assert await gate.call("shop", "admin.vm.property.Set+netvm", "") == b"0\0"


async def test_a_name_that_nobody_has_never_comes_to_mean_dom0(gate):
    gate.write("20-any.policy", "admin.vm.tag.Set * sys-admin @anyvm allow target=dom0\n"
               "admin.vm.tag.Set * sys-admin @default allow target=dom0\n")  # fmt: skip
    for target in ("nobody", "@default", ""):
        answer = await gate.call(target, "admin.vm.tag.Set+mark")
        assert answer == REFUSED or error_of(answer)[0] == "QubesVMNotFoundError"
    assert "mark" not in gate.house.ledger.inventory.qube("dom0").tags
    assert await gate.call("work", "admin.vm.tag.Set+mark") == b"0\0"


async def test_it_hears_of_its_own_from_the_first_event_to_the_last(gate):
    stream = await gate.open("dom0", "admin.Events")
    heard: list[str] = []

    async def listen() -> None:
        async for part in stream:
            for record in part.split(b"\0\x001\0"):
                subject, name, *_ = record.removeprefix(b"1\0").split(b"\0")
                heard.append(f"{subject.decode()} {name.decode()}".strip())

    task = asyncio.create_task(listen())
    await asyncio.sleep(0)
    foreign = gate.house.ok
    await foreign("admin.vm.tag.Set", "work", "secret")
    await foreign("admin.property.Set", arg="default_netvm", payload="")
    await gate.call("dom0", "admin.vm.Create.AppVM+deb", "name=shop label=red")
    await foreign("admin.vm.Create.AppVM", payload="name=other label=red")
    await gate.call("shop", "admin.vm.Start")
    await gate.call("shop", "admin.vm.Kill")
    await foreign("admin.vm.Remove", "other")
    await gate.call("shop", "admin.vm.Remove")
    await asyncio.sleep(0.01)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    machine = [f"shop property-reset:{name}" for name in ("xid", "stubdom_xid", "start_time")]
    assert heard[0] == "connection-established"
    assert [line for line in heard[1:] if "tag-add" not in line] == [
        "domain-add", "shop domain-create-on-disk",
        "shop domain-pre-start", *machine, "shop domain-spawn", "shop domain-qdb-create",
        "shop domain-pre-unpaused", "shop domain-unpaused", "shop domain-start",
        "shop domain-stopped", *machine, "shop domain-shutdown",
        "domain-pre-delete", "shop domain-remove-from-disk", "domain-delete",
    ]  # fmt: skip
    assert f"shop domain-tag-add:{MINE}" in heard


async def test_a_refusal_does_not_name_qubes_that_it_may_not_know(gate):
    gate.write("20-more.policy", "admin.vm.property.Set * sys-admin @tag:created-by-sys-admin allow target=dom0\n"
               "admin.pool.Remove * sys-admin @adminvm allow target=dom0\n"
               "admin.vm.Remove * sys-admin @adminvm allow target=dom0\n")  # fmt: skip
    await gate.call("dom0", "admin.vm.Create.AppVM+deb", "name=shop label=red")
    await gate.call("dom0", "admin.vm.Create.AppVM+deb", "name=till label=red")
    house = gate.house
    for name, value in (("provides_network", "True"), ("template_for_dispvms", "True")):
        await house.ok("admin.vm.property.Set", "shop", name, value)
    for user in ("work", "till"):
        await house.ok("admin.vm.property.Set", user, "netvm", "shop")
        await house.ok("admin.vm.property.Set", user, "default_dispvm", "shop")
    asked = [("shop", "admin.vm.Remove", ""), ("shop", "admin.vm.property.Set+provides_network", "False"),
             ("shop", "admin.vm.property.Set+template_for_dispvms", "False")]  # fmt: skip
    for target, service, payload in asked:
        name, text = error_of(await gate.call(target, service, payload))
        assert name in ("QubesVMInUseError", "QubesPoolInUseError")
        assert "work" not in text and "another qube" in text and "till" in text, text
        method, _, arg = service.partition("+")
        answer = await house.call(method, target, arg, payload)
        assert b"work" in answer and b"another qube" not in answer, "dom0 is told all"
    name, text = error_of(await gate.call("dom0", "admin.pool.Remove+default"))
    assert name == "QubesPoolInUseError" and "another qube:private" in text
    assert not {"dvm", "work"} & set(text.replace(":", " ").split())
    await house.ok("admin.vm.property.Set", "work", "provides_network", "True")
    await house.ok("admin.vm.property.Set", "till", "provides_network", "True")
    await house.ok("admin.vm.property.Set", "till", "netvm", "work")
    await house.ok("admin.vm.property.Set", "till", "netvm", "work")
    name, text = error_of(await gate.call("shop", "admin.vm.property.Set+netvm", "till"))
    assert name == "QubesPropertyValueError"
    assert text.startswith("shop cannot reach the network through till: that would be the loop shop -> till -> another")


async def test_what_a_creator_wishes_is_there_from_the_first_moment(gate):
    features = gate.house.ok
    await features("admin.vm.feature.Set", "sys-admin", "tag-created-vm-with", "one two")
    await features("admin.vm.feature.Set", "sys-admin", "set-created-guivm", "work")
    assert await gate.call("dom0", "admin.vm.Create.AppVM+deb", "name=shop label=red") == b"0\0"
    shop = gate.house.ledger.inventory.qube("shop")
    assert {"one", "two", MINE, "guivm-work"} <= shop.tags and "guivm-dom0" not in shop.tags
    assert shop.properties["guivm"] == "work"
    await features("admin.vm.feature.Set", "sys-admin", "set-created-guivm", "gone")
    assert error_of(await gate.call("dom0", "admin.vm.Create.AppVM+deb", "name=shed label=red"))[0] == (
        "QubesVMNotFoundError")  # fmt: skip
    assert gate.house.ledger.inventory.find("shed") is None
    await features("admin.vm.Create.AppVM", payload="name=plain label=red")
    assert "one" not in gate.house.ledger.inventory.qube("plain").tags


async def test_a_pool_shows_the_volumes_of_known_qubes_only(gate):
    gate.write("20-pool.policy", "admin.pool.volume.List * sys-admin @adminvm allow target=dom0\n")
    await gate.call("dom0", "admin.vm.Create.AppVM+deb", "name=shop label=red")
    shown = (await gate.call("dom0", "admin.pool.volume.List+default")).decode()
    assert "shop" in shown and "work" not in shown and "dvm" not in shown


# -- the include files -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(set(INCLUDES.values()) - {"dom0 only"}))
async def test_an_include_file_opens_its_methods_and_those_it_covers(gate, name):
    """One rule in one file: the methods that docs/admin-api.md puts there are open, and no others."""
    (gate.policy.policy / EXAMPLE.name).unlink()
    gate.write(f"include/{name}", "sys-admin @adminvm allow target=dom0\nsys-admin @anyvm allow target=dom0\n")
    system = gate.system_info()
    covered = {name, name.replace("-rwx", "-ro")}
    for row in METHODS.values():
        if not row.name.startswith("admin.") or row.name.endswith(".AdminVM"):  # dom0 is the only one
            continue
        wanted = INCLUDES[row.scope] in covered
        for target in ("dom0", "work"):
            verdict = gate.policy.evaluate(system, Request("sys-admin", target, row.name, "+"))
            open_ = isinstance(verdict, Allow)
            assert open_ == wanted, (row.name, target)


async def test_a_volume_comes_in_pieces_and_whole_or_not_at_all(gate):
    await gate.call("dom0", "admin.vm.Create.AppVM+deb", "name=shop label=red")

    def content() -> str:
        return gate.house.pool.content[gate.house.ledger.inventory.qube("shop").volumes["private"].vid]

    handler = admin_handlers(gate.admin)["admin.vm.volume.ImportWithSize"]
    call = ServiceCall(QubeName("sys-admin"), "admin.vm.volume.ImportWithSize", "private", "shop")

    async def send(*pieces: bytes) -> bytes:
        waiting = [*pieces, b""]

        async def more() -> bytes:
            return waiting.pop(0)

        return await handler.serve(call, more)

    assert error_of(await send(b"3000000\n", b"half"))[0] == "QubesValueError"
    assert content() == "blank"
    assert await send(b"3000", b"000\n" + b"a" * 1_000_000, b"b" * 2_000_000) == b"0\0"
    assert content() == "a" * 1_000_000 + "b" * 2_000_000
    for target in ("@default", "", "dom0"):
        answer = await handler.serve(replace(call, requested_target=target), lambda: asyncio.sleep(0, b""))
        assert answer.startswith(b"2\0")
