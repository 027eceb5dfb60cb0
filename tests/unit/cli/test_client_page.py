"""The programs on the page about the client library run as they stand there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PAGE = Path(__file__).parents[3] / "docs/client.md"
PROGRAMS = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
SAID = ["work AppVM Running", "['Running', 'Halted']", "it was off", "work domain-shutdown {}", "['root', 'private']"]


@pytest.mark.parametrize("number", range(len(SAID)))
def test_a_program_of_the_page_runs(daemon: Any, system: Any, number: int) -> None:
    daemon.answers("admin.vm.Shutdown", daemon.refused("QubesVMNotStartedError", "work is off"))
    daemon.answers("admin.Events", daemon.event("", "connection-established") + daemon.event("work", "domain-shutdown"))
    daemon.answers("admin.vm.volume.List", daemon.ok("root\nprivate\n"))
    daemon.answers("admin.vm.property.Get", daemon.ok("default=False type=int 800"))
    done = subprocess.run([sys.executable, "-c", PROGRAMS[number]], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert SAID[number] in done.stdout.splitlines()


def test_the_page_has_no_other_programs() -> None:
    assert len(PROGRAMS) == len(SAID)
