"""A whole PC in software, in which KVM works: built once, booted for a test run, spoken to through a port.

QEMU's emulation of an AMD processor includes its virtualisation, so a Debian which runs there can run guests under
KVM, whatever the machine below is. Its disk is an image like any template's (``cloison.templates``), cached under
``pc/`` of the cache. Cloison itself, libraries that Debian lacks, and the template's image come on a second disk,
made anew for each run: a change of the code rebuilds nothing. A third disk holds the PC's fork points. Making one takes
minutes there, so it is kept too, until the template, the PC, or the code that makes fork points changes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import select
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import qemu.qmp

import cloison
from cloison.guest_tree import guest_directory, guest_tree
from cloison.templates.build import GIB, Image, ImageRequest, Progress, build_image

HERE = Path(__file__).parent
SYSTEM = ImageRequest(
    suite="trixie",
    include=("bubblewrap", "python3-click", "python3-cryptography", "python3-rich", "qemu-system-x86", "qemu-utils"),
    size_bytes=4 * GIB,
)
"""The PC's own system. With Debian's Python libraries, so that nothing compiled has to fit from the host."""
WORK_BYTES = 6 * GIB
FORK_POINTS_BYTES = 3 * GIB
MEMORY_MIB = 2048
BOOT_LIMIT_S = 120
END_LIMIT_S = 30
LEFTOVER_AGE_S = 6 * 3600
GRACE_S = 15
"""A command has its own time limit inside; after that and this, the PC itself is taken to hang."""
CONSOLE_TAIL = 4000
PORT = "org.cloison.pc"
KERNEL_OPTIONS = "console=ttyS0 quiet panic=-1 mitigations=off nowatchdog no_timer_check maxcpus=1 init=/bin/sh"
"""``start`` brings the second processor up."""
CARD_NETWORK, CARD_GATEWAY = "192.0.2.0/24", "192.0.2.2"
"""Behind the PC's network card: QEMU's user-mode network, which gives addresses and answers pings."""
FIRST_PROCESS = "mkdir -p /pc && mount -t ext4 /dev/vdb /pc && exec /pc/start"


@dataclass(frozen=True)
class Done:
    """A command that ended in the PC."""

    code: int | None
    """None: it did not end in time."""
    out: str
    err: str
    seconds: float


async def build_system(cache: Path, progress: Progress) -> Image:
    """The PC's system, from the cache or built now: no guest files of ours in it."""
    return await build_image(SYSTEM, cache / "pc", progress, tree={})


async def build_template(cache: Path, progress: Progress) -> Image:
    """The image that ``cloison template build`` takes by default."""
    return await build_image(ImageRequest(), cache, progress, tree=guest_tree())


def make_work_disk(disk: Path, template: Image) -> None:
    """A file system with the code to be tested and the template's image, writable by this user in the PC."""
    with tempfile.TemporaryDirectory(dir=disk.parent) as name:
        tree = Path(name)
        for script in ("start", "serve.py"):
            shutil.copy(HERE / script, tree)
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(Path(cloison.__file__).parent, tree / "src/cloison", ignore=ignored)
        shutil.copytree(guest_directory(), tree / "guest", ignore=ignored)
        shutil.copytree(Path(qemu.qmp.__file__).parent, tree / "site/qemu/qmp", ignore=ignored)
        (tree / "home").mkdir()
        (tree / "cache/forkpoints").mkdir(parents=True)
        image = tree / "cache/images" / template.key
        image.mkdir(parents=True)
        for path in template.directory.iterdir():
            try:
                os.link(path, image / path.name)
            except OSError:  # another file system
                shutil.copy(path, image / path.name)
        make_file_system(disk, WORK_BYTES, tree)


def make_file_system(disk: Path, size_bytes: int, tree: Path | None = None) -> None:
    """A file with an ext4 file system that is this user's, with a copy of ``tree`` in it."""
    with disk.open("wb") as file:
        file.truncate(size_bytes)
    options = f"root_owner={os.getuid()}:{os.getgid()},assume_storage_prezeroed=1,lazy_itable_init=1"
    content = [] if tree is None else ["-d", str(tree)]
    command = ["mke2fs", "-q", "-t", "ext4", "-m", "0", "-J", "size=8", "-E", options, *content, str(disk)]
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    subprocess.run(command, check=True, timeout=120, env={**os.environ, "PATH": path})


def fork_points_key(system: Image, template: Image) -> str:
    """Digest of all that the PC's fork points depend on, and of the code that makes them."""
    package = Path(cloison.__file__).parent
    digest = hashlib.sha256(f"{system.key} {template.key}".encode())
    for source in (*sorted((package / "drivers/hypervisor").glob("*.py")), package / "engine/forkpoints.py"):
        digest.update(source.read_bytes())
    return digest.hexdigest()[:32]


def plan_pc(
    system: Image, work: Path, fork_points: Path, port_fd: int, console: Path, *, cached: bool, card: bool
) -> list[str]:
    """QEMU's command line. What is in the cache is never written: changes go to files that are gone afterwards."""
    disks = (
        (system.disk, "qcow2", "snapshot=on"),
        (work, "raw", "discard=unmap"),
        (fork_points, "raw", "snapshot=on" if cached else "discard=unmap"),
    )
    return [
        *["setpriv", "--pdeathsig=KILL"],
        *["qemu-system-x86_64", "-name", "guest=cloison-pc", "-nodefaults", "-no-user-config", "-display", "none"],
        *["-machine", "q35" + (",kernel-irqchip=split" if card else "")],
        *(["-device", "intel-iommu,intremap=on"] if card else []),
        *["-accel", "tcg,thread=multi,tb-size=512", "-cpu", "EPYC,+svm,+npt", "-smp", "2"],
        *["-m", f"{MEMORY_MIB}M", "-no-reboot"],
        *["-kernel", str(system.kernel), "-initrd", str(system.initrd)],
        *["-append", f'{KERNEL_OPTIONS}{" intel_iommu=on" if card else ""} -- -c "{FIRST_PROCESS}"'],
        *[
            word
            for path, kind, option in disks
            for word in ("-drive", f"file={path},format={kind},if=virtio,cache=unsafe,{option}")
        ],
        *["-chardev", f"file,id=console,path={console},append=on", "-device", "isa-serial,chardev=console"],
        *["-chardev", f"socket,id=port,fd={port_fd}", "-device", "virtio-serial-pci"],
        *["-device", f"virtserialport,chardev=port,name={PORT}", "-device", "virtio-rng-pci"],
        *(_network_card() if card else []),
    ]


def _network_card() -> list[str]:
    return [
        *["-netdev", f"user,id=world,net={CARD_NETWORK}"],
        *["-device", "pcie-root-port,id=card-port,chassis=1,slot=1"],
        *["-device", "virtio-net-pci,netdev=world,bus=card-port,disable-legacy=on,iommu_platform=on,romfile="],
    ]


@dataclass
class VirtualPC:
    """The running PC."""

    process: subprocess.Popen[bytes]
    port: socket.socket
    console: Path
    timings: dict[str, float] = field(default_factory=dict)
    """For people: what was done, how many seconds it took by the PC's own clock."""
    has_fork_points: bool = False
    """It found them in the cache."""
    may_keep_fork_points: bool = False
    """Set it when they are complete: they go to the cache then, unless they came from there."""
    _pending: bytes = b""

    def run(self, *command: str, stdin: str = "", timeout_s: float = 60) -> Done:
        """Run a command in the PC, as its user, to its end or its time limit."""
        request = {"command": command, "stdin": stdin, "limit_s": timeout_s}
        self.port.sendall(json.dumps(request).encode() + b"\n")
        return Done(**self._receive(timeout_s + GRACE_S, " ".join(command)))

    def cloison(self, *arguments: str, expect: int | None = 0, timing: str = "", **options: Any) -> Done:
        """The ``cloison`` command there; ``expect`` is the exit code it must have (None: any)."""
        done = self.run("python3", "-m", "cloison.cli", *arguments, **options)
        if timing:
            self.timings[timing] = done.seconds
        if expect is not None and done.code != expect:
            ended = "no end in time" if done.code is None else f"exit code {done.code}, not {expect}"
            raise AssertionError(f"cloison {' '.join(arguments)}: {ended}: {done.out}{done.err}\n{self.logs()}")
        return done

    def json(self, *arguments: str, **options: Any) -> Any:
        return json.loads(self.cloison(*arguments, "--json", **options).out)

    def logs(self) -> str:
        """The ends of the PC's console, of the daemon's log there, and of every guest's console."""
        command = "tail -n 40 /pc/system/data/log/cloisond.log /pc/system/run/q/*/*.log"
        try:
            inside = self.run("sh", "-c", command, timeout_s=10).out
        except AssertionError as error:
            return str(error)
        return f"{self._console_tail()}\n{inside}"

    def wait_until_ready(self) -> None:
        self.timings["PC ready"] = self._receive(BOOT_LIMIT_S, "its boot")["ready"]

    def _receive(self, timeout_s: float, what: str) -> dict[str, Any]:
        deadline = time.monotonic() + timeout_s
        while b"\n" not in self._pending:
            left_s = deadline - time.monotonic()
            chunk = b""
            if left_s > 0 and select.select([self.port], [], [], left_s)[0]:
                chunk = self.port.recv(65536)
            if not chunk:
                why = f"answers no more after {timeout_s:.0f} s" if left_s <= 0 else "is gone"
                raise AssertionError(f"the PC {why}, during {what}; its console:\n{self._console_tail()}")
            self._pending += chunk
        line, self._pending = self._pending.split(b"\n", 1)
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _console_tail(self) -> str:
        lines = self.console.read_bytes().decode(errors="replace").splitlines()
        told = [line for line in lines if "TCG doesn't support requested feature" not in line]
        return "\n".join(told)[-CONSOLE_TAIL:]


@contextlib.contextmanager
def open_scratch(cache: Path) -> Iterator[Path]:
    """A directory for one run in the cache's file system; what killed runs left there is removed."""
    for rest in (cache / "pc").glob(".run-*"):
        if rest.stat().st_mtime < time.time() - LEFTOVER_AGE_S:
            shutil.rmtree(rest, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=".run-", dir=cache / "pc") as name:
        yield Path(name)


@contextlib.contextmanager
def run_pc(system: Image, template: Image, cache: Path, scratch: Path, *, card: bool) -> Iterator[VirtualPC]:
    """A booted PC (with ``card``: with an IOMMU and a network card), gone afterwards; some 2 GiB are written in
    ``scratch``."""
    work, console = scratch / "work.raw", scratch / "console.log"
    kept = cache / "pc" / f"fork-points-{fork_points_key(system, template)}.raw"
    make_work_disk(work, template)
    cached = kept.exists()
    fork_points = kept if cached else scratch / "fork-points.raw"
    if not cached:
        make_file_system(fork_points, FORK_POINTS_BYTES)
    ours, theirs = socket.socketpair()
    with ours, console.open("ab") as log:
        with theirs:
            process = subprocess.Popen(
                plan_pc(system, work, fork_points, theirs.fileno(), console, cached=cached, card=card),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[theirs.fileno()],
                env={**os.environ, "TMPDIR": str(scratch)},
            )
        try:
            pc = VirtualPC(process, ours, console, has_fork_points=cached)
            pc.wait_until_ready()
            yield pc
            if pc.may_keep_fork_points and not cached:
                pc.cloison("daemon", "stop", "--kill")
                ours.close()  # at the end of its input the PC unmounts its disks and powers off
                process.wait(END_LIMIT_S)
                for old in kept.parent.glob("fork-points-*.raw"):
                    old.unlink()
                fork_points.rename(kept)
        finally:
            process.kill()
            process.wait()
