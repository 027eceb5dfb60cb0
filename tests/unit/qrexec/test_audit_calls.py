"""The broker with the real audit log: each call is in it, in order, and none is made that could not be written down."""

from __future__ import annotations

import asyncio
import resource
import socket

import pytest
from auditlogs import FullDisk, LogBench
from conftest import allow
from fakes import echo as answer

from cloison.wire import Call, Stream

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


class Broken(Exception):
    """A mistake in the daemon's code."""


def _raise(error: Exception):
    def fail(*_: object, **__: object):
        raise error

    return fail


async def _no_link(house, monkeypatch):
    monkeypatch.setattr(house.qubes, "link", _raise(Broken()))


async def _no_start(house, monkeypatch):
    monkeypatch.setattr(house.qubes, "ensure_running", _raise(OSError(28, "No space left on device")))


async def _no_order(house, monkeypatch):
    monkeypatch.setattr(house.qubes.links["vault"], "open_call", _raise(Broken()))


async def _no_telling(house, monkeypatch):
    monkeypatch.setattr(house.broker, "_tell", _raise(Broken()))


@pytest.mark.parametrize("breaks", [_no_link, _no_start, _no_order, _no_telling])
async def test_whatever_breaks_what_was_allowed_has_one_end(house, recorded, monkeypatch, breaks):
    caller = await house.qubes.start("work")
    await house.qubes.start("vault", **ECHO)
    await echo(house, caller)
    await house.until(lambda: len(shown(recorded, "event")) == 2)
    await breaks(house, monkeypatch)
    calling = asyncio.create_task(caller.call("vault", "test.Echo+letter"))
    await house.until(lambda: len(shown(recorded, "event")) == 4)
    monkeypatch.undo()
    assert shown(recorded, "call", "event")[2:] == [(2, "allowed"), (2, "failed")]
    await asyncio.gather(calling, return_exceptions=True)
    assert (await echo(house, caller))[1] == b"dear"


async def test_a_call_for_which_no_descriptor_is_left_has_its_end(house, recorded):
    caller = await house.qubes.start("work")
    await house.qubes.start("vault", **ECHO)
    await echo(house, caller)
    await house.until(lambda: len(shown(recorded, "event")) == 2)
    most = resource.getrlimit(resource.RLIMIT_NOFILE)
    house.events.clear()
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, most[1]))
        with pytest.raises(PermissionError):
            await caller.call("vault", "test.Echo+letter")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, most)
    assert shown(recorded, "call", "event")[2:] == [(2, "allowed"), (2, "failed")]
    assert "Too many open files" in house.events[-1].reason
    assert (await echo(house, caller))[1] == b"dear"


async def test_a_call_that_ended_well_has_no_second_end_when_its_disposable_cannot_be_released(house, recorded):
    caller = await house.qubes.start("work")
    house.qubes.services.update(ECHO)
    house.policy.verdicts["test.Echo"] = allow("@dispvm:default-dvm")
    house.qubes.release_disposable = _raise(Broken())
    assert (await echo(house, caller))[1] == b"dear"
    await asyncio.sleep(0.05)
    assert shown(recorded, "event") == [("allowed",), ("ended",)]


async def test_a_call_of_dom0_that_breaks_has_its_end_too(house, recorded, monkeypatch):
    await house.qubes.start("vault", **ECHO)
    await _no_link(house, monkeypatch)
    ours, theirs = socket.socketpair()
    said = []

    async def refused(reason: str) -> None:
        said.append(reason)

    with ours, pytest.raises(Broken):
        await house.broker.run_host_call(
            Call(1, "vault", service="test.Echo+letter"), theirs, asyncio.Event().wait, refused
        )
    assert said == ["a mistake of the broker: Broken"]
    assert shown(recorded, "event", "policy") == [("allowed", None), ("failed", None)]


async def test_forty_calls_at_once_are_one_chain(house, recorded):
    caller = await house.qubes.start("work")
    await house.qubes.start("vault", **ECHO)
    results = await asyncio.gather(*(echo(house, caller) for _ in range(40)))
    assert {result[1] for result in results} == {b"dear"}
    await house.until(lambda: len(recorded.entries()) == 80)
    await recorded.log.close()
    assert recorded.verify().is_whole and recorded.verify().lines >= 82
