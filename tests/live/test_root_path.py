"""Started by root, Cloison works as for everybody: a smoke test. (All other live tests run as an ordinary user.)"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.live.conftest import LiveSystem


def test_root_runs_a_command_in_a_fresh_disposable(system: LiveSystem) -> None:
    done = system.cloison("run", "--dispvm", "--", "id", "-un")
    assert done.stdout == b"user\n"


def test_nothing_of_the_disposable_is_left(system: LiveSystem) -> None:
    from tests.live.conftest import wait_until

    system.cloison("run", "--dispvm", "--", "true")
    wait_until(lambda: "DispVM" not in {qube["class"] for qube in system.json("list")}, 30, "the disposable to be gone")
