"""Damaged images are refused and named; the rest of the pool goes on working; a full disk leaves nothing half made."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from cloison.drivers.storage import shelf
from cloison.drivers.storage.qcow2 import Qcow2Pool
from cloison.drivers.storage.shelf import Shelf
from cloison.errors import BackendFailed, DiskFull

from .conftest import MIB, Guest, kept, shared, snapshot

ROOT, PRIVATE = "vm-templates/debian/root", "appvms/work/private"


async def written(pool: Qcow2Pool, guest: Guest, vid: str = PRIVATE, *, clean: bool = True) -> Path:
    """A volume with one written layer; its file."""
    await pool.create(kept(vid))
    chain = await pool.begin_run(vid)
    guest.write(chain, 7)
    await pool.end_run(vid, clean=clean)
    return chain[0].path


def spoil(path: Path, at: int, data: bytes) -> None:
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data)


async def test_an_image_cut_short_is_refused_by_name(pool: Qcow2Pool, guest: Guest) -> None:
    path = await written(pool, guest)
    os.truncate(path, 70000)
    with pytest.raises(BackendFailed, match=path.name):
        await pool.begin_run(PRIVATE)


async def test_an_image_that_is_gone_is_refused_by_name(pool: Qcow2Pool, guest: Guest) -> None:
    path = await written(pool, guest)
    path.unlink()
    with pytest.raises(BackendFailed, match=path.name):
        await pool.begin_run(PRIVATE)


async def test_scribbled_tables_are_refused_by_name(pool: Qcow2Pool, guest: Guest) -> None:
    path = await written(pool, guest)
    spoil(path, 3 * 65536, b"\xff" * 64)
    with pytest.raises(BackendFailed, match=path.name):
        await pool.begin_run(PRIVATE)


async def test_a_scribbled_header_is_refused_by_name(pool: Qcow2Pool, guest: Guest) -> None:
    path = await written(pool, guest)
    spoil(path, 0, b"garbage")
    with pytest.raises(BackendFailed, match=path.name):
        await pool.chain(PRIVATE)


async def test_a_layer_replaced_by_a_plain_one_is_refused(pool: Qcow2Pool, guest: Guest, image: Path) -> None:
    path = await written(pool, guest)
    path.write_bytes(image.read_bytes())
    with pytest.raises(BackendFailed, match="not the file we made"):
        await pool.begin_run(PRIVATE)


async def test_a_layer_damaged_during_an_unclean_run_is_found_at_the_next_use(pool: Qcow2Pool, guest: Guest) -> None:
    await pool.create(kept())
    chain = await pool.begin_run(PRIVATE)
    guest.write(chain, 7)
    spoil(chain[0].path, 3 * 65536, b"\xff" * 64)
    await pool.end_run(PRIVATE, clean=False)
    with pytest.raises(BackendFailed, match=chain[0].path.name):
        await pool.begin_run(PRIVATE)
    (old,) = (await pool.info(PRIVATE)).revisions
    await pool.revert(PRIVATE, old)
    assert guest.shows(await pool.begin_run(PRIVATE), 0)


async def test_a_touched_but_sound_image_is_checked_once_and_used(pool: Qcow2Pool, guest: Guest) -> None:
    path = await written(pool, guest)
    os.utime(path)
    assert guest.shows(await pool.chain(PRIVATE), 7)


async def test_a_damaged_base_stops_everything_on_it_and_nothing_else(
    pool: Qcow2Pool, guest: Guest, image: Path
) -> None:
    image.chmod(0o644)
    await pool.import_image(shared(ROOT), image, image_format="qcow2", content_key="k")
    await pool.create(snapshot("appvms/work/root", ROOT))
    other = await written(pool, guest)
    base = (await pool.chain(ROOT))[-1].path
    spoil(base, 3 * 65536, b"\xff" * 8)
    for vid in (ROOT, "appvms/work/root"):
        with pytest.raises(BackendFailed, match=base.name):
            await pool.begin_run(vid)
    assert other.exists() and guest.shows(await pool.begin_run(PRIVATE), 7)


async def test_check_looks_at_old_revisions_too(pool: Qcow2Pool, guest: Guest) -> None:
    first = await written(pool, guest)
    guest.write(await pool.begin_run(PRIVATE), 8)
    await pool.end_run(PRIVATE)
    await pool.check(PRIVATE)
    spoil(first, 3 * 65536, b"\xff" * 64)
    with pytest.raises(BackendFailed, match=first.name):
        await pool.check(PRIVATE)


async def test_a_damaged_record_is_named_kept_and_hurts_only_its_volume(
    pool: Qcow2Pool, guest: Guest, tmp_path: Path
) -> None:
    await written(pool, guest)
    await written(pool, guest, "appvms/other/private")
    await pool.close()
    record = next((tmp_path / "pool/volumes").glob("*other*"))
    record.write_text("{")
    images = set((tmp_path / "pool/layers").iterdir())
    again = Qcow2Pool("main", tmp_path / "pool")
    with pytest.raises(BackendFailed, match=record.name):
        await again.begin_run("appvms/other/private")
    assert guest.shows(await again.begin_run(PRIVATE), 7)
    await again.end_run(PRIVATE)
    await again.settle()
    assert record.read_text() == "{" and images <= set((tmp_path / "pool/layers").iterdir())
    await again.close()


async def test_a_missing_layer_record_is_named(pool: Qcow2Pool, guest: Guest, tmp_path: Path) -> None:
    path = await written(pool, guest)
    await pool.close()
    path.with_suffix(".json").write_text("[]")
    again = Qcow2Pool("main", tmp_path / "pool")
    with pytest.raises(BackendFailed, match=path.stem):
        await again.chain(PRIVATE)
    assert path.exists()
    await again.close()


async def test_a_run_does_not_begin_on_a_full_disk(
    pool: Qcow2Pool, guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    await written(pool, guest)
    monkeypatch.setattr(Shelf, "free_bytes", lambda self: MIB)
    with pytest.raises(DiskFull, match="64 MiB"):
        await pool.begin_run(PRIVATE)
    monkeypatch.undo()
    assert guest.shows(await pool.begin_run(PRIVATE), 7)


async def test_a_disk_that_fills_up_while_a_run_begins_leaves_nothing(
    pool: Qcow2Pool, guest: Guest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    await written(pool, guest)
    before = set((tmp_path / "pool").rglob("*.img"))
    real, count = os.write, 0

    def full(descriptor: int, data: bytes) -> int:
        nonlocal count
        count += 1
        if count > 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(descriptor, data)

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(DiskFull):
        await pool.begin_run(PRIVATE)
    monkeypatch.undo()
    assert set((tmp_path / "pool").rglob("*.img")) == before
    assert guest.shows(await pool.begin_run(PRIVATE), 7)


async def test_a_full_disk_at_the_end_of_a_run_loses_nothing(
    pool: Qcow2Pool, guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    await pool.create(kept())
    guest.write(await pool.begin_run(PRIVATE), 7)

    def full(descriptor: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(DiskFull):
        await pool.end_run(PRIVATE)
    monkeypatch.undo()
    await pool.end_run(PRIVATE)
    assert guest.shows(await pool.chain(PRIVATE), 7)


async def test_an_image_that_does_not_fit_gives_its_room_back(
    pool: Qcow2Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = tmp_path / "image"
    shelf.write_empty_image(image, MIB, None, "", b"")

    def full(source: Path, target: Path) -> None:
        target.write_bytes(b"as far as it went")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shelf, "_copy_sparse", full)
    with pytest.raises(DiskFull, match="MiB are needed"):
        await pool.import_image(shared(ROOT), image, image_format="qcow2", content_key="k")
    assert [path.name for path in (tmp_path / "pool").rglob("*") if path.suffix == ".new"] == []
    assert list(await pool.volumes()) == []
