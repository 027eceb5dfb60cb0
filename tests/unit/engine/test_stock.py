"""The stock of ready disposables: filled, handed over, replaced, thrown away, never in the way."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from cloison.daemon.books import Bookkeeping
from cloison.drivers.state.sqlite import Store
from cloison.drivers.storage.base import VolumeInfo, VolumeSpec
from cloison.engine.events import EventBus
from cloison.engine.features import set_feature
from cloison.engine.inventory import Ledger
from cloison.engine.properties import Properties
from cloison.engine.qubes import Qubes, Wish
from cloison.engine.recover import recover
from cloison.engine.runs import Run
from cloison.engine.stock import LISTED, WANTED, Pace, Stock
from cloison.engine.system import System
from cloison.engine.volumes import PoolDriver, Volumes
from cloison.model.classes import Klass
from cloison.model.names import DOM0, QubeName
from cloison.model.power import PowerState
from cloison.model.qube import Host

from .conftest import Bench, CountingPool, Troublemaker

MakeBench = Callable[[], Bench]
DVM, WORK = QubeName("dvm"), QubeName("work")
PACE = Pace(delay_s=0.01, look_s=0.02, settle_s=0.02, hand_over_timeout_s=1)


class KeepingPool(CountingPool):
    """Also makes and removes volumes."""

    def __init__(self, trouble: Troublemaker) -> None:
        super().__init__(trouble)
        self.made: set[str] = set()
        self.revisions: dict[str, str] = {}

    async def create(self, spec: VolumeSpec) -> None:
        self.made.add(spec.vid)

    async def remove(self, vid: str) -> None:
        self.made.discard(vid)

    async def volumes(self) -> list[str]:
        return list(self.made)

    async def info(self, vid: str) -> VolumeInfo:
        return VolumeInfo(vid, 1, 1, (), self.revisions.get(vid, "r1"), pristine=True)


@dataclass
class House:
    bench: Bench
    pool: KeepingPool
    ledger: Ledger
    system: System
    qubes: Qubes
    properties: Properties
    stock: Stock
    free_mib: list[int]

    def waiting(self) -> list[QubeName]:
        return self.stock.names(DVM)

    def disposables(self) -> list[QubeName]:
        return [qube.name for qube in self.ledger.inventory if qube.klass is Klass.DISPOSABLE]

    async def until(self, condition: Callable[[], bool], what: str) -> None:
        for _ in range(400):
            if condition():
                return
            await asyncio.sleep(0.01)
        raise AssertionError(f"waited in vain for {what}; waiting: {self.waiting()}, there: {self.disposables()}")

    async def filled(self, count: int = 1) -> list[QubeName]:
        """Waits until that many are ready and paused."""

        def paused() -> bool:
            names = self.waiting()
            return len(names) == count and all(self.system.power_state(n) is PowerState.PAUSED for n in names)

        await self.until(paused, f"{count} ready disposables")
        return self.waiting()

    def want(self, count: int, holder: QubeName = DVM) -> None:
        set_feature(self.ledger, holder, WANTED, str(count))


async def build(bench: Bench, store: Store) -> House:
    ledger = Ledger(store, EventBus())
    pool = KeepingPool(bench.trouble)

    def write_run(name: QubeName, run: Run | None) -> None:
        with ledger.change(durable=False) as records:
            records.delete_run(name) if run is None else records.set_run(name, run.to_record(), run.started_at)

    books = Bookkeeping(ledger)
    ground = replace(bench.ground, pool=lambda _: pool, write_run=write_run)  # type: ignore[arg-type,return-value]
    system = System(ground, books, on_committed=lambda name: None)
    books.volumes = Volumes(ledger, system, {"qcow2": PoolDriver(lambda record: pool, ("dir_path",))})  # type: ignore[arg-type,return-value]
    books.qubes = Qubes(ledger, system, books.volumes, chance=random.Random(7))
    free_mib = [8000]
    stock = Stock(system, ledger, books.qubes, pace=PACE, available_mib=lambda: free_mib[0])
    books.qubes.leaving = stock.leaving
    properties = Properties(ledger, system, books.volumes)
    return House(bench, pool, ledger, system, books.qubes, properties, stock, free_mib)


async def furnish(house: House) -> None:
    await house.qubes.create(Wish(Klass.TEMPLATE, QubeName("debian"), "black", features={"qrexec": "1"}))
    house.properties.set_setting("default_template", "debian")
    for name in (DVM, WORK):
        await house.qubes.create(Wish(Klass.APP, name, "red", properties={"memory": 64, "vcpus": 1}))
    await house.properties.set(DVM, "template_for_dispvms", "True")
    house.properties.set_setting("default_dispvm", "dvm")


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    opened = Store.open(tmp_path / "state.sqlite", host=Host(8192, 4, ("6.12",)))
    yield opened
    opened.close()


@pytest.fixture
async def house(bench: MakeBench, store: Store) -> AsyncIterator[House]:
    built = await build(bench(), store)
    await furnish(built)
    built.stock.start()
    yield built
    await built.stock.close()
    await built.system.close()
    await built.system.ground.forkpoints.close()


async def test_none_is_kept_unless_it_is_wanted(house: House) -> None:
    await asyncio.sleep(0.05)
    assert house.disposables() == []
    assert await house.stock.take(DVM, WORK, call_owned=True) is None


async def test_one_waits_paused_hidden_and_listed_where_clients_look(house: House) -> None:
    house.want(1)
    (name,) = await house.filled()
    qube = house.ledger.inventory.qube(name)
    assert qube.is_preloaded
    assert house.ledger.inventory.flag(name, "is_preload")
    assert not any(tag.startswith("disp-created-by-") for tag in qube.tags)
    assert house.ledger.inventory.qube(DVM).features[LISTED] == name
    assert house.stock.is_waiting(name)


async def test_it_is_handed_over_running_reseeded_with_the_time_of_now_and_replaced(house: House) -> None:
    house.want(1)
    (name,) = await house.filled()
    starts = list(house.bench.hypervisor.started)
    assert await house.stock.take(DVM, WORK, call_owned=True) == name
    assert house.system.power_state(name) is PowerState.RUNNING
    assert house.bench.hypervisor.started == starts, "no machine was started for it"
    verb, fields = house.bench.connector.links[0].said[-1]
    assert verb == "refresh"
    assert {"clock_ns", "entropy"} <= set(fields)
    qube = house.ledger.inventory.qube(name)
    assert not qube.is_preloaded
    assert "disp-created-by-work" in qube.tags
    assert house.system.live(name).run.call_owned
    assert not house.stock.is_waiting(name)
    (other,) = await house.filled()
    assert other != name


async def test_a_caller_without_a_template_gets_one_of_its_default(house: House) -> None:
    house.want(1)
    (name,) = await house.filled()
    assert await house.stock.take(None, WORK, call_owned=False) == name
    assert not house.system.live(name).run.call_owned, "it outlives the daemon, as any disposable of a client does"


async def test_each_is_given_once_however_many_ask(house: House) -> None:
    house.want(2)
    names = await house.filled(2)
    taken = await asyncio.gather(*(house.stock.take(DVM, WORK, call_owned=True) for _ in range(5)))
    given = [name for name in taken if name is not None]
    assert sorted(given) == sorted(names)


async def test_dom0_says_how_many_of_the_default_before_the_template_does(house: House) -> None:
    house.want(3)
    await house.filled(3)
    house.want(1, DOM0)
    await house.filled(1)
    await house.until(lambda: len(house.disposables()) == 1, "the others to go")


@pytest.mark.parametrize("change", ["property", "feature", "setting", "root", "private"])
async def test_one_that_is_no_longer_what_a_new_one_would_be_is_replaced(house: House, change: str) -> None:
    house.want(1)
    (name,) = await house.filled()
    match change:
        case "property":
            await house.properties.set(DVM, "label", "orange")
        case "feature":
            set_feature(house.ledger, DVM, "service.cups", "1")
        case "setting":
            house.properties.set_setting("default_shutdown_timeout", "77")
        case "root" | "private":
            owner = QubeName("debian") if change == "root" else DVM
            vid = house.ledger.inventory.qube(owner).volumes[change].vid
            house.pool.revisions[vid] = "r2"
            house.ledger.tell()
            assert await house.stock.take(DVM, WORK, call_owned=True) is None
    await house.until(lambda: bool(house.waiting()) and name not in house.waiting(), "another one")
    await house.filled()
    await house.until(lambda: name not in house.disposables(), "the old one to go")


async def test_without_memory_none_is_made_and_what_waits_is_given_up(house: House) -> None:
    house.want(1)
    await house.filled()
    house.free_mib[0] = 100
    await house.until(lambda: house.disposables() == [], "the memory to be given back")
    await asyncio.sleep(0.05)
    assert house.disposables() == []
    house.free_mib[0] = 8000
    await house.filled()


async def test_none_is_made_while_another_qube_starts(house: House) -> None:
    house.system.starting = 1
    house.want(1)
    await asyncio.sleep(0.1)
    assert house.disposables() == []
    house.system.starting = 0
    await house.filled()


async def test_one_that_does_not_answer_is_thrown_away_and_the_caller_gets_a_new_one(house: House) -> None:
    house.want(1)
    (name,) = await house.filled()
    house.bench.trouble.fail_at = len(house.bench.trouble.steps)
    assert await house.stock.take(DVM, WORK, call_owned=True) is None
    await house.until(lambda: name not in house.disposables(), "it to go")
    await house.filled()


async def test_one_that_fails_to_start_leaves_nothing_and_is_tried_again(house: House) -> None:
    await house.system.start(WORK)  # the fork point is there
    house.bench.trouble.fail_at = len(house.bench.trouble.steps) + 1
    house.want(1)
    await house.filled()
    assert len(house.disposables()) == 1


async def test_one_that_was_killed_is_replaced(house: House) -> None:
    house.want(1)
    (name,) = await house.filled()
    await house.system.kill(name)
    await house.until(lambda: bool(house.waiting()) and name not in house.waiting(), "another one")


async def test_one_that_somebody_unpauses_is_theirs(house: House) -> None:
    house.want(1)
    (name,) = await house.filled()
    await house.system.unpause(name)
    await house.until(lambda: not house.ledger.inventory.qube(name).is_preloaded, "it to be an ordinary one")
    assert not house.stock.is_waiting(name)


async def test_it_does_not_keep_its_template_from_being_removed(house: House) -> None:
    house.want(1)
    (name,) = await house.filled()
    house.properties.reset_setting("default_dispvm")
    await house.qubes.remove(DVM)
    assert name not in house.disposables()
    assert house.ledger.inventory.find(DVM) is None


async def test_without_its_netvm_running_none_is_made(house: House) -> None:
    await house.properties.set(WORK, "provides_network", "True")
    await house.properties.set(DVM, "netvm", "work")
    house.want(1)
    await asyncio.sleep(0.1)
    assert house.disposables() == []
    await house.system.start(WORK)
    await house.filled()
    house.bench.hypervisor.machines.reverse()  # the fake's agents stop the last one
    await house.system.shutdown(WORK, wait=True)  # is not refused because of what waits
    await house.until(lambda: house.disposables() == [], "it to go with its netvm")


async def test_closing_ends_all_that_wait(house: House) -> None:
    house.want(2)
    await house.filled(2)
    await house.stock.close()
    assert house.disposables() == []
    assert house.bench.hypervisor.machines == []


async def test_a_daemon_killed_with_9_leaves_none(bench: MakeBench, store: Store) -> None:
    first = await build(it := bench(), store)
    await furnish(first)
    first.stock.start()
    first.want(1)
    (name,) = await first.filled()
    machine = it.hypervisor.machines[-1]
    for task in [*first.stock._tasks, *first.system._tasks]:  # as a kill: nobody tidies up
        task.cancel()
    await asyncio.sleep(0)

    second = await build(bench(), store)
    adopted = []

    async def adopt(record: object) -> object:
        adopted.append(machine)
        return machine

    second.bench.hypervisor.adopt = adopt  # type: ignore[assignment]
    runs = {n: Run.from_record(row.record) for n, row in second.ledger.inventory.runs.items()}
    await recover(second.system, runs, second.disposables())
    assert machine.gone.done()
    assert name not in second.disposables()
    second.stock.start()
    assert LISTED not in second.ledger.inventory.qube(DVM).features or second.waiting()
    (other,) = await second.filled()
    assert other in second.disposables()
    await second.stock.close()
    await second.system.close()
