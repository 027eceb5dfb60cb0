"""The reference pages say what the tables say."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.unit.admin.test_events import NAMES
from tests.unit.admin.test_fuzz import CLIENTS_KNOW
from tests.unit.admin.watching import undeclared_error, undeclared_event

from cloison.admin.contracts import ALWAYS, CHANGING, CONTRACTS
from cloison.admin.dispatch import METHODS
from cloison.admin.reference import PAGES
from cloison.engine import events as e

DOCS = Path(__file__).parents[3] / "docs"
HINT = "write it again: python -m cloison.admin.reference docs"


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_fresh(name):
    assert (DOCS / name).read_text() == PAGES[name](), HINT


def test_every_method_has_a_contract_whose_errors_clients_know():
    assert set(CONTRACTS) == set(METHODS)
    assert {name for found in CONTRACTS.values() for name in found.errors} | ALWAYS | CHANGING <= CLIENTS_KNOW
    told = {name.partition(":")[0] for names in NAMES.values() for name in names}
    assert {name for found in CONTRACTS.values() for name in found.events} <= told


def test_a_breach_of_a_contract_is_seen():
    assert undeclared_error("admin.vm.List", b"2\0QubesVMInUseError\0\0x\0")
    assert not undeclared_error("admin.vm.Remove", b"2\0QubesVMInUseError\0\0x\0")
    assert undeclared_event("admin.vm.List", e.QubeAdded("new"))
    assert not undeclared_event("admin.vm.Create.AppVM", e.QubeAdded("new"))


def test_every_method_is_on_the_page():
    page = PAGES["admin-api.md"]()
    assert all(f"`{name}`" in page for name in METHODS)


KLASSES = ("AdminVM", "AppVM", "DispVM", "RemoteVM", "StandaloneVM", "TemplateVM")
FAMILIES = {
    "admin": "vmclass.List Events deviceclass.List",
    "admin.vm": "List CreateDisposable Remove Start Kill Pause Unpause Suspend Resume Shutdown CurrentState Stats "
    "Console " + " ".join(f"Create.{klass} CreateInPool.{klass}" for klass in KLASSES),
    "admin.vm.property": "List Get GetAll GetDefault Help Set Reset",
    "admin.property": "List Get GetAll GetDefault Help Set Reset",
    "admin.vm.feature": "List Get CheckWithTemplate CheckWithNetvm CheckWithAdminVM CheckWithTemplateAndAdminVM Set "
    "Remove",
    "admin.vm.tag": "List Get Set Remove",
    "admin.vm.notes": "Get Set",
    "admin.vm.firewall": "Get Set Reload",
    "admin.vm.volume": "List Info ListSnapshots Revert CloneFrom CloneTo Resize Clear Set.revisions_to_keep Set.rw "
    "Set.ephemeral Import ImportWithSize",
    **{
        f"admin.vm.device.{devclass}": "Available Assigned Attached Assign Unassign Attach Detach Set.assignment"
        for devclass in ("block", "mic", "pci", "usb")
    },
    "admin.vm.device.denied": "List Add Remove",
    "admin.label": "List Get Index Create Remove",
    "admin.pool": "List ListDrivers Info UsageDetails Add Remove Set.revisions_to_keep Set.ephemeral_volatile "
    "volume.List",
    "admin.backup": "Info Execute Cancel",
    "internal": "GetSystemInfo vm.volume.ImportBegin vm.volume.ImportEnd SuspendPre SuspendPost",
}
"""Every method that clients of Qubes OS may call (Admin API notes, sections 1.6 and 3)."""


def test_the_table_has_every_method_of_qubes_and_no_other_under_its_names():
    known = {f"{family}.{verb}" for family, verbs in FAMILIES.items() for verb in verbs.split()}
    assert {name for name in METHODS if not name.startswith("cloison.")} == known


async def test_backups_are_refused_by_a_name_that_clients_know(house):
    for verb in ("Info", "Execute", "Cancel"):
        answer = await house.call(f"admin.backup.{verb}", arg="mine")
        assert answer.startswith(b"2\0QubesNotImplementedError\0\0")
    assert await house.error("admin.backup.Info") == "ProtocolError"
