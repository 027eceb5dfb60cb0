"""Whoever watches is told of every change before it is made and how it ended, and of nothing else."""

from __future__ import annotations

import pytest

from cloison.admin.dispatch import METHODS, Admin
from cloison.admin.methods import Scope


@pytest.fixture
def watched(house):
    told = []

    def witness(call):
        told.append(("asked", call.method, call.arg, house.ledger.inventory.qube("work").features.get("x")))
        return lambda failure: told.append(("ended", call.method, failure))

    admin = Admin(house.admin.desk, witness)

    async def ask(method, dest="work", arg="", payload=b""):
        told.clear()
        await admin.dispatch("dom0", dest, method, arg, payload)
        return list(told)

    return ask


async def test_a_change_is_told_before_and_after(watched):
    assert await watched("admin.vm.feature.Set", arg="x", payload=b"1") == [
        ("asked", "admin.vm.feature.Set", "x", None),
        ("ended", "admin.vm.feature.Set", ""),
    ]


async def test_a_change_that_fails_is_told_with_its_reason(watched):
    asked, ended = await watched("admin.vm.property.Set", arg="memory", payload=b"much")
    assert asked[:3] == ("asked", "admin.vm.property.Set", "memory")
    assert ended[:2] == ("ended", "admin.vm.property.Set") and "memory" in ended[2]


async def test_looking_is_not_told(watched):
    for method, dest, arg in (("admin.vm.List", "dom0", ""), ("admin.vm.property.Get", "work", "memory")):
        assert await watched(method, dest, arg) == []
    assert await watched("internal.GetSystemInfo", "dom0") == []


def test_what_may_change_something_is_known_by_its_scope():
    quiet = {row.name for row in METHODS.values() if not row.may_change}
    assert {name for name in quiet if name.endswith((".Set", ".Remove", ".Start", ".Kill", ".Create"))} == set()
    assert all(METHODS[name].scope in (Scope.LOCAL_RO, Scope.GLOBAL_RO, Scope.INTERNAL) for name in quiet)


async def test_a_caller_that_goes_away_is_told_as_the_end(house):
    told = []
    admin = Admin(house.admin.desk, lambda call: lambda failure: told.append((call.method, failure)))
    work = admin.stream("dom0", "dom0", "cloison.template.Build", "slow", b'{"suite": "slow"}')
    await anext(work)
    await work.aclose()
    assert told == [("cloison.template.Build", "given up: the caller went away")]


async def test_what_was_done_is_told_so_even_if_nobody_takes_the_answer(house):
    told = []
    admin = Admin(house.admin.desk, lambda call: told.append)
    work = admin.stream("dom0", "work", "admin.vm.tag.Set", "office", b"")
    await anext(work)
    await work.aclose()
    assert told == [""]
