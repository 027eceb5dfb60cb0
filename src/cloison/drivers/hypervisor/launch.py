"""Descriptors opened, process started: from a plan to a running, jailed QEMU.

In: a specification, disks, a directory. Out: a started process. May import: the contract, plan, jail, errors.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import socket
import subprocess
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from io import FileIO
from pathlib import Path

from cloison.drivers.hypervisor.base import Accelerator, Disk, Drive, MachineSpec
from cloison.drivers.hypervisor.drives import plan_arguments
from cloison.drivers.hypervisor.jail import JailedFile, JailedPci, plan_jail
from cloison.drivers.hypervisor.memory_door import MemoryDoor, hold_place
from cloison.drivers.hypervisor.plan import (
    INITRD_PLACE,
    KERNEL_PLACE,
    MEMORY_PLACE,
    PCI_PLACE,
    Descriptors,
    Host,
    Start,
    place_of_key,
    plan_command,
)
from cloison.drivers.hypervisor.process import find_start_time, kill_process
from cloison.drivers.hypervisor.seccomp import build_jail_filter
from cloison.drivers.pci.ready import find_free_group, raise_memory_lock
from cloison.errors import BackendFailed, BadRequest

QMP_SOCKET, AGENT_SOCKET, CONSOLE_PORT, CONSOLE_SOCKET, CONSOLE_LOG = (
    "qmp.sock",
    "agent.sock",
    "serial.sock",
    "console.sock",
    "console.log",
)
NOTIFICATION_HINT = "Linux 5.14 or newer; in a container allow the seccomp system call"
MAX_SOCKET_PATH = 107
"""Bytes in sockaddr_un.sun_path without its final zero."""


@dataclass(frozen=True)
class Started:
    """A process that was just started: bubblewrap's, and QEMU's own id within it."""

    wrapper: subprocess.Popen[bytes]
    pid: int
    start_time: int
    pidfd: int
    """Handle of QEMU's process; the caller closes it."""
    errors_fd: int
    """Read end of QEMU's standard error; the caller closes it."""
    device_state_fd: int | None = None
    """The number under which QEMU inherited the frozen device state."""

    def abandon(self) -> None:
        """End it and forget it: for a start that nobody waits for any more. Waits for the end (milliseconds)."""
        kill_process(self.pidfd)
        self.wrapper.wait()
        os.close(self.pidfd)
        os.close(self.errors_fd)


def start_process(
    spec: MachineSpec,
    host: Host,
    disks: tuple[Disk, ...],
    directory: Path,
    start: Start,
    *,
    name: str,
    memory: Path | None = None,
    device_state: Path | None = None,
    drives: tuple[Drive, ...] = (),
) -> Started:
    """Open what the machine needs, start it in its jail, give nothing else; all our copies are closed again.

    Raises BackendFailed naming the file or device that cannot be opened or what bubblewrap said.
    """
    with ExitStack() as stack:
        fds = _open_descriptors(disks, directory, stack)
        if device_state is not None:
            fds = replace(fds, device_state=_open(device_state, os.O_RDONLY, stack))
        door = None
        if memory is not None and start is Start.FORK:
            memory_fd = _open(memory, os.O_RDONLY, stack)
            door = stack.enter_context(MemoryDoor(memory_fd, MEMORY_PLACE.encode()))
        command = plan_command(spec, host, disks, fds, start, name=name)
        started = spawn_jailed(
            [*command, *plan_arguments(drives)],
            host.accelerator,
            files=_plan_files(spec, fds, start, memory),
            devices=_take_devices(spec, name),
            inherited=[*_inherited(fds), *(drive.descriptor for drive in drives)],
            door=door,
        )
        return replace(started, device_state_fd=fds.device_state)


def spawn_jailed(
    command: list[str],
    accelerator: Accelerator,
    *,
    files: tuple[JailedFile, ...] = (),
    devices: tuple[JailedPci, ...] = (),
    inherited: Sequence[int] = (),
    door: MemoryDoor | None = None,
    outlives_parent: bool = True,
) -> Started:
    """Run ``command`` jailed in a session of its own, seeing the given files, inheriting only the given descriptors."""
    with ExitStack() as stack:
        info_read, info_write = _open_pipe(stack)
        errors_read, errors_write = _open_pipe(stack)
        seccomp = _hold_bytes(build_jail_filter(), stack)
        jailed = plan_jail(
            command,
            accelerator=accelerator,
            files=files,
            devices=devices,
            info_fd=info_write.fileno(),
            seccomp_fd=seccomp,
            outlives_parent=outlives_parent,
        )
        copied = [file.source for file in files if isinstance(file.source, int)]
        places = () if door is None else (hold_place(),)
        # bubblewrap inherits both ends: if we are killed meanwhile it must not die of a pipe that nobody reads, because
        # its child would wait for it for ever.
        try:
            wrapper = subprocess.Popen(
                jailed,
                stdin=subprocess.DEVNULL,
                stdout=errors_write,
                stderr=errors_write,
                pass_fds=(*inherited, *copied, *places, info_read.fileno(), info_write.fileno(), seccomp),
                start_new_session=True,
                cwd="/",
                env={"PATH": "/usr/bin:/bin"},
                preexec_fn=None if door is None else door.install,
            )
        except FileNotFoundError:
            raise BackendFailed("bubblewrap is not installed", hint="apt install bubblewrap") from None
        except subprocess.SubprocessError:
            raise BackendFailed("this host forbids seccomp's user notification", hint=NOTIFICATION_HINT) from None
        info_write.close()
        errors_write.close()
        pid = _find_child_pid(info_read)
        if pid is None:
            wrapper.wait()
            said = errors_read.readall().decode(errors="replace").strip()
            raise BackendFailed(f"cannot start a jailed process: {said}", hint="`cloison doctor` tells more")
        os.set_blocking(errors_read.fileno(), False)
        started = Started(wrapper, pid, find_start_time(pid) or 0, os.pidfd_open(pid), os.dup(errors_read.fileno()))
        try:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                resource.prlimit(pid, resource.RLIMIT_CORE, (0, 0))  # a core dump would hold the guest's secrets
            if door is not None:
                door.serve(started.pidfd)
        except BaseException:
            started.abandon()
            raise
        return started


def open_listener(path: Path) -> socket.socket:
    """A listening unix socket at ``path`` (mode 0600), replacing what an earlier run left there."""
    if len(os.fsencode(path)) > MAX_SOCKET_PATH:
        raise BadRequest(f"socket path {path} is too long", hint="put the system's directory at a shorter path")
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        os.fchmod(listener.fileno(), 0o600)
        listener.bind(str(path))
        listener.listen(4)
    except BaseException:
        listener.close()
        raise
    return listener


def _open_descriptors(disks: tuple[Disk, ...], directory: Path, stack: ExitStack) -> Descriptors:
    def listen(name: str) -> int:
        return stack.enter_context(open_listener(directory / name)).fileno()

    layers: dict[str, tuple[int, ...]] = {}
    secrets: dict[str, tuple[int | None, ...]] = {}
    for disk in disks:
        layers[disk.slot] = tuple(
            _open(layer.path, os.O_RDONLY if depth else os.O_RDWR, stack) for depth, layer in enumerate(disk.chain)
        )
        secrets[disk.slot] = tuple(
            None if layer.secret is None else _hold_bytes(layer.secret, stack) for layer in disk.chain
        )
    return Descriptors(
        qmp=listen(QMP_SOCKET), agent=listen(AGENT_SOCKET), console=listen(CONSOLE_PORT), layers=layers, secrets=secrets
    )


def _plan_files(spec: MachineSpec, fds: Descriptors, start: Start, memory: Path | None) -> tuple[JailedFile, ...]:
    files: list[JailedFile] = []
    if start is not Start.FORK:
        files += [JailedFile(KERNEL_PLACE, spec.kernel)] if spec.kernel else []
        files += [JailedFile(INITRD_PLACE, spec.initrd)] if spec.initrd else []
    if memory is not None:
        files.append(JailedFile(MEMORY_PLACE, memory, writable=start is Start.BOOT_TO_FREEZE))
    for slot, secrets in fds.secrets.items():
        files += [JailedFile(place_of_key(slot, depth), fd) for depth, fd in enumerate(secrets) if fd is not None]
    return tuple(files)


def _take_devices(spec: MachineSpec, name: str) -> tuple[JailedPci, ...]:
    """The host's devices of the machine, each free for us, and all its memory lockable."""
    if spec.pci:
        raise_memory_lock(spec.memory_mib, name)
    return tuple(JailedPci(f"{PCI_PLACE}/{address}", find_free_group(address, name)) for address in spec.pci)


def _open(path: Path, flags: int, stack: ExitStack) -> int:
    try:
        fd = os.open(path, flags | os.O_CLOEXEC)
    except OSError as error:
        raise BackendFailed(f"cannot open {path}: {error.strerror}") from error
    stack.callback(os.close, fd)
    return fd


def _open_pipe(stack: ExitStack) -> tuple[FileIO, FileIO]:
    """Read end and write end, closed with the stack at the latest."""
    read, write = os.pipe2(os.O_CLOEXEC)
    return stack.enter_context(FileIO(read, "rb")), stack.enter_context(FileIO(write, "wb"))


def _hold_bytes(data: bytes, stack: ExitStack) -> int:
    """Bytes to be read from a descriptor: never in a file system, never on a command line."""
    fd = os.memfd_create("bytes", os.MFD_CLOEXEC)
    stack.callback(os.close, fd)
    os.write(fd, data)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def _inherited(fds: Descriptors) -> list[int]:
    single = (fds.qmp, fds.agent, fds.console, fds.device_state)
    many = [fd for group in fds.layers.values() for fd in group]
    return [fd for fd in (*single, *many) if fd is not None]


def _find_child_pid(info_read: FileIO) -> int | None:
    text = b""
    while chunk := info_read.read(4096):
        text += chunk
        with contextlib.suppress(ValueError, KeyError):
            return int(json.loads(text)["child-pid"])
    return None
