"""Creating, cloning, renaming and removing through the Admin API, with every way in which it is refused."""

from __future__ import annotations

import asyncio
import re

import pytest

from cloison.engine.qubes import Wish
from cloison.errors import BackendFailed
from cloison.model.classes import Klass
from cloison.model.power import PowerState


async def test_the_list_is_in_the_form_that_clients_split(house):
    text = await house.ok("admin.vm.List")
    assert re.fullmatch(r"([\w-]+ class=\w+ state=\w+ uuid=[0-9a-f-]{36}\n)+", text)
    assert [line.split(" ")[:3] for line in text.splitlines()] == [
        ["dom0", "class=AdminVM", "state=Running"],
        ["deb", "class=TemplateVM", "state=Halted"],
        ["dvm", "class=AppVM", "state=Halted"],
        ["work", "class=AppVM", "state=Halted"],
    ]
    uuid = house.ledger.inventory.qube("work").uuid
    assert (await house.ok("admin.vm.List", f"uuid:{uuid}")).startswith("work ")


async def test_creating_records_volumes_tags_and_events(house):
    events = house.ledger.bus.subscribe()
    await house.ok("admin.vm.Create.AppVM", arg="deb", payload="name=mail label=green")
    qube = house.ledger.inventory.qube("mail")
    assert (qube.klass, qube.label, qube.properties["template"], qube.qid) == (Klass.APP, "green", "deb", 4)
    assert qube.tags == {"created-by-dom0", "guivm-dom0", "audiovm-dom0"}
    assert sorted(qube.volumes) == ["private", "root", "volatile"]
    assert house.pool.specs["appvms/mail/root"].source == "vm-templates/deb/root"
    assert all(house.pool.specs[f"appvms/mail/{name}"].encrypted for name in qube.volumes)
    names = [type(event).__name__ for event in events.take_waiting()]
    assert names == ["QubeAdded", "TagAdded", "TagAdded", "TagAdded", "QubeFilesCreated"]


@pytest.mark.parametrize(
    ("klass", "arg", "payload", "error"),
    [
        ("AppVM", "deb", "name=work label=red", "QubesVMAlreadyExistsError"),
        ("AppVM", "nope", "name=x label=red", "QubesVMNotFoundError"),
        ("AppVM", "work", "name=x label=red", "QubesPropertyValueError"),
        ("AppVM", "deb", "name=x label=pink", "QubesLabelNotFoundError"),
        ("AppVM", "deb", "name=x label=", "ProtocolError"),
        ("AppVM", "deb", "name=x", "ProtocolError"),
        ("AppVM", "deb", "name=x label=red label=red", "ProtocolError"),
        ("AppVM", "deb", "name=x label=red colour=blue", "ProtocolError"),
        ("AppVM", "deb", "name=x label=red pool=default", "ProtocolError"),
        ("AppVM", "deb", "name=x  label=red", "ProtocolError"),
        ("AppVM", "deb", "", "ProtocolError"),
        ("AppVM", "deb", b"name=\xff label=red", "ProtocolError"),
        ("AppVM", "deb", "name=../x label=red", "QubesValueError"),
        ("AppVM", "deb", "name=x-dm label=red", "QubesValueError"),
        ("TemplateVM", "deb", "name=x label=red", "ProtocolError"),
        ("DispVM", "work", "name=x label=red", "QubesPropertyValueError"),
        ("DispVM", "deb", "name=x label=red", "QubesPropertyValueError"),
        ("AdminVM", "", "name=x label=red", "QubesValueError"),
        ("CatVM", "", "name=x label=red", "ProtocolError"),
    ],
)
async def test_creation_is_refused(house, klass, arg, payload, error):
    before, volumes = house.ledger.inventory, set(house.pool.specs)
    assert await house.error(f"admin.vm.Create.{klass}", arg=arg, payload=payload) == error
    assert house.ledger.inventory == before and set(house.pool.specs) == volumes


@pytest.mark.parametrize("good_volumes", [0, 1, 2])
async def test_a_creation_that_fails_half_way_leaves_nothing(house, good_volumes):
    before, volumes = house.ledger.inventory, set(house.pool.specs)
    house.pool.fail_after = good_volumes
    assert await house.error("admin.vm.Create.AppVM", arg="deb", payload="name=x label=red") == "QubesVMError"
    assert house.ledger.inventory == before and set(house.pool.specs) == volumes
    assert house.store.doomed_volumes() == frozenset()
    house.pool.fail_after = None
    await house.ok("admin.vm.Create.AppVM", arg="deb", payload="name=x label=red")


async def test_what_a_killed_daemon_left_half_made_is_swept(house):
    """The process dies between making volumes and recording the qube: the next daemon finds them doomed."""
    volumes = set(house.pool.specs)

    async def die(pool, spec):
        await pool.create(spec)
        raise SystemExit

    house.volumes.remove_doomed = lambda doomed: asyncio.sleep(0)  # a dead process removes nothing
    with pytest.raises(SystemExit):
        await house.qubes.create(Wish(Klass.APP, "x", "red", "deb", makers={"private": die}))
    del house.volumes.remove_doomed
    assert set(house.pool.specs) > volumes
    await house.volumes.sweep()
    assert set(house.pool.specs) == volumes and house.store.doomed_volumes() == frozenset()


async def test_a_volume_that_no_record_dooms_is_never_swept(house):
    house.pool.specs["appvms/precious/private"] = house.pool.specs["appvms/work/private"]
    await house.volumes.sweep()
    assert "appvms/precious/private" in house.pool.specs


async def test_throw_away_volumes_that_are_missing_are_made_again(house):
    del house.pool.specs["appvms/work/root"], house.pool.specs["appvms/work/volatile"]
    await house.volumes.sweep()
    assert {"appvms/work/root", "appvms/work/volatile"} <= set(house.pool.specs)


async def test_two_creations_of_one_name_at_once_make_one_qube(house):
    answers = await asyncio.gather(
        *(house.call("admin.vm.Create.AppVM", arg="deb", payload="name=x label=red") for _ in range(5))
    )
    assert sorted(answer[:1] for answer in answers) == [b"0", b"2", b"2", b"2", b"2"]
    assert {a.split(b"\0")[1] for a in answers if a[:1] == b"2"} == {b"QubesVMAlreadyExistsError"}


async def test_many_creations_at_once_get_numbers_of_their_own(house):
    calls = (house.ok("admin.vm.Create.AppVM", arg="deb", payload=f"name=q{n} label=red") for n in range(20))
    await asyncio.gather(*calls)
    qids = [qube.qid for qube in house.ledger.inventory]
    assert len(set(qids)) == len(qids)


async def test_the_smallest_free_number_is_given(house):
    await house.ok("admin.vm.Remove", "work")
    await house.ok("admin.vm.Create.AppVM", payload="name=next label=red")
    assert house.ledger.inventory.qube("next").qid == 2


# -- removing ------------------------------------------------------------------------------------------------------


async def test_removing_takes_volumes_and_records(house):
    events = house.ledger.bus.subscribe()
    await house.ok("admin.vm.Remove", "work")
    assert house.ledger.inventory.find("work") is None
    assert not [vid for vid in house.pool.specs if "work" in vid]
    assert house.store.doomed_volumes() == frozenset()
    names = [type(event).__name__ for event in events.take_waiting()]
    assert names == ["QubeRemovalRequested", "QubeFilesRemoved", "QubeRemoved"]
    assert await house.error("admin.vm.Remove", "work") == "QubesVMNotFoundError"


async def test_removal_is_refused_while_something_refers_to_it_and_says_what(house):
    answer = await house.call("admin.vm.Remove", "deb")
    assert answer.startswith(b"2\0QubesVMInUseError\0")
    for user in (b"default_template of the system", b"template of dvm", b"template of work"):
        assert user in answer


async def test_removal_of_dom0_a_running_or_a_packaged_qube_is_refused(house):
    assert await house.error("admin.vm.Remove", "dom0") == "QubesVMInUseError"
    await house.ok("admin.vm.Start", "work")
    assert await house.error("admin.vm.Remove", "work") == "QubesVMNotHaltedError"
    await house.ok("admin.vm.Kill", "work")
    await house.ok("admin.vm.property.Set", "work", "installed_by_rpm", "True")
    assert await house.error("admin.vm.Remove", "work") == "QubesVMInUseError"


async def test_a_backend_of_an_assigned_device_cannot_be_removed(house):
    await house.ok("admin.vm.device.block.Assign", "work", "dvm+sda+_", "mode='auto-attach'")
    await house.ok("admin.property.Set", arg="default_dispvm")
    assert await house.error("admin.vm.Remove", "dvm") == "QubesVMInUseError"
    await house.ok("admin.vm.device.block.Unassign", "work", "dvm+sda+_")
    await house.ok("admin.vm.Remove", "dvm")


# -- disposables ---------------------------------------------------------------------------------------------------


async def test_a_disposable_is_named_by_its_number_and_goes_when_it_stops(house):
    name = await house.ok("admin.vm.CreateDisposable")
    disposable = house.ledger.inventory.qube(name)
    assert name == f"disp{disposable.properties['dispid']}"
    assert disposable.properties["auto_cleanup"] is True
    assert {"created-by-dom0", "disp-created-by-dom0"} <= disposable.tags
    await house.ok("admin.vm.Start", name)
    await house.ok("admin.vm.Kill", name)
    assert house.ledger.inventory.find(name) is None
    assert not [vid for vid in house.pool.specs if name in vid]


async def test_a_disposable_takes_over_the_settings_of_its_template(house):
    await house.ok("admin.vm.property.Set", "dvm", "memory", "512")
    await house.ok("admin.vm.feature.Set", "dvm", "service.x", "1")
    await house.ok("admin.vm.feature.Set", "dvm", "preload-dispvm-max", "0")
    await house.ok("admin.vm.tag.Set", "dvm", "red-team")
    await house.ok("admin.vm.firewall.Set", "dvm", payload="action=drop")
    answer = await house.ok("admin.vm.CreateDisposable", "dvm", payload="uuid")
    name = house.ledger.inventory.find_by_uuid(answer.removeprefix("uuid:")).name
    disposable = house.ledger.inventory.qube(name)
    assert disposable.properties["memory"] == 512 and "template_for_dispvms" not in disposable.properties
    assert disposable.features == {"service.x": "1"}
    assert "red-team" in disposable.tags and disposable.firewall == "action=drop\n"
    assert disposable.label == "red"


async def test_a_number_rests_for_a_week(house):
    seen = set()
    for _ in range(50):
        name = await house.ok("admin.vm.CreateDisposable")
        assert name not in seen
        seen.add(name)
        await house.ok("admin.vm.Remove", name)
    house.now[0] += 8 * 24 * 3600
    assert house.store.recent_dispids(house.now[0] - 7 * 24 * 3600) == frozenset()


async def test_without_a_default_no_disposable_is_made(house):
    await house.ok("admin.property.Set", arg="default_dispvm")
    assert await house.error("admin.vm.CreateDisposable") == "QubesValueError"
    assert await house.error("admin.vm.CreateDisposable", "work") == "QubesPropertyValueError"


async def test_a_named_disposable_stays_when_it_stops(house):
    await house.ok("admin.vm.Create.DispVM", arg="dvm", payload="name=sys-usb label=red")
    await house.ok("admin.vm.Start", "sys-usb")
    await house.ok("admin.vm.Shutdown", "sys-usb", arg="force+wait")
    assert house.ledger.inventory.find("sys-usb")


# -- clone and rename ----------------------------------------------------------------------------------------------


async def test_a_clone_has_the_settings_and_the_kept_content(house):
    house.pool.content["appvms/work/private"] = "my mails"
    await house.ok("admin.vm.property.Set", "work", "memory", "700")
    await house.ok("admin.vm.feature.Set", "work", "service.x", "1")
    await house.ok("admin.vm.tag.Set", "work", "office")
    await house.ok("admin.vm.notes.Set", "work", payload="remember")
    assert await house.ok("cloison.qube.Clone", "work", payload='{"name":"work2"}') == '{"name":"work2"}'
    inventory = house.ledger.inventory
    work, clone = inventory.qube("work"), inventory.qube("work2")
    assert clone.properties == work.properties and clone.features == work.features and clone.tags == work.tags
    assert (clone.uuid, clone.qid) != (work.uuid, work.qid)
    assert house.pool.content["appvms/work2/private"] == "my mails"
    assert house.ledger.notes("work2") == "remember"


async def test_a_renamed_qube_is_followed_by_all_that_named_it(house):
    await house.ok("admin.vm.property.Set", "work", "default_dispvm", "dvm")
    await house.ok("cloison.qube.Rename", "dvm", payload='{"name":"throwaway"}')
    inventory = house.ledger.inventory
    assert inventory.qube("work").properties["default_dispvm"] == "throwaway"
    assert inventory.settings["default_dispvm"] == "throwaway"
    name = await house.ok("admin.vm.CreateDisposable")
    assert inventory.find("dvm") is None and name.startswith("disp")
    await house.ok("admin.vm.Create.AppVM", payload="name=dvm label=red")
    assert len(house.pool.specs) == 3 * 5, "a new qube of the old name gets volumes of its own"


@pytest.mark.parametrize(
    ("dest", "payload", "error"),
    [
        ("work", '{"name":"dvm"}', "QubesVMAlreadyExistsError"),
        ("work", '{"name":"bad name"}', "QubesValueError"),
        ("work", "{}", "QubesValueError"),
        ("work", '{"name":1}', "ProtocolError"),
        ("work", '{"nom":"x"}', "ProtocolError"),
        ("work", "[", "ProtocolError"),
        ("work", "[]", "ProtocolError"),
        ("dom0", '{"name":"x"}', "ProtocolError"),
    ],
)
async def test_renaming_is_refused(house, dest, payload, error):
    assert await house.error("cloison.qube.Rename", dest, payload=payload) == error


async def test_a_running_qube_keeps_its_name(house):
    await house.ok("admin.vm.Start", "work")
    assert await house.error("cloison.qube.Rename", "work", payload='{"name":"x"}') == "QubesVMNotHaltedError"


# -- power ---------------------------------------------------------------------------------------------------------


async def test_power_verbs_and_their_refusals(house):
    assert await house.error("admin.vm.Shutdown", "work") == "QubesVMNotStartedError"
    assert await house.error("admin.vm.Kill", "work") == "QubesVMNotStartedError"
    assert await house.error("admin.vm.Pause", "work") == "QubesVMNotRunningError"
    assert await house.error("admin.vm.Unpause", "work") == "QubesVMNotPausedError"
    assert await house.error("admin.vm.Start", "dom0") == "QubesVMNotHaltedError"
    assert await house.error("admin.vm.Kill", "dom0") == "QubesValueError"
    assert await house.error("admin.vm.Shutdown", "work", arg="gently") == "ProtocolError"
    await house.ok("admin.vm.Start", "work")
    await house.ok("admin.vm.Start", "work")
    await house.ok("admin.vm.Pause", "work")
    assert house.running.power_state("work") is PowerState.PAUSED
    await house.ok("admin.vm.Unpause", "work")
    assert await house.ok("admin.vm.CurrentState", "work") == (
        "mem=1024 mem_static_max=4096000 cputime=5 power_state=Running"
    )
    await house.ok("admin.vm.Shutdown", "work", arg="wait")
    assert await house.ok("admin.vm.CurrentState", "work") == "mem=0 mem_static_max=0 cputime=0 power_state=Halted"


async def test_a_fault_inside_is_answered_with_one_line(house, caplog):
    async def broken(name):
        raise ZeroDivisionError("secret detail")

    house.running.start = broken
    answer = await house.call("admin.vm.Start", "work")
    assert answer.startswith(b"2\0QubesException\0\0") and b"secret" not in answer
    assert "secret detail" in caplog.text


async def test_a_failing_backend_is_named(house):
    async def broken(name):
        raise BackendFailed("QEMU ended", hint="look at 100% of its log")

    house.running.start = broken
    answer = await house.call("admin.vm.Start", "work")
    assert answer == b"2\0QubesVMError\0\0QEMU ended (hint: look at 100%% of its log)\0"


async def test_what_is_kept_outside_the_records_follows_clones_renames_and_removals(house):
    class Shelf:
        def __init__(self):
            self.things = {"deb": "its kernel"}

        def share(self, name, new):
            if name in self.things:
                self.things[new] = self.things[name]

        def forget(self, name):
            self.things.pop(name, None)

    shelf = Shelf()
    house.qubes._kept = (shelf,)
    await house.ok("cloison.qube.Clone", "deb", payload='{"name":"deb2"}')
    assert shelf.things == {"deb": "its kernel", "deb2": "its kernel"}
    await house.ok("cloison.qube.Rename", "deb2", payload='{"name":"deb3"}')
    assert set(shelf.things) == {"deb", "deb3"}
    house.pool.fail_after = 1
    await house.error("cloison.qube.Clone", "deb", payload='{"name":"deb4"}')
    house.pool.fail_after = None
    await house.error("cloison.qube.Clone", "deb", payload='{"name":"deb3"}')
    await house.error("cloison.qube.Rename", "deb", payload='{"name":"deb3"}')
    assert set(shelf.things) == {"deb", "deb3"}
    await house.ok("admin.vm.Remove", "deb3")
    assert set(shelf.things) == {"deb"}


async def test_a_disposable_that_others_name_goes_all_the_same_and_is_named_no_more(house):
    name = await house.ok("admin.vm.CreateDisposable")
    await house.ok("admin.vm.property.Set", "work", "guivm", name)
    await house.ok("admin.property.Set", arg="updatevm", payload=name)
    await house.ok("admin.vm.device.block.Assign", "work", f"{name}+sda+_", "mode='auto-attach'")
    await house.ok("admin.vm.Start", name)
    await house.ok("admin.vm.Kill", name)
    inventory = house.ledger.inventory
    assert inventory.find(name) is None
    assert inventory.value("work", "guivm") == "dom0" and inventory.setting("updatevm") is None
    assert inventory.qube("work").assignments == ()
