"""A whole house without machines: the real store, the real bookkeeping, the real server; only seats and pool are fakes
(they keep real state and refuse what the real ones refuse)."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from tests.unit.admin.watching import watched

from cloison.admin.dispatch import Admin
from cloison.admin.methods import Desk
from cloison.admin.own import Progress, Report
from cloison.admin.server import AdminServer
from cloison.drivers.state.sqlite import Store
from cloison.drivers.storage.base import Chain, VolumeInfo, VolumeSpec
from cloison.engine import events as e
from cloison.engine.agent import ServiceResult
from cloison.engine.errands import Errands
from cloison.engine.inventory import Ledger
from cloison.engine.properties import Properties
from cloison.engine.qubes import Qubes, Wish
from cloison.engine.volumes import PoolDriver, Volumes
from cloison.errors import BackendFailed, BadRequest, QubeNotHalted, QubeNotPaused, QubeNotRunning, QubeNotStarted
from cloison.model.classes import Klass
from cloison.model.names import DOM0, QubeName
from cloison.model.power import PowerState
from cloison.model.qube import Host, Pool
from cloison.model.volumes import VolumeKind


class FakePool:
    """A pool in a dictionary that knows what exists, and can be told to fail at the n-th creation."""

    driver = "fake"

    def __init__(self, name: str) -> None:
        self.name = name
        self.specs: dict[str, VolumeSpec] = {}
        self.content: dict[str, str] = {}
        self.revisions: dict[str, list[str]] = {}
        self.fail_after: int | None = None

    async def create(self, spec: VolumeSpec) -> None:
        await asyncio.sleep(0)
        if self.fail_after is not None:
            if self.fail_after == 0:
                raise BackendFailed(f"cannot make {spec.vid}")
            self.fail_after -= 1
        if spec.vid in self.specs:
            raise BadRequest(f"{spec.vid} exists")
        if spec.kind is VolumeKind.SNAPSHOT and spec.source not in self.specs:
            raise BadRequest(f"{spec.vid} has no source {spec.source}")
        self.specs[spec.vid] = spec
        self.content[spec.vid] = "blank"
        self.revisions[spec.vid] = []

    async def remove(self, vid: str) -> None:
        await asyncio.sleep(0)
        del self.specs[vid], self.content[vid]

    async def clone(self, source_vid: str, spec: VolumeSpec) -> None:
        await self.create(spec)
        self.content[spec.vid] = self.content[source_vid]

    async def import_image(self, spec: VolumeSpec, image: Path, *, image_format: str, content_key: str) -> None:
        await self.create(spec)
        self.content[spec.vid] = image.read_bytes().rstrip(b"\0").decode()

    async def info(self, vid: str) -> VolumeInfo:
        spec = self.specs[vid]
        return VolumeInfo(vid, spec.size_bytes, 4096, tuple(self.revisions[vid]), self.content[vid], True)

    async def chain(self, vid: str) -> Chain:
        raise NotImplementedError

    async def begin_run(self, vid: str, *, base: Chain | None = None, on_trial: bool = False) -> Chain:
        raise NotImplementedError

    async def settle_run(self, vid: str) -> None:
        raise NotImplementedError

    async def end_run(self, vid: str, *, clean: bool = True) -> str | None:
        return None

    async def resize(self, vid: str, size_bytes: int) -> None:
        self.specs[vid] = VolumeSpec(vid, self.specs[vid].kind, size_bytes, self.specs[vid].source)

    async def revert(self, vid: str, revision: str) -> None:
        self.content[vid] = revision

    async def check(self, vid: str) -> None: ...
    async def set_revisions_to_keep(self, vid: str, count: int) -> None: ...
    async def volumes(self) -> Sequence[str]:
        return list(self.specs)

    async def usage(self) -> tuple[int, int]:
        return 1000, 10


class FakeLink:
    """An agent that notes which services dom0 ran, and answers as it was told to."""

    def __init__(self) -> None:
        self.ran: list[tuple[str, str, bytes]] = []
        self.told: list[tuple[str, Mapping[str, Any]]] = []
        self.answer: ServiceResult | BackendFailed = ServiceResult(0, b"", b"")

    async def run_service(
        self, service: str, *, user: str = "", stdin: bytes = b"", timeout_s: float, max_output_bytes: int = 1 << 20
    ) -> ServiceResult:
        self.ran.append((service, user, stdin))
        if isinstance(self.answer, BackendFailed):
            raise self.answer
        return self.answer

    async def control(self, verb: str, fields: Mapping[str, Any], *, timeout_s: float) -> Mapping[str, Any]:
        self.told.append((verb, fields))
        return {}

    async def wait_closed(self) -> None: ...
    async def close(self) -> None: ...


class FakeRunning:
    """Seats with power states but no machines."""

    def __init__(self, ledger: Ledger, tmp: Path) -> None:
        self._ledger = ledger
        self._tmp = tmp
        self.qubes: Qubes | None = None
        self.links: dict[QubeName, FakeLink] = {}
        self.states: dict[QubeName, PowerState] = {}
        self._locks: dict[QubeName, asyncio.Lock] = {}

    def power_state(self, name: QubeName) -> PowerState:
        return PowerState.RUNNING if name == DOM0 else self.states.get(name, PowerState.HALTED)

    def is_running(self, name: QubeName) -> bool:
        return not self.power_state(name).is_halted

    def running(self) -> frozenset[QubeName]:
        return frozenset(self.states)

    @contextlib.asynccontextmanager
    async def halted(self, name: QubeName) -> AsyncIterator[None]:
        async with self._locks.setdefault(name, asyncio.Lock()):
            if name in self.states:
                raise QubeNotHalted(f"{name} is running")
            yield

    async def start(self, name: QubeName) -> None:
        async with self._locks.setdefault(name, asyncio.Lock()):
            if name in self.states:
                return
            self._ledger.tell(e.QubeStartRequested(name), e.QubeSpawned(name))
            with self._ledger.change(e.QubeStarted(name)) as records:
                records.set_run(name, {"pid": 1})
            self.states[name] = PowerState.RUNNING

    async def shutdown(self, name: QubeName, *, force: bool = False, wait: bool = False) -> None:
        self._require(name)
        self._ledger.tell(e.QubeShutdownRequested(name, force))
        await self._stop(name)

    async def kill(self, name: QubeName) -> None:
        self._require(name)
        await self._stop(name)

    async def _stop(self, name: QubeName) -> None:
        del self.states[name]
        with self._ledger.change(e.QubeStopped(name)) as records:
            records.delete_run(name)
        if self._ledger.inventory.qube(name).properties.get("auto_cleanup"):
            assert self.qubes is not None
            await self.qubes.forget(name)

    def _require(self, name: QubeName) -> None:
        if name not in self.states:
            raise QubeNotStarted(f"{name} is not running")

    async def grow_disk(self, name: QubeName, volume: str, size_bytes: int) -> None: ...

    async def pause(self, name: QubeName) -> None:
        if self.states.get(name) is not PowerState.RUNNING:
            raise QubeNotRunning(f"{name} is not running")
        self.states[name] = PowerState.PAUSED
        self._ledger.tell(e.QubePaused(name))

    async def unpause(self, name: QubeName) -> None:
        if self.states.get(name) is not PowerState.PAUSED:
            raise QubeNotPaused(f"{name} is not paused")
        self.states[name] = PowerState.RUNNING
        self._ledger.tell(e.QubeUnpaused(name))

    def link(self, name: QubeName) -> FakeLink:
        if name not in self.states:
            raise QubeNotRunning(f"{name} is not running")
        return self.links.setdefault(name, FakeLink())

    def console_path(self, name: QubeName) -> Path:
        return self._tmp / f"{name}.console"

    def console_log(self, name: QubeName) -> Path:
        return self._tmp / f"{name}.log"

    async def memory_kib(self, name: QubeName) -> int:
        return 1024 if name in self.states else 0

    def cpu_time_ns(self, name: QubeName) -> int:
        return 5 if name in self.states else 0


class FakeOwn:
    def __init__(self) -> None:
        self.asked_to_stop: bool | None = None
        self.cancelled = False

    def status(self) -> Mapping[str, Any]:
        return {"version": "test"}

    def stop_daemon(self, *, kill_qubes: bool) -> None:
        self.asked_to_stop = kill_qubes

    async def build_template(self, name: QubeName, wishes: Mapping[str, Any], report: Report) -> Mapping[str, Any]:
        report(Progress("download", "100 % of it", 50.4))
        try:
            await asyncio.sleep(3600 if wishes.get("suite") == "slow" else 0)
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        if wishes.get("suite") == "broken":
            raise BackendFailed("the mirror is 100% away")
        return {"name": name, "revision": "r1"}

    async def templates(self) -> Sequence[Mapping[str, Any]]:
        return [{"name": "deb"}]

    async def commit_template(self, name: QubeName, report: Report) -> Mapping[str, Any]:
        return {"revision": "r2"}

    async def forkpoints(self) -> Sequence[Mapping[str, Any]]:
        return []

    async def make_forkpoint(self, name: QubeName, report: Report) -> Mapping[str, Any]:
        return {}

    async def drop_forkpoints(self, *, key: str | None, template: QubeName | None) -> Sequence[str]:
        return [key or "all"]

    async def import_standalone(self, name: QubeName, wishes: Mapping[str, Any], report: Report) -> Mapping[str, Any]:
        return {"name": name}

    async def hold_trial(self, name: QubeName, report: Report) -> Mapping[str, Any]:
        report(Progress("begun", f"{name} runs on trial"))
        return {"settled": False}

    async def settle_trial(self, name: QubeName) -> None: ...
    def policy_changed(self) -> None: ...

    async def erase_audit(self, name: str) -> int:
        return 0

    async def take_preloaded(self, template: QubeName | None, source: QubeName) -> QubeName | None:
        return None

    def outdated(self, name: QubeName) -> Sequence[str]:
        return []

    def trouble(self, name: QubeName) -> str:
        return ""

    async def rule_counters(self, name: QubeName) -> Mapping[str, Any]:
        return {"rules": {"0": [3, 180]}, "refused": 2, "spoofed": 1}

    def network_trouble(self, name: QubeName) -> str:
        return ""


@dataclass
class House:
    tmp: Path
    store: Store
    ledger: Ledger
    pool: FakePool
    running: FakeRunning
    volumes: Volumes
    properties: Properties
    qubes: Qubes
    own: FakeOwn
    admin: Admin
    now: list[float] = field(default_factory=lambda: [1_000_000.0])

    async def call(self, method: str, dest: str = "dom0", arg: str = "", payload: bytes | str = b"",
                   source: str = "dom0") -> bytes:  # fmt: skip
        data = payload.encode() if isinstance(payload, str) else payload
        return await self.admin.dispatch(source, dest, method, arg, data)

    async def ok(self, method: str, dest: str = "dom0", arg: str = "", payload: bytes | str = b"",
                 source: str = "dom0") -> str:  # fmt: skip
        answer = await self.call(method, dest, arg, payload, source)
        assert answer.startswith(b"0\0"), answer
        return answer[2:].decode()

    async def error(self, method: str, dest: str = "dom0", arg: str = "", payload: bytes | str = b"",
                    source: str = "dom0") -> str:  # fmt: skip
        """The exception's name."""
        answer = await self.call(method, dest, arg, payload, source)
        assert answer.startswith(b"2\0"), answer
        return answer.split(b"\0")[1].decode()

    async def create(self, klass: Klass, name: str, *, label: str = "red", template: str | None = None) -> None:
        based_on = QubeName(template) if template else None
        await self.qubes.create(Wish(klass, QubeName(name), label, based_on))

    async def furnish(self) -> None:
        """A template, a disposable template and an app qube."""
        await self.create(Klass.TEMPLATE, "deb", label="black")
        self.properties.set_setting("default_template", "deb")
        await self.create(Klass.APP, "work", label="blue")
        await self.create(Klass.APP, "dvm")
        await self.properties.set(QubeName("dvm"), "template_for_dispvms", "True")
        self.properties.set_setting("default_dispvm", "dvm")


async def build_house(tmp: Path, pool: FakePool | None = None) -> House:
    store = Store.open(tmp / "state.sqlite", host=Host(8192, 4, ("6.12",)))
    ledger = Ledger(store, e.EventBus())
    pool = pool or FakePool("default")
    running = FakeRunning(ledger, tmp)

    def open_pool(record: Pool) -> FakePool:
        return pool if record.name == "default" else FakePool(record.name)

    needy = PoolDriver(open_pool, ("dir_path",), ("dir_path",))
    volumes = Volumes(ledger, running, {"qcow2": PoolDriver(open_pool, ("dir_path",)), "needy": needy})
    now = [1_000_000.0]
    qubes = Qubes(ledger, running, volumes, clock=lambda: now[0], chance=random.Random(7))
    running.qubes = qubes
    properties = Properties(ledger, running, volumes)
    own = FakeOwn()
    admin = Admin(Desk(ledger, qubes, properties, volumes, running, Errands(running, ledger), own, tmp / "imports"))
    return House(tmp, store, ledger, pool, running, volumes, properties, qubes, own, admin, now)


@pytest.fixture(autouse=True)
def contracts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every method refuses and tells what the reference page says, in every test here."""
    with watched(monkeypatch) as breaches:
        yield
    found = sorted({breach for breach in breaches if breach})
    assert not found, f"not in admin/contracts.py: {found}"


@pytest.fixture
async def house() -> AsyncIterator[House]:
    """In memory-backed files where there are any: hundreds of houses need not wait for a disk."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as directory:
        built = await build_house(Path(directory))
        await built.furnish()
        yield built
        built.store.close()


@pytest.fixture
async def socket_path(house: House) -> AsyncIterator[Path]:
    """The real server on a real socket."""
    path = house.tmp / "run" / "qubesd.sock"
    server = AdminServer(path, house.admin)
    await server.start()
    yield path
    await server.close()
