"""One running QEMU machine: followed by its process handle, steered by QMP.

In: a started or adopted process and its directory. Out: the contract's ``Machine``. May import: the contract, process,
console, launch (names of sockets), errors.

The process is the truth: a machine is stopped when its process is gone. QMP's events only say why.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import subprocess
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any

from qemu.qmp import EventListener, ExecuteError, Message, QMPClient, QMPError, Runstate

from cloison.drivers.hypervisor.base import Drive, Frozen, Nic, StopReason
from cloison.drivers.hypervisor.console import ConsolePump
from cloison.drivers.hypervisor.drives import Drives
from cloison.drivers.hypervisor.launch import AGENT_SOCKET, CONSOLE_LOG, CONSOLE_PORT, CONSOLE_SOCKET, QMP_SOCKET
from cloison.drivers.hypervisor.nics import Nics
from cloison.drivers.hypervisor.process import ProcessWatch, read_boot_id
from cloison.errors import BackendFailed, QubeNotRunning

log = logging.getLogger(__name__)

DRIVER = "qemu"
COMMAND_TIMEOUT_S = 30.0
"""QEMU answers within milliseconds; on a host that swaps it may take seconds."""
CONNECT_TIMEOUT_S = 60.0
FREEZE_TIMEOUT_S = 300.0
EVENTS = ("SHUTDOWN", "GUEST_PANICKED", "RESUME", "BLOCK_IO_ERROR", "DEVICE_DELETED", "VSERPORT_CHANGE")
ROOM_RETRY_S, ROOM_SETTLE_S = 5.0, 0.5
"""How often a guest that met a full disk tries again, and how soon it would meet it again."""
RESTORE_POLL_S = 0.002
LAST_WORDS_TIMEOUT_S = 1.0
LEFTOVER_TIMEOUT_S = 20.0
ERRORS_KEPT_BYTES = 8192
DEVICE_STATE = "device-state"


class QemuMachine:
    """The contract's Machine. Make it by ``started`` or ``adopted``."""

    def __init__(self, name: str, directory: Path, watch: ProcessWatch, machine_key: str, memory: Path | None) -> None:
        self.name = name
        self.directory = directory
        self._watch = watch
        self._machine_key = machine_key
        self._memory = memory
        self._wrapper: subprocess.Popen[bytes] | None = None
        self._errors_fd = -1
        self._errors = b""
        self._qmp: QMPClient | None = None
        self._console: ConsolePump | None = None
        self._reason: StopReason | None = None
        self._killed = False
        self._resumed = asyncio.Event()
        self._is_paused = False
        self._is_leaving = False
        self._trouble = ""
        self._waits_for_room: asyncio.Task[None] | None = None
        self._end: asyncio.Task[StopReason] | None = None
        self._nics = Nics(name, self._execute, self._send_descriptor)
        self._drives = Drives(name, self._execute, self._send_descriptor)

    @property
    def record(self) -> Mapping[str, str | int]:
        return {
            "driver": DRIVER,
            "name": self.name,
            "pid": self._watch.pid,
            "started": self._watch.started,
            "boot": read_boot_id(),
            "directory": str(self.directory),
            "machine_key": self._machine_key,
            "memory": "" if self._memory is None else str(self._memory),
        }

    @property
    def agent_socket(self) -> Path:
        return self.directory / AGENT_SOCKET

    @property
    def console_socket(self) -> Path:
        return self.directory / CONSOLE_SOCKET

    @property
    def console_log(self) -> Path:
        return self.directory / CONSOLE_LOG

    @property
    def trouble(self) -> str:
        return self._trouble

    @property
    def is_leaving(self) -> bool:
        return self._is_leaving

    async def attach(
        self,
        *,
        wrapper: subprocess.Popen[bytes] | None = None,
        errors_fd: int = -1,
        device_state_fd: int | None = None,
    ) -> None:
        """Begin to follow the process; returns when QEMU answers and, given the number that the frozen device state
        has in QEMU, when the guest runs on from there. Raises BackendFailed with QEMU's own words if it ended instead;
        the process is ended if it does not answer in time."""
        self._wrapper, self._errors_fd = wrapper, errors_fd
        if errors_fd >= 0:
            asyncio.get_running_loop().add_reader(errors_fd, self._read_errors)
        self._end = asyncio.create_task(self._follow(), name=f"machine {self.name}")
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                console = ConsolePump(self.directory / CONSOLE_PORT, self.console_socket, self.console_log)
                await console.start()
                self._console = console
                await self._connect()
                if device_state_fd is not None:
                    await self._restore(device_state_fd)
                elif wrapper is None:
                    await self._resume_waiting()
        except TimeoutError:
            await self.kill()
            raise BackendFailed(f"QEMU of {self.name} did not answer within {CONNECT_TIMEOUT_S:.0f} s") from None
        except (OSError, EOFError, QMPError, QubeNotRunning) as error:
            await self.kill()
            said = "; ".join(self._errors.decode(errors="replace").split("\n")).strip("; ") or str(error)
            raise BackendFailed(f"QEMU of {self.name} ended at its start: {said}") from error
        except BaseException:
            await self.kill()
            raise

    async def wait_stopped(self) -> StopReason:
        assert self._end is not None, "attach first"
        return await asyncio.shield(self._end)

    async def pause(self) -> None:
        await self._execute("stop")
        self._is_paused = True

    async def resume(self) -> None:
        await self._execute("cont")
        self._is_paused = False

    async def powerdown(self) -> None:
        await self._execute("system_powerdown")

    async def kill(self) -> None:
        self._killed = True
        self._watch.kill()
        await self.wait_stopped()

    async def set_memory(self, mib: int) -> None:
        await self._execute("balloon", {"value": mib << 20})

    async def grow_disk(self, slot: str, size_bytes: int) -> None:
        await self._execute("block_resize", {"node-name": f"{slot}0", "size": size_bytes})

    async def add_nic(self, nic: Nic) -> None:
        await self._nics.add(nic)

    async def remove_nic(self, name: str) -> None:
        await self._nics.remove(name)

    async def open_nic(self, name: str, *, open: bool) -> None:
        await self._nics.open(name, open=open)

    async def nics(self) -> Mapping[str, str]:
        return await self._nics.all()

    async def add_drive(self, drive: Drive) -> None:
        await self._drives.add(drive)

    async def remove_drive(self, name: str) -> None:
        await self._drives.remove(name)

    async def drives(self) -> Mapping[str, str]:
        return await self._drives.all()

    def watch_drives(self, on_gone: Callable[[str], None]) -> None:
        self._drives.on_gone = on_gone

    async def handed_devices(self) -> Mapping[str, str]:
        return await self._nics.handed()

    async def memory_kib(self) -> int:
        return self._watch.memory_kib()

    def cpu_time_ns(self) -> int:
        return self._watch.cpu_time_ns()

    async def is_running(self) -> bool:
        """Whether the guest's CPUs run (not paused, not frozen)."""
        status: Any = await self._execute("query-status")
        return bool(status["running"])

    async def freeze(self, directory: Path) -> Frozen:
        """After success the process is gone and the files are complete; after failure the process is gone as well and
        the files are of no use."""
        if self._memory is None:
            raise BackendFailed(f"{self.name} was not started to be frozen: its memory is not a file")
        state = directory / DEVICE_STATE
        try:
            async with asyncio.timeout(FREEZE_TIMEOUT_S):
                await self._save_device_state(state)
        except TimeoutError:
            raise BackendFailed(f"{self.name} was not frozen within {FREEZE_TIMEOUT_S:.0f} s") from None
        finally:
            await self.kill()
        await _settle_memory(self._memory)
        return Frozen(self._memory, state, self._machine_key)

    async def detach(self) -> None:
        """Stop following; the machine runs on. For a daemon that ends."""
        if self._end is not None and not self._end.done():
            self._end.cancel()
            await asyncio.gather(self._end, return_exceptions=True)

    async def _connect(self) -> None:
        qmp = QMPClient(self.name)
        qmp.logger.setLevel("CRITICAL")
        qmp.register_listener(EventListener(EVENTS, self._note_event))
        await self._or_gone(qmp.connect(str(self.directory / QMP_SOCKET)))
        self._qmp = qmp

    async def _or_gone(self, wanted: Coroutine[Any, Any, object]) -> None:
        """Wait for something that the process does; EOFError if the process ends first."""
        waiting, gone = asyncio.create_task(wanted), asyncio.create_task(self._watch.wait_gone())
        try:
            await asyncio.wait((waiting, gone), return_when=asyncio.FIRST_COMPLETED)
            if not waiting.done():
                raise EOFError("the process ended")
            await waiting
        finally:
            gone.cancel()
            waiting.cancel()

    def _note_event(self, event: Message) -> bool:
        """Remember why the machine stops. (Called as the listener's filter: nothing is queued.)"""
        details: Any = event.get("data")
        match event["event"], details:
            case "RESUME", _:
                self._resumed.set()
            case "VSERPORT_CHANGE", {"open": bool(is_open)}:
                self._is_leaving = not is_open
            case "BLOCK_IO_ERROR", {"action": "stop"}:
                self._wait_for_room(details)
            case "GUEST_PANICKED", _:
                self._reason = StopReason.PANICKED
            case "SHUTDOWN", {"reason": "guest-reset"} if self._reason is None:
                self._reason = StopReason.GUEST_REBOOT
            case "SHUTDOWN", {"guest": True} if self._reason is None:
                self._reason = StopReason.GUEST_POWEROFF
            case "DEVICE_DELETED", {"device": device}:
                self._nics.note_gone(device)
                self._drives.note_gone(device)
        return False

    def _wait_for_room(self, details: Mapping[str, Any]) -> None:
        """The host's disk is full: QEMU has stopped the guest, so that no write is lost. Let it try again soon."""
        if self._waits_for_room is None or self._waits_for_room.done():
            disk = details.get("device") or details.get("node-name") or ""
            self._trouble = f"its disk {disk} cannot be written ({details.get('reason')})"
            log.error("%s stands still: %s; it goes on by itself once there is room", self.name, self._trouble)
            self._waits_for_room = asyncio.create_task(self._try_again())

    async def _resume_waiting(self) -> None:
        """An adopted machine may have met a full disk while no daemon was there, or it was paused by the last one."""
        status: Any = await self._execute("query-status")
        self._is_paused = status["status"] == "paused"
        if status["status"] == "io-error":
            self._wait_for_room({"reason": "met while no daemon was there"})

    async def _try_again(self) -> None:
        with contextlib.suppress(QubeNotRunning, BackendFailed):
            while True:
                await asyncio.sleep(ROOM_RETRY_S)
                if not self._is_paused:
                    await self.resume()
                    await asyncio.sleep(ROOM_SETTLE_S)
                    if await self.is_running():
                        self._trouble = ""
                        return

    async def _execute(self, command: str, arguments: dict[str, object] | None = None) -> object:
        """Done, or QubeNotRunning (the machine ended meanwhile), or BackendFailed (refused, or nobody knows)."""
        qmp = self._qmp
        if qmp is None or self._watch.is_gone:
            raise QubeNotRunning(f"{self.name} is not running")
        try:
            async with asyncio.timeout(COMMAND_TIMEOUT_S):
                return await qmp.execute(command, arguments)
        except ExecuteError as error:
            raise BackendFailed(f"QEMU refused {command} for {self.name}: {error}") from error
        except TimeoutError:
            raise BackendFailed(f"QEMU of {self.name} did not answer {command} in {COMMAND_TIMEOUT_S:.0f} s") from None
        except (QMPError, EOFError, OSError) as error:
            raise QubeNotRunning(f"{self.name} ended during {command}") from error

    def _send_descriptor(self, fd: int) -> None:
        """QEMU keeps a copy for the next command, which must take it (``getfd``, ``add-fd``)."""
        if self._qmp is None or self._watch.is_gone:
            raise QubeNotRunning(f"{self.name} is not running")
        try:
            self._qmp.send_fd_scm(fd)
        except (OSError, AssertionError) as error:
            raise QubeNotRunning(f"{self.name} is not running") from error

    async def _restore(self, device_state_fd: int) -> None:
        """Load the device state (memory is mapped already); QEMU then starts the guest by itself."""
        await self._ignore_shared_memory()
        # QEMU would announce each card to its network, in frames of its own that no firewall sees.
        await self._execute("migrate-set-parameters", {"announce-rounds": 0})
        await self._execute("migrate-incoming", {"uri": f"fd:{device_state_fd}"})
        await self._or_gone(self._resumed.wait())  # QEMU ends itself when it cannot load

    async def _ignore_shared_memory(self) -> None:
        """Guest memory is a file on both sides: the stream holds device state only."""
        capability = {"capability": "x-ignore-shared", "state": True}
        await self._execute("migrate-set-capabilities", {"capabilities": [capability]})

    async def _save_device_state(self, path: Path) -> None:
        assert self._qmp is not None
        fd = -1
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            self._qmp.send_fd_scm(fd)
            await self._execute("getfd", {"fdname": "state"})
            await self._ignore_shared_memory()
            await self._execute("migrate", {"uri": "fd:state"})  # stops the guest, and remembers that it was running
            while True:
                status: Any = await self._execute("query-migrate")
                match status.get("status"):
                    case "completed":
                        break
                    case "failed" | "cancelled":
                        raise BackendFailed(f"cannot freeze {self.name}: {status.get('error-desc', 'no reason given')}")
                await asyncio.sleep(RESTORE_POLL_S)
            os.fsync(fd)
        except OSError as error:
            raise BackendFailed(f"cannot write {path}: {error.strerror}") from error
        finally:
            if fd >= 0:
                os.close(fd)

    async def _follow(self) -> StopReason:
        """Owns the end: whatever ends the process, this notices, tidies and tells why."""
        try:
            await self._watch.wait_gone()
            await self._hear_last_words()
            if self._wrapper is not None:
                await asyncio.to_thread(self._wrapper.wait)
            self._read_errors()
        finally:
            await self._let_go()
        if self._reason is not None:
            return self._reason
        return StopReason.KILLED if self._killed else StopReason.CRASHED

    async def _hear_last_words(self) -> None:
        """The process is gone, but its last events may still be in the socket."""
        if self._qmp is None:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LAST_WORDS_TIMEOUT_S):
                while self._qmp.runstate is Runstate.RUNNING:
                    await self._qmp.runstate_changed()

    async def _let_go(self) -> None:
        self._watch.close()
        if self._waits_for_room is not None:
            self._waits_for_room.cancel()
        if self._errors_fd >= 0:
            asyncio.get_running_loop().remove_reader(self._errors_fd)
            os.close(self._errors_fd)
            self._errors_fd = -1
        if self._qmp is not None:
            with contextlib.suppress(Exception):  # a border: whatever the dead connection has to say is old news
                await self._qmp.disconnect()
        if self._console is not None:
            await self._console.close()

    def _read_errors(self) -> None:
        """Keep the end of what QEMU says on standard error (a guest can make it talk: bounded)."""
        if self._errors_fd < 0:
            return
        with contextlib.suppress(BlockingIOError):
            while chunk := os.read(self._errors_fd, 4096):
                self._errors = (self._errors + chunk)[-ERRORS_KEPT_BYTES:]
            asyncio.get_running_loop().remove_reader(self._errors_fd)


async def end_leftover(directory: Path) -> None:
    """End the machine that still serves the sockets in ``directory``, if there is one.

    For a daemon that finds a directory and no record: its predecessor died while it started a machine. Raises
    BackendFailed if something is there and does not go.
    """
    port = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    port.setblocking(False)
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(LEFTOVER_TIMEOUT_S):
            await loop.sock_connect(port, str(directory / QMP_SOCKET))
            await loop.sock_sendall(port, b'{"execute": "qmp_capabilities"}{"execute": "quit"}')
            while await loop.sock_recv(port, 4096):
                pass
    except (FileNotFoundError, ConnectionError):
        return  # nobody serves it, or not any more
    except TimeoutError:
        raise BackendFailed(f"a machine left in {directory} does not end", hint="end its QEMU process") from None
    finally:
        port.close()


async def _settle_memory(memory: Path) -> None:
    """Give back the disk space of zero pages, write the rest out, and let nobody write it again."""
    process = await asyncio.create_subprocess_exec(
        "fallocate",
        "--dig-holes",
        str(memory),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    await process.wait()  # a file system without holes only costs space
    try:
        memory.chmod(0o400)
        with memory.open("rb") as file:
            await asyncio.to_thread(os.fsync, file.fileno())
    except OSError as error:
        raise BackendFailed(f"cannot write {memory}: {error.strerror}") from error
