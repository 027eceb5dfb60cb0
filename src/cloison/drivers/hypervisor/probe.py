"""What this host can do for guests: QEMU's version, and whether KVM really runs them.

In: the host. Out: a ``Host``. May import: plan, launch, errors.
"""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

from cloison.drivers.hypervisor.base import Accelerator
from cloison.drivers.hypervisor.plan import Host
from cloison.errors import BackendFailed

QEMU = "qemu-system-x86_64"


async def find_host(cache: Path, *, wished: Accelerator | None = None) -> Host:
    process = await asyncio.create_subprocess_exec(QEMU, "--version", stdout=asyncio.subprocess.PIPE)
    out, _ = await process.communicate()
    text = out.decode().splitlines()[0]
    found = re.search(r"version (\d+)\.(\d+)", text)
    if found is None:
        raise BackendFailed("x")
    return Host(wished or Accelerator.EMULATION, (int(found[1]), int(found[2])), text)
