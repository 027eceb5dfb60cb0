"""The peer: the same image under plain QEMU. Same accelerator, processor, memory, kernel and agent; no jail, no fork.

The agent is spoken to directly. A second port, without any protocol, is for the bare agent.
"""

from __future__ import annotations

import asyncio
import os
import shlex
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from benchmarks.processes import Process, find_process
from benchmarks.system import DISPOSABLES, System
from cloison.drivers.hypervisor.base import MachineSpec
from cloison.drivers.hypervisor.plan import (
    AGENT_PORT,
    CODE_CACHE_MIB,
    Host,
    count_cpus,
    cpu_model,
    plan_kernel_options,
)
from cloison.drivers.hypervisor.probe import find_host
from cloison.templates.build import Image, ImageRequest, build_image
from cloison.wire import (
    NONCE_BYTES,
    Connection,
    Data,
    Event,
    Exit,
    Hello,
    Notice,
    Open,
    Reset,
    Role,
    Stream,
)

BARE_PORT = "bench"
BARE_AGENT = Path(__file__).with_name("bare_agent.py")
STREAM_BYTES = 128 << 20
BOOT_LIMIT_S = 900.0
RECEIVE_BYTES = 1 << 18


class PlainPeer:
    """What plain machines are made of; the same as the disposables of the system."""

    def __init__(self, system: System) -> None:
        async def ask() -> tuple[Host, Image]:
            image = await build_image(ImageRequest(), system.layout.cache, lambda what, done: None)
            return await find_host(system.layout.cache), image

        self.host, self._image = asyncio.run(ask())
        self._spec = MachineSpec(
            system.number(DISPOSABLES, "memory"), system.number(DISPOSABLES, "vcpus"), self._image.kernel,
            self._image.initrd, system.text(DISPOSABLES, "kernelopts"),
        )  # fmt: skip

    @contextmanager
    def open_machine(self, *, network: bool = False) -> Iterator[PlainMachine]:
        """A machine that is starting; killed in the end. ``network``: with a card at QEMU's user networking."""
        with ExitStack() as stack:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cbp-", dir="/tmp")))
            overlay = directory / "root.qcow2"
            base = str(self._image.disk.absolute())
            making = ["qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", str(overlay)]
            started = time.perf_counter()
            subprocess.run(making, check=True)
            card = ["-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net"] if network else []
            process = subprocess.Popen([*self._command(directory, overlay), *card], stdin=subprocess.DEVNULL)
            stack.callback(process.wait)
            stack.callback(process.kill)
            yield PlainMachine(directory, process, started)

    def _command(self, directory: Path, overlay: Path) -> list[str]:
        spec, host = self._spec, self.host
        cpus = count_cpus(spec.vcpus, host)
        threads = "multi" if cpus > 1 else "single"
        accelerator = "kvm" if host.accelerator.value == "kvm" else f"tcg,tb-size={CODE_CACHE_MIB},thread={threads}"
        return [
            *["qemu-system-x86_64", "-machine", "q35", "-accel", accelerator, "-cpu", cpu_model(host)],
            *["-m", f"{spec.memory_mib}M", "-smp", str(cpus), "-nodefaults", "-display", "none"],
            *["-kernel", str(spec.kernel), "-initrd", str(spec.initrd)],
            *["-append", plan_kernel_options(spec, host)],
            *["-drive", f"file={overlay},if=virtio,format=qcow2,cache=unsafe"],
            *["-serial", f"file:{directory}/console.log", "-device", "virtio-rng-pci", "-device", "virtio-serial-pci"],
            *["-chardev", f"socket,id=agent,path={directory}/agent,server=on,wait=off"],
            *["-device", f"virtserialport,chardev=agent,name={AGENT_PORT}"],
            *["-chardev", f"socket,id=bare,path={directory}/bare,server=on,wait=off"],
            *["-device", f"virtserialport,chardev=bare,name={BARE_PORT}"],
        ]


class PlainMachine:
    def __init__(self, directory: Path, process: subprocess.Popen[bytes], started: float) -> None:
        self._directory = directory
        self._process = process
        self._started = started
        self._socket = _connect(directory / "agent", process)
        self._wire = Connection(Role.HOST, nonce=os.urandom(NONCE_BYTES), software="benchmark")
        self._socket.sendall(self._wire.data_to_send())
        self._is_ready = False

    @property
    def process(self) -> Process:
        found = find_process(self._process.pid)
        assert found is not None, "the machine ended"
        return found

    def wait_agent(self) -> None:
        """Until the agent answers; systemd may still be starting other things."""
        while not any(isinstance(event, Hello) for event in self._receive()):
            pass

    def wait_booted(self) -> None:
        """Until systemd has started everything."""
        while not self._is_ready:
            self._receive()

    def age_s(self) -> float:
        """Since QEMU's disk was begun to be made."""
        return time.perf_counter() - self._started

    def run(self, command: str, *, user: str = "") -> bytes:
        """A command by the same agent; its output. RuntimeError unless it ended with 0."""
        number = self._wire.new_session()
        self._send(Open(number, command=command, user=user, source="dom0", nogui=True))
        self._send(Data(number, Stream.STDIN, b""))
        output = errors = b""
        while True:
            for event in self._receive():
                if isinstance(event, Exit):
                    if event.code:
                        raise RuntimeError(f"{command}: exit code {event.code}, {errors!r}")
                    return output
                if isinstance(event, Reset):
                    raise RuntimeError(f"{command}: {event.reason}")
                if isinstance(event, Data) and event.stream == Stream.STDOUT:
                    output += event.payload
                elif isinstance(event, Data):
                    errors += event.payload

    def start_bare_agent(self) -> socket.socket:
        """The bare agent's port, answering."""
        port = _connect(self._directory / "bare", self._process)
        words = ["python3", "-c", BARE_AGENT.read_text(), BARE_PORT, str(STREAM_BYTES)]
        self.run(f"setsid {shlex.join(words)} </dev/null >/dev/null 2>&1 &", user="root")
        exchange(port, b"hello\n")
        return port

    def _send(self, event: Event) -> None:
        self._socket.sendall(self._wire.send(event))

    def _receive(self) -> list[Event]:
        data = self._socket.recv(RECEIVE_BYTES)
        if not data:
            console = (self._directory / "console.log").read_bytes()[-500:]
            raise RuntimeError(f"the plain machine ended: {console!r}")
        events = self._wire.receive_data(data)
        if answer := self._wire.data_to_send():
            self._socket.sendall(answer)
        self._is_ready = self._is_ready or any(isinstance(e, Notice) and e.event == "ready" for e in events)
        return events


def exchange(port: socket.socket, request: bytes) -> bytes:
    """One request to the bare agent, one answer."""
    port.sendall(request)
    return port.recv(4096)


def drain(port: socket.socket, what: bytes = b"stream\n") -> float:
    """Ask for the stream and receive it; MiB per second from the first to the last byte."""
    port.sendall(what)
    buffer = bytearray(RECEIVE_BYTES)
    first = left = STREAM_BYTES - port.recv_into(buffer)
    started = time.perf_counter()
    while left > 0:
        left -= port.recv_into(buffer)
    return first / (1 << 20) / (time.perf_counter() - started)


def fill(port: socket.socket) -> float:
    """Send a stream into the guest, where it is thrown away; MiB per second."""
    exchange(port, b"sink\n")
    block, left = bytes(1 << 16), STREAM_BYTES
    started = time.perf_counter()
    while left > 0:
        port.sendall(block[:left])
        left -= len(block)
    port.recv(16)
    return STREAM_BYTES / (1 << 20) / (time.perf_counter() - started)


def pack(port: socket.socket, directory: str, least_bytes: int) -> float:
    """Receive a tar of the guest's directory; seconds. RuntimeError unless it has so many bytes at least."""
    started = time.perf_counter()
    port.sendall(f"files {directory}\n".encode())
    end, received = b"", 0
    while not end.endswith(b"done\n"):
        data = port.recv(RECEIVE_BYTES)
        received += len(data)
        end = (end + data)[-5:]
    took_s = time.perf_counter() - started
    if received < least_bytes:
        raise RuntimeError(f"the tar of {directory} has {received} bytes, its files have {least_bytes}")
    return took_s


def _connect(path: Path, process: subprocess.Popen[bytes]) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    while True:
        try:
            connection.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            if process.poll() is not None:
                raise RuntimeError(f"plain QEMU ended at its start with {process.returncode}") from None
            time.sleep(0.005)
            continue
        connection.settimeout(BOOT_LIMIT_S)
        return connection
