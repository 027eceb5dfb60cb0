"""The server on a real socket: framing byte by byte, and what hostile or clumsy clients get."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import stat
from pathlib import Path

import pytest

from cloison.admin.server import AdminServer
from cloison.daemon import take_descriptors
from cloison.engine.events import EventBus, FeatureSet
from cloison.model.names import QubeName


async def exchange(path: Path, data: bytes) -> bytes:
    reader, writer = await asyncio.open_unix_connection(str(path))
    writer.write(data)
    writer.write_eof()
    answer = await reader.read()
    writer.close()
    return answer


async def test_a_request_is_answered_byte_by_byte(house, socket_path):
    assert await exchange(socket_path, b"admin.label.Index+blue dom0 name dom0\0") == b"0\x006"
    assert await exchange(socket_path, b"admin.vm.feature.Set+x dom0 name work\0value") == b"0\0"
    assert await exchange(socket_path, b"admin.vm.feature.Get+x dom0 name work\0") == b"0\0value"
    answer = await exchange(socket_path, b"admin.vm.feature.Get+y dom0 name work\0")
    assert answer == b"2\0QubesFeatureNotFoundError\0\0work has no feature 'y'\0"


async def test_percent_signs_in_errors_are_doubled(house, socket_path):
    answer = await exchange(socket_path, b"admin.vm.property.Set+default_user dom0 name work\x00a%b")
    kind, name, trace, text, end = answer.split(b"\0")
    assert (kind, name, trace, end) == (b"2", b"QubesPropertyValueError", b"", b"")
    assert b"%%" in text and text % () == text.replace(b"%%", b"%")


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"",
        b"admin.vm.List+ dom0 name dom0",
        b"admin.vm.List+ dom0 name\0",
        b"admin.vm.List+ dom0 id 0\0",
        b"admin.vm.tag.Set+bad tag dom0 name work\0",
        b"admin.vm.List+\xff dom0 name dom0\0",
        b"\0\0\0",
        b"admin.vm.List+ dom0 name dom0\0" + b"x" * 65536,
        b"a" * 200_000,
    ],
)
async def test_bytes_that_are_no_request_are_answered_with_nothing(house, socket_path, request_bytes):
    try:
        answer = await exchange(socket_path, request_bytes)
    except (ConnectionResetError, BrokenPipeError):
        answer = b""
    assert answer == b""
    assert (await exchange(socket_path, b"admin.vm.List dom0 name work\0")).startswith(b"0\0work class=AppVM")


async def test_the_keyword_adminvm_and_a_missing_plus_are_understood(house, socket_path):
    answer = await exchange(socket_path, b"admin.vmclass.List dom0 keyword adminvm\0")
    assert answer == b"0\0AdminVM\nAppVM\nDispVM\nRemoteVM\nStandaloneVM\nTemplateVM\n"


async def test_nothing_happens_before_the_end_of_the_request(house, socket_path):
    reader, writer = await asyncio.open_unix_connection(str(socket_path))
    writer.write(b"admin.vm.tag.Set+early dom0 name work\0")
    await writer.drain()
    await asyncio.sleep(0.05)
    assert "early" not in house.ledger.inventory.qube("work").tags
    writer.write_eof()
    assert await reader.read() == b"0\0"
    assert "early" in house.ledger.inventory.qube("work").tags
    writer.close()


async def test_socket_and_directory_are_private(house, socket_path):
    assert stat.S_IMODE(socket_path.stat().st_mode) == 0o600
    assert stat.S_IMODE(socket_path.parent.stat().st_mode) == 0o700
    assert socket_path.stat().st_uid == os.getuid()


async def test_a_socket_left_by_a_killed_daemon_is_replaced(house, socket_path):
    second = AdminServer(socket_path, house.admin)
    await second.start()
    assert (await exchange(socket_path, b"admin.label.Index+red dom0 name dom0\0")) == b"0\x001"
    await second.close()


async def test_half_requests_and_slow_senders_do_not_hold_others_up(house, socket_path):
    slow = [await asyncio.open_unix_connection(str(socket_path)) for _ in range(100)]
    for _, writer in slow:
        writer.write(b"admin.vm.Li")
    assert (await exchange(socket_path, b"admin.label.Index+red dom0 name dom0\0")) == b"0\x001"
    for _, writer in slow:
        writer.close()


async def test_events_come_as_records_in_order_and_end_when_the_listener_goes(house, socket_path):
    reader, writer = await asyncio.open_unix_connection(str(socket_path))
    writer.write(b"admin.Events+ dom0 name dom0\0")
    writer.write_eof()
    assert await reader.readexactly(27) == b"1\0\0connection-established\0\0"
    await exchange(socket_path, b"admin.vm.property.Set+label dom0 name work\0green")
    expected = (
        b"1\0work\0property-pre-set:label\0name\0label\0newvalue\0green\0oldvalue\0blue\0\0"
        b"1\0work\0property-reset:icon\0name\0icon\0\0"
        b"1\0work\0property-set:label\0name\0label\0newvalue\0green\0oldvalue\0blue\0\0"
    )
    assert await reader.readexactly(len(expected)) == expected
    writer.close()
    await asyncio.sleep(0.05)
    for _ in range(3):
        await exchange(socket_path, b"admin.vm.feature.Set+a dom0 name work\0")
    assert len(house.ledger.bus) == 0


async def test_a_listener_to_one_qube_hears_of_that_one_only(house, socket_path):
    reader, writer = await asyncio.open_unix_connection(str(socket_path))
    writer.write(b"admin.Events+ dom0 name work\0")
    writer.write_eof()
    await reader.readexactly(27)
    await exchange(socket_path, b"admin.vm.tag.Set+t dom0 name dvm\0")
    await exchange(socket_path, b"admin.vm.tag.Set+t dom0 name work\0")
    expected = b"1\0work\0domain-tag-add:t\0tag\0t\0\0"
    assert await reader.readexactly(len(expected)) == expected
    writer.close()


async def test_long_work_tells_its_progress_and_then_its_answer(house, socket_path):
    answer = await exchange(socket_path, b'cloison.template.Build+new dom0 name dom0\0{"suite":"trixie"}')
    progress = b"1\0new\0progress\0step\0download\0text\x00100 % of it\0percent\x0050\0\0"
    assert answer == progress + b'0\0{"name":"new","revision":"r1"}'
    answer = await exchange(socket_path, b'cloison.template.Build+new dom0 name dom0\0{"suite":"broken"}')
    assert answer.endswith(b"2\0QubesVMError\0\0the mirror is 100%% away\0")


async def test_closing_the_server_ends_long_work(house, tmp_path):
    server = AdminServer(tmp_path / "x" / "s", house.admin)
    await server.start()
    reader, writer = await asyncio.open_unix_connection(str(tmp_path / "x" / "s"))
    writer.write(b'cloison.template.Build+new dom0 name dom0\0{"suite":"slow"}')
    writer.write_eof()
    assert (await reader.readuntil(b"\0\0"))[:1] == b"1"
    await server.close()
    assert house.own.cancelled
    writer.close()


async def test_the_table_of_methods_describes_itself(house, socket_path):
    rows = json.loads((await exchange(socket_path, b"cloison.method.List dom0 name dom0\0"))[2:])
    assert {"name": "admin.vm.Start", "dest": "any", "arg": "-", "payload": "-", "scope": "local-rwx"}.items() <= next(
        row for row in rows if row["name"] == "admin.vm.Start"
    ).items()
    assert all(row["doc"].endswith(".") for row in rows)


async def test_more_connections_than_there_are_files_for_are_refused_and_the_rest_is_served(house, tmp_path):
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (40, before[1]))
    try:
        server = AdminServer(tmp_path / "small.sock", house.admin)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    await server.start()
    held = [await asyncio.open_unix_connection(str(tmp_path / "small.sock")) for _ in range(20)]
    await asyncio.sleep(0.05)
    reader, writer = await asyncio.open_unix_connection(str(tmp_path / "small.sock"))
    assert await reader.read() == b"", "refused, and not left waiting"
    writer.transport.abort()
    held.pop()[1].transport.abort()
    await asyncio.sleep(0.05)
    assert await exchange(tmp_path / "small.sock", b"admin.label.Index+red dom0 name dom0\0") == b"0\x001"
    for _, writer in held:
        writer.transport.abort()
    await server.close()


async def test_a_thousand_open_connections_hold_nobody_up_and_cost_little(house, tmp_path):
    """Some say nothing, some stop in the middle, some never end a large request; everybody else is answered."""
    take_descriptors()
    socket_path = tmp_path / "qubesd.sock"
    server = AdminServer(socket_path, house.admin)
    await server.start()
    before_kib = _resident_kib()
    beginnings = (b"", b"admin.vm.Li", b"admin.vm.notes.Set+ dom0 name work\0" + b"x" * 60_000, b"\xff" * 1000)
    idle = []
    for number in range(1000):
        _, writer = await asyncio.open_unix_connection(str(socket_path))
        writer.write(beginnings[number % len(beginnings)])
        idle.append(writer)
    for _ in range(20):
        assert await exchange(socket_path, b"admin.label.Index+red dom0 name dom0\0") == b"0\x001"
    assert _resident_kib() - before_kib < 250 * 1024, "at most what the requests may hold, here and at the clients"
    for writer in idle:
        writer.transport.abort()
    assert await exchange(socket_path, b"admin.vm.notes.Get dom0 name work\0") == b"0\0"
    await server.close()


async def test_what_a_dying_client_has_written_is_no_request(house, socket_path):
    _, writer = await asyncio.open_unix_connection(str(socket_path))
    writer.write(b"admin.vm.firewall.Set dom0 name work\0action=accept\n")
    await writer.drain()
    await asyncio.sleep(0.01)
    writer.close()
    await writer.wait_closed()
    await asyncio.sleep(0.05)
    assert house.ledger.inventory.qube("work").firewall is None


async def test_a_request_in_single_bytes_is_a_request(house, socket_path):
    reader, writer = await asyncio.open_unix_connection(str(socket_path))
    for byte in b"admin.vm.notes.Set dom0 name work\0a note":
        writer.write(bytes([byte]))
        await writer.drain()
        await asyncio.sleep(0)
    writer.write_eof()
    assert await reader.read() == b"0\0"
    assert house.ledger.notes("work") == "a note"
    writer.close()


async def test_a_sender_that_never_ends_is_let_go(house, socket_path, monkeypatch):
    monkeypatch.setattr("cloison.admin.server.REQUEST_TIMEOUT_S", 0.05)
    reader, writer = await asyncio.open_unix_connection(str(socket_path))
    writer.write(b"admin.vm.tag.Set+late dom0 name work\0")
    assert await asyncio.wait_for(reader.read(), 5) == b""
    assert "late" not in house.ledger.inventory.qube("work").tags
    writer.close()


@pytest.mark.parametrize("arg", ["a" * 60_000, "%n" * 20_000, "+" * 30_000, "\x7f" * 1000, "../" * 5000])
async def test_huge_and_odd_arguments_meet_a_declared_error(house, socket_path, arg):
    for method in ("admin.vm.tag.Set", "admin.vm.feature.Get", "admin.vm.property.Get", "admin.vm.volume.Info",
                   "admin.vm.device.block.Attach", "admin.vm.Create.AppVM", "admin.vm.Shutdown"):  # fmt: skip
        dest = "dom0" if "Create" in method else "work"
        answer = await exchange(socket_path, f"{method}+{arg} dom0 name {dest}\0name=q label=red".encode())
        assert answer.startswith(b"2\0") and len(answer) < 2000, (method, answer[:200])


async def test_a_slow_listener_is_told_why_it_is_dropped_and_nobody_waits_for_it(house, socket_path, monkeypatch):
    monkeypatch.setattr(EventBus, "DEFAULT_LIMIT", 50)
    monkeypatch.setattr(EventBus.subscribe, "__defaults__", (50, *EventBus.subscribe.__defaults__[1:]))
    reader, writer = await asyncio.open_unix_connection(str(socket_path), limit=1024)
    writer.write(b"admin.Events+ dom0 name dom0\0")
    writer.write_eof()
    await reader.readexactly(27)
    for number in range(3000):
        house.ledger.tell(FeatureSet(QubeName("work"), "f", f"{number}{'x' * 1000}", None))
        if number % 10 == 0:
            await asyncio.sleep(0)
    rest = await asyncio.wait_for(reader.read(), 10)
    last = rest.rsplit(b"1\0\0", 1)[1]
    assert last.startswith(b"connection-dropped\0reason\0more than 50 events") and last.endswith(b"\0\0")
    assert len(house.ledger.bus) == 0
    writer.close()


def _resident_kib() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    raise AssertionError("no resident size")
