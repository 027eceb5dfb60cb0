"""kill -9 of the daemon in the middle of each changing method: then the state is the one before, or the one after.

Real records and the real pool, in a process that dies before its n-th change of a file or of the records, for every n
(of long methods, for a choice of them). Then the next daemon's view is compared with two pictures: without the call,
and with the whole call.
"""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from tests.unit.admin.conftest import House, build_house
from tests.unit.storage.conftest import Guest

from cloison.admin import uploads
from cloison.admin.dispatch import METHODS
from cloison.drivers.state.sqlite import Store
from cloison.drivers.storage import shelf
from cloison.drivers.storage.qcow2 import Qcow2Pool
from cloison.model.classes import Klass
from cloison.model.names import QubeName

MOST_KILLS = 9
"""Of one method; a method with more moments is killed in that many of them, chosen anew by each method's name."""


@dataclass(frozen=True)
class Asked:
    """One call; ``{}`` in the payload is the answer of the call before it."""

    method: str
    dest: str = "dom0"
    arg: str = ""
    payload: str = ""


def _one(method: str, dest: str = "dom0", arg: str = "", payload: str = "") -> tuple[str, tuple[Asked, ...]]:
    return f"{method}+{arg} {dest} {payload}".strip(), (Asked(method, dest, arg, payload),)


CASES: dict[str, tuple[Asked, ...]] = dict(
    (
        *(
            _one(f"admin.vm.Create.{klass}", arg=template, payload="name=new label=red")
            for klass, template in (("AppVM", "deb"), ("TemplateVM", ""), ("DispVM", "dvm"), ("RemoteVM", ""))
        ),
        _one("admin.vm.CreateInPool.StandaloneVM", payload="name=new label=red pool=default"),
        _one("admin.vm.CreateDisposable", "dvm"),
        _one("admin.vm.Remove", "old"),
        _one("admin.vm.property.Set", "old", "template", "deb2"),
        _one("admin.vm.property.Set", "old", "label", "green"),
        _one("admin.vm.property.Set", "old", "guivm", "net"),
        _one("admin.vm.property.Set", "old", "provides_network", "True"),
        _one("admin.vm.property.Reset", "net", "provides_network"),
        _one("admin.vm.property.Reset", "old", "memory"),
        _one("admin.property.Set", arg="clockvm", payload="old"),
        _one("admin.property.Set", arg="default_guivm", payload="net"),
        _one("admin.property.Reset", arg="default_guivm"),
        _one("admin.vm.feature.Set", "old", "f", "2"),
        _one("admin.vm.feature.Remove", "old", "f"),
        _one("admin.vm.tag.Set", "old", "new"),
        _one("admin.vm.tag.Remove", "old", "t"),
        _one("admin.vm.notes.Set", "old", payload="other"),
        _one("admin.vm.firewall.Set", "old", payload="action=drop\n"),
        _one("admin.vm.firewall.Reload", "old"),
        _one("admin.vm.volume.Resize", "deb", "root", str(11 << 30)),
        _one("admin.vm.volume.Resize", "old", "private", str(3 << 30)),
        _one("admin.vm.volume.Clear", "old", "private"),
        _one("admin.vm.volume.Clear", "deb", "root"),
        _one("admin.vm.volume.CloneFrom", "old", "private"),
        ("admin.vm.volume.CloneTo", (Asked("admin.vm.volume.CloneFrom", "deb", "root"),
                                     Asked("admin.vm.volume.CloneTo", "deb2", "root", "{}"))),
        ("admin.vm.volume.Revert", (Asked("admin.vm.volume.ListSnapshots", "old", "private"),
                                    Asked("admin.vm.volume.Revert", "old", "private", "{}"))),
        _one("admin.vm.volume.Set.revisions_to_keep", "old", "private", "0"),
        _one("admin.vm.volume.Set.rw", "old", "root", "False"),
        _one("admin.vm.volume.Set.ephemeral", "old", "volatile", "True"),
        _one("admin.vm.volume.Import", "tiny", "private", "x" * 4096),
        _one("admin.vm.volume.ImportWithSize", "old", "private", "8192\n" + "y" * 8192),
        _one("internal.vm.volume.ImportBegin", "old", "private", "4096"),
        ("internal.vm.volume.ImportEnd", (Asked("internal.vm.volume.ImportBegin", "old", "private", "4096"),
                                          Asked("internal.vm.volume.ImportEnd", "old", "private", "ok"))),
        _one("admin.vm.device.block.Assign", "old", "net+b+_", "mode='required'"),
        _one("admin.vm.device.block.Unassign", "old", "net+a+_"),
        _one("admin.vm.device.block.Set.assignment", "old", "net+a+_", "auto-attach"),
        _one("admin.vm.device.denied.Add", "old", payload="u******"),
        _one("admin.vm.device.denied.Remove", "old", payload="b******"),
        _one("admin.label.Create", arg="pink", payload="0xff00ff"),
        _one("admin.label.Remove", arg="mine"),
        _one("admin.pool.Add", arg="qcow2", payload="name=big\ndir_path=/nowhere\n"),
        _one("admin.pool.Remove", arg="spare"),
        _one("admin.pool.Set.revisions_to_keep", arg="default", payload="4"),
        _one("admin.pool.Set.ephemeral_volatile", arg="default", payload="True"),
        _one("cloison.qube.Clone", "old", payload='{"name":"new"}'),
        _one("cloison.qube.Rename", "old", payload='{"name":"new"}'),
    )
)  # fmt: skip
POWER = "runs are records of machines: tests/unit/engine/test_start.py, test_recover.py and tests/live/test_faults.py"
BUILDS = "images in the making: tests/unit/templates/test_build.py, test_importer.py and tests/live/test_builds.py"
TRIALS = "a run with an end of its own: tests/unit/engine/test_trials.py, tests/unit/storage/test_pool_contract.py"
FILES = "files of their own: tests/unit/policy/test_store.py, tests/unit/qrexec/test_audit_store.py"
LINKS = "one link is made or goes, by one system call: tests/unit/drivers/test_block_images.py"
NO_STATE = "nothing is kept"
ELSEWHERE = {
    **{f"admin.vm.{verb}": POWER for verb in ("Start", "Shutdown", "Kill", "Pause", "Unpause", "Suspend", "Resume")},
    **{f"internal.Suspend{when}": POWER for when in ("Pre", "Post")},
    **{f"admin.vm.device.{devclass}.{verb}": POWER
       for devclass in ("block", "mic", "pci", "usb") for verb in ("Attach", "Detach")},
    **dict.fromkeys(("cloison.template.Build", "cloison.template.Commit", "cloison.standalone.Import",
                     "cloison.forkpoint.Make", "cloison.forkpoint.Drop"), BUILDS),
    **dict.fromkeys(("cloison.trial.Hold", "cloison.trial.Settle"), TRIALS),
    **dict.fromkeys(("cloison.block.Expose", "cloison.block.Hide"), LINKS),
    **dict.fromkeys(("cloison.audit.Erase", "cloison.policy.Changed", "cloison.ask.Answer"), FILES),
    **dict.fromkeys(("admin.vm.Console", "cloison.daemon.Stop", "cloison.call.Kill", "cloison.policy.Apply",
                     "cloison.ask.Listen", "admin.backup.Execute", "admin.backup.Cancel", "admin.vm.Create.AdminVM",
                     "admin.vm.CreateInPool.AdminVM"), NO_STATE),
}  # fmt: skip


TWINS = {
    **{f"admin.vm.device.{devclass}.{verb}": f"admin.vm.device.block.{verb}"
       for devclass in ("mic", "pci", "usb") for verb in ("Assign", "Unassign", "Set.assignment")},
    **{f"admin.vm.CreateInPool.{klass}": f"admin.vm.Create.{klass}"
       for klass in ("AppVM", "TemplateVM", "DispVM", "RemoteVM")},
    "admin.vm.Create.StandaloneVM": "admin.vm.CreateInPool.StandaloneVM",
}  # fmt: skip
"""Methods that run the same code as one that is killed here."""


def test_every_changing_method_is_killed_here_or_elsewhere():
    changing = {name for name, row in METHODS.items() if row.may_change}
    here = {calls[-1].method for calls in CASES.values()}
    assert here | set(ELSEWHERE) | set(TWINS) == changing
    assert len(here) + len(ELSEWHERE) + len(TWINS) == len(changing)
    for name, twin in TWINS.items():
        code = [getattr(METHODS[each].handler, "__code__", None) for each in (name, twin)]
        assert twin in here and code[0] is not None and code[0] is code[1]


@asynccontextmanager
async def opened(place: Path) -> AsyncIterator[House]:
    """What a daemon that starts there finds: unfinished work is swept."""
    pool: Any = await Qcow2Pool.open("default", place / "pool")
    house = await build_house(place, pool)
    await house.volumes.sweep()
    uploads.sweep(house.admin.desk)
    yield house
    await pool.settle()
    await pool.close()
    house.store.close()


async def furnish(place: Path) -> None:
    async with opened(place) as house:
        await house.furnish()
        await house.create(Klass.TEMPLATE, "deb2")
        for name in ("old", "net", "tiny"):
            await house.create(Klass.APP, name)
        for call in (
            ("admin.vm.property.Set", "old", "memory", "500"),
            ("admin.vm.property.Set", "old", "devices_denied", "b******"),
            ("admin.vm.property.Set", "net", "provides_network", "True"), ("admin.vm.feature.Set", "old", "f", "1"),
            ("admin.vm.tag.Set", "old", "t"), ("admin.vm.notes.Set", "old", "", "notes"),
            ("admin.property.Set", "dom0", "clockvm", "net"), ("admin.property.Set", "dom0", "default_guivm", "net"),
            ("admin.property.Reset", "dom0", "default_guivm"), ("admin.label.Create", "dom0", "mine", "0x112233"),
            ("admin.pool.Add", "dom0", "qcow2", "name=spare\ndir_path=/nowhere\n"),
            ("admin.vm.volume.ImportWithSize", "tiny", "private", "4096\n" + "z" * 4096),
            ("admin.vm.device.block.Assign", "old", "net+a+_", "mode='required'"),
        ):  # fmt: skip
            await house.ok(*call)
        private = house.volumes.volume(QubeName("old"), "private")
        for pattern in (1, 2):
            Guest(place).write(await house.pool.begin_run(private.vid), pattern)
            await house.pool.end_run(private.vid)


async def picture(place: Path, known: frozenset[str]) -> dict[str, Any]:
    """All that is kept; what is made at random is left out."""
    async with opened(place) as house:
        inventory, store = house.ledger.inventory, house.store
        recorded = {
            volume.vid: volume for qube in inventory for volume in qube.volumes.values() if volume.pool == "default"
        }
        assert set(recorded) == set(await house.pool.volumes()), "every recorded volume is there, and no other"
        assert store.doomed_volumes() == frozenset()
        assert not list((place / "imports").glob("*"))
        infos = {vid: await house.pool.info(vid) for vid in recorded}
        for vid in recorded:
            await house.pool.check(vid)
        return {
            "qubes": {q.name: replace(q, uuid=q.uuid if q.uuid in known else "") for q in inventory},
            "rest": (inventory.labels, inventory.pools, inventory.settings),
            "notes": {qube.name: store.notes(qube.name) for qube in inventory},
            "volumes": {vid: (info.size_bytes, len(info.revisions)) for vid, info in infos.items()},
            "contents": {vid: info.revision_id for vid, info in infos.items()},
        }


def between(found: dict[str, Any], before: dict[str, Any], after: dict[str, Any]) -> str:
    """Why it is neither the one nor the other; "" if it is. New contents have names of their own."""

    def differing(other: dict[str, Any]) -> list[str]:
        parts = [key for key in ("qubes", "rest", "notes", "volumes") if found[key] != other[key]]
        same = found["contents"].keys() & other["contents"].keys() & before["contents"].keys()
        kept = {vid for vid in same if before["contents"][vid] == other["contents"][vid]}
        return parts + [f"content of {vid}" for vid in kept if found["contents"][vid] != other["contents"][vid]]

    to_before, to_after = differing(before), differing(after)
    return "" if not to_before or not to_after else f"not before: {to_before}; not after: {to_after}"


def in_a_process_of_its_own(place: Path, calls: tuple[Asked, ...], die_at: int) -> int:
    """How many moments there were, or -1 if it was killed before the ``die_at``-th."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            count = asyncio.run(_carry_out(place, calls, die_at))
            os.write(writer, str(count).encode())
            status = 0
        finally:
            sys.stderr.flush()
            os._exit(status)
    os.close(writer)
    _, status = os.waitpid(pid, 0)
    said = os.read(reader, 100)
    os.close(reader)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return -1
    assert status == 0, "the call itself failed"
    return int(said)


async def _carry_out(place: Path, calls: tuple[Asked, ...], die_at: int) -> int:
    async with opened(place) as house:
        answer = ""
        count = 0

        def moment() -> None:
            nonlocal count
            count += 1
            if count == die_at:
                os.kill(os.getpid(), signal.SIGKILL)

        for number, call in enumerate(calls):
            if number == len(calls) - 1:
                _watch(moment)
            payload = call.payload.replace("{}", answer.split("\n")[0]) if call.payload == "{}" else call.payload
            answer = await house.ok(call.method, call.dest, call.arg, payload)
        await house.pool.settle()
        return count
    raise AssertionError


def _watch(moment: Callable[[], None]) -> None:
    """Before each change of a file, and around each change of the records."""

    def watched(real: Callable[..., object]) -> Callable[..., object]:
        def wrapped(*args: object, **more: object) -> object:
            moment()
            return real(*args, **more)

        return wrapped

    for place, name in ((Path, "replace"), (Path, "unlink"), (os, "link"), (os, "write"), (os, "pwrite"),
                        (os, "ftruncate"), (shelf, "sync_directory")):  # fmt: skip
        setattr(place, name, watched(getattr(place, name)))
    transaction = Store.transaction

    @contextmanager
    def dying(self: Store, *, durable: bool = True) -> Iterator[Any]:
        moment()
        with transaction(self, durable=durable) as records:
            yield records
            moment()
        moment()

    Store.transaction = dying


@pytest.fixture(scope="module")
def furnished() -> Iterator[Path]:
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as directory:
        asyncio.run(furnish(Path(directory) / "furnished"))
        yield Path(directory)


@pytest.mark.parametrize("case", CASES)
def test_a_kill_leaves_the_state_before_or_after(furnished: Path, case: str) -> None:
    calls = CASES[case]
    whole, place = furnished / "whole", furnished / "killed"
    for directory in (whole, place):
        shutil.rmtree(directory, ignore_errors=True)
    shutil.copytree(furnished / "furnished", whole)
    before = asyncio.run(picture(whole, frozenset()))
    known = frozenset(qube.uuid for qube in _uuids(whole))
    before = asyncio.run(picture(whole, known))
    moments = in_a_process_of_its_own(whole, calls, -1)
    after = asyncio.run(picture(whole, known))
    chosen = range(1, moments + 1)
    if moments > MOST_KILLS:
        chosen = sorted(random.Random(case).sample(chosen, MOST_KILLS))
    for die_at in chosen:
        shutil.copytree(furnished / "furnished", place)
        assert in_a_process_of_its_own(place, calls, die_at) == -1, "it was killed"
        found = asyncio.run(picture(place, known))
        assert not (why := between(found, before, after)), f"killed at {die_at} of {moments}: {why}"
        shutil.rmtree(place)


def _uuids(place: Path) -> list[Any]:
    store = Store.open(place / "state.sqlite", keep_copy=False)
    found = list(store.inventory)
    store.close()
    return found
