"""What a qube keeps, what it loses, what it shares with its template, and the verbs of its life."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.live.conftest import LiveSystem

MakeQube = Callable[..., str]


def text(system: LiveSystem, qube: str, command: str, **options: object) -> str:
    return system.run(qube, "sh", "-c", command, **options).stdout.decode().strip()  # type: ignore[arg-type]


def state_of(system: LiveSystem, qube: str) -> str:
    (row,) = system.json("list", qube)
    return str(row["state"])


@pytest.fixture(scope="module")
def qube(system: LiveSystem) -> Iterator[str]:
    """One running qube that the tests of this module share."""
    system.cloison("create", "--template", "debian-13", "--label", "blue", "shared")
    system.cloison("start", "shared")
    yield "shared"
    system.cloison("kill", "shared", expect=None)
    system.cloison("remove", "--yes", "shared")


def test_a_restart_keeps_home_and_throws_the_rest_away(system: LiveSystem, new_qube: MakeQube) -> None:
    qube = new_qube()
    mark = (
        "echo mine > /home/user/kept; mkdir -p /usr/local/bin; echo also > /usr/local/bin/tool; echo gone > /etc/gone"
    )
    text(system, qube, f"{mark}; sync", user="root")
    system.cloison("restart", qube)
    assert text(system, qube, "cat /home/user/kept /usr/local/bin/tool; test -e /etc/gone; echo $?") == "mine\nalso\n1"


def test_a_kill_loses_nothing_that_was_synced_to_home(system: LiveSystem, new_qube: MakeQube) -> None:
    qube = new_qube()
    text(system, qube, "echo precious > ~/data; sync")
    system.cloison("kill", qube)
    assert text(system, qube, "cat ~/data") == "precious"


def test_a_qube_knows_who_it_is(system: LiveSystem, qube: str) -> None:
    assert text(system, qube, "hostname; id -un") == f"{qube}\nuser"
    (row,) = system.json("list", qube)
    assert text(system, qube, "cat /etc/machine-id") == row["uuid"].replace("-", "")


def test_the_clock_of_a_fork_is_the_hosts(system: LiveSystem, qube: str) -> None:
    import time

    assert abs(int(text(system, qube, "date +%s")) - time.time()) < 5


@pytest.mark.parametrize(
    ("command", "code"),
    [("exit 7", 7), ("kill -9 $$", 137), ("kill -TERM $$", 143), ("/no/such/program", 127), ("true", 0)],
)
def test_exit_codes_come_back_as_a_shell_would_give_them(
    system: LiveSystem, qube: str, command: str, code: int
) -> None:
    system.run(qube, "sh", "-c", command, expect=code)


def test_standard_streams_are_three(system: LiveSystem, qube: str) -> None:
    done = system.run(qube, "sh", "-c", "cat; echo err >&2", stdin=b"through\0bytes\n")
    assert (done.stdout, done.stderr) == (b"through\0bytes\n", b"err\n")


def test_eight_megabytes_pass_unharmed_both_ways(system: LiveSystem, qube: str) -> None:
    payload = bytes(range(256)) * (8 << 12)
    assert system.run(qube, "cat", stdin=payload).stdout == payload


def test_a_caller_that_goes_away_ends_its_program(system: LiveSystem, qube: str) -> None:
    from tests.live.conftest import wait_until

    running = system.start("run", qube, "--", "sleep", "7654")
    wait_until(lambda: text(system, qube, "pgrep -fc '^sleep 7654' || true") == "1", 60, "the program to run")
    running.kill()
    running.wait()
    wait_until(lambda: text(system, qube, "pgrep -fc '^sleep 7654' || true") == "0", 60, "the program to be ended")


def test_a_paused_qube_does_nothing_until_it_goes_on(system: LiveSystem, qube: str) -> None:
    system.cloison("pause", qube)
    assert state_of(system, qube) == "Paused"
    system.cloison("unpause", qube)
    assert text(system, qube, "echo back") == "back"


def test_two_starts_at_once_are_one_start(system: LiveSystem, new_qube: MakeQube) -> None:
    qube = new_qube()
    starts = [system.start("start", qube) for _ in range(3)]
    # Which of them finds it running already is a matter of luck; the machine must be one.
    codes = [start.wait(120) for start in starts]
    assert 0 in codes
    assert state_of(system, qube) == "Running"
    assert text(system, qube, "echo one") == "one"


def test_a_qube_is_not_removed_while_it_runs_or_is_needed(system: LiveSystem, qube: str) -> None:
    said = system.cloison("remove", "--yes", qube, expect=None)
    assert said.returncode != 0
    assert len(said.stderr.strip().splitlines()) == 1
    said = system.cloison("remove", "--yes", "debian-13", expect=None)
    assert said.returncode != 0
    assert qube.encode() in said.stderr, "the users are named"


def test_removing_while_starting_harms_neither(system: LiveSystem, new_qube: MakeQube) -> None:
    qube = new_qube()
    start = system.start("start", qube)
    system.cloison("remove", "--yes", qube, expect=None)
    start.wait(120)
    assert [row["name"] for row in system.json("list")].count(qube) in (0, 1)
    if start.returncode == 0:
        assert text(system, qube, "echo fine") == "fine"


def test_rename_and_clone_take_the_home_along(system: LiveSystem, new_qube: MakeQube) -> None:
    qube = new_qube()
    text(system, qube, "echo treasure > ~/chest; sync")
    system.cloison("shutdown", "--wait", qube)
    system.cloison("clone", qube, "copy-of-it")
    try:
        system.cloison("rename", "copy-of-it", "renamed")
        assert text(system, "renamed", "cat ~/chest; hostname") == "treasure\nrenamed"
    finally:
        system.cloison("kill", "renamed", expect=None)
        system.cloison("remove", "--yes", "renamed", expect=None)


def test_a_private_volume_grows_and_goes_back_to_a_revision(system: LiveSystem, new_qube: MakeQube) -> None:
    qube = new_qube()
    text(system, qube, "echo first > ~/note; sync")
    system.cloison("shutdown", "--wait", qube)
    text(system, qube, "echo second > ~/note; sync")
    system.cloison("shutdown", "--wait", qube)
    (revision, *_) = reversed(system.json("volume", "revisions", f"{qube}:private"))
    name = revision if isinstance(revision, str) else revision["revision"]
    system.cloison("volume", "revert", "--yes", f"{qube}:private", name)
    system.cloison("volume", "resize", f"{qube}:private", "3GiB")
    assert text(system, qube, "cat ~/note") == "first"
    from tests.live.conftest import wait_until

    size = "df --output=size -BM /rw | tail -1 | tr -dc 0-9"
    wait_until(lambda: int(text(system, qube, size)) > 2500, 60, "the file system to fill its disk")


def test_a_qube_at_its_end_of_disk_says_so_and_lives(system: LiveSystem, new_qube: MakeQube) -> None:
    qube = new_qube()
    said = system.run(qube, "sh", "-c", "head -c 200M /dev/zero > /dev/shm/full", expect=None)
    assert said.returncode != 0
    assert b"No space left" in said.stderr
    assert text(system, qube, "rm -f /dev/shm/full; echo alive") == "alive"


def test_disposables_leave_no_trace(system: LiveSystem) -> None:
    from tests.live.conftest import wait_until

    def files() -> set[str]:
        return {str(path) for path in system.root.rglob("*") if "log" not in path.parts}

    system.run("--dispvm", "true")
    wait_until(lambda: not [q for q in system.json("list") if q["class"] == "DispVM"], 30, "the disposable to be gone")
    before = files()
    system.run("--dispvm", "sh", "-c", "head -c 3000000 /dev/urandom > ~/secret; sync")
    wait_until(lambda: not [q for q in system.json("list") if q["class"] == "DispVM"], 30, "the disposable to be gone")
    wait_until(lambda: files() <= before, 30, "its files to be gone")


def test_twenty_disposables_at_once_are_twenty_different_ones(system: LiveSystem) -> None:
    command = (
        "hostname; cat /etc/machine-id /proc/sys/kernel/random/boot_id /proc/sys/kernel/random/uuid;"
        "head -c 16 /dev/urandom | od -An -tx1; python3 -c 'import os; print(os.getrandom(16).hex())'"
    )
    answers: list[list[str]] = []

    def ask() -> None:
        done = system.run("--dispvm", "sh", "-c", command, timeout_s=400)
        answers.append(done.stdout.decode().strip().split("\n"))

    threads = [threading.Thread(target=ask) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 20
    for what, values in zip(
        ("name", "machine-id", "boot-id", "uuid", "urandom", "getrandom"), zip(*answers, strict=True), strict=True
    ):
        assert len(set(values)) == 20, f"two forks have the same {what}"


def test_ssh_keys_of_two_forks_differ(system: LiveSystem) -> None:
    command = ("sh", "-c", "ssh-keygen -q -t ed25519 -N '' -f k && cat k.pub")
    first, second = (system.run("--dispvm", *command).stdout.split()[1] for _ in range(2))
    assert first != second


@pytest.mark.parametrize(
    "name", ["", "-x", "1work", "a b", "a" * 32, "dom0", "none", "x-dm", "ü", "a;b", "../a", "a\nb"]
)
def test_odd_names_are_refused_in_one_line(system: LiveSystem, name: str) -> None:
    said = system.cloison("create", "--template", "debian-13", "--label", "red", "--", name, expect=None)
    assert said.returncode != 0
    assert len(said.stderr.strip().splitlines()) == 1, said.stderr
    assert b"Traceback" not in said.stderr
