"""The QEMU driver: the contract's ``Hypervisor``.

In: specifications. Out: machines. May import: everything of this package, errors.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

from cloison.drivers.hypervisor import probe
from cloison.drivers.hypervisor.base import Accelerator, Disk, Drive, Frozen, Machine, MachineSpec
from cloison.drivers.hypervisor.launch import Started, start_process
from cloison.drivers.hypervisor.machine import DRIVER, QemuMachine, end_leftover
from cloison.drivers.hypervisor.plan import LAYOUT_VERSION, Descriptors, Host, Start, plan_command
from cloison.drivers.hypervisor.process import ProcessWatch, read_boot_id
from cloison.errors import BackendFailed

log = logging.getLogger(__name__)


class QemuHypervisor:
    """Runs machines by QEMU, each in a jail of its own."""

    name = DRIVER

    def __init__(self, cache: Path, *, accelerator: Accelerator | None = None) -> None:
        """``cache``: where the answer of the probe is kept. ``accelerator``: do not probe, take this one."""
        self._cache = cache
        self._wished = accelerator
        self._host: asyncio.Task[Host] | None = None
        self._digests: dict[tuple[str, int, int, int], str] = {}

    async def host(self) -> Host:
        """What this host can do; found out once."""
        if self._host is None or (self._host.done() and (self._host.cancelled() or self._host.exception())):
            self._host = asyncio.create_task(probe.find_host(self._cache, wished=self._wished))
        return await asyncio.shield(self._host)

    async def accelerator(self) -> Accelerator:
        return (await self.host()).accelerator

    async def machine_key(self, spec: MachineSpec) -> str:
        host = await self.host()
        return await asyncio.to_thread(self._digest_machine, spec, host)

    async def boot(self, spec: MachineSpec, disks: tuple[Disk, ...], directory: Path, *, name: str,
                   memory_file: Path | None = None, drives: tuple[Drive, ...] = ()) -> Machine:  # fmt: skip
        start = Start.BOOT if memory_file is None else Start.BOOT_TO_FREEZE
        if memory_file is not None:
            _make_memory_file(memory_file, spec.memory_mib)
        key = "" if memory_file is None else await self.machine_key(spec)
        return await self._start(spec, disks, directory, start, name=name, memory=memory_file, key=key,
                                 drives=drives)  # fmt: skip

    async def fork(self, spec: MachineSpec, disks: tuple[Disk, ...], frozen: Frozen, directory: Path, *,
                   name: str) -> Machine:  # fmt: skip
        if frozen.machine_key != await self.machine_key(spec):
            raise BackendFailed(
                f"cannot fork {name}: the fork point was made for a different machine", hint="it will be made anew"
            )
        return await self._start(
            spec,
            disks,
            directory,
            Start.FORK,
            name=name,
            memory=frozen.memory,
            device_state=frozen.device_state,
            key=frozen.machine_key,
        )

    async def adopt(self, record: Mapping[str, str | int]) -> Machine | None:
        pid, started = record.get("pid"), record.get("started")
        if record.get("driver") != DRIVER or record.get("boot") != read_boot_id():
            return None
        if not isinstance(pid, int) or not isinstance(started, int):
            return None
        watch = ProcessWatch.find(pid, started)
        if watch is None:
            return None
        memory = Path(str(record["memory"])) if record.get("memory") else None
        machine = QemuMachine(
            str(record["name"]), Path(str(record["directory"])), watch, str(record["machine_key"]), memory
        )
        try:
            await machine.attach()
        except BackendFailed as error:
            log.warning("a machine of an earlier daemon was ended: %s", error)
            return None
        return machine

    async def end_leftover(self, directory: Path) -> None:
        await end_leftover(directory)

    async def _start(
        self,
        spec: MachineSpec,
        disks: tuple[Disk, ...],
        directory: Path,
        start: Start,
        *,
        name: str,
        memory: Path | None,
        key: str,
        device_state: Path | None = None,
        drives: tuple[Drive, ...] = (),
    ) -> Machine:
        host = await self.host()
        starting = asyncio.create_task(
            asyncio.to_thread(
                start_process,
                spec,
                host,
                disks,
                directory,
                start,
                name=name,
                memory=memory,
                device_state=device_state,
                drives=drives,
            )
        )
        try:
            started = await asyncio.shield(starting)
        except asyncio.CancelledError:
            starting.add_done_callback(_abandon)
            await asyncio.wait((starting,))
            raise
        watch = ProcessWatch(started.pid, started.start_time, started.pidfd)
        machine = QemuMachine(name, directory, watch, key, memory if start is Start.BOOT_TO_FREEZE else None)
        await machine.attach(
            wrapper=started.wrapper, errors_fd=started.errors_fd, device_state_fd=started.device_state_fd
        )
        return machine

    def _digest_machine(self, spec: MachineSpec, host: Host) -> str:
        """Digest of the command line that a fork would have, and of what it does not show."""
        fds = Descriptors(qmp=0, agent=0, console=0, device_state=0)
        spec = replace(spec, share_memory=True)  # one fork point serves both
        plan = {
            "layout": LAYOUT_VERSION,
            "boot": plan_command(spec, host, (), fds, Start.BOOT_TO_FREEZE, name=""),
            "fork": plan_command(spec, host, (), fds, Start.FORK, name=""),
            "qemu": host.qemu_text,
            "cpu": host.cpu_identity if host.accelerator is Accelerator.KVM else "",
            "spec": {key: str(value) for key, value in asdict(spec).items() if key in ("has_agent", "debug")},
            "kernel": self._digest_file(spec.kernel),
            "initrd": self._digest_file(spec.initrd),
        }
        return hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()

    def _digest_file(self, path: Path | None) -> str:
        """Content digest, remembered while the file's identity, size and time stay."""
        if path is None:
            return ""
        try:
            status = path.stat()
            identity = (str(path), status.st_ino, status.st_size, status.st_mtime_ns)
            if identity not in self._digests:
                with path.open("rb") as file:
                    self._digests[identity] = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise BackendFailed(f"cannot read {path}: {error.strerror}") from error
        return self._digests[identity]


def _abandon(starting: asyncio.Task[Started]) -> None:
    """The caller went away while a process was being started."""
    if not starting.cancelled() and starting.exception() is None:
        starting.result().abandon()


def _make_memory_file(path: Path, memory_mib: int) -> None:
    try:
        with path.open("xb") as file:
            path.chmod(0o600)
            file.truncate(memory_mib << 20)
    except FileExistsError:
        raise BackendFailed(f"{path} exists already: guest memory needs a new file") from None
    except OSError as error:
        raise BackendFailed(f"cannot make {path}: {error.strerror}") from error
