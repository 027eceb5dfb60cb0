"""Once a day each template is asked whether packages wait, which the feature ``updates-available`` then says.

In: the inventory. Out: runs of ``cloison update --check``, one after the other, on halted templates and standalones.
May import: daemon. Only qubes with the feature ``check-updates`` are asked, because a look starts the template, and
taking it back afterwards costs its oldest kept revision. Nothing is asked in the first hour, nor where no qube leads
out, nor if the global property ``check_updates_vm`` is off or the feature ``skip-update`` is set.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from collections.abc import Callable, Iterator

from cloison.engine.system import System
from cloison.model.inventory import Inventory
from cloison.model.names import QubeName
from cloison.model.network import netvm_of
from cloison.model.power import PowerState

log = logging.getLogger(__name__)

LOOK_EVERY_S = 3600.0
DAY_S = 86400.0
CHECK_LIMIT_S = 1800.0
STAMP = "%Y-%m-%d %H:%M:%S"


async def keep_asking(system: System, inventory: Callable[[], Inventory]) -> None:
    """For as long as the daemon runs."""
    while True:
        await asyncio.sleep(LOOK_EVERY_S)
        for name in list(find_due(inventory(), time.time())):
            if system.power_state(name) is PowerState.HALTED:
                await _check(name)


def find_due(inventory: Inventory, now: float) -> Iterator[QubeName]:
    """Qubes that were not asked for a day."""
    machines = [qube for qube in inventory.qubes.values() if qube.is_machine]
    leads_out = any(
        inventory.flag(q.name, "provides_network") and netvm_of(inventory, q.name) is None for q in machines
    )
    if not leads_out or not inventory.setting("check_updates_vm"):
        return
    for qube in machines:
        is_wanted = bool(qube.features.get("check-updates")) and not qube.features.get("skip-update")
        is_due = now - _read_stamp(qube.features.get("last-updates-check", "")) > DAY_S
        if qube.klass.keeps_root and is_wanted and is_due:
            yield qube.name


def _read_stamp(text: str) -> float:
    try:
        return time.mktime(time.strptime(text, STAMP))
    except (ValueError, OverflowError):
        return 0.0


async def _check(name: QubeName) -> None:
    arguments = ("-m", "cloison.cli", "-q", "update", "--check", "--json", name)
    nothing = asyncio.subprocess.DEVNULL
    process = await asyncio.create_subprocess_exec(
        sys.executable, *arguments, stdin=nothing, stdout=nothing, stderr=nothing
    )
    try:
        code = await asyncio.wait_for(process.wait(), CHECK_LIMIT_S)
        log.info("asked whether packages wait for %s: %s", name, "done" if code == 0 else f"exit code {code}")
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()
