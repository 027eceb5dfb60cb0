"""What every pool promises, tried on real images with qemu-io as the guest."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from cloison.drivers.storage.qcow2 import Qcow2Pool, make_layer
from cloison.errors import BackendFailed, BadRequest, NotNow

from .conftest import MIB, Guest, kept, run_tool, shared, snapshot, volatile

ROOT = "vm-templates/debian/root"
WORK_ROOT = "appvms/work/root"
PRIVATE = "appvms/work/private"


async def run_writing(pool: Qcow2Pool, guest: Guest, vid: str, pattern: int, at: int = MIB) -> str | None:
    guest.write(await pool.begin_run(vid), pattern, at)
    return await pool.end_run(vid)


async def test_a_kept_volume_keeps_what_a_run_wrote(pool: Qcow2Pool, guest: Guest) -> None:
    await pool.create(kept())
    await run_writing(pool, guest, PRIVATE, 7)
    assert guest.shows(await pool.begin_run(PRIVATE), 7)


async def test_a_new_kept_volume_holds_an_empty_file_system(pool: Qcow2Pool, tmp_path: Path) -> None:
    await pool.create(kept())
    (base,) = await pool.chain(PRIVATE)
    raw = tmp_path / "raw"
    run_tool("qemu-img", "convert", "-O", "raw", base.path, raw)
    told = run_tool("dumpe2fs", "-h", raw)
    assert "volume name:   private" in told and "clean" in told
    run_tool("e2fsck", "-fn", raw)


async def test_a_volume_is_pristine_until_a_run_writes_into_it(pool: Qcow2Pool, guest: Guest) -> None:
    await pool.create(kept())
    await pool.begin_run(PRIVATE)
    first = await pool.end_run(PRIVATE)
    assert (await pool.info(PRIVATE)).pristine and (await pool.info(PRIVATE)).revision_id == first
    await run_writing(pool, guest, PRIVATE, 7)
    assert not (await pool.info(PRIVATE)).pristine


async def test_what_a_run_on_trial_wrote_is_gone_unless_it_was_settled(pool: Qcow2Pool, guest: Guest) -> None:
    await pool.create(kept())
    before = await run_writing(pool, guest, PRIVATE, 7)
    guest.write(await pool.begin_run(PRIVATE, on_trial=True), 8, MIB)
    assert await pool.end_run(PRIVATE) == before
    chain = await pool.begin_run(PRIVATE, on_trial=True)
    assert guest.shows(chain, 7)
    guest.write(chain, 9, MIB)
    await pool.settle_run(PRIVATE)
    await pool.settle_run(PRIVATE)
    assert await pool.end_run(PRIVATE) != before
    assert guest.shows(await pool.begin_run(PRIVATE), 9)


async def test_a_trial_is_remembered_when_the_daemon_dies(pool: Qcow2Pool, guest: Guest, tmp_path: Path) -> None:
    await pool.create(kept())
    await run_writing(pool, guest, PRIVATE, 7)
    guest.write(await pool.begin_run(PRIVATE, on_trial=True), 8, MIB)
    again = Qcow2Pool("main", tmp_path / "pool")
    await again.end_run(PRIVATE, clean=False)
    assert guest.shows(await again.begin_run(PRIVATE), 7)


async def test_a_run_that_wrote_nothing_makes_no_revision(pool: Qcow2Pool, guest: Guest) -> None:
    await pool.create(kept())
    before = await run_writing(pool, guest, PRIVATE, 7)
    await pool.begin_run(PRIVATE)
    assert await pool.end_run(PRIVATE) == before


async def test_a_snapshot_shows_its_source_and_forgets_its_changes(pool: Qcow2Pool, guest: Guest, image: Path) -> None:
    await pool.import_image(shared(ROOT), image, image_format="qcow2", content_key="k")
    await pool.create(snapshot(WORK_ROOT, ROOT))
    chain = await pool.begin_run(WORK_ROOT)
    assert guest.shows(chain, 1)
    guest.write(chain, 9)
    await pool.end_run(WORK_ROOT)
    assert guest.shows(await pool.begin_run(WORK_ROOT), 1)


async def test_a_snapshot_leaves_nothing_on_disk(pool: Qcow2Pool, guest: Guest, image: Path, tmp_path: Path) -> None:
    await pool.import_image(shared(ROOT), image, image_format="qcow2", content_key="k")
    await pool.create(snapshot(WORK_ROOT, ROOT))
    before = set((tmp_path / "pool").rglob("*.img"))
    chain = await pool.begin_run(WORK_ROOT)
    assert chain[0].unlinked and chain[0].path.exists()
    await pool.end_run(WORK_ROOT)
    assert not chain[0].path.exists()
    assert set((tmp_path / "pool").rglob("*.img")) == before


async def test_a_volatile_volume_starts_empty_each_time(pool: Qcow2Pool, guest: Guest) -> None:
    await pool.create(volatile())
    chain = await pool.begin_run("appvms/work/volatile")
    assert len(chain) == 1
    guest.write(chain, 5)
    await pool.end_run("appvms/work/volatile")
    assert guest.shows(await pool.begin_run("appvms/work/volatile"), 0)


async def test_written_data_are_encrypted_on_disk(pool: Qcow2Pool, guest: Guest) -> None:
    await pool.create(kept())
    chain = await pool.begin_run(PRIVATE)
    guest.write(chain, 0x5A)
    assert chain[0].secret is not None
    assert b"\x5a" * 512 not in chain[0].path.read_bytes()


async def test_each_run_has_a_secret_of_its_own(pool: Qcow2Pool) -> None:
    await pool.create(volatile("a/v"))
    await pool.create(volatile("b/v"))
    assert (await pool.begin_run("a/v"))[0].secret != (await pool.begin_run("b/v"))[0].secret


async def test_an_unencrypted_volume_has_no_secret(pool: Qcow2Pool, guest: Guest) -> None:
    await pool.create(kept(encrypted=False))
    chain = await pool.begin_run(PRIVATE)
    guest.write(chain, 0x5A)
    assert chain[0].secret is None and b"\x5a" * 512 in chain[0].path.read_bytes()


async def test_secrets_never_show_in_texts(pool: Qcow2Pool) -> None:
    await pool.create(kept())
    chain = await pool.begin_run(PRIVATE)
    assert chain[0].secret and chain[0].secret.decode() not in repr(chain)


async def test_one_run_at_a_time(pool: Qcow2Pool) -> None:
    await pool.create(kept())
    await pool.begin_run(PRIVATE)
    with pytest.raises(NotNow, match="in use"):
        await pool.begin_run(PRIVATE)


async def test_ending_a_run_twice_changes_nothing(pool: Qcow2Pool, guest: Guest) -> None:
    await pool.create(kept())
    revision = await run_writing(pool, guest, PRIVATE, 7)
    assert await pool.end_run(PRIVATE) == revision
    assert len((await pool.info(PRIVATE)).revisions) == 1


async def test_as_many_revisions_are_kept_as_asked_for(pool: Qcow2Pool, guest: Guest) -> None:
    await pool.create(kept(revisions_to_keep=2))
    made = [await run_writing(pool, guest, PRIVATE, pattern) for pattern in (2, 3, 4, 5)]
    info = await pool.info(PRIVATE)
    assert info.revision_id == made[3] and list(info.revisions) == made[1:3]


async def test_revert_shows_the_old_content_and_can_be_undone(pool: Qcow2Pool, guest: Guest) -> None:
    await pool.create(kept())
    old = await run_writing(pool, guest, PRIVATE, 2)
    new = await run_writing(pool, guest, PRIVATE, 3)
    assert old and new
    await pool.revert(PRIVATE, old)
    assert guest.shows(await pool.chain(PRIVATE), 2)
    await pool.revert(PRIVATE, new)
    assert guest.shows(await pool.chain(PRIVATE), 3)


async def test_reverting_to_what_is_not_there_names_what_is(pool: Qcow2Pool, guest: Guest) -> None:
    await pool.create(kept())
    await run_writing(pool, guest, PRIVATE, 2)
    with pytest.raises(BadRequest, match="blank-"):
        await pool.revert(PRIVATE, "nonsense")


async def test_old_layers_are_merged_and_the_contents_stay(pool: Qcow2Pool, guest: Guest, image: Path) -> None:
    await pool.import_image(shared(ROOT), image, image_format="qcow2", content_key="k")
    for step in range(6):
        await run_writing(pool, guest, ROOT, 10 + step, at=(4 + step) * MIB)
        await pool.settle()
    chain = await pool.chain(ROOT)
    assert len(chain) == 3, "image, merged past, present"
    assert guest.shows(chain, 1) and all(guest.shows(chain, 10 + step, at=(4 + step) * MIB) for step in range(6))
    (previous,) = (await pool.info(ROOT)).revisions
    await pool.revert(ROOT, previous)
    assert guest.shows(await pool.chain(ROOT), 0, at=9 * MIB) and guest.shows(await pool.chain(ROOT), 14, at=8 * MIB)


async def test_keeping_no_revisions_leaves_one_layer_above_the_image(
    pool: Qcow2Pool, guest: Guest, image: Path
) -> None:
    await pool.import_image(shared(ROOT, revisions_to_keep=0), image, image_format="qcow2", content_key="k")
    for step in range(3):
        await run_writing(pool, guest, ROOT, 10 + step, at=(4 + step) * MIB)
    await pool.settle()
    chain = await pool.chain(ROOT)
    assert len(chain) == 2 and all(guest.shows(chain, 10 + step, at=(4 + step) * MIB) for step in range(3))


async def test_the_imported_file_is_never_written(pool: Qcow2Pool, guest: Guest, image: Path) -> None:
    before = image.read_bytes()
    await pool.import_image(shared(ROOT, revisions_to_keep=0), image, image_format="qcow2", content_key="k")
    for pattern in (2, 3, 4):
        await run_writing(pool, guest, ROOT, pattern)
    await pool.settle()
    assert image.read_bytes() == before


async def test_importing_shares_the_file_where_it_can(pool: Qcow2Pool, image: Path) -> None:
    await pool.import_image(shared(ROOT), image, image_format="qcow2", content_key="k")
    assert (await pool.chain(ROOT))[-1].path.samefile(image)


async def test_importing_copies_a_file_that_somebody_may_still_write(
    pool: Qcow2Pool, guest: Guest, image: Path
) -> None:
    image.chmod(0o644)
    await pool.import_image(shared(ROOT), image, image_format="qcow2", content_key="k")
    image.write_bytes(b"changed")
    assert guest.shows(await pool.chain(ROOT), 1)


async def test_equal_contents_have_equal_revision_ids(pool: Qcow2Pool, image: Path) -> None:
    for vid in ("a/root", "b/root"):
        await pool.import_image(shared(vid), image, image_format="qcow2", content_key="k")
    await pool.clone("a/root", kept("c/root"))
    ids = {(await pool.info(vid)).revision_id for vid in ("a/root", "b/root", "c/root")}
    assert len(ids) == 1


async def test_a_raw_image_can_be_imported(pool: Qcow2Pool, guest: Guest, tmp_path: Path) -> None:
    raw = tmp_path / "disk.raw"
    raw.write_bytes(bytes(MIB) + b"\x01" * MIB + bytes(2 * MIB))
    await pool.import_image(shared(ROOT, size=4 * MIB), raw, image_format="raw", content_key="r")
    assert guest.shows(await pool.chain(ROOT), 1)


async def test_data_imported_into_an_encrypted_volume_are_encrypted(
    pool: Qcow2Pool, guest: Guest, tmp_path: Path, image: Path
) -> None:
    raw = tmp_path / "a, b.raw"
    raw.write_bytes(bytes(MIB) + b"\x5a" * MIB + bytes(MIB + 100))
    await pool.import_image(kept(PRIVATE, size=4 * MIB), raw, image_format="raw", content_key="r")
    await pool.import_image(kept("a/private"), image, image_format="qcow2", content_key="q")
    chain = await pool.chain(PRIVATE)
    assert guest.shows(chain, 0x5A) and guest.shows(await pool.chain("a/private"), 1)
    assert all(b"\x5a" * 512 not in layer.path.read_bytes() for layer in chain)
    await run_writing(pool, guest, PRIVATE, 3)
    assert guest.shows(await pool.chain(PRIVATE), 0x5A, at=MIB + 65536)


async def test_an_image_that_names_other_files_is_refused(pool: Qcow2Pool, image: Path, tmp_path: Path) -> None:
    evil = tmp_path / "evil.qcow2"
    run_tool("qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", "/etc/passwd", evil, "1M")
    with pytest.raises(BadRequest, match="cannot be used as it is"):
        await pool.import_image(shared(ROOT), evil, image_format="qcow2", content_key="evil")


async def test_a_clone_goes_its_own_way(pool: Qcow2Pool, guest: Guest) -> None:
    await pool.create(kept())
    await run_writing(pool, guest, PRIVATE, 2)
    await pool.clone(PRIVATE, kept("appvms/copy/private"))
    await run_writing(pool, guest, PRIVATE, 3)
    await run_writing(pool, guest, "appvms/copy/private", 4, at=2 * MIB)
    for vid in (PRIVATE, "appvms/copy/private"):
        for _ in range(3):
            await run_writing(pool, guest, vid, 8, at=8 * MIB)
    await pool.settle()
    assert guest.shows(await pool.chain(PRIVATE), 3) and guest.shows(await pool.chain(PRIVATE), 0, at=2 * MIB)
    copy = await pool.chain("appvms/copy/private")
    assert guest.shows(copy, 2) and guest.shows(copy, 4, at=2 * MIB)


async def test_a_clone_survives_its_source(pool: Qcow2Pool, guest: Guest) -> None:
    await pool.create(kept())
    await run_writing(pool, guest, PRIVATE, 2)
    await pool.clone(PRIVATE, kept("appvms/copy/private"))
    await pool.remove(PRIVATE)
    assert guest.shows(await pool.chain("appvms/copy/private"), 2)


async def test_removing_leaves_no_file_behind(pool: Qcow2Pool, guest: Guest, tmp_path: Path) -> None:
    await pool.create(kept())
    await run_writing(pool, guest, PRIVATE, 2)
    await pool.remove(PRIVATE)
    await pool.settle()
    assert [path for path in (tmp_path / "pool").rglob("*") if path.is_file()] == []
    with pytest.raises(BadRequest, match="no volume"):
        await pool.info(PRIVATE)


async def test_what_others_start_from_is_not_removed(pool: Qcow2Pool, image: Path) -> None:
    await pool.import_image(shared(ROOT), image, image_format="qcow2", content_key="k")
    await pool.create(snapshot(WORK_ROOT, ROOT))
    with pytest.raises(NotNow, match=WORK_ROOT):
        await pool.remove(ROOT)


async def test_a_running_snapshot_keeps_its_content_and_is_outdated_when_the_source_changes(
    pool: Qcow2Pool, guest: Guest, image: Path
) -> None:
    await pool.import_image(shared(ROOT, revisions_to_keep=0), image, image_format="qcow2", content_key="k")
    await run_writing(pool, guest, ROOT, 2)
    await pool.create(snapshot(WORK_ROOT, ROOT))
    chain = await pool.begin_run(WORK_ROOT)
    for pattern in (3, 4, 5):
        await run_writing(pool, guest, ROOT, pattern)
        await pool.settle()
    assert guest.shows(chain, 2)
    assert (await pool.info(WORK_ROOT)).is_outdated
    await pool.end_run(WORK_ROOT)
    await pool.settle()
    assert not (await pool.info(WORK_ROOT)).is_outdated
    assert guest.shows(await pool.begin_run(WORK_ROOT), 5)
    assert len(await pool.chain(ROOT)) == 2


async def test_a_snapshot_can_be_put_on_a_frozen_layer_of_the_same_content(
    pool: Qcow2Pool, guest: Guest, image: Path, tmp_path: Path
) -> None:
    await pool.import_image(shared(ROOT), image, image_format="qcow2", content_key="k")
    await pool.create(snapshot(WORK_ROOT, ROOT))
    frozen = await make_layer(tmp_path / "frozen.qcow2", await pool.chain(ROOT))
    guest.write(frozen, 6, at=2 * MIB)
    chain = await pool.begin_run(WORK_ROOT, base=frozen)
    assert guest.shows(chain, 6, at=2 * MIB) and guest.shows(chain, 1)
    guest.write(chain, 7)
    await pool.end_run(WORK_ROOT)
    assert guest.shows(frozen, 1)


async def test_a_frozen_layer_of_another_content_is_refused(
    pool: Qcow2Pool, guest: Guest, image: Path, tmp_path: Path
) -> None:
    await pool.import_image(shared(ROOT), image, image_format="qcow2", content_key="k")
    await pool.create(snapshot(WORK_ROOT, ROOT))
    frozen = await make_layer(tmp_path / "frozen.qcow2", await pool.chain(ROOT))
    await run_writing(pool, guest, ROOT, 3)
    with pytest.raises(BackendFailed, match="another content"):
        await pool.begin_run(WORK_ROOT, base=frozen)


async def test_a_volume_grows_and_keeps_its_data(pool: Qcow2Pool, guest: Guest) -> None:
    await pool.create(kept())
    await run_writing(pool, guest, PRIVATE, 2)
    await pool.resize(PRIVATE, 128 * MIB)
    chain = await pool.begin_run(PRIVATE)
    assert guest.shows(chain, 2)
    guest.write(chain, 3, at=100 * MIB)
    await pool.end_run(PRIVATE)
    await pool.settle()
    assert (await pool.info(PRIVATE)).size_bytes == 128 * MIB
    assert guest.shows(await pool.chain(PRIVATE), 3, at=100 * MIB)


async def test_a_pristine_volume_grows_with_its_file_system(pool: Qcow2Pool) -> None:
    await pool.create(kept())
    await pool.resize(PRIVATE, 128 * MIB)
    info = await pool.info(PRIVATE)
    assert info.pristine and info.revision_id == f"blank-{128 * MIB}"


async def test_a_volume_does_not_shrink(pool: Qcow2Pool) -> None:
    await pool.create(kept())
    with pytest.raises(BadRequest, match="smaller"):
        await pool.resize(PRIVATE, MIB)


async def test_a_volume_that_grew_while_running_stays_so(pool: Qcow2Pool, guest: Guest) -> None:
    await pool.create(kept())
    chain = await pool.begin_run(PRIVATE)
    guest.write(chain, 2)
    await pool.resize(PRIVATE, 96 * MIB)
    await pool.end_run(PRIVATE)
    assert guest.run(await pool.begin_run(PRIVATE), "length").strip() == "96 MiB"


async def test_an_image_smaller_than_its_volume_is_extended(pool: Qcow2Pool, guest: Guest, image: Path) -> None:
    await pool.import_image(shared(ROOT, size=256 * MIB), image, image_format="qcow2", content_key="k")
    assert guest.run(await pool.chain(ROOT), "length").strip() == "256 MiB"
    assert guest.shows(await pool.chain(ROOT), 1)


async def test_usage_counts_what_a_volume_wrote(pool: Qcow2Pool, guest: Guest) -> None:
    await pool.create(kept())
    assert (await pool.info(PRIVATE)).usage_bytes == 0
    await run_writing(pool, guest, PRIVATE, 2)
    assert (await pool.info(PRIVATE)).usage_bytes > 65536


async def test_unknown_volumes_and_doubles_are_bad_requests(pool: Qcow2Pool) -> None:
    await pool.create(kept())
    with pytest.raises(BadRequest, match="exists"):
        await pool.create(kept())
    for call in (pool.remove, pool.info, pool.chain, pool.begin_run, pool.end_run, pool.check):
        with pytest.raises(BadRequest, match="no volume"):
            await call("appvms/nobody/private")
    with pytest.raises(BadRequest, match="no volume"):
        await pool.create(snapshot("a/root", "appvms/nobody/root"))


@pytest.mark.parametrize("size", [0, -512, 1000, 1 << 50])
async def test_impossible_sizes_are_refused(pool: Qcow2Pool, size: int) -> None:
    with pytest.raises(BadRequest):
        await pool.create(kept(size=size))


async def test_everything_is_found_again_by_the_next_daemon(pool: Qcow2Pool, guest: Guest, tmp_path: Path) -> None:
    await pool.create(kept())
    await pool.create(volatile())
    await run_writing(pool, guest, PRIVATE, 2)
    await pool.begin_run("appvms/work/volatile")
    await pool.close()
    again = Qcow2Pool("main", tmp_path / "pool")
    assert await again.volumes() == [PRIVATE, "appvms/work/volatile"]
    assert guest.shows(await again.chain(PRIVATE), 2)
    with pytest.raises(NotNow):
        await again.begin_run("appvms/work/volatile")
    await again.end_run("appvms/work/volatile", clean=False)
    await again.close()


async def test_twenty_runs_begin_at_once(pool: Qcow2Pool, guest: Guest, image: Path) -> None:
    await pool.import_image(shared(ROOT), image, image_format="qcow2", content_key="k")
    vids = [f"appvms/disp{number}/root" for number in range(20)]
    for vid in vids:
        await pool.create(snapshot(vid, ROOT))
    chains = await asyncio.gather(*(pool.begin_run(vid) for vid in vids))
    assert len({chain[0].path for chain in chains}) == 20 and len({chain[0].secret for chain in chains}) == 20
