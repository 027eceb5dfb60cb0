"""One run: its options, its system and its peer, made when the first row asks for them."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from types import TracebackType

from benchmarks.plain import PlainMachine, PlainPeer, drain, exchange, fill, pack
from benchmarks.processes import wait_calm
from benchmarks.system import System, open_system

PAYLOAD = b"x" * 63 + b"\n"
STREAMS = 3
SMALL_BYTES = 1024
CALM_LIMIT_S = 120
Tell = Callable[[str], None]
"""Says what is being done now, for whoever waits."""


@dataclass(frozen=True)
class Options:
    repeat: int = 15
    """Of what takes about a second."""
    calls: int = 200
    """Of what takes milliseconds."""
    boots: int = 3
    """Plain boots that are timed."""
    idle: int = 10
    """Machines on each side whose memory is compared."""
    forks: int = 20
    qubes: int = 100
    clients: int = 50
    """Of one firewall."""
    stream_mib: int = 128
    burst: int = 100
    """Calls at once."""
    file_mib: int = 64
    """Of the one large file that is copied; the full comparison has 256."""
    files: int = 1000
    """Small files that are copied; the full comparison has 10 000."""


QUICK = Options(
    repeat=5, calls=50, boots=1, idle=3, forks=20, qubes=100, clients=10, stream_mib=32, file_mib=16, files=200
)


@dataclass
class Bench:
    """Context manager: leaving it ends everything that the run started."""

    options: Options
    tell: Tell
    _stack: ExitStack = field(default_factory=ExitStack)

    def __enter__(self) -> Bench:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    @cached_property
    def system(self) -> System:
        self.tell("making a system (the first time a template is built: some minutes)")
        return self._stack.enter_context(open_system())

    @cached_property
    def peer(self) -> PlainPeer:
        return PlainPeer(self.system)

    @cached_property
    def plain(self) -> PlainFigures:
        """The peer's figures, shared by all rows; every machine but the last one only boots."""
        boots: list[float] = []
        settled: list[float] = []
        for number in range(self.options.boots):
            self.tell(f"booting the image under plain QEMU ({number + 1} of {self.options.boots})")
            with self.peer.open_machine() as machine:
                machine.wait_agent()
                machine.run("true")
                boots.append(machine.age_s())
                machine.wait_booted()
                settled.append(machine.age_s())
                if number == self.options.boots - 1:
                    bare = self._bare_figures(machine)
        return PlainFigures(boots, settled, bare)

    def _bare_figures(self, machine: PlainMachine) -> BareFigures:
        wait_calm([machine.process], CALM_LIMIT_S)
        self.tell("the bare agent's calls and stream")
        with machine.start_bare_agent() as port:
            true = self.times(lambda: exchange(port, b"true\n"), self.options.calls)
            echo = self.times(lambda: exchange(port, PAYLOAD), self.options.calls)
            by_socket = self.times(lambda: exchange(port, b"socket " + PAYLOAD), self.options.calls)
            stream = [drain(port) for _ in range(STREAMS + 1)][1:]
            program = [drain(port, b"program\n") for _ in range(STREAMS + 1)][1:]
            sink = [fill(port) for _ in range(STREAMS + 1)][1:]
            self.tell("the bare agent's tar")
            # Not /tmp: that is a file system in half of the guest's memory.
            machine.run(make_files("/var/tmp/bench", self.options.file_mib, self.options.files))
            sizes = {"large": self.options.file_mib << 20, "small": self.options.files * SMALL_BYTES}
            large, small = (
                [pack(port, f"/var/tmp/bench/{what}", size) for _ in range(3)][1:] for what, size in sizes.items()
            )
        return BareFigures(true, echo, by_socket, stream, program, sink, large, small)

    def times(
        self, act: Callable[[], object], count: int, *, between: Callable[[], object] | None = None
    ) -> list[float]:
        """Seconds that ``act`` takes, after one run that does not count; ``between``: clean up, untimed."""
        samples = []
        for number in range(count + 1):
            started = time.perf_counter()
            act()
            took = time.perf_counter() - started
            if between is not None:
                between()
            if number:
                samples.append(took)
        return samples


@dataclass(frozen=True)
class BareFigures:
    """What the bare agent does on its own port."""

    true_s: list[float]
    echo_s: list[float]
    socket_echo_s: list[float]
    """The same by another process in the guest, behind a socket pair."""
    stream_mib_s: list[float]
    """Guest to host, blocks of zeros."""
    program_mib_s: list[float]
    """The same, what a program writes into a pipe."""
    sink_mib_s: list[float]
    """Host to guest, thrown away there."""
    large_s: list[float]
    small_s: list[float]
    """A tar of one large file, of many small ones."""


@dataclass(frozen=True)
class PlainFigures:
    to_answer_s: list[float]
    """From the start of QEMU to the answer of the first ``true``; the agent answers as early as it can."""
    to_end_s: list[float]
    """Until systemd has started everything."""
    bare: BareFigures


def make_files(directory: str, file_mib: int, files: int) -> str:
    """A line of shell: one large file in ``large``, many of SMALL_BYTES in ``small``; it fails if one is missing."""
    return (
        f"mkdir -p {directory}/large {directory}/small && cd {directory} "
        f"&& head -c {file_mib << 20} /dev/urandom > large/file && cd small "
        f"&& head -c {files * SMALL_BYTES} /dev/urandom | split -b {SMALL_BYTES} -a 4 - f "
        f'&& test "$(ls | wc -l)" = {files}'
    )
