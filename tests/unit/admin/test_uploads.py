"""Imports through the socket: whole or not at all, whatever the client does."""

from __future__ import annotations

import asyncio
import os

import pytest

SIZE = 300_000
DATA = b"volume data " * (SIZE // 12)


async def send(path, *parts, close_early=False):
    reader, writer = await asyncio.open_unix_connection(str(path))
    for part in parts:
        writer.write(part)
        await writer.drain()
        await asyncio.sleep(0.01)
    if close_early:
        writer.close()
        return b""
    writer.write_eof()
    answer = await reader.read()
    writer.close()
    return answer


def header(method="ImportWithSize", dest="work", volume="private"):
    return f"admin.vm.volume.{method}+{volume} dom0 name {dest}\0".encode()


def content(house, qube="work"):
    return house.pool.content[house.ledger.inventory.qube(qube).volumes["private"].vid]


def leftovers(house):
    return os.listdir(house.tmp / "imports") if (house.tmp / "imports").exists() else []


async def test_data_larger_than_a_request_become_the_content(house, socket_path):
    answer = await send(socket_path, header(), b"%d\n" % SIZE, DATA[:100_001], DATA[100_001:])
    assert answer == b"0\0"
    assert content(house).encode() == DATA
    assert house.ledger.inventory.qube("work").volumes["private"].size_bytes == SIZE
    assert await send(socket_path, header("Import"), DATA.upper()) == b"0\0"
    assert content(house).encode() == DATA.upper()
    assert leftovers(house) == [] and house.store.doomed_volumes() == frozenset()


async def test_data_in_one_piece_with_the_header(house, socket_path):
    assert await send(socket_path, header() + b"%d\n" % SIZE + DATA) == b"0\0"
    assert content(house).encode() == DATA
    assert await send(socket_path, header() + b"5\nhello") == b"0\0"
    assert content(house) == "hello"
    assert await house.ok("admin.vm.volume.Import", "work", "private", b"world") == ""
    assert content(house) == "world"


@pytest.mark.parametrize(
    ("parts", "error"),
    [
        ((header(), b"10\nshort"), b"QubesValueError"),
        ((header(), b"4\ntoo long"), b"ProtocolError"),
        ((header(), b"x\nhello"), b"ProtocolError"),
        ((header(), b"0\n"), b"ProtocolError"),
        ((header(), b"05\nhello"), b"ProtocolError"),
        ((header(), b"1" * 30), b"ProtocolError"),
        ((header(), b"12"), b"QubesValueError"),
        ((header(),), b"QubesValueError"),
        ((header("Import"), b"too short"), b"QubesValueError"),
        ((header(volume="root"), b"5\nhello"), b"QubesValueError"),
        ((header(volume="cache"), b"5\nhello"), b"StoragePoolException"),
        ((header(dest="nobody"), b"5\nhello"), b"QubesVMNotFoundError"),
        ((header(dest="dom0"), b"5\nhello"), b"StoragePoolException"),
        ((header(dest="nobody"), DATA, DATA), b"QubesVMNotFoundError"),
    ],
)
async def test_a_bad_import_leaves_the_volume_as_it_was(house, socket_path, parts, error):
    answer = await send(socket_path, *parts)
    assert answer.startswith(b"2\0" + error + b"\0"), answer
    assert content(house) == "blank" and leftovers(house) == []


async def test_a_client_that_dies_half_way_leaves_the_volume_as_it_was(house, socket_path):
    await send(socket_path, header(), b"%d\n" % SIZE, DATA[:1000], close_early=True)
    for _ in range(100):
        if leftovers(house):
            await asyncio.sleep(0.01)
    assert content(house) == "blank" and leftovers(house) == []


async def test_a_running_qube_takes_no_import(house, socket_path):
    await house.ok("admin.vm.Start", "work")
    answer = await send(socket_path, header(), b"5\nhello")
    assert answer.startswith(b"2\0QubesVMNotHaltedError\0")
    assert leftovers(house) == []


async def test_a_second_import_takes_over_and_the_first_is_told(house, socket_path):
    first = asyncio.ensure_future(send(socket_path, header(), b"5\n", b"h", b"e", b"l", b"l", b"o"))
    await asyncio.sleep(0.03)
    assert await send(socket_path, header() + b"5\nworld") == b"0\0"
    assert (await first).startswith(b"2\0ProtocolError\0")
    assert content(house) == "world" and leftovers(house) == []


async def test_what_an_earlier_daemon_left_is_removed_at_the_start(house, tmp_path):
    from cloison.admin.server import AdminServer

    (house.tmp / "imports").mkdir()
    (house.tmp / "imports" / "rest.img").write_bytes(b"x")
    server = AdminServer(tmp_path / "s", house.admin)
    await server.start()
    assert leftovers(house) == []
    await server.close()
