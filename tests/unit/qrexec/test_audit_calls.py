"""The broker with the real audit log: each call is in it, in order, and none is made that could not be written down."""

from __future__ import annotations

import asyncio

import pytest
from auditlogs import FullDisk, LogBench
from fakes import echo as answer

from cloison.wire import Stream

ECHO = {"test.Echo+letter": answer}


@pytest.fixture
def recorded(house, tmp_path):
    disk = FullDisk()
    bench = LogBench(tmp_path / "audit", disk=disk)
    bench.disk = disk
    house.broker._audit = bench.log
    return bench


async def echo(house, caller):
    call = await caller.call("vault", "test.Echo+letter")
    await call.write(Stream.STDIN, b"dear", end=True)
    return await call.result()


def shown(bench, *names):
    return [tuple(entry.fields.get(name) for name in names) for entry in bench.entries() if entry.fields]


async def test_a_call_is_two_records_with_all_that_is_promised(house, recorded):
    caller = await house.qubes.start("work")
    await house.qubes.start("vault", **ECHO)
    assert (await echo(house, caller))[1] == b"dear"
    await house.until(lambda: len(recorded.entries()) == 2)
    allowed, ended = (entry.fields for entry in recorded.entries())
    assert (allowed["source"], allowed["target"], allowed["requested_target"]) == ("work", "vault", "vault")
    assert (allowed["service"], allowed["argument"], allowed["verdict"]) == ("test.Echo", "letter", "allow")
    assert allowed["rule"] == "10-test.policy:7" and allowed["call"] == ended["call"]
    assert (ended["exit_code"], ended["stdin_bytes"], ended["stdout_bytes"]) == (0, 4, 4) and ended["seconds"] >= 0
    await recorded.log.close()
    assert recorded.verify().is_whole


async def test_with_a_full_disk_calls_are_denied_and_come_back_with_room(house, recorded):
    caller = await house.qubes.start("work")
    await house.qubes.start("vault", **ECHO)
    await echo(house, caller)
    recorded.disk.full = True
    for _ in range(3):
        with pytest.raises(PermissionError):
            await echo(house, caller)
    reasons = [event.reason for event in house.events if hasattr(event, "failed")]
    assert reasons and all("audit log cannot be written" in reason for reason in reasons)
    recorded.disk.full = False
    assert (await echo(house, caller))[1] == b"dear"
    await house.until(lambda: shown(recorded, "event")[-1] == ("ended",))
    assert ("resumed",) in shown(recorded, "event")
    await recorded.log.close()
    assert recorded.verify().is_whole


async def test_forty_calls_at_once_are_one_chain(house, recorded):
    caller = await house.qubes.start("work")
    await house.qubes.start("vault", **ECHO)
    results = await asyncio.gather(*(echo(house, caller) for _ in range(40)))
    assert {result[1] for result in results} == {b"dear"}
    await house.until(lambda: len(recorded.entries()) == 80)
    await recorded.log.close()
    assert recorded.verify().is_whole and recorded.verify().lines >= 82
