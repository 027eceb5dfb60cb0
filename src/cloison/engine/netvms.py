"""What running netvms are told of their clients: who there is, and each one's rules.

In: clients to admit. Out: agents that have acknowledged. May import: model, wire, errors.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from cloison.engine.start import Live
from cloison.engine.system import System
from cloison.errors import BackendFailed
from cloison.model.inventory import Inventory
from cloison.model.names import QubeName
from cloison.model.network import downlinks_of, inner_resolvers
from cloison.wire.network import COUNTERS, DOWNLINKS, RULES, downlinks_fields, split_rules

AGENT_TIMEOUT_S = 120.0
"""Longer than all that the agent itself waits for: the user's scripts, then cards, of which fifty may come at once."""


@dataclass
class _Told:
    """One netvm's conversation: requests are answered in rounds, each with everybody who is there by then."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    asked: int = 0
    done: int = 0
    missing: frozenset[str] = frozenset()
    resolvers: tuple[str, ...] = ()
    """Of its own way out, where that is the host's."""


class Netvms:
    def __init__(
        self, system: System, inventory: Callable[[], Inventory], clients_at: Callable[[QubeName], frozenset[QubeName]],
        rules_of: Callable[[Inventory, QubeName], str], lost_rules: Callable[[QubeName], None],
    ) -> None:  # fmt: skip
        """``lost_rules`` is told of clients whose rules an agent does not have (its process began anew)."""
        self._system = system
        self._inventory = inventory
        self._clients_at = clients_at
        self._rules_of = rules_of
        self._lost_rules = lost_rules
        self._told: dict[QubeName, _Told] = {}

    def set_resolvers(self, name: QubeName, resolvers: tuple[str, ...]) -> None:
        """The netvm's own way out has other resolvers now; its clients' questions go there."""
        told = self._told.setdefault(name, _Told())
        if told.resolvers != resolvers:
            told.resolvers = resolvers
            if self._clients_at(name) and (live := self._system.find_live(name)) is not None:
                self._system.own(self.inform(live), f"resolvers of {name}")

    def forget(self, name: QubeName) -> None:
        """It has stopped."""
        self._told.pop(name, None)

    async def admit(self, netvm: Live, client: QubeName, interface: str) -> None:
        """Returns once the netvm's agent has the client's card set up and its rules in force; else BackendFailed, and
        the cable must stay closed."""
        await self.inform(netvm)
        if interface in self._told[netvm.facts.name].missing:
            raise BackendFailed(f"the network card for {client} has not appeared in {netvm.facts.name}")
        await self.load_rules(netvm, client, interface)

    async def load_rules(self, netvm: Live, client: QubeName, interface: str) -> None:
        """Returns once the client's rules of now are in force in the netvm; else BackendFailed."""
        if netvm.link is None:
            raise BackendFailed(f"{netvm.facts.name} has no agent that could keep the rules of {client}")
        for part in split_rules(interface, self._rules_of(self._inventory(), client)):
            await netvm.link.control(RULES, part._asdict(), timeout_s=AGENT_TIMEOUT_S)

    async def counters(self, netvm: Live, interface: str) -> dict[str, object]:
        """What the client's rules have decided: ``rules`` index -> (packets, bytes), ``refused``, ``spoofed``."""
        if netvm.link is None:
            raise BackendFailed(f"{netvm.facts.name} has no agent that could count")
        counted: dict[str, list[int]] = {}
        first = 0
        while True:
            answer = await netvm.link.control(
                COUNTERS, {"interface": interface, "first": first}, timeout_s=AGENT_TIMEOUT_S
            )
            for row in str(answer.get("text", "")).split():
                number, packets, size = (int(part) for part in row.split(":"))
                counted[str(number)] = [packets, size]
            following = int(answer.get("next", 0))
            if following <= first:
                return {"rules": counted, "refused": int(answer["refused"]), "spoofed": int(answer["spoofed"])}
            first = following

    async def inform(self, netvm: Live) -> None:
        """Tell the netvm's agent of all its clients as they are now; many who ask at once share a round."""
        name = netvm.facts.name
        if netvm.link is None:
            raise BackendFailed(f"{name} has no agent that could keep its clients' rules")
        told = self._told.setdefault(name, _Told())
        told.asked += 1
        mine = told.asked
        async with told.lock:
            if told.done >= mine:
                return
            round_ = told.asked
            inventory = self._inventory()
            resolvers = inner_resolvers(inventory, name) or told.resolvers
            downlinks = downlinks_of(inventory, name, self._clients_at(name), resolvers)
            answer = await netvm.link.control(DOWNLINKS, downlinks_fields(downlinks), timeout_s=AGENT_TIMEOUT_S)
            told.missing = frozenset(str(answer.get("missing", "")).split())
            told.done = round_
            closed = frozenset(str(answer.get("closed", "")).split())
            for link in downlinks.links:
                if link.interface in closed:
                    self._lost_rules(QubeName(link.client))
