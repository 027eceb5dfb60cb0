"""The engine's two halves, introduced to each other: running verbs ask, bookkeeping verbs answer.

In: questions of the running verbs. Out: answers from the ledger. May import: engine.
"""

from __future__ import annotations

from cloison.engine.events import Event
from cloison.engine.facts import facts_of
from cloison.engine.inventory import Ledger
from cloison.engine.qubes import Qubes
from cloison.engine.start import Facts
from cloison.engine.volumes import Volumes
from cloison.model.names import QubeName

USED_BY = ("netvm", "guivm", "audiovm")
"""Properties through which a running qube needs another one to run."""


class Bookkeeping:
    """Implements ``engine.system.Books``; ``volumes`` and ``qubes`` are set before the system is used."""

    volumes: Volumes
    qubes: Qubes

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def facts(self, name: QubeName) -> Facts:
        return facts_of(self._ledger.inventory, name)

    def say(self, event: Event) -> None:
        self._ledger.tell(event)

    def running_users(self, name: QubeName, running: frozenset[QubeName]) -> list[QubeName]:
        inventory = self._ledger.inventory
        users = {qube.name for by in USED_BY for qube in inventory.users(name, by)}
        waiting = {user for user in users if inventory.qube(user).is_preloaded}
        return sorted(users & running - waiting - {name})

    async def forget(self, name: QubeName) -> None:
        await self.qubes.forget(name)
