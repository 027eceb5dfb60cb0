"""Starting a qube: a pure plan, then steps that all know their way back.

In: facts about a qube. Out: a live qube, or the state as it was before. May import: model, errors, driver interfaces.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cloison.drivers.hypervisor.base import Disk, Drive, Hypervisor, Machine, MachineSpec
from cloison.drivers.storage.base import Chain, Pool
from cloison.engine.agent import AgentConnector, AgentFailed, AgentLink
from cloison.engine.forkpoints import BOOT_TIMEOUT_S, ForkPoint, ForkPoints, ForkSource
from cloison.engine.kernels import Kernel, Kernels
from cloison.engine.runs import Phase, Run, StartMode, VolumeRef
from cloison.errors import BackendFailed, BadRequest, CloisonError, NotEnoughMemory, NotNow
from cloison.layout import Layout
from cloison.model.names import QubeName
from cloison.model.volumes import KERNEL_OF_TEMPLATE

log = logging.getLogger(__name__)

FORKED_COST_MIB = 192
"""Memory that must be available before a fork: what an idle forked guest really takes, emulator included (measured)."""
BOOT_OVERHEAD_MIB = 96
SLOTS = ("root", "private", "volatile")


class ForkFailed(BackendFailed):
    """A fork did not come to life."""


@dataclass(frozen=True)
class Facts:
    """All that starting a qube needs to know of it; taken from the inventory once, at the border."""

    name: QubeName
    uuid: str
    klass: str
    volumes: Mapping[str, VolumeRef]
    """By slot."""
    kept_root: bool
    """The root is this qube's own (templates, standalones): always booted, committed at the stop."""
    root_owner: QubeName
    """The template (or the qube itself) whose root content this qube starts from."""
    root_source: VolumeRef
    private_source: VolumeRef
    """Whose content the private volume shows: its own, or that of a disposable's template."""
    memory_mib: int
    vcpus: int
    kernel: str
    kernel_options: str
    start_mode: str
    share_memory: bool
    default_user: str
    agent_timeout_s: float
    shutdown_timeout_s: float
    services: Mapping[str, bool] = field(default_factory=dict)
    vm_config: Mapping[str, str] = field(default_factory=dict)
    """What the guest's own scripts are told (features vm-config.NAME)."""
    template: str = ""
    has_agent: bool = True
    debug: bool = False
    disposable: bool = False
    auto_cleanup: bool = False
    pci: tuple[str, ...] = ()
    """Addresses of the host's devices that are handed over."""
    prohibited: str = ""
    """Reason why starting is forbidden, or empty."""


@dataclass(frozen=True)
class Ground:
    """What the engine stands on; made once by the daemon."""

    layout: Layout
    pool: Callable[[str], Pool]
    """The pool of that name, opened."""
    hypervisor: Hypervisor
    connector: AgentConnector
    forkpoints: ForkPoints
    kernels: Kernels
    write_run: Callable[[QubeName, Run | None], None]
    """Store (None: forget) what is known of a run, durably, before it returns."""

    def kept_console_log(self, name: QubeName) -> Path:
        """Where the console's output of a stopped qube is kept."""
        return self.layout.log.parent / "console" / f"{name}.log"


@dataclass
class Live:
    """A running qube as the engine holds it."""

    facts: Facts
    run: Run
    machine: Machine
    link: AgentLink | None
    directory: Path


def machine_spec(facts: Facts, kernels: Kernels) -> MachineSpec:
    """The machine a qube wants; BadRequest if its kernel does not exist."""
    kernel = _kernel(facts, kernels)
    return MachineSpec(
        memory_mib=facts.memory_mib,
        vcpus=facts.vcpus,
        kernel=kernel.vmlinuz if kernel else None,
        initrd=kernel.initrd if kernel else None,
        kernel_options=facts.kernel_options,
        has_agent=facts.has_agent,
        debug=facts.debug,
        share_memory=facts.share_memory,
        pci=facts.pci,
    )


def _kernel(facts: Facts, kernels: Kernels) -> Kernel | None:
    if not facts.kernel:
        return None
    if facts.kernel != KERNEL_OF_TEMPLATE:
        return kernels.get(facts.kernel)
    if (kernel := kernels.of_template(facts.root_owner)) is None:
        raise BackendFailed(
            f"cannot start {facts.name}: no kernel is known of {facts.root_owner}",
            hint=f"build the template again, or `cloison prefs {facts.name} kernel ''` to boot from its own disk",
        )
    return kernel


def may_fork(facts: Facts) -> bool:
    """Whether this qube can come out of a fork point at all."""
    is_ours = bool(facts.kernel) and facts.has_agent
    return facts.start_mode != "boot" and not facts.kept_root and is_ours and not facts.pci


def check_startable(facts: Facts) -> None:
    """Refuse early, before anything is touched."""
    if facts.prohibited:
        raise NotNow(
            f"cannot start {facts.name}: {facts.prohibited}",
            hint=f"`cloison features {facts.name} --unset prohibit-start` allows it",
        )
    if facts.start_mode == "fork" and not may_fork(facts):
        this = f"a qube with the PCI device {facts.pci[0]}" if facts.pci else f"a {facts.klass} like this"
        raise BadRequest(
            f"cannot start {facts.name}: start_mode is fork, but {this} can only boot",
            hint=f"cloison prefs {facts.name} start_mode auto",
        )


def check_memory(facts: Facts, mode: StartMode, available_mib: int) -> None:
    needed = FORKED_COST_MIB if mode is StartMode.FORK else facts.memory_mib + BOOT_OVERHEAD_MIB
    if available_mib < needed:
        raise NotEnoughMemory(
            f"cannot start {facts.name}: {needed} MiB of memory are needed, {available_mib} MiB are available",
            hint="shut down a qube, or lower its memory property",
        )


def available_memory_mib() -> int:
    """MemAvailable of the host."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) >> 10
    return 1 << 20


def identity(facts: Facts, *, private_mounted: bool) -> dict[str, Any]:
    """Who the guest is told to be (the agent's ``configure``)."""
    return {
        "name": facts.name,
        "hostname": facts.name,
        "uuid": facts.uuid,
        "machine_id": os.urandom(16).hex() if facts.disposable else facts.uuid.replace("-", ""),
        "clock_ns": time.time_ns(),
        "entropy": base64.b64encode(os.urandom(64)).decode(),
        "klass": facts.klass,
        "default_user": facts.default_user,
        "timezone": _host_timezone(),
        "services": dict(facts.services),
        "vm_config": dict(facts.vm_config),
        "template": facts.template,
        "private": "vdb" if private_mounted else None,
        "volatile": None,
    }


def _host_timezone() -> str:
    try:
        link = str(Path("/etc/localtime").readlink())
    except OSError:
        return "UTC"
    return link.partition("zoneinfo/")[2] or "UTC"


async def launch(
    ground: Ground, facts: Facts, *, call_owned: bool = False, on_trial: bool = False,
    on_spawned: Callable[[], None] = lambda: None, drives: tuple[Drive, ...] = (),
) -> Live:  # fmt: skip
    """Start the qube; returns when its agent has been told who it is. ``on_spawned``: its machine runs.
    ``drives``: what it has besides its volumes; the caller closes them.

    A fork that fails is retried as a boot (unless start_mode is fork) and its fork point dropped.
    Any error or cancellation leaves no process, no open volume and no record.
    """
    check_startable(facts)
    spec = machine_spec(facts, ground.kernels)
    root = ground.pool(facts.root_source.pool)
    info = await root.info(facts.root_source.vid)
    if may_fork(facts):
        source = ForkSource(facts.root_owner, info.revision_id, await root.chain(facts.root_source.vid), spec)
        try:
            point = await ground.forkpoints.make(source)
        except CloisonError as error:
            _boot_instead(facts, error)
        else:
            try:
                run = _run(facts, info.revision_id, point, call_owned=call_owned, on_trial=on_trial)
                return await _attempt(ground, facts, spec, run, (point, source.root), on_spawned, drives)
            except ForkFailed as error:
                ground.forkpoints.blame(point)
                _boot_instead(facts, error)
    run = _run(facts, info.revision_id, None, call_owned=call_owned, on_trial=on_trial)
    return await _attempt(ground, facts, spec, run, None, on_spawned, drives)


def _run(facts: Facts, revision: str, point: ForkPoint | None, *, call_owned: bool, on_trial: bool) -> Run:
    return Run(
        Phase.STARTING, StartMode.FORK if point else StartMode.BOOT, tuple(facts.volumes.values()), time.time(),
        revision, forkpoint=point.key if point else "", call_owned=call_owned, on_trial=on_trial,
    )  # fmt: skip


def _boot_instead(facts: Facts, error: CloisonError) -> None:
    if facts.start_mode == "fork":
        raise error
    log.warning("%s could not be forked (%s): booting it instead", facts.name, error)


async def _attempt(
    ground: Ground,
    facts: Facts,
    spec: MachineSpec,
    run: Run,
    fork: tuple[ForkPoint, Chain] | None,
    on_spawned: Callable[[], None],
    drives: tuple[Drive, ...],
) -> Live:
    check_memory(facts, run.mode, available_memory_mib())
    directory = ground.layout.qube_runtime(facts.uuid)
    async with AsyncExitStack() as undo:
        ground.write_run(facts.name, run)
        await end_volumes(ground.pool, run.volumes)  # of an earlier run whose end the disk refused; else nothing
        undo.callback(ground.write_run, facts.name, None)
        undo.push_async_callback(end_volumes, ground.pool, run.volumes)
        disks = await _open_volumes(ground.pool, facts, fork, on_trial=run.on_trial)
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True, mode=0o700)
        undo.callback(shutil.rmtree, directory, ignore_errors=True)

        blaming = _blaming_the_fork_point if fork else contextlib.nullcontext
        with blaming():
            if fork:
                machine = await ground.hypervisor.fork(spec, disks, fork[0].frozen, directory, name=facts.name)
            else:
                machine = await ground.hypervisor.boot(spec, disks, directory, name=facts.name, drives=drives)
            undo.push_async_callback(machine.kill)
        run = replace(run, machine=dict(machine.record))
        ground.write_run(facts.name, run)
        for drive in drives if fork else ():
            await machine.add_drive(drive)
        on_spawned()
        with blaming():
            link = await _introduce(ground, facts, machine, run.mode) if facts.has_agent else None
        if link is not None:
            undo.push_async_callback(link.close)
        if fork:
            ground.forkpoints.praise(fork[0])
        run = replace(run, phase=Phase.RUNNING)
        ground.write_run(facts.name, run)
        undo.pop_all()
    return Live(facts, run, machine, link, directory)


@contextlib.contextmanager
def _blaming_the_fork_point() -> Iterator[None]:
    """A machine that does not come to life, or stays silent, says that its fork point is no good.

    An agent that answers, even with a no, clears it.
    """
    try:
        yield
    except AgentFailed:
        raise
    except BackendFailed as error:
        raise ForkFailed(error.message, hint=error.hint) from error


async def _open_volumes(
    pool: Callable[[str], Pool], facts: Facts, fork: tuple[ForkPoint, Chain] | None, *, on_trial: bool
) -> tuple[Disk, ...]:
    disks = []
    for slot in SLOTS:
        if slot in facts.volumes:
            base = (fork[0].root_layer, *fork[1]) if fork and slot == "root" else None
            ref = facts.volumes[slot]
            disks.append(Disk(slot, await pool(ref.pool).begin_run(ref.vid, base=base, on_trial=on_trial)))
    return tuple(disks)


async def settle_volumes(pool: Callable[[str], Pool], volumes: tuple[VolumeRef, ...]) -> None:
    """What the run wrote is kept at its end (a run that was not on trial: as before)."""
    for ref in volumes:
        await pool(ref.pool).settle_run(ref.vid)


async def end_volumes(pool: Callable[[str], Pool], volumes: tuple[VolumeRef, ...], *, clean: bool = False) -> None:
    """Close every volume of a run; the first error is raised after all were tried."""
    errors = []
    for ref in volumes:
        try:
            await pool(ref.pool).end_run(ref.vid, clean=clean)
        except CloisonError as error:
            log.error("volume %s of pool %s could not be closed: %s", ref.vid, ref.pool, error)
            errors.append(error)
    if errors:
        raise errors[0]


async def _introduce(ground: Ground, facts: Facts, machine: Machine, mode: StartMode) -> AgentLink:
    """Connect to the agent and tell it who it is; fails at once when the machine ends meanwhile."""
    deadline = facts.agent_timeout_s if mode is StartMode.FORK else max(facts.agent_timeout_s, BOOT_TIMEOUT_S)
    work = asyncio.create_task(_meet(ground, facts, machine, mode, deadline))
    gone = asyncio.create_task(machine.wait_stopped())
    try:
        await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            return work.result()
        raise BackendFailed(f"cannot start {facts.name}: {gone.result().value} before its agent answered")
    finally:
        for task in (work, gone):
            task.cancel()
        await asyncio.gather(work, gone, return_exceptions=True)


async def _meet(ground: Ground, facts: Facts, machine: Machine, mode: StartMode, deadline_s: float) -> AgentLink:
    forked = mode is StartMode.FORK
    link = await ground.connector.connect(
        facts.name, machine.agent_socket, ready_timeout_s=deadline_s, wait_ready=not forked
    )
    try:
        source = facts.private_source
        private = await ground.pool(source.pool).info(source.vid) if facts.disposable else None
        mounted = "private" in facts.volumes and not (private is not None and private.pristine)
        await link.control("configure", identity(facts, private_mounted=mounted), timeout_s=deadline_s)
    except BaseException:
        with contextlib.suppress(CloisonError):
            await asyncio.shield(link.close())
        raise
    return link
