"""Things that go wrong: deaths of every process, damaged files, hostile guests. The system stands afterwards."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.live.conftest import LiveSystem

MakeQube = Callable[..., str]


def state_of(system: LiveSystem, qube: str) -> str:
    (row,) = system.json("list", qube)
    return str(row["state"])


def pids_of(qube: str, program: bytes) -> list[int]:
    """This user's processes of that program whose command line names the qube."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if program in words[0] and any(qube.encode() in word for word in words[1:]):
            found.append(int(entry.name))
    return found


def test_a_killed_daemon_finds_its_qubes_again_and_ends_their_calls(system: LiveSystem, new_qube: MakeQube) -> None:
    qube = new_qube()
    system.run(qube, "sh", "-c", "echo before > /dev/shm/mark")
    call = system.start("run", qube, "--", "sleep", "300", stderr=subprocess.PIPE)
    time.sleep(1.5)
    system.kill_daemon()
    assert call.wait(30) == 255
    assert system.run(qube, "cat", "/dev/shm/mark").stdout == b"before\n"
    assert state_of(system, qube) == "Running"


@pytest.mark.parametrize("delay_s", [0.0, 0.15, 0.3, 0.6, 1.2])
def test_a_daemon_killed_during_a_start_leaves_a_system_that_starts(
    system: LiveSystem, new_qube: MakeQube, delay_s: float
) -> None:
    qube = new_qube()
    start = system.start("start", qube, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(0.1 + delay_s)
    system.kill_daemon()
    start.wait(60)
    assert state_of(system, qube) in ("Halted", "Running")
    assert system.run(qube, "echo", "up").stdout == b"up\n"


def test_a_daemon_killed_with_disposables_leaves_none(system: LiveSystem) -> None:
    from tests.live.conftest import wait_until

    call = system.start("run", "--dispvm", "--", "sleep", "300", stderr=subprocess.DEVNULL)
    wait_until(lambda: any(q["class"] == "DispVM" and q["state"] == "Running" for q in system.json("list")), 60, "it")
    time.sleep(1)
    system.kill_daemon()
    call.wait(30)
    wait_until(lambda: not [q for q in system.json("list") if q["class"] == "DispVM"], 60, "no disposable to be left")
    assert list((system.layout.runtime / "q").iterdir()) == [] or all(
        q["state"] == "Running" for q in system.json("list") if q["class"] == "AppVM" and q["name"].startswith("disp")
    )


def test_a_killed_machine_is_noticed_at_once_and_starts_again(system: LiveSystem, new_qube: MakeQube) -> None:
    from tests.live.conftest import wait_until

    qube = new_qube()
    system.run(qube, "sh", "-c", "echo kept > ~/kept; sync")
    for pid in pids_of(f"guest={qube}", b"qemu-system"):
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: state_of(system, qube) == "Halted", 20, "the daemon to notice")
    assert system.run(qube, "cat", "kept").stdout == b"kept\n"


def test_a_killed_relay_costs_its_calls_and_nothing_more(system: LiveSystem, new_qube: MakeQube) -> None:
    from tests.live.conftest import wait_until

    first, second = new_qube(), new_qube()
    for qube in (first, second):
        system.run(qube, "true")
    relays = [
        pid
        for pid in (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())
        if _comm(pid).startswith(f"qrexec {first}"[:15])
    ]
    if not relays:
        pytest.fail("no process is called after the relay of a qube")
    for pid in relays:
        os.kill(pid, signal.SIGKILL)
    assert system.run(second, "echo", "unhurt").stdout == b"unhurt\n"

    def answers() -> bool:
        return system.run(first, "echo", "again", expect=None).stdout == b"again\n"

    wait_until(answers, 60, "the agent to be reached by a new relay")


def _comm(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def test_a_damaged_fork_point_is_dropped_and_the_qube_starts_all_the_same(
    system: LiveSystem, new_qube: MakeQube
) -> None:
    qube = new_qube("--property", "memory=300")
    system.cloison("forkpoint", "make", qube, timeout_s=600)
    points = [row for row in system.json("forkpoint", "list") if row["memory_bytes"] == 300 << 20]
    state = system.layout.forkpoints / points[0]["key"] / "state"
    damaged = bytearray(state.read_bytes())
    damaged[1000:-1000] = os.urandom(len(damaged) - 2000)
    state.chmod(0o600)
    state.write_bytes(damaged)
    assert system.run(qube, "echo", "up", timeout_s=900).stdout == b"up\n"
    assert "instead" in system.layout.log.read_text().rpartition("could not be forked")[2]


def test_a_damaged_private_image_is_refused_by_name(system: LiveSystem, new_qube: MakeQube) -> None:
    qube = new_qube()
    system.run(qube, "sh", "-c", "echo data > ~/data; sync")
    system.cloison("shutdown", "--wait", qube)
    before = {path: path.stat().st_mtime for path in (system.root / "data" / "pools").rglob("*.img")}
    newest = max(before, key=lambda path: before[path])
    original = newest.read_bytes()
    newest.chmod(0o600)
    newest.write_bytes(b"\0" * 512 + original[512:])
    said = system.cloison("start", qube, expect=None)
    newest.write_bytes(original)
    assert said.returncode != 0
    assert newest.name.encode() in said.stderr, said.stderr
    assert system.run(qube, "cat", "data").stdout == b"data\n"


@pytest.mark.parametrize(
    "attack",
    [
        "head -c 3000000 /dev/urandom > $port",
        "head -c 3000000 /dev/zero > $port",
        'python3 -c "import os,sys; d=os.open(sys.argv[1],os.O_WRONLY);'
        "[os.write(d, b'\\xff\\xff\\xff\\x7f'+os.urandom(8)) for _ in range(20000)]\" $port",
        "sleep 1",
    ],
    ids=["random bytes", "zeros", "absurd frames", "silence"],
)
def test_a_hostile_agent_harms_only_its_own_qube(system: LiveSystem, new_qube: MakeQube, attack: str) -> None:
    victim, other = new_qube(), new_qube()
    system.run(other, "true")
    script = (
        "port=/dev/virtio-ports/org.cloison.agent;"
        f"systemd-run --quiet --unit=attack sh -c 'port='$port'; sleep 1; systemctl stop cloison-agent; {attack}'"
    ).replace("$port'", "/dev/virtio-ports/org.cloison.agent'")
    system.run(victim, "sh", "-c", script, user="root", expect=None)
    deadline = time.monotonic() + 6
    while time.monotonic() < deadline:
        assert system.run(other, "echo", "unhurt").stdout == b"unhurt\n"
    system.cloison("kill", victim)
    assert system.run(victim, "echo", "new life").stdout == b"new life\n"


def test_a_damaged_database_is_named_and_kept(system: LiveSystem) -> None:
    with tempfile.TemporaryDirectory(prefix=".c-", dir=Path.home()) as name:
        database = Path(name) / "data" / "cloison.sqlite"
        database.parent.mkdir(parents=True)
        rubbish = b"SQLite format 3\0" + os.urandom(9000)
        database.write_bytes(rubbish)
        command = [system.start.__globals__["CLOISON"], "list"]
        environment = {**system.environment, "CLOISON_ROOT": name}
        done = subprocess.run(command, env=environment, capture_output=True, timeout=60)
        assert done.returncode != 0
        assert str(database).encode() in done.stderr, done.stderr
        assert b"Traceback" not in done.stderr
        assert database.read_bytes() == rubbish
