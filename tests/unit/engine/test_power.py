"""What is told while a qube starts and stops, in its order, and what a start that fails leaves."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

import pytest

from cloison.admin.eventnames import records as wire_records
from cloison.engine import events as e
from cloison.engine.start import Facts
from cloison.engine.system import NoCables, System
from cloison.errors import CloisonError, NotNow
from cloison.model.names import QubeName

from .conftest import Bench
from .test_recover import Records

MakeBench = Callable[[], Bench]
MACHINE = ["property-reset:xid", "property-reset:stubdom_xid", "property-reset:start_time"]


class Chain(NoCables):
    """The netvm is started first: its own events come in between."""

    def __init__(self, books: Records) -> None:
        self._books = books

    async def before_start(self, name: QubeName) -> None:
        self._books.say(e.QubeStarted(QubeName("net")))


def told(books: Records) -> list[str]:
    found = [record for event in books.said for record in wire_records(event)]
    return [f"{record.subject} {record.name}" if record.subject == "net" else record.name for record in found]


async def test_a_start_and_a_stop_tell_what_clients_wait_for_once_and_in_order(bench: MakeBench, facts: Facts) -> None:
    it = bench()
    books = Records(facts)
    system = System(it.ground, books, on_committed=lambda name: None)
    system.cables = Chain(books)
    await system.start(facts.name)
    assert told(books) == [
        "domain-pre-start", "domain-verify-files", "net domain-start", "domain-pre-spawn", *MACHINE, "domain-spawn",
        "domain-qdb-create", "domain-pre-unpaused", "domain-unpaused", "domain-start",
    ]  # fmt: skip
    ids = {record.fields["start_guid"] for event in books.said for record in wire_records(event)
           if record.name in ("domain-pre-start", "domain-pre-spawn", "domain-spawn", "domain-start")
           and record.subject == facts.name}  # fmt: skip
    assert len(ids) == 1 and "" not in ids
    books.said.clear()
    await system.start(facts.name)
    assert told(books) == [], "it runs already"
    await system.kill(facts.name)
    assert told(books) == ["domain-stopped", *MACHINE, "domain-shutdown"]
    await system.close()


async def test_a_prohibited_start_starts_no_netvm_and_is_told(bench: MakeBench, facts: Facts) -> None:
    it = bench()
    books = Records(replace(facts, prohibited="under repair"))
    system = System(it.ground, books, on_committed=lambda name: None)
    system.cables = Chain(books)
    with pytest.raises(NotNow, match="under repair"):
        await system.start(facts.name)
    assert told(books) == ["domain-pre-start", "domain-start-failed"]
    assert books.forgotten == [], "a qube that was not started stays"
    await system.close()


async def test_a_disposable_that_does_not_start_goes_and_a_named_one_stays(bench: MakeBench, facts: Facts) -> None:
    for auto_cleanup in (True, False):
        it = bench()
        books = Records(replace(facts, auto_cleanup=auto_cleanup, start_mode="fork"))
        system = System(it.ground, books, on_committed=lambda name: None)
        it.trouble.fail_at = 2
        with pytest.raises(CloisonError):
            await system.start(facts.name)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert books.forgotten == ([facts.name] if auto_cleanup else [])
        assert told(books)[-1] == "domain-start-failed"
        await system.close()
