"""Cables between running qubes: joined, opened once the rules are in, cut.

In: the inventory's wish (who is whose netvm), qubes that start and stop. Out: network cards in both machines, agents
that were told. May import: model, wire, errors, driver interfaces.

A cable is a socket pair whose ends are given to the two machines; nothing on the host reads what passes. The netvm's
end is plugged in closed and opened only after its agent has acknowledged the client's rules; whatever fails on the way
leaves it closed. What should be is always read from the inventory, and ``settle`` makes it so: it may be called at any
time, by anybody, again and again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import socket
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any

from cloison.drivers.hypervisor.base import Framing, Nic, Place
from cloison.drivers.network.base import WaysOut
from cloison.engine.events import (
    FeatureRemoved,
    FeatureSet,
    FirewallChanged,
    NetvmConnected,
    PropertyReset,
    PropertySet,
    QubeNetworkFailed,
    Subscription,
)
from cloison.engine.netvms import Netvms
from cloison.engine.runs import StartMode
from cloison.engine.start import Live
from cloison.engine.system import System
from cloison.errors import BackendFailed, BadRequest, CloisonError, NotNow
from cloison.model.inventory import Inventory
from cloison.model.names import QubeName
from cloison.model.network import (
    IPV6_FEATURE,
    WayOut,
    behind,
    clients_of,
    downlink_mac,
    find_exit,
    handed_devices,
    interface_of,
    netvm_of,
    uplink_of,
)
from cloison.model.power import PowerState
from cloison.model.qube import Qube
from cloison.wire.network import NETWORK, HandedCard, Uplink, uplink_fields

log = logging.getLogger(__name__)

UPLINK = "uplink"
"""Name of every qube's card towards its netvm."""
AGENT_TIMEOUT_S = 60.0
RETRY_S, LONGEST_RETRY_S = 2.0, 60.0
"""Pause before a cable or way out that failed is tried again; it doubles."""
FOLLOWED_PROPERTIES = frozenset({"netvm", "mac", "ip", "ip6", "provides_network"})
"""Properties whose change on a running qube changes its cable at once."""
FOLLOWED_FEATURES = frozenset({"uplink", "uplink-host-ports", "ipv6", "net.fake-ip", "net.fake-gateway"})


@dataclass
class Cable:
    """What is plugged into a running qube towards its way out."""

    link: str
    interface: str
    """Of the netvm; empty for a way out of the host."""
    netvm: QubeName | None
    """At whose end the other card is; None: a way out of the host, or nobody any more."""
    wish: object
    """What the cable was made from: when that changes, it is made anew."""
    open: bool = False


class Network:
    """See the module. ``system.cables`` is this."""

    def __init__(
        self, system: System, inventory: Callable[[], Inventory], ways_out: WaysOut,
        rules_of: Callable[[Inventory, QubeName], str],
    ) -> None:  # fmt: skip
        self._system = system
        self._inventory = inventory
        self._ways_out = ways_out
        self._cables: dict[QubeName, Cable] = {}
        self._locks: dict[QubeName, asyncio.Lock] = {}
        self._trouble: dict[QubeName, str] = {}
        self._mending: dict[QubeName, Live] = {}
        self.netvms = Netvms(system, inventory, self.clients_at, rules_of, self._rules_lost)

    # -- looking

    def trouble(self, name: QubeName) -> str:
        """Why a running qube has no network although it should; empty: it has, or should have none."""
        return self._trouble.get(name, "")

    def clients_at(self, netvm: QubeName) -> frozenset[QubeName]:
        """Qubes whose cable ends in this netvm."""
        return frozenset(name for name, cable in self._cables.items() if cable.netvm == netvm)

    async def rule_counters(self, name: QubeName) -> Mapping[str, object]:
        """What the qube's rules have decided in its netvm; NotNow while it has no open cable there."""
        cable = self._cables.get(name)
        if cable is None or cable.netvm is None or (peer := self._system.find_live(cable.netvm)) is None:
            raise NotNow(f"the rules of {name} are in force nowhere now, so nothing is counted")
        try:
            return await self.netvms.counters(peer, cable.interface)
        except (KeyError, ValueError):
            raise BackendFailed(f"the agent of {cable.netvm} answered with something that is no count") from None

    # -- told by the system

    async def before_start(self, name: QubeName) -> None:
        """Start the qube's netvm; NotNow if that cannot be."""
        netvm = netvm_of(self._inventory(), name)
        if netvm is None or self._system.find_live(netvm.name) is not None:
            return
        try:
            await self._system.start(netvm.name)
        except CloisonError as error:
            raise NotNow(
                f"cannot start {name}: its netvm {netvm.name} does not start: {error.message}",
                hint=f"mend {netvm.name}, or choose another: `cloison prefs {name} netvm NETVM`",
            ) from error

    async def started(self, name: QubeName) -> None:
        """Give a qube that runs now its cable, and its clients theirs. Trouble is told, not raised."""
        await self._settle_quietly(name)
        for client in clients_of(self._inventory(), name):
            if self._system.find_live(client.name) is not None:
                self._begin(self._settle_quietly(client.name), f"cable of {client.name}")

    def stopped(self, name: QubeName) -> None:
        """A machine is gone: its cables lead nowhere."""
        self._trouble.pop(name, None)
        self.netvms.forget(name)
        for client in self.clients_at(name):
            self._cables[client].netvm = None
            self._cables[client].open = False
        if (cable := self._cables.pop(name, None)) is not None and cable.netvm is not None:
            self._begin(self._put_away(name, cable), f"cable of {name}")

    def unpaused(self, name: QubeName) -> None:
        """What was asked for while it stood still is done now."""
        self._begin(self.started(name), f"cable of {name}")

    def agent_returned(self, name: QubeName) -> None:
        """Another relay speaks for the qube, perhaps with another agent, which knows nothing of its clients."""
        if (live := self._system.find_live(name)) is not None and self.clients_at(name):
            self._begin(self._tell_again(live), f"clients of {name}")

    async def recover(self) -> None:
        """After another daemon: learn which cables there are from the machines, then settle everybody."""
        plugged: dict[QubeName, Mapping[str, str]] = {}
        for name in self._system.running():
            with contextlib.suppress(CloisonError):
                plugged[name] = await self._system.live(name).machine.nics()
        inventory = self._inventory()
        for name, nics in plugged.items():
            if link := nics.get(UPLINK):
                qube = inventory.qube(name)
                cable = self._cables[name] = _found(inventory, qube, link, plugged)
                if cable.netvm is None and cable.wish is not None:
                    self._begin(self._watch_exit(self._system.live(name), cable), f"way out of {name}")
        for name in plugged:
            self._begin(self._settle_quietly(name), f"cable of {name}")

    # -- verbs

    async def settle(self, name: QubeName) -> None:
        """Make the qube's cable what the inventory says. Raises CloisonError: it is closed then."""
        async with self._turn(name):
            live = self._system.find_live(name)
            if live is None:
                return
            if self._system.power_state(name) is PowerState.PAUSED:
                await self._close_unless_wished(name)  # the rest once it goes on
                return
            try:
                await self._settle(live, self._inventory())
            except CloisonError as error:
                if self._system.find_live(name) is not live:
                    return  # it stopped meanwhile
                await self._close(name)
                self._note_trouble(live, error)
                raise
            self._trouble.pop(name, None)

    async def reload_rules(self, name: QubeName) -> None:
        """The client's rules have changed. If they cannot be loaded its cable is closed, and CloisonError raised."""
        cable = self._cables.get(name)
        if cable is None or cable.netvm is None or not cable.open:
            await self.settle(name)
            return
        async with self._turn(name):
            if self._cables.get(name) is not cable or (peer := self._system.find_live(cable.netvm)) is None:
                return
            try:
                await self.netvms.load_rules(peer, name, cable.interface)
            except CloisonError as error:
                await self._close(name)
                if (live := self._system.find_live(name)) is not None:
                    self._note_trouble(live, error)
                raise

    async def follow(self, changes: Subscription) -> None:
        """Settle whoever a change of settings concerns, for as long as changes come."""
        async for event in changes:
            match event:
                case PropertySet(str(name), changed) | PropertyReset(str(name), changed):
                    is_ours = changed in FOLLOWED_PROPERTIES
                case FeatureSet(name, changed) | FeatureRemoved(name, changed):
                    is_ours = changed in FOLLOWED_FEATURES
                case FirewallChanged(name):
                    if self._system.find_live(name) is not None:
                        self._begin(self._reload_quietly(name), f"rules of {name}")
                    continue
                case _:
                    continue
            if is_ours:
                for each in (name, *behind(self._inventory(), name)):
                    if self._system.find_live(each) is not None:
                        self._begin(self._settle_quietly(each), f"cable of {each}")

    # -- inside

    async def _tell_again(self, live: Live) -> None:
        """The netvm's agent gets its clients again, and the rules of those it has none of; else they are closed."""
        name = live.facts.name
        try:
            await self.netvms.inform(live)
        except CloisonError as error:
            log.error("the agent of %s did not take its clients back: %s", name, error)
            for client in self.clients_at(name):
                await self._close(client)
        for client in self.clients_at(name):
            if not self._cables[client].open:
                self._begin(self._settle_quietly(client), f"cable of {client}")

    def _rules_lost(self, name: QubeName) -> None:
        """A cable that is open needs its rules again; one that is not will get them before it opens."""
        if (cable := self._cables.get(name)) is not None and cable.open:
            self._begin(self._reload_quietly(name), f"rules of {name}")

    async def _reload_quietly(self, name: QubeName) -> None:
        try:
            await self.reload_rules(name)
        except CloisonError as error:
            log.error("%s has no network: its rules could not be loaded: %s", name, error)

    async def _settle_quietly(self, name: QubeName) -> None:
        try:
            await self.settle(name)
        except CloisonError as error:
            log.error("%s has no network: %s", name, error)

    def _note_trouble(self, live: Live, error: CloisonError) -> None:
        """Told once, shown while it lasts, and tried again; what waits for another qube is tried when that is there."""
        name = live.facts.name
        if self._trouble.get(name) != error.message:
            self._trouble[name] = error.message
            self._system.books.say(QubeNetworkFailed(name, error.message))
        waits = isinstance(error, NotNow) and netvm_of(self._inventory(), name) is not None
        if not waits and self._mending.get(name) is not live:
            self._mending[name] = live
            self._begin(self._until_mended(live), f"mend the network of {name}")

    async def _settle(self, live: Live, inventory: Inventory) -> None:
        name = live.facts.name
        netvm, exit = netvm_of(inventory, name), find_exit(inventory, name)
        ports = await _ports_of_handed(live, inventory)
        wish = _wish(inventory, name)
        cable = self._cables.get(name)
        if cable is not None and (cable.wish != wish or (netvm and cable.netvm != netvm.name)):
            await self._cut(live, cable)
            cable = None
            if netvm is None and exit is None and live.link is not None:
                await _tell(live, None)
        if netvm is not None:
            peer = self._system.find_live(netvm.name)
            if peer is None:
                raise NotNow(f"{netvm.name}, the netvm of {name}, is not running")
            if self._system.power_state(netvm.name) is PowerState.PAUSED:
                raise NotNow(f"{netvm.name}, the netvm of {name}, is paused")
            if cable is None:
                cable = await self._join(live, peer, inventory.qube(name), wish)
            if not cable.open:
                await self._open(live, peer, cable, uplink_of(inventory, name))
        elif exit is not None and exit.kind is not WayOut.NONE:
            if cable is None and exit.kind is WayOut.PCI:
                await self._lead_out_by_card(live, HandedCard(ports[exit.device]), wish)
            elif cable is None:
                await self._lead_out(live, inventory, wish)
            self.netvms.set_resolvers(name, self._ways_out.resolvers(exit))
        else:
            self.netvms.set_resolvers(name, ())

    async def _join(self, live: Live, peer: Live, qube: Qube, wish: object) -> Cable:
        """A card in each machine and a closed cable between them; nothing half made stays."""
        began = time.monotonic()
        cable = Cable(secrets.token_hex(6), interface_of(qube), peer.facts.name, wish)
        uplink = uplink_of(self._inventory(), qube.name)
        assert uplink is not None, "a qube with a netvm has a way out"
        near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        with near, far:
            self._cables[qube.name] = cable
            try:
                await _all(
                    live.machine.add_nic(Nic(UPLINK, cable.link, uplink.mac, uplink.mtu, near.fileno())),
                    peer.machine.add_nic(
                        Nic(cable.interface, cable.link, downlink_mac(qube), uplink.mtu, far.fileno(),
                            Place.BRIDGE, open=False)
                    ),
                )  # fmt: skip
            except BaseException:
                await asyncio.shield(self._cut(live, cable))
                raise
        log.debug("cards of %s and %s plugged in within %.3f s", qube.name, cable.netvm, time.monotonic() - began)
        return cable

    async def _open(self, live: Live, peer: Live, cable: Cable, uplink: Uplink | None) -> None:
        """Tell both agents; once the netvm's has the rules, let packets pass."""
        began = time.monotonic()
        told = [self.netvms.admit(peer, live.facts.name, cable.interface)]
        if live.link is not None:
            told.append(_tell(live, uplink))
        await _all(*told)
        await peer.machine.open_nic(cable.interface, open=True)
        cable.open = True
        log.debug("cable of %s opened within %.3f s", live.facts.name, time.monotonic() - began)
        self._system.books.say(NetvmConnected(peer.facts.name, live.facts.name))

    async def _lead_out(self, live: Live, inventory: Inventory, wish: object) -> None:
        """The end of a chain gets the host's way out."""
        name = live.facts.name
        exit = find_exit(inventory, name)
        assert exit is not None, "asked before"
        opened = await self._ways_out.open(
            exit, name, inventory.text(name, "mac"), ipv6=bool(inventory.feature(name, IPV6_FEATURE))
        )
        cable = Cable(opened.link, "", None, wish, open=True)
        with opened.socket:
            await live.machine.add_nic(
                Nic(UPLINK, cable.link, opened.uplink.mac, opened.uplink.mtu, opened.socket.fileno(),
                    framing=Framing.STREAM)
            )  # fmt: skip
        self._cables[name] = cable
        self._begin(self._watch_exit(live, cable), f"way out of {name}")
        try:
            if live.link is not None:
                await _tell(live, opened.uplink)
        except BaseException:
            await asyncio.shield(self._cut(live, cable))
            raise

    async def _lead_out_by_card(self, live: Live, card: HandedCard, wish: object) -> None:
        """The end of a chain has a card of the host since its start; whether the network beyond gives it an address
        now, or when somebody plugs the cable in, is between the two."""
        cable = Cable("", "", None, wish, open=True)
        if live.link is not None:
            await _tell(live, card)
        self._cables[live.facts.name] = cable

    async def _watch_exit(self, live: Live, cable: Cable) -> None:
        """A way out that ends while it is used is opened again."""
        name = live.facts.name
        await self._ways_out.wait_gone(cable.link)
        if self._cables.get(name) is not cable or self._system.find_live(name) is not live:
            return
        log.warning("the way out of %s ended: opening another", name)
        cable.wish = None
        await self._settle_quietly(name)

    async def _until_mended(self, live: Live) -> None:
        """Try again and again: the host's network, a netvm's agent or a script of its user may come to their senses."""
        name, pause_s = live.facts.name, RETRY_S
        while self.trouble(name) and self._system.find_live(name) is live:
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_RETRY_S)
            await self._settle_quietly(name)
        if self._mending.get(name) is live:
            del self._mending[name]

    async def _cut(self, live: Live, cable: Cable) -> None:
        """Both cards go; the cable is dead at once, even if a guest does not let go of its card."""
        name = live.facts.name
        self._cables.pop(name, None)
        if cable.netvm is not None:
            await _all(self._put_away(name, cable), live.machine.remove_nic(UPLINK))
        else:
            await live.machine.remove_nic(UPLINK)

    async def _put_away(self, name: QubeName, cable: Cable) -> None:
        """The netvm's end of a cable whose client is gone or leads elsewhere."""
        assert cable.netvm is not None
        peer = self._system.find_live(cable.netvm)
        if peer is None:
            return
        try:
            await peer.machine.remove_nic(cable.interface)
            await self.netvms.inform(peer)
        except CloisonError as error:
            log.warning("the end of %s's cable in %s was not put away: %s", name, cable.netvm, error)

    async def _close_unless_wished(self, name: QubeName) -> None:
        cable = self._cables.get(name)
        if cable is not None and cable.wish != _wish(self._inventory(), name):
            await self._close(name)

    async def _close(self, name: QubeName) -> None:
        """Nothing passes any more."""
        cable = self._cables.get(name)
        if cable is None or cable.netvm is None or (peer := self._system.find_live(cable.netvm)) is None:
            return
        cable.open = False
        try:
            await peer.machine.open_nic(cable.interface, open=False)
        except CloisonError as error:
            log.error("the cable of %s could not be closed (%s): cutting it", name, error)
            if (live := self._system.find_live(name)) is not None:
                with contextlib.suppress(CloisonError):
                    await self._cut(live, cable)

    @contextlib.asynccontextmanager
    async def _turn(self, name: QubeName) -> AsyncIterator[None]:
        async with self._locks.setdefault(name, asyncio.Lock()):
            yield

    def _begin(self, work: Coroutine[Any, Any, None], name: str) -> None:
        self._system.own(work, name)


def _wish(inventory: Inventory, name: QubeName) -> object:
    """All that shapes a qube's cable."""
    netvm = netvm_of(inventory, name)
    if netvm is not None:
        return netvm.name, uplink_of(inventory, name)
    try:
        exit = find_exit(inventory, name)
        return None if exit is None else (exit, bool(inventory.feature(name, IPV6_FEATURE)))
    except BadRequest as error:
        return error.message  # like no cable that there is


def _found(inventory: Inventory, qube: Qube, link: str, plugged: Mapping[QubeName, Mapping[str, str]]) -> Cable:
    """The cable that an earlier daemon made, as far as both its ends are there."""
    netvm = netvm_of(inventory, qube.name)
    interface = interface_of(qube)
    for holder, nics in plugged.items():
        if nics.get(interface) == link and holder != qube.name:
            is_wished = netvm is not None and netvm.name == holder
            return Cable(link, interface, holder, _wish(inventory, qube.name) if is_wished else None)
    is_way_out = netvm is None and inventory.flag(qube.name, "provides_network")
    return Cable(link, "", None, _wish(inventory, qube.name) if is_way_out else None, open=is_way_out)


async def _ports_of_handed(live: Live, inventory: Inventory) -> Mapping[str, str]:
    """The host's devices in a running qube, and where; NotNow if they are not those that it should have: they come with
    a machine's start and go with its end."""
    wanted = handed_devices(inventory, live.facts.name)
    held = await live.machine.handed_devices() if live.run.mode is StartMode.BOOT else {}
    if set(wanted) == held.keys():
        return held
    keeps = f"keeps {' and '.join(held)} until" if held else f"gets {' and '.join(wanted)} when"
    raise NotNow(
        f"{live.facts.name} {keeps} it is started again: devices of the host are not changed in a running qube",
        hint=f"cloison restart {live.facts.name}",
    )


async def _tell(live: Live, uplink: Uplink | HandedCard | None) -> None:
    assert live.link is not None
    await live.link.control(NETWORK, uplink_fields(uplink), timeout_s=AGENT_TIMEOUT_S)


async def _all(*work: Coroutine[Any, Any, None]) -> None:
    """Do all at once, to their ends; the first error is raised afterwards."""
    errors = [error for error in await asyncio.gather(*work, return_exceptions=True) if error is not None]
    for error in errors:
        if not isinstance(error, CloisonError):
            raise error
    if errors:
        raise errors[0]
