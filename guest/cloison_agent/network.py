"""The qube's network as dom0 wishes it: its own way out, and, in a netvm, its clients' links.

Cards come and go while the qube runs; they are found by their hardware address when the kernel tells of them. What the
messages mean is said in ``cloison.wire.network``.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from cloison.wire.firewall import parse_rules as parse_firewall
from cloison.wire.network import Downlink, Downlinks, HandedCard, Uplink, parse_downlinks, parse_rules, parse_uplink
from cloison.wire.nftables import link_text, whole_text
from cloison_agent.agent import Agent, Answer
from cloison_agent.dhcp import DhcpClient, Lease
from cloison_agent.firewall import NFT, Firewall
from cloison_agent.loop import READ
from cloison_agent.netlink import Card, Netlink

CARD_TIMEOUT_S = 40.0
"""Longest wait for cards that dom0 has plugged in: an emulated guest on a busy computer takes a second or two for each,
and fifty may come at once."""
UPLINK_NAME = "eth0"
RESOLV_CONF = "/etc/resolv.conf"
SYSCTL = "/proc/sys/net"
CARDS = "/sys/class/net"


class Network:
    """What this machine has been told, and the waits for cards."""

    def __init__(self) -> None:
        self._kernel: Netlink | None = None
        self._told: Netlink | None = None
        self._waiting: list[_Wait] = []
        self._rules: dict[str, list[str]] = {}
        self._firewall: Firewall | None = None
        self._client: DhcpClient | None = None
        self._lease: Lease | None = None
        self._told_downlinks: Downlinks | None = None
        self.downlinks: dict[str, Downlink] = {}
        self._set_up: dict[str, tuple[Card, Downlink, str, str]] = {}
        """Of each link what it was set up from: that of many clients is not done again for each that comes."""

    def kernel(self) -> Netlink:
        if self._kernel is None:
            self._kernel = Netlink()
        return self._kernel

    def configure(self, agent: Agent, fields: Mapping[str, Any], answer: Answer) -> None:
        """``network``: answers when the card is there and set up."""
        uplink = parse_uplink(fields)
        if uplink is None:
            self._forget_lease()
            _write(RESOLV_CONF, "")
            answer()
            return
        wanted = uplink.port if isinstance(uplink, HandedCard) else uplink.mac

        def found(cards: Mapping[str, Card]) -> None:
            if (card := cards.get(wanted)) is None:
                answer(error=f"no network card {wanted} has appeared")
            elif isinstance(uplink, HandedCard):
                answer(interface=self._ask_for_address(agent, card))
            else:
                self._forget_lease()
                answer(interface=set_up_uplink(self.kernel(), card, uplink))

        self._await_cards(agent, frozenset({wanted}), answer, found)

    def _ask_for_address(self, agent: Agent, card: Card) -> str:
        """The network beyond a handed-over card says who we are there; now, or when it is there at last."""
        if self._client is None or self._client.card.number != card.number:
            self._forget_lease()
            card = raise_card(self.kernel(), card)
            self._client = DhcpClient(agent.loop, card, lambda lease: self._take_lease(agent, lease))
        return self._client.card.name

    def _take_lease(self, agent: Agent, lease: Lease | None) -> None:
        assert self._client is not None, "it is what told us"
        if lease is not None and lease == self._lease:
            return  # prolonged
        self._lease = lease
        try:
            set_up_lease(self.kernel(), self._client.card, lease)
        except OSError as error:
            print("lease:", error, file=sys.stderr, flush=True)
        if self._told_downlinks is not None:
            self.firewall(agent).apply_links(self._with_resolvers(self._told_downlinks), lambda why: None)

    def _forget_lease(self) -> None:
        if self._client is not None:
            self._client.stop()
        self._client = self._lease = None

    def _with_resolvers(self, downlinks: Downlinks) -> Downlinks:
        """Who answers our clients' questions, if dom0 leaves that to the network beyond."""
        if downlinks.resolvers or self._lease is None:
            return downlinks
        return downlinks._replace(resolvers=self._lease.dns)

    def firewall(self, agent: Agent) -> Firewall:
        if self._firewall is None:
            self._firewall = Firewall(agent.loop)
        return self._firewall

    def connect(self, agent: Agent, fields: Mapping[str, Any], answer: Answer) -> None:
        """``downlinks``: closes whatever is not named, then answers when all cards are there or late (``missing``);
        ``closed`` are links that wait for their rules."""
        self._told_downlinks = wanted = parse_downlinks(fields)
        gone = self.downlinks.keys() - {link.interface for link in wanted.links}
        self.downlinks = {link.interface: link for link in wanted.links}
        for interface in gone:
            self._rules.pop(interface, None)
            self._set_up.pop(interface, None)
        self._take_down(gone)

        def found(cards: Mapping[str, Card]) -> None:
            for link in wanted.links:
                if (card := cards.get(link.mac)) is not None:
                    self._set_up_link(card, link, wanted)
            _allow_forwarding(wanted)
            missing = " ".join(link.interface for link in wanted.links if link.mac not in cards)
            answer(missing=missing, closed=" ".join(self.firewall(agent).closed()))

        def filtered(error: str) -> None:
            if error:
                answer(error=error)
            else:
                self._await_cards(agent, frozenset(link.mac for link in wanted.links), answer, found)

        self.firewall(agent).apply_links(self._with_resolvers(wanted), filtered)

    def _set_up_link(self, card: Card, link: Downlink, wanted: Downlinks) -> None:
        name = link.interface
        if self._set_up.get(name) != (card, link, wanted.gateway, wanted.gateway6):
            set_up_downlink(self.kernel(), card, link, wanted)
            self._set_up[name] = (card._replace(name=name, is_up=True), link, wanted.gateway, wanted.gateway6)

    def load_rules(self, agent: Agent, fields: Mapping[str, Any], answer: Answer) -> None:
        """``rules``: the last part's answer says that they are in force."""
        part = parse_rules(fields)
        if part.interface not in self.downlinks:
            answer(error=f"there is no link {part.interface}")
            return
        if part.first:
            self._rules[part.interface] = []
        kept = self._rules.setdefault(part.interface, [])
        kept.append(part.text)
        if not part.last:
            answer()
            return
        text = "".join(self._rules.pop(part.interface))
        self.firewall(agent).load_rules(part.interface, text, lambda why: answer(**{"error": why} if why else {}))

    def count(self, agent: Agent, fields: Mapping[str, Any], answer: Answer) -> None:
        """``counters``: what the rules of ``interface`` have decided, from the rule numbered ``first`` on."""
        self.firewall(agent).read_counters(str(fields["interface"]), int(fields["first"]), answer)

    def _take_down(self, interfaces: set[str]) -> None:
        if interfaces:
            for card in self.kernel().cards():
                if card.name in interfaces:
                    with suppress(OSError):  # it may be gone by now
                        self.kernel().set_link(card.number, up=False)

    def _await_cards(
        self, agent: Agent, wanted: frozenset[str], answer: Answer, found: Callable[[Mapping[str, Card]], None]
    ) -> None:
        """Call ``found`` with the cards once all are there that are wanted, or with those that are when it is late; by
        hardware address, and by port where one is wanted."""
        if self._told is None:
            self._told = Netlink(follow_links=True)
            agent.loop.add(self._told.fileno(), READ, lambda _: self._look())
        wait = _Wait(wanted, answer, found)
        self._waiting.append(wait)
        agent.loop.later(CARD_TIMEOUT_S, lambda: self._give_up(wait))
        self._look()

    def _look(self) -> None:
        if self._told is not None:
            self._told.drain()
        if self._waiting:
            cards = self._cards()
            for wait in [wait for wait in self._waiting if wait.wanted <= cards.keys()]:
                self._waiting.remove(wait)
                wait.end(cards)

    def _cards(self) -> dict[str, Card]:
        present = self.kernel().cards()
        ports = {identity for wait in self._waiting for identity in wait.wanted if "." in identity}
        behind = {port: card for port in ports for card in present if is_behind(card, port)}
        return {card.mac: card for card in present} | behind

    def _give_up(self, wait: _Wait) -> None:
        if wait in self._waiting:
            cards = self._cards()
            self._waiting.remove(wait)
            wait.end(cards)


class _Wait:
    """A request that waits for cards."""

    def __init__(self, wanted: frozenset[str], answer: Answer, found: Callable[[Mapping[str, Card]], None]) -> None:
        self.wanted = wanted
        self._answer = answer
        self._found = found

    def end(self, cards: Mapping[str, Card]) -> None:
        try:
            self._found(cards)
        except OSError as error:
            self._answer(error=f"{error.filename or 'network'}: {error.strerror}")


def rehearse() -> None:
    """Do once what a netvm and its clients will do, and undo it: a fork then finds the kernel's modules loaded and
    the programs in memory. Each module costs an emulated guest a tenth of a second, and udev, which would load the
    card's, stands still just then."""
    sample = Downlink("lo", "fe:ff:ff:00:00:00", "sample", "192.0.2.2", "", "00:16:3e:00:00:00", "192.0.2.2", "", 1500)
    netvm = Downlinks("192.0.2.1", "", ("192.0.2.3",), (sample,))
    client = link_text(sample, netvm.gateway, "", parse_firewall("action=accept\n"), {}, 1)
    undo = "".join(f"delete table {table}\n" for table in ("netdev cloison", "inet cloison", "ip qubes", "ip6 qubes"))
    _rehearse(["/sbin/modprobe", "-q", "virtio_net"])
    for text in (whole_text(netvm, ((sample, client),)), undo):
        _rehearse([NFT, "-f", "-"], text)
    Netlink().cards()


def _rehearse(command: list[str], text: str = "") -> None:
    """What fails here is only slower later."""
    try:
        done = subprocess.run(command, input=text.encode(), capture_output=True, check=False)
        why = done.stderr.decode(errors="replace").strip()[:200] if done.returncode else ""
    except OSError as error:
        why = f"{command[0]}: {error.strerror}"
    if why:
        print("rehearsal:", why, file=sys.stderr, flush=True)


def set_up_uplink(kernel: Netlink, card: Card, uplink: Uplink) -> str:
    """Addresses alone, the gateway reached directly: nothing else is on this cable. Returns the card's name."""
    card = _named(kernel, card)
    _set_ipv6(card.name, bool(uplink.ip6))
    kernel.flush_addresses(card.number)
    kernel.set_link(card.number, up=True, mtu=uplink.mtu)
    for address, gateway, everything in (
        (uplink.ip, uplink.gateway, "default4"),
        (uplink.ip6, uplink.gateway6, "default6"),
    ):
        if address:
            kernel.add_address(card.number, address)
        if address and gateway:
            if uplink.gateway_mac:
                kernel.add_neighbour(card.number, gateway, uplink.gateway_mac)
            kernel.add_route(card.number, gateway)
            kernel.add_route(card.number, everything, gateway=gateway, source=address)
    _write(RESOLV_CONF, "".join(f"nameserver {server}\n" for server in uplink.dns))
    return card.name


def raise_card(kernel: Netlink, card: Card) -> Card:
    """A handed-over card, up and without addresses. Nobody tells it an IPv6 address."""
    card = _named(kernel, card)
    _set_ipv6(card.name, False)
    kernel.flush_addresses(card.number)
    kernel.set_link(card.number, up=True)
    return card


def set_up_lease(kernel: Netlink, card: Card, lease: Lease | None) -> None:
    """What the network beyond the card says that we are there; None: it says nothing any more."""
    kernel.flush_addresses(card.number)
    if lease is not None:
        kernel.add_address(card.number, lease.ip, prefix=lease.prefix)
        if lease.gateway:
            kernel.add_route(card.number, "default4", gateway=lease.gateway, source=lease.ip)
    _write(RESOLV_CONF, "".join(f"nameserver {server}\n" for server in lease.dns) if lease else "")


def is_behind(card: Card, port: str) -> bool:
    """Whether the card is a device, or a device's part, behind the PCI port."""
    return port in os.path.realpath(f"{CARDS}/{card.name}/device").split("/")


def _named(kernel: Netlink, card: Card) -> Card:
    if card.name == UPLINK_NAME or card.is_up:
        return card
    try:
        kernel.set_link(card.number, name=UPLINK_NAME)
    except OSError:  # the name is taken by a card on its way out
        return card
    return card._replace(name=UPLINK_NAME)


def set_up_downlink(kernel: Netlink, card: Card, link: Downlink, netvm: Downlinks) -> None:
    """The client's cable: its true address alone is at the other end (the firewall puts on it what the client sees)."""
    if card.name != link.interface:
        if card.is_up:
            kernel.set_link(card.number, up=False)
        kernel.set_link(card.number, name=link.interface)
    has_ip6 = bool(link.ip6 and netvm.gateway6)
    _set_ipv6(link.interface, has_ip6)
    _sysctl(f"ipv4/conf/{link.interface}/rp_filter", "1")
    kernel.set_link(card.number, up=True, mtu=link.mtu)
    for gateway, client in ((netvm.gateway, link.ip), (netvm.gateway6, link.ip6 if has_ip6 else "")):
        if gateway and client:
            kernel.add_address(card.number, gateway)
            kernel.add_neighbour(card.number, client, link.client_mac)
            kernel.add_route(card.number, client, source=gateway)


def _allow_forwarding(downlinks: Downlinks) -> None:
    """After the firewall's own drop-all is in force."""
    if downlinks.links:
        _sysctl("ipv4/ip_forward", "1")
        if any(link.ip6 for link in downlinks.links):
            _sysctl("ipv6/conf/all/forwarding", "1")


def _set_ipv6(interface: str, wanted: bool) -> None:
    """Nobody on the cable may tell this machine its addresses or routes."""
    directory = f"ipv6/conf/{interface}"
    if os.path.isdir(f"{SYSCTL}/{directory}"):
        _sysctl(f"{directory}/accept_ra", "0")
        _sysctl(f"{directory}/autoconf", "0")
        _sysctl(f"{directory}/disable_ipv6", "0" if wanted else "1")


def _sysctl(name: str, value: str) -> None:
    path = f"{SYSCTL}/{name}"
    with open(path) as file:
        if file.read().strip() == value:
            return
    _write(path, value)


def _write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)


network = Network()
