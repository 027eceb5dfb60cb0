"""The store: what is written comes back, references stay whole, pictures are cheap and never change."""

from __future__ import annotations

import stat

import pytest

from cloison.errors import BackendFailed, QubeNotFound
from cloison.model.classes import Klass
from cloison.model.labels import DEFAULT_LABELS, Label
from cloison.model.properties import GLOBAL_PROPERTIES, QUBE_PROPERTIES, Mode
from cloison.model.qube import Assignment, Pool
from cloison.model.values import PropertyType
from cloison.model.volumes import Volume, VolumeKind


def add(records, name, qid, klass=Klass.APP, label="red"):
    records.add_qube(name, qid=qid, uuid=f"uuid-{qid}", klass=klass, label=label)


@pytest.fixture
def furnished(store):
    with store.transaction() as records:
        add(records, "deb", 1, Klass.TEMPLATE, "black")
        add(records, "work", 2)
        records.set_property("work", "template", "deb")
    return store


def test_a_new_system_has_dom0_the_labels_and_a_pool(store):
    inventory = store.inventory
    assert [(q.name, q.qid, q.klass) for q in inventory] == [("dom0", 0, Klass.ADMIN)]
    assert inventory.qube("dom0").uuid == "00000000-0000-0000-0000-000000000000"
    assert tuple(inventory.labels.values()) == DEFAULT_LABELS
    assert inventory.pools == {"default": Pool("default", "qcow2")}


def test_the_database_is_private(store):
    assert stat.S_IMODE(store.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(store.path.parent.stat().st_mode) == 0o700


def test_everything_comes_back_after_reopening(furnished, opened):
    volume = Volume("private", "default", "appvms/work/private", VolumeKind.KEPT, 2**31, 3, rw=False, ephemeral=True)
    assignment = Assignment("block", "deb", "sda", "*", "required", {"read-only": "yes"})
    with furnished.transaction() as records:
        records.set_property("work", "memory", 512)
        records.set_property("work", "debug", True)
        records.set_property("work", "netvm", None)
        records.set_setting("default_template", "deb")
        records.set_setting("check_updates_vm", False)
        records.set_feature("work", "service.x", "")
        records.add_tag("work", "created-by-dom0")
        records.set_notes("work", "zwölf\nBoxkämpfer")
        records.set_firewall("work", "action=drop\n")
        records.put_volume("work", volume)
        records.put_assignment("work", assignment)
        records.put_pool(Pool("fast", "qcow2", {"dir_path": "/x"}, 2, True))
        records.add_label(Label("pink", 9, "0xff00ff"))
        records.set_run("work", {"pid": 17, "deep": {"list": [1, 2]}}, started_at=5.5)
        records.doom_volume("default", "appvms/x/root")
        records.use_dispid(77, 100.0)
    before = furnished.inventory
    furnished.close()
    store = opened()
    after = store.inventory
    work = after.qube("work")
    assert work.properties == {"template": "deb", "memory": 512, "debug": True, "netvm": None}
    assert after.settings == {"default_template": "deb", "check_updates_vm": False}
    assert (work.features, work.tags, work.firewall) == ({"service.x": ""}, {"created-by-dom0"}, "action=drop\n")
    assert (work.volumes, work.assignments) == ({"private": volume}, (assignment,))
    assert after.pools["fast"] == Pool("fast", "qcow2", {"dir_path": "/x"}, 2, True)
    assert after.runs["work"].record == {"pid": 17, "deep": {"list": [1, 2]}}
    assert after.runs["work"].started_at == 5.5
    assert store.notes("work") == "zwölf\nBoxkämpfer"
    assert store.doomed_volumes() == {("default", "appvms/x/root")}
    assert store.recent_dispids(99) == {77} and store.recent_dispids(101) == frozenset()
    assert (after.qubes, after.labels, after.pools, after.runs) == (
        before.qubes,
        before.labels,
        before.pools,
        before.runs,
    )


@pytest.mark.parametrize("table", [QUBE_PROPERTIES, GLOBAL_PROPERTIES], ids=["qubes", "system"])
def test_a_value_of_every_property_survives_the_disk(furnished, opened, table):
    samples = {
        PropertyType.STR: "text",
        PropertyType.INT: 12345,
        PropertyType.BOOL: False,
        PropertyType.VM: "deb",
        PropertyType.LABEL: "red",
    }
    settable = [prop for prop in table.values() if prop.mode is not Mode.COMPUTED and prop.column is None]
    with furnished.transaction() as records:
        for prop in settable:
            if table is QUBE_PROPERTIES:
                records.set_property("work", prop.name, samples[prop.type])
            else:
                records.set_setting(prop.name, samples[prop.type])
    furnished.close()
    inventory = opened().inventory
    found = inventory.qube("work").properties if table is QUBE_PROPERTIES else inventory.settings
    assert found == {prop.name: samples[prop.type] for prop in settable}


def test_a_picture_never_changes_and_is_the_same_until_something_does(furnished):
    before = furnished.inventory
    assert furnished.inventory is before
    with furnished.transaction() as records:
        records.set_property("work", "memory", 512)
    assert "memory" not in before.qube("work").properties
    after = furnished.inventory
    assert after.value("work", "memory") == 512
    assert after.qube("deb") is before.qube("deb"), "what a change did not touch is not read again"


def test_a_change_of_a_template_is_seen_in_what_is_based_on_it(furnished):
    assert furnished.inventory.value("work", "memory") == 400
    with furnished.transaction() as records:
        records.set_property("deb", "memory", 600)
    assert furnished.inventory.value("work", "memory") == 600


def test_a_failed_transaction_changes_nothing(furnished):
    before = furnished.inventory
    with pytest.raises(RuntimeError), furnished.transaction() as records:
        records.set_property("work", "memory", 512)
        records.remove_qube("work")
        raise RuntimeError
    assert furnished.inventory == before


def test_transactions_do_not_nest(furnished):
    with pytest.raises(BackendFailed), furnished.transaction(), furnished.transaction():
        pass
    with furnished.transaction() as records:
        records.set_property("work", "memory", 512)


def test_a_qube_that_is_named_somewhere_cannot_go(furnished):
    with pytest.raises(BackendFailed, match="no longer fit together"), furnished.transaction() as records:
        records.remove_qube("deb")
    assert furnished.inventory.find("deb")


def test_a_qube_that_names_only_itself_can_go_with_all_that_is_its_own(furnished):
    with furnished.transaction() as records:
        records.set_property("work", "default_dispvm", "work")
        records.set_feature("work", "a", "b")
        records.set_run("work", {"pid": 1})
        records.put_volume("work", Volume("private", "default", "v", VolumeKind.KEPT, 1))
    with furnished.transaction() as records:
        records.remove_qube("work")
    assert furnished.inventory.find("work") is None
    assert furnished.inventory.runs == {}
    for table in ("properties", "features", "tags", "volumes", "runs"):
        assert furnished._connection.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,)


def test_a_rename_is_followed_by_everything_that_names_the_qube(furnished):
    with furnished.transaction() as records:
        records.set_setting("default_template", "deb")
        records.rename_qube("deb", "debian")
    inventory = furnished.inventory
    assert inventory.qube("work").properties["template"] == "debian"
    assert inventory.settings["default_template"] == "debian"
    assert [child.name for child in inventory.children("debian")] == ["work"]


def test_a_name_that_does_not_exist_is_refused(furnished):
    with pytest.raises(QubeNotFound), furnished.transaction() as records:
        records.set_property("work", "netvm", "nowhere")


def test_a_run_keeps_its_time_when_its_record_changes(furnished):
    with furnished.transaction(durable=False) as records:
        records.set_run("work", {"pid": 1}, started_at=1.0)
    with furnished.transaction(durable=False) as records:
        records.set_run("work", {"pid": 2})
    run = furnished.inventory.runs["work"]
    assert (run.record, run.started_at) == ({"pid": 2}, 1.0)
    with furnished.transaction() as records:
        records.delete_run("work")
        records.delete_run("work")
    assert furnished.inventory.runs == {}


def test_names_with_quotes_cannot_break_statements(furnished):
    with furnished.transaction() as records:
        records.set_feature("work", "a", "'; DROP TABLE qubes; --")
    assert furnished.inventory.qube("work").features["a"] == "'; DROP TABLE qubes; --"


def test_a_start_or_stop_changes_nothing_but_what_follows_from_it(furnished):
    before = furnished.inventory
    assert (before.value("work", "memory"), before.value("work", "xid")) == (400, -1)
    with furnished.transaction(durable=False) as records:
        records.set_run("work", {"pid": 1})
    after = furnished.inventory
    assert after.qubes is before.qubes and after.value("work", "xid") == 2 and before.value("work", "xid") == -1
    with furnished.transaction(durable=False) as records:
        records.delete_run("work")
    assert furnished.inventory.value("work", "xid") == -1


def test_new_kernels_are_known_at_once(furnished):
    furnished.know_kernels(("6.12", "6.13"))
    assert furnished.inventory.host.kernels == ("6.12", "6.13")
