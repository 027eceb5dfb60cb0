"""kill -9 at every single change of a file: whatever remains must open, and show the old state or the new one."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from cloison.drivers.storage import qemuimg, shelf
from cloison.drivers.storage.base import Chain
from cloison.drivers.storage.qcow2 import Qcow2Pool
from cloison.errors import BadRequest

from .conftest import MIB, Guest, kept, shared, snapshot, volatile

ROOT, PRIVATE, VOLATILE = "vm-templates/debian/root", "appvms/work/private", "appvms/work/volatile"
Scenario = Callable[[Qcow2Pool, Guest], Awaitable[None]]
Judge = Callable[[Qcow2Pool, Guest], Awaitable[None]]
MOST_CHANGES = 200


def killed_at(change: int, directory: Path, guest: Guest, scenario: Scenario) -> bool:
    """Run the scenario in a process that dies before its ``change``-th change of a file; False if it ended first."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            _die_at(change)
            asyncio.run(_run(directory, guest, scenario))
            status = 0
        finally:
            os._exit(status)
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.waitstatus_to_exitcode(status) == 0, "the scenario itself failed"
    return False


async def _run(directory: Path, guest: Guest, scenario: Scenario) -> None:
    pool = Qcow2Pool("main", directory)
    await scenario(pool, guest)
    await pool.settle()
    await pool.close()


def _die_at(change: int) -> None:
    """Count calls that change files, and kill this process instead of doing the given one."""
    count = 0

    def dying(real: Callable[..., object]) -> Callable[..., object]:
        def wrapped(*args: object, **more: object) -> object:
            nonlocal count
            count += 1
            if count == change:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **more)

        return wrapped

    for place, name in (
        (Path, "replace"), (Path, "unlink"), (os, "link"), (os, "write"), (os, "ftruncate"), (shelf, "sync_directory"),
    ):  # fmt: skip
        setattr(place, name, dying(getattr(place, name)))
    merge = qemuimg.merge_down

    async def merge_and_die(chain: Chain) -> None:
        nonlocal count
        await merge(chain)
        count += 1
        if count == change:
            os.kill(os.getpid(), signal.SIGKILL)

    qemuimg.merge_down = merge_and_die


def check_every_kill(directory: Path, guest: Guest, prepare: Scenario, scenario: Scenario, judge: Judge) -> int:
    """Kill the scenario at each of its changes in turn; each time the rest must satisfy the judge."""
    asyncio.run(_run(directory / "prepared", guest, prepare))
    for change in range(1, MOST_CHANGES):
        place = directory / f"kill{change}"
        shutil.copytree(directory / "prepared", place)
        if not killed_at(change, place, guest, scenario):
            assert change > 3, "nothing was killed"
            return change
        asyncio.run(_judge(place, guest, judge))
    raise AssertionError("the scenario never ends")


async def _judge(place: Path, guest: Guest, judge: Judge) -> None:
    pool = await Qcow2Pool.open("main", place)
    await judge(pool, guest)
    await pool.settle()
    await pool.close()
    known = {path.stem for path in (place / "layers").glob("*.json")}
    assert {path.name for path in (place / "layers").iterdir()} == {
        f"{name}.{kind}" for name in known for kind in ("img", "json")
    }
    again = Qcow2Pool("main", place)
    for vid in await again.volumes():
        await again.check(vid)
    await again.close()


async def write(pool: Qcow2Pool, guest: Guest, vid: str, pattern: int, at: int = MIB) -> None:
    guest.write(await pool.begin_run(vid), pattern, at)
    await pool.end_run(vid)


async def nothing(pool: Qcow2Pool, guest: Guest) -> None:
    pass


def test_killed_while_creating(tmp_path: Path, guest: Guest) -> None:
    async def scenario(pool: Qcow2Pool, guest: Guest) -> None:
        await pool.create(kept())

    async def judge(pool: Qcow2Pool, guest: Guest) -> None:
        if PRIVATE not in await pool.volumes():
            await pool.create(kept())
        await write(pool, guest, PRIVATE, 7)

    check_every_kill(tmp_path, guest, nothing, scenario, judge)


def test_killed_while_importing(tmp_path: Path, guest: Guest, image: Path) -> None:
    async def scenario(pool: Qcow2Pool, guest: Guest) -> None:
        await pool.import_image(shared(ROOT, size=128 * MIB), image, image_format="qcow2", content_key="k")

    async def judge(pool: Qcow2Pool, guest: Guest) -> None:
        if ROOT not in await pool.volumes():
            await scenario(pool, guest)
        assert guest.shows(await pool.chain(ROOT), 1)

    check_every_kill(tmp_path, guest, nothing, scenario, judge)


def test_killed_during_a_kept_run(tmp_path: Path, guest: Guest) -> None:
    async def prepare(pool: Qcow2Pool, guest: Guest) -> None:
        await pool.create(kept())
        await write(pool, guest, PRIVATE, 2)
        await write(pool, guest, PRIVATE, 3, at=2 * MIB)

    async def scenario(pool: Qcow2Pool, guest: Guest) -> None:
        await write(pool, guest, PRIVATE, 4)

    async def judge(pool: Qcow2Pool, guest: Guest) -> None:
        await pool.end_run(PRIVATE, clean=False)
        chain = await pool.chain(PRIVATE)
        assert guest.shows(chain, 3, at=2 * MIB)
        assert guest.shows(chain, 2) or guest.shows(chain, 4)
        await write(pool, guest, PRIVATE, 5)
        assert guest.shows(await pool.chain(PRIVATE), 5)

    changes = check_every_kill(tmp_path, guest, prepare, scenario, judge)
    assert changes > 10


def test_killed_while_merging(tmp_path: Path, guest: Guest) -> None:
    async def prepare(pool: Qcow2Pool, guest: Guest) -> None:
        await pool.create(kept(revisions_to_keep=5))
        for step in range(4):
            await write(pool, guest, PRIVATE, 10 + step, at=(4 + step) * MIB)

    async def scenario(pool: Qcow2Pool, guest: Guest) -> None:
        await pool.set_revisions_to_keep(PRIVATE, 1)
        await pool.settle()

    async def judge(pool: Qcow2Pool, guest: Guest) -> None:
        await pool.settle()
        assert guest.shows_all(await pool.chain(PRIVATE), {(4 + step) * MIB: 10 + step for step in range(4)})
        await pool.set_revisions_to_keep(PRIVATE, 1)
        await pool.settle()
        assert len(await pool.chain(PRIVATE)) == 3
        (old,) = (await pool.info(PRIVATE)).revisions
        await pool.revert(PRIVATE, old)
        contents = {(4 + step) * MIB: 10 + step if step < 3 else 0 for step in range(4)}
        assert guest.shows_all(await pool.chain(PRIVATE), contents)

    check_every_kill(tmp_path, guest, prepare, scenario, judge)


def test_killed_during_a_throw_away_run(tmp_path: Path, guest: Guest, image: Path) -> None:
    async def prepare(pool: Qcow2Pool, guest: Guest) -> None:
        await pool.import_image(shared(ROOT), image, image_format="qcow2", content_key="k")
        await pool.create(snapshot("appvms/work/root", ROOT))
        await pool.create(volatile())

    async def scenario(pool: Qcow2Pool, guest: Guest) -> None:
        for vid in ("appvms/work/root", VOLATILE):
            guest.write(await pool.begin_run(vid), 9)
        for vid in ("appvms/work/root", VOLATILE):
            await pool.end_run(vid)

    async def judge(pool: Qcow2Pool, guest: Guest) -> None:
        for vid in ("appvms/work/root", VOLATILE):
            await pool.end_run(vid, clean=False)
        assert guest.shows(await pool.begin_run("appvms/work/root"), 1)
        await pool.end_run("appvms/work/root")

    check_every_kill(tmp_path, guest, prepare, scenario, judge)


def test_killed_while_removing(tmp_path: Path, guest: Guest) -> None:
    async def prepare(pool: Qcow2Pool, guest: Guest) -> None:
        await pool.create(kept())
        await write(pool, guest, PRIVATE, 2)

    async def scenario(pool: Qcow2Pool, guest: Guest) -> None:
        await pool.remove(PRIVATE)

    async def judge(pool: Qcow2Pool, guest: Guest) -> None:
        if PRIVATE in await pool.volumes():
            assert guest.shows(await pool.chain(PRIVATE), 2)
            await pool.remove(PRIVATE)
        with pytest.raises(BadRequest):
            await pool.chain(PRIVATE)

    check_every_kill(tmp_path, guest, prepare, scenario, judge)


def test_killed_while_growing_and_cloning(tmp_path: Path, guest: Guest) -> None:
    async def prepare(pool: Qcow2Pool, guest: Guest) -> None:
        await pool.create(kept())
        await write(pool, guest, PRIVATE, 2)

    async def scenario(pool: Qcow2Pool, guest: Guest) -> None:
        await pool.resize(PRIVATE, 96 * MIB)
        await pool.clone(PRIVATE, kept("appvms/copy/private", size=96 * MIB))

    async def judge(pool: Qcow2Pool, guest: Guest) -> None:
        for vid in await pool.volumes():
            assert guest.shows(await pool.chain(vid), 2)
            assert guest.run(await pool.chain(vid), "length").strip() in ("64 MiB", "96 MiB")

    check_every_kill(tmp_path, guest, prepare, scenario, judge)
