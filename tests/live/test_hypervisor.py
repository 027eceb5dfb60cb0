"""Machines end for a reason that is told, see nothing of the host, and cannot change what they were forked from."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.live.conftest import LiveSystem

END_LIMIT_S = 60
MEMORY_BITE = "head -c 200000000 /dev/zero | tail -c 200000000 | wc -c"
"""Makes a program hold 200 MB for a moment; the guest then gives the pages back to the host."""
BITE_KIB = 200_000_000 >> 10


def state_of(system: LiveSystem, qube: str) -> str:
    (row,) = system.json("list", qube)
    return str(row["state"]).lower()


def wait_halted(system: LiveSystem, qube: str) -> None:
    from tests.live.conftest import wait_until

    wait_until(lambda: state_of(system, qube) == "halted", END_LIMIT_S, f"{qube} to be halted")


def qemu_pid(qube: str) -> int:
    """The process id of the qube's QEMU (not of the jail's wrapper around it)."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if command[0].endswith(b"qemu-system-x86_64") and b"guest=" + qube.encode() in command:
                return int(entry.name)
    raise AssertionError(f"no QEMU runs {qube}")


def start_in_background(system: LiveSystem, qube: str, command: str) -> subprocess.Popen[bytes]:
    return system.start(
        "run", "--user", "root", qube, "--", "sh", "-c", command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def test_a_guest_that_powers_off_is_halted(system: LiveSystem, new_qube: Callable[..., str]) -> None:
    from tests.live.conftest import wait_until

    qube = new_qube()
    system.cloison("start", qube)
    start_in_background(system, qube, "systemctl poweroff").wait(END_LIMIT_S)
    seen: list[str] = []

    def is_halted() -> bool:
        seen.append(state_of(system, qube))
        return seen[-1] == "halted"

    wait_until(is_halted, END_LIMIT_S, f"{qube} to be halted")
    assert "halting" in seen, "that it goes down is seen while it does"


def test_a_guest_kernel_that_panics_is_noticed(system: LiveSystem, new_qube: Callable[..., str]) -> None:
    qube = new_qube()
    system.cloison("start", qube)
    panic = start_in_background(system, qube, "echo 1 > /proc/sys/kernel/sysrq; echo c > /proc/sysrq-trigger")
    wait_halted(system, qube)
    assert panic.wait(END_LIMIT_S) != 0, "the call ended with an error, not with silence"


def test_a_killed_hypervisor_is_noticed_and_the_qube_starts_again(
    system: LiveSystem, new_qube: Callable[..., str]
) -> None:
    qube = new_qube()
    system.run(qube, "sh", "-c", "echo kept > kept; sync")
    os.kill(qemu_pid(qube), signal.SIGKILL)
    wait_halted(system, qube)
    assert system.run(qube, "cat", "kept").stdout == b"kept\n"


def test_a_machine_is_jailed(system: LiveSystem, new_qube: Callable[..., str]) -> None:
    qube = new_qube()
    system.cloison("start", qube)
    process = Path(f"/proc/{qemu_pid(qube)}")
    status = dict(line.split(":\t") for line in (process / "status").read_text().splitlines() if ":\t" in line)
    assert int(status["CapEff"], 16) == int(status["CapBnd"], 16) == 0
    assert status["NoNewPrivs"].strip() == "1" and status["Seccomp"].strip() == "2"
    for namespace in ("user", "mnt", "pid", "net", "ipc", "uts"):
        assert (process / "ns" / namespace).readlink() != Path(f"/proc/self/ns/{namespace}").readlink(), namespace
    mounts = [line.split() for line in (process / "mountinfo").read_text().splitlines()]
    places = {fields[4] for fields in mounts}
    assert all(place in ("/", "/usr", "/memory", "/dev/kvm") or place.startswith("/key-") for place in places), places
    assert all("ro" in fields[5].split(",") for fields in mounts if fields[4] != "/dev/kvm")
    command = (process / "cmdline").read_text()
    assert str(system.root) not in command and str(Path.home()) not in command


def test_no_fork_changes_the_memory_it_was_forked_from(system: LiveSystem) -> None:
    frozen = sorted(system.layout.forkpoints.glob("[!.]*/memory"))
    assert frozen

    def digests() -> list[str]:
        return [hashlib.file_digest(path.open("rb"), "sha256").hexdigest() for path in frozen]

    before = digests()
    # The pages come back some seconds after the shell let go of them; that is when a file could be harmed.
    bite = f"{MEMORY_BITE}; sleep 8"
    done = system.cloison("run", "--dispvm", "--", "sh", "-c", bite)
    assert done.stdout.strip() == b"200000000"
    assert digests() == before


def test_memory_that_a_guest_frees_comes_back_to_the_host(system: LiveSystem, new_qube: Callable[..., str]) -> None:
    from tests.live.conftest import wait_until

    def resident_kib() -> int:
        rollup = Path(f"/proc/{qemu_pid(qube)}/smaps_rollup").read_text()
        return next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Anonymous:"))

    qube = new_qube()
    system.cloison("start", qube)
    idle_kib = resident_kib()
    bite = start_in_background(system, qube, f"{MEMORY_BITE}; sleep 2")
    most_kib = idle_kib
    while bite.poll() is None:
        most_kib = max(most_kib, resident_kib())
        time.sleep(0.1)
    assert most_kib > idle_kib + BITE_KIB * 3 // 4, "the guest took no memory"
    # What a fork wrote while it ran programs stays its own; most of the bite must come back all the same.
    wait_until(lambda: resident_kib() < most_kib - BITE_KIB * 6 // 10, END_LIMIT_S, "the guest to give memory back")


def test_what_a_guest_says_on_its_console_is_kept(system: LiveSystem, new_qube: Callable[..., str]) -> None:
    from tests.live.conftest import wait_until

    qube = new_qube()
    system.run(qube, "sh", "-c", "echo a word from the guest > /dev/ttyS0", user="root")

    def logs() -> list[bytes]:
        return [path.read_bytes() for path in system.layout.machines_runtime.glob("*/console.log")]

    wait_until(lambda: any(b"a word from the guest" in log for log in logs()), 10, "the console log to have it")
