"""The server on a real socket: framing byte by byte, and what hostile or clumsy clients get."""

from __future__ import annotations

import asyncio
import json
import os
import stat
from pathlib import Path

import pytest

from cloison.admin.server import AdminServer


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
