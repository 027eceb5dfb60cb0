"""The table of properties: complete, and resolved as Qubes does."""

from __future__ import annotations

import re

import pytest

from cloison.errors import NoSuchProperty, QubeNotFound
from cloison.model.classes import Klass
from cloison.model.inventory import Inventory, Reference, Resolved
from cloison.model.labels import DEFAULT_LABELS
from cloison.model.power import TRANSITIONS, PowerState, may_follow
from cloison.model.properties import GLOBAL_PROPERTIES, QUBE_PROPERTIES, Mode, properties_of
from cloison.model.qube import Assignment, Host, Qube, Run
from cloison.model.values import PropertyType, format_value
from cloison.model.volumes import VOLUMES_OF, Volume, VolumeKind

NOTES = """
name all str once | qid all int once | uuid all str once | klass all str ro | label all label rw | icon all str ro
template AP vm rw | template_for_dispvms AS bool rw | auto_cleanup P bool rw | dispid P int once | is_preload P bool ro
netvm Q vm rw | provides_network Q bool rw | ip Q str rw | ip6 Q str rw | mac Q str rw | gateway Q str ro
gateway6 Q str ro | visible_ip Q str ro | visible_ip6 Q str ro | visible_gateway Q str ro | visible_gateway6 Q str ro
visible_netmask Q str ro | dns Q str ro | memory Q int rw | maxmem Q int rw | vcpus Q int rw | virt_mode Q str rw
kernel Q str rw | kernelopts Q str rw | bootmode Q str rw | appvm_default_bootmode T str rw | default_user Q str rw
qrexec_timeout Q int rw | shutdown_timeout Q int rw | autostart Q bool rw | debug Q bool rw
include_in_backups all bool rw | backup_timestamp Q int rw | installed_by_rpm Q bool rw | updateable DQ bool ro
default_dispvm DQ vm rw | management_dispvm Q vm rw | guivm Q vm rw | audiovm Q vm rw | keyboard_layout DQ str rw
devices_denied Q str rw | stubdom_mem Q int rw | xid Q int ro | stubdom_xid Q int ro | stubdom_uuid Q str ro
start_time Q str ro | relayvm R vm rw | transport_rpc R str rw | remote_name R str rw
start_mode Q str rw | share_memory Q bool rw | audit QR str rw | prevent_remove Q bool rw
"""
"""Names, classes, types and modes as the notes on the Admin API list them (section 5), and ours."""
LETTERS = {
    "T": Klass.TEMPLATE, "S": Klass.STANDALONE, "A": Klass.APP, "P": Klass.DISPOSABLE, "D": Klass.ADMIN,
    "R": Klass.REMOTE,
}  # fmt: skip


def classes(text):
    if text == "all":
        return frozenset(Klass)
    return frozenset(LETTERS[letter] for letter in text.replace("Q", "TSAP"))


def rows():
    return [tuple(row.split()) for row in re.split(r"[|\n]", NOTES) if row.strip()]


def test_every_property_of_the_notes_is_declared_and_no_other():
    declared = {(p.name, p.on, p.type.value, p.mode.value) for p in QUBE_PROPERTIES.values()}
    assert declared == {(name, classes(on), kind, mode) for name, on, kind, mode in rows()}


def test_every_global_property_of_the_notes_is_declared_and_no_other():
    notes = {
        "vm": "default_netvm default_template default_dispvm management_dispvm updatevm clockvm default_guivm "
        "default_audiovm",
        "str": "default_kernel default_pool default_pool_private default_pool_root default_pool_volatile "
        "default_pool_kernel default_audit",
        "int": "audit_limit default_qrexec_timeout default_shutdown_timeout stats_interval maxmem no_cpus",
        "bool": "check_updates_vm",
    }
    expected = {(name, kind) for kind, names in notes.items() for name in names.split()}
    assert {(p.name, p.type.value) for p in GLOBAL_PROPERTIES.values()} == expected


def test_what_is_inherited_is_what_the_notes_say():
    inherited = {p.name for p in QUBE_PROPERTIES.values() if p.inherited}
    assert inherited == {
        "memory", "maxmem", "vcpus", "virt_mode", "kernel", "kernelopts", "default_user", "qrexec_timeout",
        "shutdown_timeout", "management_dispvm", "start_mode", "share_memory",
    }  # fmt: skip


def test_every_property_explains_itself():
    for prop in (*QUBE_PROPERTIES.values(), *GLOBAL_PROPERTIES.values()):
        assert prop.doc.endswith(".") and prop.doc.isascii()


def qube(name, qid, klass=Klass.APP, label="red", **fields):
    return Qube(name, qid, f"uuid-{qid}", klass, label, **fields)


def volumes(klass, name):
    return {v: Volume(v, "default", f"{name}/{v}", plan.kind, plan.size_bytes) for v, plan in VOLUMES_OF[klass].items()}


def picture(*qubes, settings=None, runs=None):
    everybody = [Qube("dom0", 0, "0", Klass.ADMIN, "black"), *qubes]
    return Inventory(
        {q.name: q for q in everybody},
        {label.name: label for label in DEFAULT_LABELS},
        {},
        settings or {},
        runs or {},
        Host(8192, 4),
    )


@pytest.fixture
def inventory():
    return picture(
        qube("deb", 1, Klass.TEMPLATE, "black", properties={"memory": 600, "default_user": "me"},
             features={"os": "Linux"}, volumes=volumes(Klass.TEMPLATE, "deb")),
        qube("dvm", 2, properties={"template": "deb", "template_for_dispvms": True, "vcpus": 4},
             volumes=volumes(Klass.APP, "dvm")),
        qube("disp7", 3, Klass.DISPOSABLE, properties={"template": "dvm", "dispid": 700, "auto_cleanup": True},
             volumes=volumes(Klass.DISPOSABLE, "disp7")),
        qube("net", 4, properties={"template": "deb", "provides_network": True, "netvm": None},
             features={"servicevm": "1", "ipv6": "1"}),
        qube("work", 300, properties={"template": "deb"}, features={"net.fake-ip": "192.168.1.2"}),
        qube("far", 6, Klass.REMOTE),
        settings={"default_netvm": "net", "default_dispvm": "dvm"},
        runs={"work": Run({}, 1234.5)},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "prop", "value", "is_default"),
    [
        ("deb", "memory", 600, False),
        ("dvm", "memory", 600, True),
        ("disp7", "memory", 600, True),
        ("disp7", "vcpus", 4, True),
        ("dvm", "vcpus", 4, False),
        ("net", "vcpus", 2, True),
        ("work", "default_user", "me", True),
        ("work", "maxmem", 4096, True),
        ("deb", "netvm", None, True),
        ("work", "netvm", "net", True),
        ("net", "netvm", None, False),
        ("work", "ip", "10.137.1.46", True),
        ("work", "visible_ip", "192.168.1.2", True),
        ("work", "visible_gateway", "10.137.0.4", True),
        ("work", "visible_netmask", "255.255.255.255", True),
        ("work", "dns", "10.139.1.1 10.139.1.2", True),
        ("work", "ip6", "fd09:24ef:4179::a89:12c", True),
        ("work", "gateway", "", True),
        ("net", "gateway", "10.137.0.4", True),
        ("deb", "ip", "", True),
        ("deb", "dns", "", True),
        ("disp7", "ip", "10.138.2.192", True),
        ("disp7", "default_dispvm", "dvm", True),
        ("work", "default_dispvm", "dvm", True),
        ("disp7", "include_in_backups", False, True),
        ("far", "include_in_backups", False, True),
        ("work", "include_in_backups", True, True),
        ("work", "kernel", "template", True),
        ("work", "xid", 300, True),
        ("work", "start_time", "1234.500", True),
        ("dvm", "xid", -1, True),
        ("dvm", "start_time", "", True),
        ("deb", "icon", "templatevm-black", True),
        ("dvm", "icon", "templatevm-red", True),
        ("disp7", "icon", "dispvm-red", True),
        ("net", "icon", "servicevm-red", True),
        ("work", "icon", "appvm-red", True),
        ("dom0", "icon", "adminvm-black", True),
        ("far", "icon", "remotevm-red", True),
        ("deb", "updateable", True, True),
        ("work", "updateable", False, True),
        ("work", "guivm", "dom0", True),
        ("work", "keyboard_layout", "us++", True),
        ("work", "klass", "AppVM", True),
        ("work", "label", "red", False),
        ("work", "start_mode", "auto", True),
        ("work", "share_memory", True, True),
        ("work", "backup_timestamp", None, True),
    ],
)
def test_values_are_resolved_as_in_qubes(inventory, name, prop, value, is_default):
    assert inventory.resolve(name, prop) == Resolved(value, is_default)


def test_every_property_of_every_class_has_a_value_of_its_type(inventory):
    kinds = {PropertyType.INT: int, PropertyType.BOOL: bool}
    for holder in inventory:
        for name, prop in properties_of(holder.klass).items():
            value = inventory.value(holder.name, name)
            assert value is None or type(value) is kinds.get(prop.type, str), (holder.name, name, value)


def test_what_is_shown_is_accepted_again(inventory):
    for holder in inventory:
        for name, prop in properties_of(holder.klass).items():
            value = inventory.value(holder.name, name)
            if prop.mode is Mode.RW and value not in (None, ""):
                assert prop.parse(format_value(value)) == value, name


def test_a_property_of_another_class_does_not_exist(inventory):
    for name, prop in (("deb", "template"), ("dom0", "memory"), ("work", "dispid"), ("work", "nonsense")):
        with pytest.raises(NoSuchProperty):
            inventory.value(name, prop)
    with pytest.raises(QubeNotFound):
        inventory.value("nobody", "memory")


def test_the_family_of_a_template(inventory):
    assert inventory.template_of_root("disp7").name == "deb"
    assert inventory.template_of_root("deb").name == "deb"
    assert [q.name for q in inventory.children("deb")] == ["dvm", "net", "work"]
    assert [q.name for q in inventory.descendants("deb")] == ["dvm", "disp7", "net", "work"]
    assert inventory.volume_source("disp7", "root").vid == "deb/root"
    assert inventory.volume_source("disp7", "private").vid == "dvm/private"
    assert inventory.volume_source("dvm", "root").vid == "deb/root"
    assert inventory.volume_source("dvm", "private") is None


def test_who_names_whom(inventory):
    assert inventory.references("dvm") == (Reference(None, "default_dispvm"), Reference("disp7", "template"))
    assert inventory.references("net") == (Reference(None, "default_netvm"),)
    assert [q.name for q in inventory.users("net", "netvm")] == ["disp7", "dvm", "work"]


def test_a_qube_does_not_refer_to_itself_and_devices_count():
    assigned = Assignment("block", "usb", "sda", "*", "required")
    inventory = picture(qube("usb", 1), qube("me", 2, properties={"default_dispvm": "me"}, assignments=(assigned,)))
    assert inventory.references("me") == ()
    assert inventory.references("usb") == (Reference("me", "device block"),)


def test_features_are_looked_for_along_chains(inventory):
    assert inventory.feature("disp7", "os") == "Linux"
    assert inventory.feature("disp7", "os", via=None) is None
    assert inventory.feature("work", "ipv6", via="netvm") == "1"
    assert inventory.feature("work", "nothing", dom0=True) is None


def test_a_loop_of_netvms_cannot_hang_a_question():
    a = qube("a", 1, properties={"netvm": "b", "provides_network": True})
    b = qube("b", 2, properties={"netvm": "a", "provides_network": True})
    inventory = picture(a, b)
    assert [q.name for q in inventory.chain("a", "netvm")] == ["a", "b"]


def test_qubes_that_show_each_other_cannot_hang_a_question():
    a = qube("a", 1, properties={"guivm": "b"})
    b = qube("b", 2, properties={"guivm": "a"})
    assert picture(a, b).value("a", "keyboard_layout") == "us++"
    c = qube("b", 2, properties={"guivm": "a", "keyboard_layout": "fr++"})
    assert picture(a, c).value("a", "keyboard_layout") == "fr++"


def test_volume_plans_are_those_of_the_notes():
    kinds = {klass: [plan.kind.value for plan in plans.values()] for klass, plans in VOLUMES_OF.items() if plans}
    assert kinds == {
        Klass.TEMPLATE: ["kept", "kept", "volatile"],
        Klass.STANDALONE: ["kept", "kept", "volatile"],
        Klass.APP: ["snapshot", "kept", "volatile"],
        Klass.DISPOSABLE: ["snapshot", "snapshot", "volatile"],
    }
    assert VolumeKind.SNAPSHOT.snap_on_start and not VolumeKind.SNAPSHOT.save_on_stop


def test_power_states_follow_the_table_and_every_running_state_can_end():
    assert may_follow(PowerState.HALTED, PowerState.TRANSIENT)
    assert not may_follow(PowerState.HALTED, PowerState.RUNNING)
    assert set(TRANSITIONS) == set(PowerState)
    for state in PowerState:
        reachable = {state}
        while new := {after for before in reachable for after in TRANSITIONS[before]} - reachable:
            reachable |= new
        assert state is PowerState.NA or PowerState.HALTED in reachable
