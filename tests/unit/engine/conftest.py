"""An engine on a small ground: pools and machines that keep count of what is open, and fail where a test says."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from cloison.drivers.hypervisor.base import Accelerator, Disk, Drive, Frozen, MachineSpec, StopReason
from cloison.drivers.storage.base import Chain, DiskLayer, VolumeInfo
from cloison.engine.agent import ServiceResult
from cloison.engine.forkpoints import ForkPoints
from cloison.engine.kernels import Kernels
from cloison.engine.runs import Run, VolumeRef
from cloison.engine.start import Facts, Ground
from cloison.errors import BackendFailed
from cloison.layout import Layout
from cloison.model.names import QubeName


@dataclass
class Troublemaker:
    """Counts the steps of everybody who asks it, and fails (or hangs) at the chosen one."""

    fail_at: int = -1
    hang: bool = False
    steps: list[str] = field(default_factory=list)

    async def step(self, name: str) -> None:
        self.steps.append(name)
        if len(self.steps) - 1 == self.fail_at:
            if self.hang:
                await asyncio.Event().wait()
            raise BackendFailed(f"{name} failed, as the test wished")


class CountingPool:
    """A pool whose volumes are names; it insists on one run at a time."""

    name, driver = "main", "counting"

    def __init__(self, trouble: Troublemaker) -> None:
        self.trouble = trouble
        self.open: set[str] = set()
        self.on_trial: set[str] = set()
        self.kept: list[str] = []
        self.dropped: list[str] = []
        self.revision = "r1"

    async def info(self, vid: str) -> VolumeInfo:
        return VolumeInfo(vid, 1, 1, (), self.revision, pristine=True)

    async def chain(self, vid: str) -> Chain:
        return (DiskLayer(Path("/base") / vid, "qcow2"),)

    async def begin_run(self, vid: str, *, base: Chain | None = None, on_trial: bool = False) -> Chain:
        await self.trouble.step(f"open {vid}")
        assert vid not in self.open
        self.open.add(vid)
        if on_trial:
            self.on_trial.add(vid)
        return (DiskLayer(Path("/over") / vid, "qcow2"), *(base or await self.chain(vid)))

    async def end_run(self, vid: str, *, clean: bool = True) -> str | None:
        if vid in self.open:
            (self.dropped if vid in self.on_trial else self.kept).append(vid)
        self.open.discard(vid)
        self.on_trial.discard(vid)
        return None

    async def settle_run(self, vid: str) -> None:
        self.on_trial.discard(vid)


class CountingMachine:
    """A machine that is a future: it ends when it is told to."""

    def __init__(self, hypervisor: CountingHypervisor, directory: Path) -> None:
        self.hypervisor = hypervisor
        self.directory = directory
        self.gone: asyncio.Future[StopReason] = asyncio.get_running_loop().create_future()
        self.record: Mapping[str, str | int] = {"pid": 1}
        self.agent_socket = directory / "agent"
        self.console_socket = directory / "console"
        self.console_log = directory / "console.log"
        self.trouble = ""
        self.is_leaving = False
        hypervisor.machines.append(self)

    def end(self, reason: StopReason) -> None:
        if not self.gone.done():
            self.hypervisor.machines.remove(self)
            self.gone.set_result(reason)

    async def wait_stopped(self) -> StopReason:
        return await asyncio.shield(self.gone)

    async def add_drive(self, drive: Drive) -> None:
        await self.hypervisor.trouble.step("drive")
        self.hypervisor.plugged.append((drive.name, len(self.hypervisor.connector_steps())))

    async def pause(self) -> None: ...
    async def grow_disk(self, slot: str, size_bytes: int) -> None: ...
    async def resume(self) -> None: ...
    async def detach(self) -> None: ...
    async def powerdown(self) -> None:
        self.end(StopReason.GUEST_POWEROFF)

    async def kill(self) -> None:
        self.end(StopReason.KILLED)

    async def set_memory(self, mib: int) -> None: ...
    async def memory_kib(self) -> int:
        return 1

    def cpu_time_ns(self) -> int:
        return 1

    async def freeze(self, directory: Path) -> Frozen:
        await self.hypervisor.trouble.step("freeze")
        (directory / "memory").write_bytes(b"")
        with (directory / "memory").open("r+b") as file:
            file.truncate(64 << 20)
        (directory / "state").write_bytes(b"state")
        self.end(StopReason.KILLED)
        return Frozen(directory / "memory", directory / "state", "machine")


class CountingHypervisor:
    name = "counting"

    def __init__(self, trouble: Troublemaker) -> None:
        self.trouble = trouble
        self.machines: list[CountingMachine] = []
        self.started: list[str] = []
        self.disks: tuple[Disk, ...] = ()
        self.drives: tuple[Drive, ...] = ()
        self.plugged: list[tuple[str, int]] = []
        """Drives that were added, and how often an agent had been connected to before."""

    def connector_steps(self) -> list[str]:
        return [step for step in self.trouble.steps if step == "connect"]

    async def accelerator(self) -> Accelerator:
        return Accelerator.EMULATION

    async def machine_key(self, spec: MachineSpec) -> str:
        return f"machine {spec.memory_mib} {spec.vcpus}"

    async def boot(
        self,
        spec: MachineSpec,
        disks: tuple[Disk, ...],
        directory: Path,
        *,
        name: str,
        memory_file: Path | None = None,
        drives: tuple[Drive, ...] = (),
    ) -> CountingMachine:
        await self.trouble.step("boot to freeze" if memory_file else "boot")
        self.drives = drives
        return self._start("boot to freeze" if memory_file else "boot", disks, directory)

    async def fork(
        self, spec: MachineSpec, disks: tuple[Disk, ...], frozen: Frozen, directory: Path, *, name: str
    ) -> CountingMachine:
        await self.trouble.step("fork")
        return self._start("fork", disks, directory)

    def _start(self, how: str, disks: tuple[Disk, ...], directory: Path) -> CountingMachine:
        self.started.append(how)
        self.disks = disks
        return CountingMachine(self, directory)

    async def adopt(self, record: Mapping[str, str | int]) -> CountingMachine | None:
        return None

    async def end_leftover(self, directory: Path) -> None: ...


class CountingLink:
    def __init__(self, connector: CountingConnector) -> None:
        self.connector = connector
        self.said: list[tuple[str, Mapping[str, Any]]] = []
        connector.links.append(self)

    async def control(self, verb: str, fields: Mapping[str, Any], *, timeout_s: float) -> Mapping[str, Any]:
        await self.connector.trouble.step(verb)
        self.said.append((verb, fields))
        if verb == "shutdown":
            self.connector.hypervisor.machines[-1].end(StopReason.GUEST_POWEROFF)
        return {"ok": True}

    async def run_service(
        self, service: str, *, user: str = "", stdin: bytes = b"", timeout_s: float, max_output_bytes: int = 1
    ) -> ServiceResult:
        return ServiceResult(1, b"", b"")

    async def wait_closed(self) -> None: ...
    async def close(self) -> None:
        if self in self.connector.links:
            self.connector.links.remove(self)


class CountingConnector:
    def __init__(self, trouble: Troublemaker, hypervisor: CountingHypervisor) -> None:
        self.trouble = trouble
        self.hypervisor = hypervisor
        self.links: list[CountingLink] = []

    async def connect(
        self, qube: QubeName, socket: Path, *, ready_timeout_s: float, resync: bool = False, wait_ready: bool = True
    ) -> CountingLink:
        await self.trouble.step("connect")
        return CountingLink(self)


@dataclass
class Bench:
    """The ground and all its counters."""

    ground: Ground
    trouble: Troublemaker
    pool: CountingPool
    hypervisor: CountingHypervisor
    connector: CountingConnector
    runs: dict[QubeName, Run]
    layout: Layout

    def rests(self) -> list[str]:
        """What is still open, running or written down."""
        directories = self.layout.machines_runtime
        return [
            *self.pool.open,
            *(f"machine in {machine.directory}" for machine in self.hypervisor.machines),
            *("link" for _ in self.connector.links),
            *self.runs,
            *(str(path) for path in (directories.iterdir() if directories.exists() else ())),
            *(str(path) for path in self.layout.forkpoints.glob(".*") if path.is_dir()),
        ]


@pytest.fixture
def bench(tmp_path: Path) -> Callable[[], Bench]:
    def make() -> Bench:
        layout = Layout(tmp_path / "data", tmp_path / "run", tmp_path / "config", tmp_path / "cache")
        trouble = Troublemaker()
        pool = CountingPool(trouble)
        hypervisor = CountingHypervisor(trouble)
        connector = CountingConnector(trouble, hypervisor)

        async def make_layer(path: Path, base: Chain) -> Chain:
            path.write_bytes(b"layer")
            return (DiskLayer(path, "qcow2"), *base)

        async def make_blank(path: Path, size: int) -> DiskLayer:
            path.write_bytes(b"")
            return DiskLayer(path, "raw")

        kernels = Kernels(layout.data / "kernels")
        image = tmp_path / "vmlinuz"
        image.write_bytes(b"kernel")
        kernels.assign("debian", kernels.add("test", image, image))
        runs: dict[QubeName, Run] = {}

        def write_run(name: QubeName, run: Run | None) -> None:
            runs.pop(name, None)
            if run is not None:
                runs[name] = run

        forkpoints = ForkPoints(layout.forkpoints, hypervisor, connector, make_layer, make_blank, layout.data)
        ground = Ground(layout, lambda _: pool, hypervisor, connector, forkpoints, kernels, write_run)  # type: ignore[arg-type,return-value]
        return Bench(ground, trouble, pool, hypervisor, connector, runs, layout)

    return make


@pytest.fixture
def facts() -> Facts:
    return Facts(
        name=QubeName("work"),
        uuid="11111111-2222-3333-4444-555555555555",
        klass="AppVM",
        volumes={slot: VolumeRef("main", f"work/{slot}") for slot in ("root", "private", "volatile")},
        kept_root=False,
        root_owner=QubeName("debian"),
        root_source=VolumeRef("main", "debian/root"),
        private_source=VolumeRef("main", "work/private"),
        memory_mib=64,
        vcpus=1,
        kernel="template",
        kernel_options="",
        start_mode="auto",
        share_memory=True,
        default_user="user",
        agent_timeout_s=5,
        shutdown_timeout_s=5,
    )
