"""Ending a run: asking, waiting, putting away.

In: a live qube. Out: its volumes closed, its record gone. May import: model, errors, driver interfaces.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
from dataclasses import replace

from cloison.engine.runs import Phase
from cloison.engine.start import Ground, Live, end_volumes
from cloison.errors import CloisonError

log = logging.getLogger(__name__)

ASK_TIMEOUT_S = 30.0
"""Longest wait for an agent to accept a request to shut down."""


async def ask_to_stop(live: Live) -> None:
    """Tell the guest to power off; falls back on the power button when its agent does not answer."""
    if live.link is not None:
        try:
            await live.link.control("shutdown", {}, timeout_s=ASK_TIMEOUT_S)
            return
        except CloisonError as error:
            log.warning(
                "%s does not take the request to shut down (%s): pressing its power button", live.facts.name, error
            )
    with contextlib.suppress(CloisonError):
        await live.machine.powerdown()


async def put_away(ground: Ground, live: Live, *, clean: bool) -> None:
    """After the machine is gone: close the channel and the volumes, forget the run. Repeatable."""
    ground.write_run(live.facts.name, replace(live.run, phase=Phase.STOPPING))
    if live.link is not None:
        await live.link.close()
    await end_volumes(ground.pool, live.run.volumes, clean=clean)
    if not live.facts.auto_cleanup:
        kept = ground.kept_console_log(live.facts.name)
        with contextlib.suppress(OSError):
            kept.parent.mkdir(exist_ok=True)
            shutil.copyfile(live.machine.console_log, kept)
    await asyncio.to_thread(shutil.rmtree, live.directory, ignore_errors=True)
    ground.write_run(live.facts.name, None)
