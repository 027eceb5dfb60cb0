"""What this host can do for guests: QEMU's version, and whether KVM really runs them.

In: the host. Out: a ``Host``. May import: plan, jail, launch, the probe's guest, errors.

A device node proves nothing: some machines offer a KVM that opens and creates guests, and stops at the first
instruction it does not know. So a guest is run; its answer is remembered until the machine, QEMU or the user's rights
change.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import re
import select
import time
from pathlib import Path

from cloison.drivers.hypervisor.base import Accelerator
from cloison.drivers.hypervisor.jail import JailedFile
from cloison.drivers.hypervisor.launch import Started, spawn_jailed
from cloison.drivers.hypervisor.plan import Host
from cloison.drivers.hypervisor.probe_guest import EXIT_PORT, SUCCESS, build_firmware, exit_code
from cloison.drivers.hypervisor.process import read_boot_id
from cloison.errors import BackendFailed

QEMU = "qemu-system-x86_64"
KVM_DEVICE = Path("/dev/kvm")
PROBE_TIMEOUT_S = 20.0
"""The guest needs 0.05 s, emulated or not; all of QEMU needs 4 s in a virtual machine that is itself emulated."""
KVM_GAVE_UP = b"KVM internal error"
"""QEMU says so, and then keeps the dead guest."""
VERSION_TIMEOUT_S = 10.0
FIRMWARE_PLACE = "/firmware"
ANSWER_FILE = "probe.json"
INSTALL_HINT = "apt install qemu-system-x86"


async def find_host(cache: Path, *, wished: Accelerator | None = None) -> Host:
    """The host as guests will see it. ``wished``: take this accelerator without asking.

    Raises BackendFailed if there is no usable QEMU, or no usable jail around it.
    """
    text = await read_version()
    version = parse_version(text)
    if wished is not None:
        return Host(wished, version, text, _read_cpu_identity(), "as asked for")
    key = _digest_circumstances(text)
    remembered = _find_remembered(cache / ANSWER_FILE, key)
    if remembered is None:
        remembered = await probe_kvm()
        _remember(cache / ANSWER_FILE, key, *remembered)
    works, why = remembered
    return Host(Accelerator.KVM if works else Accelerator.EMULATION, version, text, _read_cpu_identity(), why)


async def read_version() -> str:
    """The first line of QEMU's own --version."""
    try:
        process = await asyncio.create_subprocess_exec(
            QEMU, "--version", stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
        )
    except FileNotFoundError:
        raise BackendFailed(f"{QEMU} is not installed", hint=INSTALL_HINT) from None
    try:
        async with asyncio.timeout(VERSION_TIMEOUT_S):
            out, _ = await process.communicate()
    except TimeoutError:
        process.kill()
        raise BackendFailed(f"{QEMU} --version did not answer within {VERSION_TIMEOUT_S:.0f} s") from None
    return out.decode(errors="replace").partition("\n")[0]


def parse_version(text: str) -> tuple[int, int]:
    found = re.search(r"version (\d+)\.(\d+)", text)
    if found is None:
        raise BackendFailed(f"{QEMU} does not tell its version but {text[:80]!a}", hint=INSTALL_HINT)
    return int(found[1]), int(found[2])


async def probe_kvm() -> tuple[bool, str]:
    """Whether KVM runs a guest, and a sentence for people."""
    if not KVM_DEVICE.exists():
        return False, f"there is no {KVM_DEVICE}: the processor's virtualisation is off, or hidden by the machine below"
    if not os.access(KVM_DEVICE, os.R_OK | os.W_OK):
        return False, f"this user may not open {KVM_DEVICE}"
    code = await run_probe_guest(Accelerator.KVM)
    if code == exit_code(SUCCESS):
        return True, "a guest ran under KVM"
    if code is None:
        return False, f"{KVM_DEVICE} opens, but a guest hangs there: the machine below offers a KVM that cannot run one"
    return False, f"{KVM_DEVICE} opens, but QEMU cannot run a guest there (exit code {code})"


async def run_probe_guest(accelerator: Accelerator) -> int | None:
    """Run the proving guest, jailed; QEMU's exit code, or None if the guest got stuck."""
    return await asyncio.to_thread(_run_probe_guest, accelerator)


def _run_probe_guest(accelerator: Accelerator) -> int | None:
    firmware = os.memfd_create("firmware", os.MFD_CLOEXEC)
    try:
        os.write(firmware, build_firmware())
        os.lseek(firmware, 0, os.SEEK_SET)
        started = spawn_jailed(
            _plan_probe(accelerator),
            accelerator,
            files=(JailedFile(FIRMWARE_PLACE, firmware),),
            outlives_parent=False,
        )
    finally:
        os.close(firmware)
    try:
        return started.wrapper.wait() if _has_ended(started) else None
    finally:
        started.abandon()


def _has_ended(started: Started) -> bool:
    """Wait for the guest's end; False when it has none in time, or when QEMU says that KVM gave up on it."""
    poll = select.poll()
    poll.register(started.pidfd, select.POLLIN)
    poll.register(started.errors_fd, select.POLLIN)
    deadline = time.monotonic() + PROBE_TIMEOUT_S
    said = b""
    while (left_s := deadline - time.monotonic()) > 0:
        ready = [fd for fd, _ in poll.poll(left_s * 1000)]
        if started.pidfd in ready:
            return True
        if started.errors_fd in ready:
            chunk = os.read(started.errors_fd, 4096)
            said = (said + chunk)[-4096:]
            if KVM_GAVE_UP in said:
                return False
            if not chunk:
                poll.unregister(started.errors_fd)
    return False


def _plan_probe(accelerator: Accelerator) -> list[str]:
    return [
        QEMU,
        *["-nodefaults", "-no-user-config", "-display", "none", "-machine", "q35", "-m", "32M"],
        *["-accel", accelerator.value, "-cpu", "host" if accelerator is Accelerator.KVM else "qemu64"],
        *["-bios", FIRMWARE_PLACE],
        *["-device", f"isa-debug-exit,iobase={EXIT_PORT:#x},iosize=4"],
    ]


def _digest_circumstances(version: str) -> str:
    """Of everything that can change the answer."""
    may_open = os.access(KVM_DEVICE, os.R_OK | os.W_OK)
    circumstances = [read_boot_id(), version, os.getuid(), KVM_DEVICE.exists(), may_open, build_firmware().hex()]
    return hashlib.sha256(json.dumps(circumstances).encode()).hexdigest()


def _find_remembered(path: Path, key: str) -> tuple[bool, str] | None:
    try:
        remembered = json.loads(path.read_text())
        if remembered["key"] == key:
            return bool(remembered["works"]), str(remembered["why"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # nothing remembered, or nonsense: ask again
    return None


def _remember(path: Path, key: str, works: bool, why: str) -> None:
    """An answer that cannot be kept is only asked again."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_suffix(f".{os.getpid()}")
        fresh.write_text(json.dumps({"key": key, "works": works, "why": why}))
        fresh.rename(path)


def _read_cpu_identity() -> str:
    """Model, stepping, microcode and flags of the first processor."""
    wanted = ("vendor_id", "cpu family", "model", "model name", "stepping", "microcode", "flags")
    try:
        first = Path("/proc/cpuinfo").read_text().partition("\n\n")[0]
    except OSError:
        return ""
    return "\n".join(line for line in first.splitlines() if line.partition("\t")[0].strip(": ") in wanted)
