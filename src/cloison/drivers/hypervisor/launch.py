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
from pathlib import Path

from cloison.drivers.hypervisor.base import Accelerator, Disk, MachineSpec
from cloison.drivers.hypervisor.jail import plan_jail
from cloison.drivers.hypervisor.plan import Descriptors, Host, Start, plan_command
from cloison.errors import BackendFailed, BadRequest

QMP_SOCKET, AGENT_SOCKET, CONSOLE_PORT, CONSOLE_SOCKET, CONSOLE_LOG = (
    "qmp.sock",
    "agent.sock",
    "serial.sock",
    "console.sock",
    "console.log",
)
MAX_SOCKET_PATH = 107
"""Bytes in sockaddr_un.sun_path without its final zero."""


@dataclass(frozen=True)
class Started:
    """A process that was just started: bubblewrap's, and QEMU's own id within it."""

    wrapper: subprocess.Popen[bytes]
    pid: int
    errors_fd: int
    """Read end of QEMU's standard error; the caller closes it."""
    device_state_fd: int | None = None
    """The number under which QEMU inherited the frozen device state."""


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
) -> Started:
    """Open what the machine needs, start it in its jail, give nothing else; all our copies are closed again.

    Raises BackendFailed naming the file that cannot be opened or what bubblewrap said.
    """
    with ExitStack() as stack:
        fds = _open_descriptors(spec, disks, directory, start, stack)
        if memory is not None:
            fds = replace(fds, memory=_open(memory, os.O_RDWR, stack))
        if device_state is not None:
            fds = replace(fds, device_state=_open(device_state, os.O_RDONLY, stack))
        command = plan_command(spec, host, disks, fds, start, name=name)
        started = spawn_jailed(command, host.accelerator, inherited=_numbers(fds))
        return replace(started, device_state_fd=fds.device_state)


def spawn_jailed(
    command: list[str], accelerator: Accelerator, *, inherited: Sequence[int], outlives_parent: bool = True
) -> Started:
    """Run ``command`` jailed in a session of its own, inheriting only the given descriptors."""
    info_read, info_write = os.pipe2(os.O_CLOEXEC)
    errors_read, errors_write = os.pipe2(os.O_CLOEXEC)
    try:
        jailed = plan_jail(command, accelerator=accelerator, info_fd=info_write, outlives_parent=outlives_parent)
        try:
            wrapper = subprocess.Popen(
                jailed,
                stdin=subprocess.DEVNULL,
                stdout=errors_write,
                stderr=errors_write,
                pass_fds=(*inherited, info_write),
                start_new_session=True,
                cwd="/",
                env={"PATH": "/usr/bin:/bin"},
            )
        except FileNotFoundError:
            raise BackendFailed("bubblewrap is not installed", hint="apt install bubblewrap") from None
    except BaseException:
        os.close(info_read)
        os.close(errors_read)
        raise
    finally:
        os.close(info_write)
        os.close(errors_write)
    try:
        pid = _read_child_pid(info_read)
    except (ValueError, KeyError):
        wrapper.wait()
        said = os.read(errors_read, 4096).decode(errors="replace").strip()
        os.close(errors_read)
        raise BackendFailed(f"cannot start a jailed process: {said}", hint="`cloison doctor` tells more") from None
    finally:
        os.close(info_read)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        resource.prlimit(pid, resource.RLIMIT_CORE, (0, 0))  # a core dump would hold the guest's secrets
    os.set_blocking(errors_read, False)
    return Started(wrapper, pid, errors_read)


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


def _open_descriptors(
    spec: MachineSpec, disks: tuple[Disk, ...], directory: Path, start: Start, stack: ExitStack
) -> Descriptors:
    def listen(name: str) -> int:
        return stack.enter_context(open_listener(directory / name)).fileno()

    layers: dict[str, tuple[int, ...]] = {}
    secrets: dict[str, tuple[int | None, ...]] = {}
    for disk in disks:
        layers[disk.slot] = tuple(
            _open(layer.path, os.O_RDONLY if depth else os.O_RDWR, stack) for depth, layer in enumerate(disk.chain)
        )
        secrets[disk.slot] = tuple(
            None if layer.secret is None else _hold_secret(layer.secret, stack) for layer in disk.chain
        )
    boots_kernel = start is not Start.FORK
    return Descriptors(
        qmp=listen(QMP_SOCKET),
        agent=listen(AGENT_SOCKET),
        console=listen(CONSOLE_PORT),
        layers=layers,
        secrets=secrets,
        kernel=_open(spec.kernel, os.O_RDONLY, stack) if spec.kernel and boots_kernel else None,
        initrd=_open(spec.initrd, os.O_RDONLY, stack) if spec.initrd and boots_kernel else None,
    )


def _open(path: Path, flags: int, stack: ExitStack) -> int:
    try:
        fd = os.open(path, flags | os.O_CLOEXEC)
    except OSError as error:
        raise BackendFailed(f"cannot open {path}: {error.strerror}") from error
    stack.callback(os.close, fd)
    return fd


def _hold_secret(secret: bytes, stack: ExitStack) -> int:
    """The key in anonymous memory: never in a file system, never on a command line."""
    fd = os.memfd_create("key", os.MFD_CLOEXEC)
    stack.callback(os.close, fd)
    os.write(fd, secret)
    return fd


def _numbers(fds: Descriptors) -> list[int]:
    single = (fds.qmp, fds.agent, fds.console, fds.kernel, fds.initrd, fds.memory, fds.device_state)
    many = [fd for group in (*fds.layers.values(), *fds.secrets.values()) for fd in group]
    return [fd for fd in (*single, *many) if fd is not None]


def _read_child_pid(info_read: int) -> int:
    text = b""
    while chunk := os.read(info_read, 4096):
        text += chunk
        with contextlib.suppress(json.JSONDecodeError):
            return int(json.loads(text)["child-pid"])
    return int(json.loads(text)["child-pid"])
