"""Cables between running qubes: whose card is where, and that packets pass only once the rules are in."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from cloison.drivers.hypervisor.base import Framing, Nic, StopReason
from cloison.drivers.network.base import OpenedExit
from cloison.engine.agent import AgentFailed
from cloison.engine.events import Event, NetvmConnected, QubeNetworkFailed
from cloison.engine.network import Network
from cloison.engine.runs import Phase, Run, StartMode
from cloison.engine.start import Facts, Live
from cloison.engine.system import System
from cloison.errors import BackendFailed, CloisonError, NotNow
from cloison.model.inventory import Inventory
from cloison.model.names import QubeName
from cloison.model.network import Exit
from cloison.model.power import PowerState
from cloison.wire.network import Uplink

from ..model.test_properties import picture, qube
from .conftest import Bench

MakeBench = Callable[[], Bench]


class Machine:
    """Network cards by name: their cables, and whether they are open."""

    is_leaving = False
    trouble = ""

    def __init__(self) -> None:
        self.cards: dict[str, str] = {}
        self.open: dict[str, bool] = {}
        self.ends: list[int] = []
        self.framings: list[Framing] = []
        self.handed: dict[str, str] = {}
        self.refuse = ""
        self.gone: asyncio.Future[StopReason] = asyncio.get_running_loop().create_future()
        self.console_log = Path("/nowhere")

    async def add_nic(self, nic: Nic) -> None:
        await asyncio.sleep(0)
        if self.refuse in nic.name and self.refuse:
            raise BackendFailed(f"no place for {nic.name}")
        assert nic.name not in self.cards
        self.cards[nic.name], self.open[nic.name] = nic.link, nic.open
        self.ends.append(socket.socket(fileno=nic.descriptor).detach())
        self.framings.append(nic.framing)

    async def remove_nic(self, name: str) -> None:
        await asyncio.sleep(0)
        self.cards.pop(name, None)
        self.open.pop(name, None)

    async def open_nic(self, name: str, *, open: bool) -> None:
        if name not in self.cards:
            raise BackendFailed(f"there is no card {name}")
        self.open[name] = open

    async def nics(self) -> Mapping[str, str]:
        return dict(self.cards)

    async def handed_devices(self) -> Mapping[str, str]:
        return self.handed

    async def wait_stopped(self) -> StopReason:
        return await asyncio.shield(self.gone)

    async def kill(self) -> None:
        if not self.gone.done():
            self.gone.set_result(StopReason.KILLED)

    async def detach(self) -> None: ...
    async def pause(self) -> None: ...
    async def resume(self) -> None: ...


class Agent:
    """Remembers what it was told; says no where the test wishes."""

    def __init__(self) -> None:
        self.told: list[tuple[str, Mapping[str, Any]]] = []
        self.fail = ""
        self.missing = self.closed = ""
        self.before_rules: Callable[[], None] = lambda: None

    async def control(self, verb: str, fields: Mapping[str, Any], *, timeout_s: float) -> Mapping[str, Any]:
        await asyncio.sleep(0)
        self.told.append((verb, fields))
        if verb == "rules":
            self.before_rules()
        if verb == self.fail:
            raise AgentFailed(f"no {verb} today")
        return {"missing": self.missing, "closed": self.closed} if verb == "downlinks" else {}

    def last(self, verb: str) -> Mapping[str, Any]:
        return [fields for told, fields in self.told if told == verb][-1]

    def clients(self) -> list[str]:
        return [link["client"] for link in self.last("downlinks")["links"]]

    async def close(self) -> None: ...


class Books:
    def __init__(self, facts: Facts) -> None:
        self._facts = facts
        self.events: list[Event] = []

    def facts(self, name: QubeName) -> Facts:
        return replace(self._facts, name=name, uuid=f"uuid-{name}", volumes={})

    def say(self, event: Event) -> None:
        self.events.append(event)

    def running_users(self, name: QubeName, running: frozenset[QubeName]) -> list[QubeName]:
        return []

    async def forget(self, name: QubeName) -> None: ...


class Host:
    """A way out whose end the test decides."""

    def __init__(self) -> None:
        self.opened: list[Exit] = []
        self.fail = False
        self.gone: dict[str, asyncio.Event] = {}

    async def open(self, exit: Exit, name: str, mac: str, *, ipv6: bool = False) -> OpenedExit:
        self.opened.append(exit)
        if self.fail:
            raise BackendFailed("the host has no network")
        near, far = socket.socketpair()
        far.close()
        link = f"passt{len(self.opened)}"
        self.gone[link] = asyncio.Event()
        return OpenedExit(near, Uplink(mac, "10.139.2.2", "", "10.139.2.1", "", "", ("10.139.2.3",), 1500), link)

    def resolvers(self, exit: Exit) -> tuple[str, ...]:
        return () if exit.device else ("10.139.2.3",)

    async def wait_gone(self, link: str) -> None:
        await self.gone[link].wait()


@dataclass
class World:
    """work and personal behind fw behind net; vault alone."""

    system: System
    books: Books
    host: Host
    network: Network
    inventory: Inventory
    machines: dict[str, Machine] = field(default_factory=dict)
    agents: dict[str, Agent] = field(default_factory=dict)

    def run(self, *names: str, handed: Mapping[str, str] | None = None) -> None:
        for name in names:
            self.machines[name], self.agents[name] = Machine(), Agent()
            self.machines[name].handed = dict(handed or {})
            mode = StartMode.BOOT if handed else StartMode.FORK
            live = Live(
                self.books.facts(QubeName(name)), Run(Phase.RUNNING, mode, (), 0.0, ""),
                self.machines[name], self.agents[name], Path("/nowhere") / name,  # type: ignore[arg-type]
            )  # fmt: skip
            self.system.seat(live, PowerState.RUNNING)

    async def start(self, *names: str) -> None:
        for name in names:
            self.run(name)
            await self.network.started(QubeName(name))
        await self.rest()

    async def rest(self) -> None:
        """Until nothing is under way but watching."""
        for _ in range(20):
            await asyncio.sleep(0.003)

    def set_uplink(self, name: str, value: str) -> None:
        changed = replace(self.inventory.qube(name), features={"uplink": value})
        self.inventory = replace(self.inventory, qubes={**self.inventory.qubes, changed.name: changed}, _memo={})

    def change(self, name: str, **properties: object) -> None:
        changed = self.inventory.qube(name)
        everybody = dict(self.inventory.qubes)
        everybody[QubeName(name)] = replace(changed, properties={**changed.properties, **properties})  # type: ignore[dict-item]
        self.inventory = replace(self.inventory, qubes=everybody, _memo={})

    def is_joined(self, client: str, netvm: str) -> bool:
        """The two cards are the ends of one cable."""
        interface = f"vif{self.inventory.qube(client).qid}"
        link = self.machines[client].cards.get("uplink")
        return link is not None and self.machines[netvm].cards.get(interface) == link

    def passes(self, client: str, netvm: str) -> bool:
        interface = f"vif{self.inventory.qube(client).qid}"
        return self.is_joined(client, netvm) and self.machines[netvm].open[interface]


@asynccontextmanager
async def a_world(bench: MakeBench, facts: Facts) -> AsyncIterator[World]:
    books = Books(facts)
    system = System(bench().ground, books, on_committed=lambda name: None)
    inventory = picture(
        qube("net", 1, properties={"provides_network": True, "netvm": None}),
        qube("fw", 2, properties={"provides_network": True, "netvm": "net"}),
        qube("work", 4),
        qube("personal", 5),
        qube("vault", 6, properties={"netvm": None}),
        settings={"default_netvm": "fw"},
    )
    host = Host()
    world = World(system, books, host, None, inventory)  # type: ignore[arg-type]
    world.network = Network(system, lambda: world.inventory, host, lambda _, name: f"comment={name}\n")
    system.cables = world.network
    try:
        yield world
    finally:
        await system.close()
        for machine in world.machines.values():
            for end in machine.ends:
                socket.close(end)


@pytest.fixture(autouse=True)
def no_descriptor_of_the_engine_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fake machines keep copies, as QEMU does."""
    import os

    original = Nic.__init__

    def copying(self: Nic, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        object.__setattr__(self, "descriptor", os.dup(self.descriptor))

    monkeypatch.setattr(Nic, "__init__", copying)


async def test_a_chain_is_joined_and_its_agents_are_told(bench: MakeBench, facts: Facts) -> None:
    async with a_world(bench, facts) as it:
        await it.start("net", "fw", "work")
        assert it.passes("work", "fw") and it.passes("fw", "net")
        assert it.machines["net"].framings == [Framing.STREAM, Framing.PACKETS]
        assert it.agents["work"].last("network")["uplink"]["gateway"] == "10.137.0.2"
        assert it.agents["fw"].last("rules")["text"] == "comment=work\n"
        assert it.agents["fw"].last("downlinks")["resolvers"] == ("10.139.1.1", "10.139.1.2")
        assert it.agents["net"].last("downlinks")["resolvers"] == ("10.139.2.3",)
        assert NetvmConnected(QubeName("fw"), QubeName("work")) in it.books.events


async def test_a_qube_without_a_netvm_has_no_card(bench: MakeBench, facts: Facts) -> None:
    async with a_world(bench, facts) as it:
        await it.start("net", "fw", "vault")
        assert it.machines["vault"].cards == {}
        assert it.network.trouble(QubeName("vault")) == ""


async def test_nothing_passes_before_the_rules_are_in(bench: MakeBench, facts: Facts) -> None:
    async with a_world(bench, facts) as it:
        await it.start("net", "fw")
        seen = []
        it.agents["fw"].before_rules = lambda: seen.append(it.passes("work", "fw"))
        await it.start("work")
        assert seen == [False]
        assert it.passes("work", "fw")


@pytest.mark.parametrize("fail", ["rules", "downlinks", "missing"])
async def test_a_netvm_that_cannot_keep_the_rules_leaves_the_cable_closed(
    bench: MakeBench, facts: Facts, fail: str
) -> None:
    async with a_world(bench, facts) as it:
        await it.start("net", "fw")
        if fail == "missing":
            it.agents["fw"].missing = "vif4"
        it.agents["fw"].fail = fail
        await it.start("work")
        assert not it.passes("work", "fw")
        assert it.network.trouble(QubeName("work"))
        assert any(isinstance(event, QubeNetworkFailed) for event in it.books.events)
        it.agents["fw"].fail = it.agents["fw"].missing = ""
        await it.network.settle(QubeName("work"))
        assert it.passes("work", "fw")
        assert it.network.trouble(QubeName("work")) == ""


async def test_new_rules_that_cannot_be_loaded_close_the_cable(bench: MakeBench, facts: Facts) -> None:
    async with a_world(bench, facts) as it:
        await it.start("net", "fw", "work", "personal")
        it.agents["fw"].fail = "rules"
        with pytest.raises(CloisonError):
            await it.network.reload_rules(QubeName("work"))
        assert not it.passes("work", "fw")
        assert it.passes("personal", "fw")


async def test_an_agent_that_began_anew_gets_the_rules_of_its_open_cables_again(bench: MakeBench, facts: Facts) -> None:
    async with a_world(bench, facts) as it:
        await it.start("net", "fw", "work")
        it.agents["fw"].closed = "vif4 vif5"
        it.agents["fw"].told.clear()
        await it.start("personal")
        loaded = [fields["interface"] for verb, fields in it.agents["fw"].told if verb == "rules"]
        assert sorted(loaded) == ["vif4", "vif5"]


async def test_an_agent_that_came_back_is_told_its_clients_and_their_rules(bench: MakeBench, facts: Facts) -> None:
    async with a_world(bench, facts) as it:
        await it.start("net", "fw", "work", "personal")
        it.agents["fw"].told.clear()
        it.agents["fw"].closed = "vif4 vif5"
        it.network.agent_returned(QubeName("fw"))
        it.network.agent_returned(QubeName("work"))  # nobody's netvm
        await it.rest()
        assert it.agents["fw"].told[0][0] == "downlinks"
        assert sorted(f["interface"] for verb, f in it.agents["fw"].told if verb == "rules") == ["vif4", "vif5"]
        assert it.passes("work", "fw") and it.passes("personal", "fw")


@pytest.mark.parametrize("fail", ["rules", "downlinks"])
async def test_an_agent_that_came_back_and_fails_has_its_cables_closed_until_it_does_not(
    bench: MakeBench, facts: Facts, fail: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cloison.engine.network.RETRY_S", 0.02)
    monkeypatch.setattr("cloison.engine.network.LONGEST_RETRY_S", 0.02)
    async with a_world(bench, facts) as it:
        await it.start("net", "fw", "work")
        it.agents["fw"].fail, it.agents["fw"].closed = fail, "vif4"
        it.network.agent_returned(QubeName("fw"))
        await it.rest()
        assert not it.passes("work", "fw") and fail in it.network.trouble(QubeName("work"))
        assert len([event for event in it.books.events if isinstance(event, QubeNetworkFailed)]) == 1
        it.agents["fw"].fail = ""
        await it.rest()
        assert it.passes("work", "fw") and not it.network.trouble(QubeName("work"))


async def test_a_netvm_changes_while_both_run(bench: MakeBench, facts: Facts) -> None:
    async with a_world(bench, facts) as it:
        await it.start("net", "fw", "work")
        it.change("work", netvm="net")
        await it.network.settle(QubeName("work"))
        assert it.passes("work", "net")
        assert "vif4" not in it.machines["fw"].cards
        assert it.agents["fw"].clients() == []
        assert it.agents["net"].clients() == ["fw", "work"]
        it.change("work", netvm=None)
        await it.network.settle(QubeName("work"))
        assert it.machines["work"].cards == {}
        assert "vif4" not in it.machines["net"].cards
        assert it.agents["work"].last("network") == {"uplink": None}


async def test_a_paused_qube_is_cut_off_from_its_old_netvm_and_joined_to_the_new_one_when_it_goes_on(
    bench: MakeBench, facts: Facts
) -> None:
    async with a_world(bench, facts) as it:
        await it.start("net", "fw", "work")
        await it.system.pause(QubeName("work"))
        it.change("work", netvm="net")
        await it.network.settle(QubeName("work"))
        assert not it.passes("work", "fw")
        assert not it.passes("work", "net")
        await it.system.unpause(QubeName("work"))
        await it.rest()
        assert it.passes("work", "net")


async def test_a_netvm_that_was_killed_finds_its_clients_again(bench: MakeBench, facts: Facts) -> None:
    async with a_world(bench, facts) as it:
        await it.start("net", "fw", "work", "personal")
        await it.machines["fw"].kill()
        await it.rest()
        assert it.agents["net"].clients() == []
        await it.start("fw")
        assert it.passes("work", "fw") and it.passes("personal", "fw") and it.passes("fw", "net")
        assert sorted(it.agents["fw"].clients()) == ["personal", "work"]


async def test_a_client_that_stops_leaves_nothing_in_its_netvm(bench: MakeBench, facts: Facts) -> None:
    async with a_world(bench, facts) as it:
        await it.start("net", "fw", "work", "personal")
        await it.machines["work"].kill()
        await it.rest()
        assert "vif4" not in it.machines["fw"].cards
        assert it.agents["fw"].clients() == ["personal"]


async def test_many_clients_at_once_are_all_joined_with_few_rounds(bench: MakeBench, facts: Facts) -> None:
    async with a_world(bench, facts) as it:
        names = [f"q{number}" for number in range(30)]
        everybody = {**it.inventory.qubes, **{n: qube(n, 100 + i) for i, n in enumerate(names)}}
        it.inventory = replace(it.inventory, qubes=everybody, _memo={})
        await it.start("net", "fw")
        it.run(*names)
        await asyncio.gather(*(it.network.started(QubeName(name)) for name in names))
        assert all(it.passes(name, "fw") for name in names)
        assert len([verb for verb, _ in it.agents["fw"].told if verb == "downlinks"]) < 5


async def test_a_card_that_finds_no_place_leaves_nothing(bench: MakeBench, facts: Facts) -> None:
    async with a_world(bench, facts) as it:
        await it.start("net", "fw")
        it.machines["fw"].refuse = "vif"
        await it.start("work")
        assert it.machines["work"].cards == {}
        assert "no place" in it.network.trouble(QubeName("work"))


async def test_a_way_out_that_ends_is_opened_again(
    bench: MakeBench, facts: Facts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cloison.engine.network.RETRY_S", 0)
    async with a_world(bench, facts) as it:
        await it.start("net", "fw")
        it.host.fail = True
        it.host.gone["passt1"].set()
        await it.rest()
        assert "no network" in it.network.trouble(QubeName("net"))
        it.host.fail = False
        await it.rest()
        assert it.machines["net"].cards["uplink"] == f"passt{len(it.host.opened)}"
        assert it.network.trouble(QubeName("net")) == ""
        assert it.passes("fw", "net")


async def test_a_way_out_that_is_not_there_yet_is_tried_again(
    bench: MakeBench, facts: Facts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cloison.engine.network.RETRY_S", 0.001)
    async with a_world(bench, facts) as it:
        it.host.fail = True
        await it.start("net")
        assert it.network.trouble(QubeName("net"))
        it.host.fail = False
        for _ in range(1000):
            await asyncio.sleep(0.005)
            if "uplink" in it.machines["net"].cards:
                break
        assert not it.network.trouble(QubeName("net"))


async def test_an_uplink_that_nobody_understands_is_trouble_and_no_more(bench: MakeBench, facts: Facts) -> None:
    async with a_world(bench, facts) as it:
        it.set_uplink("net", "carrier pigeon")
        it.run("net")
        it.machines["net"].cards["uplink"] = "passt1"
        it.host.gone["passt1"] = asyncio.Event()
        await it.network.recover()
        await it.start("fw", "work")
        assert "carrier pigeon" in it.network.trouble(QubeName("net"))
        assert it.passes("work", "fw") and it.passes("fw", "net")


CARD, PORT = "0000:02:00.0", "0000:00:10.3"


async def test_a_card_of_the_host_is_in_the_machine_and_its_agent_is_told_where(bench: MakeBench, facts: Facts) -> None:
    async with a_world(bench, facts) as it:
        it.set_uplink("net", f"pci:{CARD}")
        it.run("net", handed={CARD: PORT})
        await it.network.started(QubeName("net"))
        await it.start("fw", "work")
        assert it.agents["net"].last("network") == {"uplink": {"port": PORT}}
        assert it.agents["net"].last("downlinks")["resolvers"] == (), "its network tells it whom to ask"
        assert not it.host.opened and "uplink" not in it.machines["net"].cards
        assert it.network.trouble(QubeName("net")) == ""
        assert it.passes("work", "fw") and it.passes("fw", "net")
        later = Network(it.system, lambda: it.inventory, it.host, lambda _, name: "")
        await later.recover()
        await it.rest()
        assert it.agents["net"].last("network") == {"uplink": {"port": PORT}}
        assert not it.host.opened and later.trouble(QubeName("net")) == ""


@pytest.mark.parametrize(
    ("before", "after", "why"),
    [
        ("", f"pci:{CARD}", f"net gets {CARD} when it is started again"),
        (f"pci:{CARD}", "", f"net keeps {CARD} until it is started again"),
        (f"pci:{CARD}", "none", f"net keeps {CARD} until it is started again"),
        (f"pci:{CARD}", "pci:0000:03:00.0", f"net keeps {CARD} until it is started again"),
    ],
)
async def test_cards_of_the_host_are_not_changed_in_a_running_qube(
    bench: MakeBench, facts: Facts, before: str, after: str, why: str
) -> None:
    async with a_world(bench, facts) as it:
        it.set_uplink("net", before)
        it.run("net", handed={CARD: PORT} if before else None)
        await it.network.started(QubeName("net"))
        it.set_uplink("net", after)
        with pytest.raises(NotNow, match=why) as caught:
            await it.network.settle(QubeName("net"))
        assert caught.value.hint == "cloison restart net"
        assert it.network.trouble(QubeName("net")).startswith(why)


async def test_a_card_of_the_host_beside_a_netvm_is_trouble_and_no_way_out(bench: MakeBench, facts: Facts) -> None:
    async with a_world(bench, facts) as it:
        await it.start("net")
        it.run("fw", handed={CARD: PORT})
        with pytest.raises(NotNow, match=f"fw keeps {CARD} until"):
            await it.network.settle(QubeName("fw"))
        assert "uplink" not in it.machines["fw"].cards


async def test_a_later_daemon_finds_the_cables_that_are_whole_and_mends_the_others(
    bench: MakeBench, facts: Facts
) -> None:
    async with a_world(bench, facts) as it:
        await it.start("net", "fw", "work", "personal")
        whole = dict(it.machines["work"].cards)
        await it.machines["fw"].remove_nic("vif5")
        later = Network(it.system, lambda: it.inventory, it.host, lambda _, name: "")
        await later.recover()
        await it.rest()
        assert it.machines["work"].cards == whole
        assert it.passes("work", "fw") and it.passes("personal", "fw")
        assert it.machines["net"].cards["uplink"] == "passt1"
        assert it.agents["net"].last("downlinks")["resolvers"] == ("10.139.2.3",)


async def test_a_netvm_is_started_first_and_its_trouble_is_named(bench: MakeBench, facts: Facts) -> None:
    async with a_world(bench, facts) as it:
        asked: list[str] = []

        async def start(name: QubeName) -> None:
            asked.append(name)
            raise BackendFailed("its disk is broken")

        it.system.start = start  # type: ignore[method-assign,assignment]
        with pytest.raises(NotNow, match="cannot start work: its netvm fw does not start: its disk is broken"):
            await it.network.before_start(QubeName("work"))
        assert asked == ["fw"]
        await it.network.before_start(QubeName("vault"))
        assert asked == ["fw"]
