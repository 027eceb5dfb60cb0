"""The daemon is killed at any moment of creating, cloning, replacing and removing, on the real pool: afterwards every
recorded volume is there, and no other."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cloison.drivers.state.sqlite import Store
from cloison.drivers.storage.qcow2 import Qcow2Pool
from cloison.engine.events import EventBus
from cloison.engine.inventory import Ledger
from cloison.engine.properties import Properties
from cloison.engine.qubes import Qubes, Wish
from cloison.engine.volumes import PoolDriver, Volumes
from cloison.errors import CloisonError
from cloison.model.classes import Klass
from cloison.model.names import QubeName
from cloison.model.power import PowerState
from cloison.model.qube import Host

BUSY = """
import asyncio, importlib.util, sys
spec = importlib.util.spec_from_file_location("kill", sys.argv[1])
kill = importlib.util.module_from_spec(spec)
spec.loader.exec_module(kill)
asyncio.run(kill.be_busy(sys.argv[2], int(sys.argv[3])))
"""


class Halted:
    """Seats in which nobody sits."""

    def power_state(self, name: QubeName) -> PowerState:
        return PowerState.HALTED

    def is_running(self, name: QubeName) -> bool:
        return False

    def running(self) -> frozenset[QubeName]:
        return frozenset()

    @contextlib.asynccontextmanager
    async def halted(self, name):
        yield


@contextlib.asynccontextmanager
async def opened(directory: Path):
    pool = await Qcow2Pool.open("default", directory / "pool")
    store = Store.open(directory / "state.sqlite", host=Host(4096, 2))
    ledger = Ledger(store, EventBus())
    volumes = Volumes(ledger, Halted(), {"qcow2": PoolDriver(lambda record: pool)})
    await volumes.sweep()
    yield ledger, volumes, Qubes(ledger, Halted(), volumes), pool
    await pool.close()
    store.close()


async def be_busy(directory: str, seed: int) -> None:
    """Change things at random for ever; one line per change."""
    chance = random.Random(seed)
    async with opened(Path(directory)) as (ledger, volumes, qubes, _pool):
        if ledger.inventory.find("deb") is None:
            await qubes.create(Wish(Klass.TEMPLATE, QubeName("deb"), "black"))
        if ledger.inventory.find("fedora") is None:
            await qubes.create(Wish(Klass.TEMPLATE, QubeName("fedora"), "black"))
        properties = Properties(ledger, Halted(), volumes)
        os.write(1, b"begun\n")
        while True:
            names = [qube.name for qube in ledger.inventory if qube.klass is Klass.APP]
            name = QubeName(f"q{chance.randrange(6)}")
            with contextlib.suppress(CloisonError):
                match chance.randrange(6):
                    case 0:
                        await qubes.create(Wish(Klass.APP, name, "red", QubeName("deb"), durable=chance.random() < 0.5))
                    case 1 if names:
                        await qubes.clone(chance.choice(names), name)
                    case 2 if names:
                        await qubes.remove(chance.choice(names))
                    case 3 | 4 if names:
                        await properties.set(chance.choice(names), "template", chance.choice(("deb", "fedora")))
                    case _:
                        target = chance.choice(names) if names and chance.random() < 0.8 else QubeName("deb")
                        await volumes.clear(target, "private" if target != "deb" else "root")


@pytest.mark.parametrize("seed", range(3))
def test_after_a_kill_records_and_volumes_agree(tmp_path, seed):
    chance = random.Random(seed)
    for round_number in range(3):
        arguments = [sys.executable, "-c", BUSY, __file__, str(tmp_path), str(seed * 10 + round_number)]
        process = subprocess.Popen(arguments, stdout=subprocess.PIPE)
        assert process.stdout is not None
        assert process.stdout.readline() == b"begun\n"
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(chance.uniform(0.02, 0.6))
        process.send_signal(signal.SIGKILL)
        process.wait()
        asyncio.run(check(tmp_path))


async def check(directory: Path) -> None:
    async with opened(directory) as (ledger, volumes, qubes, pool):
        recorded = [volume.vid for qube in ledger.inventory for volume in qube.volumes.values()]
        assert sorted(recorded) == sorted(await pool.volumes())
        for qube in ledger.inventory:
            for name in qube.volumes:
                await pool.check(qube.volumes[name].vid)
                source = ledger.inventory.volume_source(qube.name, name)
                if source is not None:
                    assert (await volumes.info(qube.name, name)).revision_id == (
                        await pool.info(source.vid)
                    ).revision_id
        assert ledger.store.doomed_volumes() == frozenset()
        await qubes.create(Wish(Klass.APP, QubeName("after"), "red", QubeName("deb")))
        await qubes.remove(QubeName("after"))
