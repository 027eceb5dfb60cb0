"""Properties, features, tags, notes, firewall, labels: values on the wire, refusals, and events in their order."""

from __future__ import annotations

import json

import pytest

from cloison.admin.eventnames import records as wire_records
from cloison.model.classes import Klass


def told(house, subscription):
    """What clients would be told, as (subject, event)."""
    found = [record for event in subscription.take_waiting() for record in wire_records(event)]
    return [(record.subject or "", record.name) for record in found]


@pytest.fixture
async def net(house):
    await house.create(Klass.APP, "net")
    await house.create(Klass.APP, "fw")
    for name in ("net", "fw"):
        await house.ok("admin.vm.property.Set", name, "provides_network", "True")
    await house.ok("admin.vm.property.Set", "fw", "netvm", "net")
    await house.ok("admin.vm.property.Set", "net", "netvm")
    return house


@pytest.mark.parametrize(
    ("dest", "name", "expected"),
    [
        ("work", "memory", "default=True type=int 400"),
        ("work", "netvm", "default=True type=vm "),
        ("work", "label", "default=False type=label red"),
        ("work", "template", "default=False type=vm deb"),
        ("work", "debug", "default=True type=bool False"),
        ("work", "backup_timestamp", "default=True type=int "),
        ("work", "devices_denied", "default=True type=str "),
        ("dom0", "name", "default=False type=str dom0"),
        ("dom0", "klass", "default=True type=str AdminVM"),
    ],
)
async def test_a_property_on_the_wire(house, dest, name, expected):
    await house.ok("admin.vm.property.Set", "work", "label", "red")
    assert await house.ok("admin.vm.property.Get", dest, name) == expected


async def test_all_properties_at_once_with_escapes(house):
    await house.ok("admin.vm.property.Set", "work", "kernelopts", "a\\b\nc")
    lines = (await house.ok("admin.vm.property.GetAll", "work")).splitlines()
    assert "kernelopts default=False type=str a\\\\b\\nc" in lines
    assert [line.split(" ")[0] for line in lines] == (await house.ok("admin.vm.property.List", "work")).split()
    for line in (await house.ok("admin.property.GetAll")).splitlines():
        name, rest = line.split(" ", 1)
        assert await house.ok("admin.property.Get", arg=name) == rest


async def test_set_accepts_what_get_returned_for_every_property(house):
    for dest in ("work", "deb", "dvm"):
        for line in (await house.ok("admin.vm.property.GetAll", dest)).splitlines():
            name, _default, _type, value = line.split(" ", 3)
            answer = await house.call("admin.vm.property.Set", dest, name, value)
            if answer[:1] == b"2":
                assert answer.split(b"\0")[1] == b"QubesPropertyValueError", (name, answer)
                assert b"cannot be set" in answer or name in ("ip", "backup_timestamp"), (name, answer)


@pytest.mark.parametrize(
    ("dest", "name", "value", "error"),
    [
        ("work", "memory", "0", "QubesPropertyValueError"),
        ("work", "memory", "lots", "QubesPropertyValueError"),
        ("work", "memory", "63", "QubesPropertyValueError"),
        ("work", "memory", "8193", "QubesPropertyValueError"),
        ("work", "vcpus", "129", "QubesPropertyValueError"),
        ("work", "nonsense", "1", "QubesNoSuchPropertyError"),
        ("deb", "template", "deb", "QubesNoSuchPropertyError"),
        ("work", "klass", "AppVM", "QubesPropertyValueError"),
        ("work", "name", "other", "QubesPropertyValueError"),
        ("work", "qid", "7", "QubesPropertyValueError"),
        ("work", "uuid", "7", "QubesPropertyValueError"),
        ("work", "label", "pink", "QubesLabelNotFoundError"),
        ("work", "template", "", "QubesPropertyValueError"),
        ("work", "template", "dvm", "QubesPropertyValueError"),
        ("work", "template", "nobody", "QubesVMNotFoundError"),
        ("work", "netvm", "dvm", "QubesPropertyValueError"),
        ("work", "netvm", "dom0", "QubesPropertyValueError"),
        ("work", "netvm", "nobody", "QubesVMNotFoundError"),
        ("net", "netvm", "fw", "QubesPropertyValueError"),
        ("net", "netvm", "net", "QubesPropertyValueError"),
        ("net", "provides_network", "False", "QubesVMInUseError"),
        ("work", "default_dispvm", "work", "QubesPropertyValueError"),
        ("work", "kernel", "9.9", "QubesPropertyValueError"),
        ("work", "virt_mode", "hyper", "QubesPropertyValueError"),
        ("work", "start_mode", "fast", "QubesPropertyValueError"),
        ("dvm", "template_for_dispvms", "False", "QubesVMInUseError"),
        ("work", "default_user", "a b", "QubesPropertyValueError"),
        ("work", "mac", "zz", "QubesPropertyValueError"),
        ("work", "xid", "5", "QubesPropertyValueError"),
    ],
)
async def test_a_value_is_refused(net, dest, name, value, error):
    before = net.ledger.inventory
    assert await net.error("admin.vm.property.Set", dest, name, value) == error
    assert net.ledger.inventory == before


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("default_netvm", "work", "QubesPropertyValueError"),
        ("default_template", "work", "QubesPropertyValueError"),
        ("default_dispvm", "work", "QubesPropertyValueError"),
        ("default_pool", "nowhere", "StoragePoolException"),
        ("default_kernel", "9.9", "QubesPropertyValueError"),
        ("maxmem", "5", "QubesPropertyValueError"),
        ("nonsense", "5", "QubesNoSuchPropertyError"),
        ("clockvm", "nobody", "QubesVMNotFoundError"),
    ],
)
async def test_a_global_value_is_refused(net, name, value, error):
    assert await net.error("admin.property.Set", arg=name, payload=value) == error


async def test_a_default_netvm_that_would_make_a_loop_is_refused(net):
    await net.ok("admin.vm.property.Reset", "net", "netvm")
    assert await net.error("admin.property.Set", arg="default_netvm", payload="fw") == "QubesPropertyValueError"


async def test_the_template_changes_only_while_halted_and_volumes_follow(house):
    await house.create(Klass.TEMPLATE, "fedora")
    await house.ok("admin.vm.Start", "work")
    assert await house.error("admin.vm.property.Set", "work", "template", "fedora") == "QubesVMNotHaltedError"
    await house.ok("admin.vm.Kill", "work")
    await house.ok("admin.vm.property.Set", "work", "template", "fedora")
    assert house.pool.specs["appvms/work/root"].source == "vm-templates/fedora/root"
    assert await house.error("admin.vm.property.Reset", "work", "template") == "QubesPropertyValueError"


async def test_reset_goes_back_to_the_inherited_value_and_tells_all_four(house):
    await house.ok("admin.vm.property.Set", "deb", "memory", "600")
    await house.ok("admin.vm.property.Set", "work", "memory", "700")
    events = house.ledger.bus.subscribe()
    await house.ok("admin.vm.property.Reset", "work", "memory")
    assert told(house, events) == [
        ("work", "property-pre-reset:memory"),
        ("work", "property-pre-del:memory"),
        ("work", "property-reset:memory"),
        ("work", "property-del:memory"),
    ]
    assert await house.ok("admin.vm.property.Get", "work", "memory") == "default=True type=int 600"
    assert await house.ok("admin.vm.property.GetDefault", "work", "memory") == "type=int 600"
    assert await house.ok("admin.vm.property.GetDefault", "work", "template") == ""
    assert "MiB" in await house.ok("admin.vm.property.Help", "work", "memory")


async def test_children_hear_of_a_changed_default(house):
    name = await house.ok("admin.vm.CreateDisposable")
    await house.ok("admin.vm.property.Set", "work", "memory", "700")
    events = house.ledger.bus.subscribe()
    await house.ok("admin.vm.property.Set", "deb", "memory", "600")
    assert told(house, events) == [
        ("deb", "property-pre-set:memory"),
        ("dvm", "property-reset:memory"),
        (name, "property-reset:memory"),
        ("deb", "property-set:memory"),
    ]


async def test_a_new_default_netvm_is_told_to_all_that_follow_it(net):
    events = net.ledger.bus.subscribe()
    await net.ok("admin.property.Set", arg="default_netvm", payload="fw")
    heard = told(net, events)
    assert heard[0] == ("", "property-pre-set:default_netvm") and heard[-1] == ("", "property-set:default_netvm")
    for name in ("work", "dvm"):
        about = [event for subject, event in heard if subject == name]
        assert about[:3] == ["property-pre-set:netvm", "property-set:netvm", "property-reset:netvm"]
        assert {"property-reset:ip", "property-reset:visible_gateway", "property-reset:dns"} <= set(about[3:])
        assert len(about) == len(set(about)), "each is told once"
    assert not [subject for subject, _ in heard if subject in ("deb", "net", "fw")]


async def test_an_unchanged_value_is_told_all_the_same(house):
    await house.ok("admin.vm.property.Set", "work", "debug", "True")
    events = house.ledger.bus.subscribe()
    await house.ok("admin.vm.property.Set", "work", "debug", "True")
    assert told(house, events) == [("work", "property-pre-set:debug"), ("work", "property-set:debug")]


async def test_a_vetoed_change_shows_its_wish_only(house):
    events = house.ledger.bus.subscribe()
    await house.error("admin.vm.property.Set", "work", "netvm", "dvm")
    assert told(house, events) == [("work", "property-pre-set:netvm")]


async def test_a_service_qube_is_marked_as_one(house):
    await house.ok("admin.vm.property.Set", "work", "provides_network", "True")
    assert await house.ok("admin.vm.feature.Get", "work", "servicevm") == "1"
    assert await house.ok("admin.vm.property.Get", "work", "icon") == "default=True type=str servicevm-blue"
    await house.ok("admin.vm.property.Set", "work", "provides_network", "False")
    assert await house.error("admin.vm.feature.Get", "work", "servicevm") == "QubesFeatureNotFoundError"


async def test_the_gui_qube_is_kept_in_step_with_its_tag(house):
    await house.ok("admin.vm.property.Set", "work", "guivm", "dvm")
    assert {"guivm-dvm", "audiovm-dom0"} <= house.ledger.inventory.qube("work").tags
    assert "guivm-dom0" not in house.ledger.inventory.qube("work").tags
    await house.ok("admin.vm.property.Reset", "work", "guivm")
    assert "guivm-dom0" in house.ledger.inventory.qube("work").tags


async def test_the_clock_qube_gets_its_service(house):
    await house.ok("admin.property.Set", arg="clockvm", payload="work")
    assert await house.ok("admin.vm.feature.Get", "work", "service.clocksync") == "1"
    await house.ok("admin.property.Set", arg="clockvm", payload="dvm")
    assert await house.error("admin.vm.feature.Get", "work", "service.clocksync") == "QubesFeatureNotFoundError"


# -- features and tags -----------------------------------------------------------------------------------------------


async def test_features_and_their_chains(house):
    await house.ok("admin.vm.feature.Set", "deb", "os", "Linux")
    await house.ok("admin.vm.feature.Set", "dom0", "here", "yes")
    await house.ok("admin.vm.feature.Set", "work", "empty")
    assert await house.ok("admin.vm.feature.List", "work") == "empty\n"
    assert await house.ok("admin.vm.feature.Get", "work", "empty") == ""
    assert await house.ok("admin.vm.feature.CheckWithTemplate", "work", "os") == "Linux"
    assert await house.ok("admin.vm.feature.CheckWithAdminVM", "work", "here") == "yes"
    assert await house.ok("admin.vm.feature.CheckWithTemplateAndAdminVM", "work", "here") == "yes"
    for check in ("CheckWithNetvm", "CheckWithAdminVM"):
        assert await house.error(f"admin.vm.feature.{check}", "work", "os") == "QubesFeatureNotFoundError"
    await house.ok("admin.vm.feature.Remove", "work", "empty")
    assert await house.error("admin.vm.feature.Remove", "work", "empty") == "QubesFeatureNotFoundError"


@pytest.mark.parametrize(
    ("feature", "value", "error"),
    [
        ("bad/name", "x", "ProtocolError"),
        ("x", "tab\t", "ProtocolError"),
        ("x", b"\xff", "ProtocolError"),
        ("service." + "x" * 49, "1", "QubesValueError"),
        ("preload-dispvm", "disp1", "PermissionDenied"),
        ("deferred-netvm-original", "x", "PermissionDenied"),
        ("preload-dispvm-max", "many", "QubesValueError"),
    ],
)
async def test_a_feature_is_refused(house, feature, value, error):
    assert await house.error("admin.vm.feature.Set", "work", feature, value) == error


async def test_tags(house):
    events = house.ledger.bus.subscribe()
    await house.ok("admin.vm.tag.Set", "work", "a-b_1")
    await house.ok("admin.vm.tag.Set", "work", "a-b_1")
    assert told(house, events) == [("work", "domain-tag-add:a-b_1")]
    assert await house.ok("admin.vm.tag.Get", "work", "a-b_1") == "1"
    assert await house.ok("admin.vm.tag.Get", "work", "other") == "0"
    assert await house.error("admin.vm.tag.Set", "work", "a.b") == "QubesInvalidTagError"
    await house.ok("admin.vm.tag.Remove", "work", "a-b_1")
    assert await house.error("admin.vm.tag.Remove", "work", "a-b_1") == "QubesTagNotFoundError"


# -- notes, firewall, labels -----------------------------------------------------------------------------------------


async def test_notes_keep_lines_and_lose_control_characters(house):
    await house.ok("admin.vm.notes.Set", "work", payload="Zeile\tzwei\n\x1b[31mrot\u202e")
    assert await house.ok("admin.vm.notes.Get", "work") == "Zeile\tzwei\n_[31mrot_"
    assert await house.error("admin.vm.notes.Set", "work", payload=b"\xff") == "ProtocolError"
    assert await house.error("admin.vm.notes.Get", "dom0") == "ProtocolError"


async def test_firewall_get_returns_what_set_accepts(house):
    assert await house.ok("admin.vm.firewall.Get", "work") == "action=accept\n"
    events = house.ledger.bus.subscribe()
    await house.ok("admin.vm.firewall.Set", "work", payload="action=accept dstname=a.org proto=tcp dstports=443\n")
    rules = await house.ok("admin.vm.firewall.Get", "work")
    assert rules == "action=accept dsthost=a.org proto=tcp dstports=443-443\n"
    await house.ok("admin.vm.firewall.Set", "work", payload=rules)
    await house.ok("admin.vm.firewall.Reload", "work")
    assert told(house, events) == [("work", "firewall-changed")] * 3
    assert await house.error("admin.vm.firewall.Set", "work", payload="action=explode") == "QubesValueError"
    assert await house.error("admin.vm.firewall.Set", "work") == "ProtocolError"


async def test_labels(house):
    assert (await house.ok("admin.label.List")).split() == [
        "red", "orange", "yellow", "green", "gray", "blue", "purple", "black",
    ]  # fmt: skip
    assert await house.ok("admin.label.Get", arg="red") == "0xcc0000"
    await house.ok("admin.label.Create", arg="pink", payload="0xff00ff")
    assert await house.ok("admin.label.Index", arg="pink") == "9"
    await house.ok("admin.vm.property.Set", "work", "label", "pink")
    assert await house.error("admin.label.Remove", arg="pink") == "QubesLabelInUseError"
    await house.ok("admin.vm.property.Set", "work", "label", "red")
    await house.ok("admin.label.Remove", arg="pink")
    assert await house.error("admin.label.Get", arg="pink") == "QubesLabelNotFoundError"
    assert await house.error("admin.label.Remove", arg="red") == "ProtocolError"
    assert await house.error("admin.label.Create", arg="red", payload="0xff00ff") == "QubesLabelInUseError"
    assert await house.error("admin.label.Create", arg="12", payload="0xff00ff") == "QubesInvalidLabelError"


# -- what callers other than dom0 get --------------------------------------------------------------------------------


async def test_a_qube_sees_in_lists_only_what_it_may_know(house):
    assert (await house.ok("admin.vm.List", source="work")).startswith("work ")
    assert len((await house.ok("admin.vm.List", source="work")).splitlines()) == 1
    assert [row["name"] for row in json.loads(await house.ok("cloison.qube.List", source="work"))] == ["work"]
    for method, arg, payload in (
        ("internal.GetSystemInfo", "", ""),
        ("cloison.standalone.Import", "x", '{"image":"/etc/shadow"}'),
        ("cloison.daemon.Stop", "", ""),
    ):
        assert await house.error(method, "dom0", arg, payload, source="work") == "PermissionDenied"
    assert await house.error("admin.vm.List", source="nobody") == "QubesVMNotFoundError"
    assert await house.error("admin.vm.List", "uuid:123") == "QubesVMInvalidUUIDError"


async def test_the_policy_engine_is_told_all_it_asks_for(house):
    domains = json.loads(await house.ok("internal.GetSystemInfo"))["domains"]
    assert domains["work"] == {
        "internal": False,
        "tags": ["audiovm-dom0", "created-by-dom0", "guivm-dom0"],
        "type": "AppVM",
        "template_for_dispvms": False,
        "default_dispvm": "dvm",
        "icon": "appvm-blue",
        "label": "0x3465a4",
        "guivm": "dom0",
        "relayvm": None,
        "transport_rpc": None,
        "power_state": "Halted",
        "uuid": house.ledger.inventory.qube("work").uuid,
    }


async def test_the_whole_list_in_one_answer(house):
    rows = json.loads(await house.ok("cloison.qube.List", payload='{"properties":["memory","template"]}'))
    work = next(row for row in rows if row["name"] == "work")
    assert work["properties"]["memory"] == {"value": 400, "default": True, "type": "int"}
    assert (work["template"], work["netvm"], work["state"], work["label"]) == ("deb", None, "Halted", "blue")
    assert await house.error("cloison.qube.List", payload='{"properties":["x"]}') == "QubesNoSuchPropertyError"
