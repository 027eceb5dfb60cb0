"""Template builds that are refused, interrupted, killed half-way, and done again."""

from __future__ import annotations

import signal
import subprocess
import time
from typing import TYPE_CHECKING

import pytest
from tests.live.conftest import BUILD_LIMIT_S, TEMPLATE, is_alive, processes_of, wait_until

if TYPE_CHECKING:
    from tests.live.conftest import LiveSystem

NAME = "built-again"


def names(system: LiveSystem) -> list[str]:
    return [row["name"] for row in system.json("list")]


def building(system: LiveSystem) -> list[str]:
    """What builds leave in the cache until they are done."""
    return [path.name for path in (system.layout.cache / "images").glob(".building-*")]


def builders(system: LiveSystem) -> set[int]:
    """The processes that fill an image now."""
    return {pid for pid, command in processes_of(system.root).items() if "mmdebstrap" in command}


@pytest.mark.parametrize("name", [TEMPLATE, "default-dvm", "dom0", "no/name"])
def test_a_build_under_a_name_that_is_taken_or_bad_is_refused_at_once(system: LiveSystem, name: str) -> None:
    before = names(system)
    said = system.cloison("template", "build", name, expect=None, timeout_s=10)
    assert said.returncode != 0
    assert len([line for line in said.stderr.splitlines() if b"cloison:" in line or b"Error" in line]) == 1
    assert names(system) == before


@pytest.mark.parametrize("way", ["Ctrl-C", "the daemon is killed"])
def test_a_build_that_is_cut_short_leaves_nothing_and_can_be_repeated(system: LiveSystem, way: str) -> None:
    # Forced, so that a real build begins; one more package makes it another image than the one in use.
    command = ("template", "build", "--force", "--include", "hello", NAME)
    build = system.start(*command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    wait_until(lambda: bool(building(system)) and bool(builders(system)), 60, "the build to be under way")
    time.sleep(1)
    programs = builders(system)
    if way == "Ctrl-C":
        build.send_signal(signal.SIGINT)
    else:
        system.kill_daemon()
    said, _ = build.communicate(timeout=60)
    assert build.returncode != 0
    assert b"Traceback" not in said
    wait_until(lambda: not any(map(is_alive, programs)), 30, "the programs of the build to be gone")
    assert NAME not in names(system)
    if way == "Ctrl-C":
        wait_until(lambda: not building(system), 30, "the half-made image to be gone")
    system.cloison("template", "build", NAME, timeout_s=BUILD_LIMIT_S)
    assert NAME in names(system)
    system.cloison("template", "remove", "--yes", NAME)


@pytest.mark.parametrize("delay_s", [0.1, 0.2, 0.3, 0.5])
def test_a_daemon_killed_at_the_end_of_a_build_leaves_all_or_nothing(system: LiveSystem, delay_s: float) -> None:
    build = system.start("template", "build", NAME, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(delay_s)
    system.kill_daemon()
    build.wait(BUILD_LIMIT_S)
    if NAME not in names(system):
        system.cloison("template", "build", NAME, timeout_s=BUILD_LIMIT_S)
    user = f"user-of-{delay_s}".replace(".", "-")
    system.cloison("create", "--template", NAME, "--label", "red", user)
    try:
        assert system.run(user, "echo", "up").stdout == b"up\n"
    finally:
        system.cloison("remove", "--yes", "--kill", user)
        system.cloison("template", "remove", "--yes", NAME)
