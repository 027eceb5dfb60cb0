"""Runs whose changes count only if somebody says so: how templates are updated.

In: who wants to try, for as long as they are there. Out: a run that is settled, or gone without a trace. May import:
system, model, errors.

Whoever tries may die at any moment, and so may this daemon; what was half done then must never become what other qubes
start from. So nothing has to be taken back: without the word "settled" there is nothing (``Pool.begin_run``).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from cloison.engine.system import System
from cloison.errors import BadRequest, NotNow
from cloison.model.names import QubeName


class Trials:
    """Verbs on halted qubes that keep their own root."""

    def __init__(self, system: System) -> None:
        self._system = system
        self._settled: dict[QubeName, asyncio.Event] = {}

    async def hold(self, name: QubeName, begun: Callable[[], None]) -> bool:
        """Start the qube on trial and stay until its run is settled (True) or over (False).

        Cancelled before that, the run is ended, and what it wrote is gone. QubeNotHalted if it runs already.
        """
        if not self._system.books.facts(name).kept_root:
            raise BadRequest(f"{name} keeps nothing of its system anyway", hint="templates and standalone qubes do")
        await self._system.start(name, on_trial=True)
        live = self._system.live(name)
        settled = self._settled[name] = asyncio.Event()
        waits = {
            asyncio.ensure_future(settled.wait()),
            asyncio.ensure_future(self._system.wait_ended(live)),
        }
        try:
            begun()
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
            del self._settled[name]
            if not settled.is_set() and self._system.find_live(name) is live:
                self._system.own(self._system.kill(name), f"the trial in {name} was given up")
        return settled.is_set()

    async def settle(self, name: QubeName) -> None:
        """What was tried is good: keep it when the qube is shut down. NotNow where nothing is tried."""
        settled = self._settled.get(name)
        live = self._system.find_live(name)
        if settled is None or live is None:
            raise NotNow(f"nothing is tried in {name}")
        await self._system.settle(live)
        settled.set()
