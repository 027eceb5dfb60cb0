"""The e-mail scenario that ./quickstart plays: a hostile attachment does its harm in a disposable, and nowhere else."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.live.conftest import LiveSystem

SCENARIO = Path(__file__).parents[2] / "examples/email/run.py"


QUBES = (("work", "blue"), ("personal", "yellow"), ("vault", "black"))


NETVM, DISPOSABLES = "mail-net", "default-dvm"


@pytest.fixture
def named_qubes(system: LiveSystem) -> Iterator[None]:
    """Those of the scenario, and a way out of the host for what opens documents."""
    for name, label in QUBES:
        system.cloison("create", "--template", "debian-13", "--label", label, name)
    system.cloison("create", "--disp", "--template", DISPOSABLES, "--label", "red", "--prop", "provides_network=True",
                   "--prop", "netvm=", NETVM)  # fmt: skip
    system.cloison("prefs", DISPOSABLES, "netvm", NETVM)
    yield
    system.cloison("prefs", "--default", DISPOSABLES, "netvm", expect=None)
    for name in (*(name for name, _ in QUBES), NETVM):
        system.cloison("kill", name, expect=None)
        system.cloison("remove", "--yes", name, expect=None)


@pytest.mark.alone
@pytest.mark.usefixtures("named_qubes")
def test_every_claim_of_containment_holds(system: LiveSystem) -> None:
    rules = system.cloison("firewall", "list", DISPOSABLES, "--json").stdout
    command = [sys.executable, str(SCENARIO)]
    done = subprocess.run(command, env=system.environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all claims hold" in done.stdout
    assert f"it called its master, and a rule in {NETVM} refused it" in done.stdout
    assert system.cloison("firewall", "list", DISPOSABLES, "--json").stdout == rules
