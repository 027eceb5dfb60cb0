"""The wiring: one system, put together from its rooms, served until cancelled.

In: a layout. Out: sockets that answer. May import: every room but cli.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import signal
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from cloison.admin.dispatch import Admin
from cloison.admin.methods import Desk
from cloison.admin.server import AdminServer
from cloison.admin.system import picture_for_policy
from cloison.daemon.auditing import Auditing
from cloison.daemon.books import Bookkeeping
from cloison.daemon.calls import admin_handlers, consent, may_know
from cloison.daemon.door import Door, open_desk
from cloison.daemon.guests import guest_handlers, keep_clocks
from cloison.daemon.own import DaemonVerbs, Facade, build_for_engine, read_boot_files_of
from cloison.daemon.targets import EngineTargets
from cloison.daemon.updatechecks import keep_asking
from cloison.drivers.block.images import HostImages
from cloison.drivers.hypervisor.qemu import QemuHypervisor
from cloison.drivers.network.ways_out import HostWaysOut
from cloison.drivers.state.sqlite import Store
from cloison.drivers.storage.qcow2 import Qcow2Pool, make_blank, make_layer
from cloison.engine.blocks import BlockDevices
from cloison.engine.errands import Errands
from cloison.engine.events import EventBus
from cloison.engine.forkpoints import ForkPoints
from cloison.engine.inventory import Ledger
from cloison.engine.kernels import Kernels
from cloison.engine.network import Network
from cloison.engine.properties import Properties
from cloison.engine.qubes import Qubes
from cloison.engine.recover import recover
from cloison.engine.runs import Phase, Run, StartMode, VolumeRef
from cloison.engine.start import Ground
from cloison.engine.stock import Stock
from cloison.engine.system import System
from cloison.engine.templates import Templates
from cloison.engine.volumes import PoolDriver, Volumes
from cloison.errors import CloisonError
from cloison.layout import Layout
from cloison.model.classes import Klass
from cloison.model.firewall import DEFAULT_RULES, unexpired
from cloison.model.inventory import Inventory
from cloison.model.names import QubeName
from cloison.model.qube import Pool
from cloison.policy import PolicySource, install_defaults
from cloison.policy.limits import LimitSource
from cloison.policy.remember import Memory
from cloison.policy.store import PolicyStore
from cloison.qrexec.broker import Broker
from cloison.qrexec.dom0 import Dom0Services
from cloison.qrexec.hostclients import HostClients
from cloison.qrexec.link import RelayConnector
from cloison.qrexec.policyservices import policy_handlers
from cloison.qrexec.ports import Limits
from cloison.qrexec.spawner import Spawner

log = logging.getLogger(__name__)

KILL_TIMEOUT_S = 60.0
"""Longest wait for qubes to be put away when the daemon was told to end them too."""


@dataclass
class House:
    """The rooms, joined."""

    layout: Layout
    ledger: Ledger
    system: System
    templates: Templates
    stock: Stock
    admin: Admin
    broker: Broker
    errands: Errands
    stopping: asyncio.Future[bool]
    """Resolved when the daemon shall end; True: its qubes too."""


async def serve(layout: Layout) -> None:
    """Serve one system until cancelled or told to stop. Raises CloisonError if it cannot begin."""
    async with built(layout) as house:
        server = AdminServer(layout.admin_socket, house.admin)
        clients = HostClients(layout.qrexec_socket, house.broker)
        async with AsyncExitStack() as stack:
            await clients.open()
            stack.push_async_callback(clients.close)
            await server.start()
            stack.push_async_callback(server.close)
            log.info("serving %s", layout.admin_socket)
            asyncio.get_running_loop().add_signal_handler(
                signal.SIGHUP, lambda: house.system.own(_listen_again(server, clients), "sockets put back")
            )
            house.system.own(_autostart(house), "autostart")
            house.stock.start()
            house.system.own(house.templates.resume(), "fork points left over")
            house.system.own(house.templates.follow_removals(), "fork points of removed templates")
            house.system.own(house.errands.follow(), "errands in running qubes")
            house.system.own(keep_clocks(house.errands), "clocks")
            house.system.own(keep_asking(house.system, lambda: house.ledger.inventory), "daily checks for updates")
            kill_qubes = await house.stopping
        if kill_qubes:
            await _kill_all(house.system)


async def _listen_again(server: AdminServer, clients: HostClients) -> None:
    await clients.listen_again()
    await server.listen_again()


@asynccontextmanager
async def built(layout: Layout) -> AsyncIterator[House]:
    """Everything but the sockets: state opened, qubes of an earlier daemon found again."""
    install_defaults(layout.policy)
    policy = PolicySource(layout.policy, layout.runtime_policy, legacy=layout.legacy_policy)
    async with AsyncExitStack() as stack:
        store = Store.open(layout.database)
        stack.callback(store.close)
        ledger = Ledger(store, EventBus())
        auditing = Auditing(layout.audit, ledger, policy)
        stack.push_async_callback(auditing.close)
        works = await _open_works(layout, store, ledger, stack)
        house = await _open_doors(layout, ledger, policy, auditing, works, stack)
        auditing.begin()
        await works.books.volumes.sweep()
        await recover(works.system, _read_runs(ledger), _leftovers(ledger))
        await works.network.recover()
        await works.blocks.recover()
        works.system.own(works.network.follow(ledger.bus.subscribe()), "changes of the network")
        await works.templates.learn_revisions()
        yield house


@dataclass
class _Works:
    """What can act and decides nothing: the engine on its drivers."""

    hypervisor: QemuHypervisor
    connector: RelayConnector
    books: Bookkeeping
    system: System
    templates: Templates
    network: Network
    blocks: BlockDevices
    stock: Stock
    properties: Properties
    errands: Errands


async def _open_works(layout: Layout, store: Store, ledger: Ledger, stack: AsyncExitStack) -> _Works:
    hypervisor = QemuHypervisor(layout.cache)
    await hypervisor.accelerator()  # found out once, before anybody waits for it
    pools = _Pools(layout.pools)
    stack.push_async_callback(pools.close)
    connector = RelayConnector(Spawner())
    stack.push_async_callback(connector.close)
    forkpoints = ForkPoints(layout.forkpoints, hypervisor, connector, make_layer, make_blank, layout.data)
    stack.push_async_callback(forkpoints.close)
    kernels = Kernels(layout.data / "kernels", told=store.know_kernels)
    books = Bookkeeping(ledger)
    ground = Ground(
        layout, lambda name: books.volumes.pool(name), hypervisor, connector, forkpoints, kernels,
        functools.partial(_write_run, ledger),
    )  # fmt: skip
    committed: list[Templates] = []
    system = System(ground, books, on_committed=lambda name: committed[0].committed(name))
    stack.push_async_callback(system.close)
    books.volumes = Volumes(ledger, system, {"qcow2": PoolDriver(pools.open, ("dir_path",))})
    books.qubes = Qubes(ledger, system, books.volumes, kept=(kernels,))
    templates = Templates(
        system, ledger, books.qubes, functools.partial(build_for_engine, layout.cache), read_boot_files_of
    )
    committed.append(templates)
    books.volumes.root_changed = templates.committed
    network = Network(system, lambda: ledger.inventory, HostWaysOut(), rules_in_force)
    system.cables = network
    connector.on_return = network.agent_returned
    blocks = BlockDevices(system, lambda: ledger.inventory, HostImages(layout.exposed, layout.data))
    system.drives = blocks
    stock = Stock(system, ledger, books.qubes)
    stack.push_async_callback(stock.close)
    books.qubes.leaving = stock.leaving
    properties = Properties(ledger, system, books.volumes)
    properties.follow_netvm = network.settle
    errands = Errands(system, ledger)
    stack.push_async_callback(errands.close)
    return _Works(hypervisor, connector, books, system, templates, network, blocks, stock, properties, errands)


async def _open_doors(
    layout: Layout, ledger: Ledger, policy: PolicySource, auditing: Auditing, works: _Works, stack: AsyncExitStack
) -> House:
    """The two doors where deciding meets acting: the Admin API and the broker."""
    system, books, stock = works.system, works.books, works.stock
    stopping: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
    accelerator, host = await works.hypervisor.accelerator(), await works.hypervisor.host()
    facade = Facade(layout, accelerator, host.qemu_text, host.why, time.time())
    own = DaemonVerbs(facade, system, works.templates, ledger, stock, auditing, lambda kill: _tell(stopping, kill))
    targets = EngineTargets(system, ledger, books.qubes, stock, lambda: picture_for_policy(desk))
    limits = Limits()
    files = PolicyStore(layout.policy, layout.runtime_policy, layout.legacy_policy)
    questions = open_desk(Memory(files, policy), targets, ledger, limits)
    door = Door(ledger, questions)
    stack.callback(door.close)
    desk = Desk(
        ledger, books.qubes, works.properties, books.volumes, system, works.errands, own, layout.data / "imports",
        may_know(policy, targets), door, works.blocks, works.blocks,
    )  # fmt: skip
    admin = Admin(desk, auditing.witness)
    builtins = {
        **admin_handlers(admin), **policy_handlers(files, policy, targets.system_info),
        **guest_handlers(ledger, system), "cloison.Consent": consent,
    }  # fmt: skip
    dom0 = Dom0Services(layout.services, builtins, stdin_bytes=limits.builtin_stdin_bytes)
    broker = Broker(
        targets, policy, auditing, dom0, limits=limits, limit_rules=LimitSource(layout.limits),
        ask=questions.ask, tell=door.tell,
    )  # fmt: skip
    door.broker = broker
    works.connector.on_call, works.connector.on_gone = broker.on_call, broker.on_gone
    return House(layout, ledger, system, works.templates, stock, admin, broker, works.errands, stopping)


def rules_in_force(inventory: Inventory, name: QubeName) -> str:
    """A qube's firewall rules as of now."""
    return unexpired(inventory.qube(name).firewall or DEFAULT_RULES, time.time())


def _tell(stopping: asyncio.Future[bool], kill_qubes: bool) -> None:
    if not stopping.done():
        stopping.set_result(kill_qubes)


class _Pools:
    """Opens qcow2 pools as they are asked for, and closes them all."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._opened: list[Qcow2Pool] = []

    def open(self, record: Pool) -> Qcow2Pool:
        pool = Qcow2Pool.open_now(record.name, Path(record.config.get("dir_path") or self._directory / record.name))
        self._opened.append(pool)
        return pool

    async def close(self) -> None:
        for pool in self._opened:
            await pool.close()


def _write_run(ledger: Ledger, name: QubeName, run: Run | None) -> None:
    with ledger.change(durable=False) as records:
        if run is None:
            records.delete_run(name)
        else:
            records.set_run(name, run.to_record(), run.started_at)


def _read_runs(ledger: Ledger) -> dict[QubeName, Run]:
    runs = {}
    for name, row in ledger.inventory.runs.items():
        try:
            runs[name] = Run.from_record(row.record)
        except CloisonError as error:
            log.error("%s of %s: ending what is left of it", error, name)
            volumes = tuple(VolumeRef(v.pool, v.vid) for v in ledger.inventory.qube(name).volumes.values())
            runs[name] = Run(Phase.STARTING, StartMode.BOOT, volumes, row.started_at, "")
    return runs


def _leftovers(ledger: Ledger) -> list[QubeName]:
    inventory = ledger.inventory
    return [q.name for q in inventory if q.klass is Klass.DISPOSABLE and inventory.flag(q.name, "auto_cleanup")]


async def _autostart(house: House) -> None:
    inventory = house.ledger.inventory
    for qube in inventory:
        if qube.is_machine and inventory.flag(qube.name, "autostart"):
            try:
                await house.system.start(qube.name)
            except CloisonError as error:
                log.error("%s was not started automatically: %s", qube.name, error)


async def _kill_all(system: System) -> None:
    async def kill(name: QubeName) -> None:
        with contextlib.suppress(CloisonError):
            await system.kill(name)

    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(KILL_TIMEOUT_S):
            await asyncio.gather(*(kill(name) for name in system.running()))
