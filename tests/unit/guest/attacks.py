"""Frames that a hostile client of a netvm may send; the same in one kernel's namespaces and between real guests."""

from __future__ import annotations

from typing import Any, NamedTuple

from tests.unit.guest import frames as f

from cloison.wire.nftables import link_local


class Aim(NamedTuple):
    """Who sends, and against whom: the client itself, another client, the netvm they share, the world behind it."""

    ip: str
    ip6: str
    mac: str
    other: str
    other6: str
    other_mac: str
    gate: str
    gate6: str
    gate_mac: str
    """Of the netvm's card at the sender's cable."""
    netvm_out: str
    """The netvm's own address towards the world."""
    world: str
    world6: str


def attacks(token: bytes, aim: Aim) -> dict[str, tuple[bytes, ...]]:
    """By name; each frame that could carry it carries the token."""
    gate, gate6_local, a_local = aim.gate_mac, link_local(aim.gate_mac), link_local(aim.mac)

    def data(source: str = aim.ip, to: str = aim.world, *, own: str = aim.mac, at: str = gate, **how: Any) -> bytes:
        tag = how.pop("tag", None)
        return f.ether(at, own, f.IPV4, f.ip4(source, to, f.UDP, f.udp(source, to, 5, 9000, token), **how), tag=tag)

    def data6(source: str = aim.ip6, to: str = aim.world6, *, own: str = aim.mac, at: str = gate) -> bytes:
        return f.ether(at, own, f.IPV6, f.ip6(source, to, f.UDP, f.udp(source, to, 5, 9000, token)))

    def nd(
        kind: int, body: bytes, source: str = aim.ip6, to: str = aim.gate6, at: str = gate, hops: int = 255
    ) -> bytes:
        return f.ether(at, aim.mac, f.IPV6, f.ip6(source, to, 58, f.icmp6(source, to, kind, body), hops=hops))

    def ask(
        kind: int, sender: str, target: str, own: str = aim.mac, at: str = f.BROADCAST, inner: str = aim.mac
    ) -> bytes:
        return f.ether(at, own, f.ARP, f.arp(kind, inner, sender, "00:00:00:00:00:00", target))

    offer = bytes([2, 1, 6, 0]) + bytes(232) + b"\x63\x82\x53\x63\x35\x01\x02\xff" + token
    dhcp = f.ip4(aim.ip, "255.255.255.255", f.UDP, f.udp(aim.ip, "255.255.255.255", 67, 68, offer))
    big = f.ip4(aim.ip, aim.world, f.UDP, f.udp(aim.ip, aim.world, 5, 9000, token + bytes(9000)))
    asked, own_card = f.solicited_node(aim.other6), b"\x01\x01" + f.mac(aim.mac)
    all_nodes, mcast = "ff02::1", "33:33:00:00:00:01"
    return {
        "spoofed mac": (data(own=aim.other_mac),),
        "spoofed ipv4 of the other client": (data(aim.other),),
        "spoofed ipv4 of the world": (data("198.51.100.7"),),
        "spoofed ipv4 of the netvm": (data(aim.netvm_out), data(aim.gate)),
        "spoofed ipv6": (data6(aim.other6), data6("2001:db8:bad::1"), data6(a_local)),
        "spoofed ipv6 mac": (data6(own=aim.other_mac),),
        "to the other client": (data(to=aim.other), data6(to=aim.other6)),
        "to the other client's card": (
            data(to=aim.other, at=aim.other_mac), data(to=aim.other, at=f.BROADCAST),
            data6(to=aim.other6, at=aim.other_mac),
        ),
        "to the other client's link-local address": (data6(to=link_local(aim.other_mac)),),
        "ipv4 multicast": (data(to="224.0.0.251", at="01:00:5e:00:00:fb"), data(to="224.0.0.251")),
        "ipv4 broadcast": (data(to="255.255.255.255", at=f.BROADCAST), data(to="10.137.255.255", at=f.BROADCAST)),
        "ipv6 multicast": (data6(to=all_nodes, at=mcast), data6(to="ff05::2", at="33:33:00:00:00:02")),
        "to the netvm's port": tuple(
            f.ether(gate, aim.mac, f.IPV4, f.ip4(aim.ip, to, f.UDP, f.udp(aim.ip, to, 5, 7777, token)))
            for to in (aim.gate, aim.netvm_out)
        ),
        "through the netvm's address with source routing": (
            data(to=aim.gate, options=b"\x83\x07\x04" + f.packed(aim.other) + b"\x00"),
        ),
        "arp for another address": (
            ask(1, aim.other, aim.gate), ask(1, aim.gate, aim.ip), ask(2, aim.other, aim.gate, at=gate),
        ),
        "arp with another card inside": (
            ask(1, aim.ip, aim.gate, inner=aim.other_mac), ask(2, aim.ip, aim.gate, at=gate, inner=aim.other_mac),
        ),
        "arp from another card": (ask(1, aim.ip, aim.gate, own=aim.other_mac),),
        "arp for the other client": (ask(1, aim.ip, aim.other),),
        "gratuitous arp": (ask(1, aim.other, aim.other), ask(2, aim.gate, aim.gate)),
        "neighbour advertisement of another address": (
            nd(136, f.advertisement(aim.other6, aim.mac)),
            nd(136, f.advertisement(aim.other6, aim.mac), to=all_nodes, at=mcast),
            nd(136, f.advertisement(aim.gate6, aim.mac), source=a_local, to=all_nodes, at=mcast),
        ),
        "neighbour solicitation of another address": (
            nd(135, bytes(4) + f.packed(aim.other6) + own_card, to=asked, at=f.multicast_mac(asked)),
            nd(135, bytes(4) + f.packed(aim.gate6) + own_card, source=aim.other6),
        ),
        "router advertisement": (
            nd(134, f.router(aim.mac), source=a_local, to=all_nodes, at=mcast),
            nd(134, f.router(aim.mac), source=a_local, to=gate6_local),
        ),
        "redirect": (nd(137, bytes(4) + f.packed(aim.other6) + f.packed(aim.world6), source=a_local, to=gate6_local),),
        "dhcp offer": (f.ether(f.BROADCAST, aim.mac, f.IPV4, dhcp), f.ether(gate, aim.mac, f.IPV4, dhcp)),
        "vlan tag": tuple(data(tag=tag) for tag in (0, 1, 12, 0x6001)),
        "double vlan tag": (
            f.ether(gate, aim.mac, f.VLAN, (12).to_bytes(2, "big") + b"\x08\x00" + data()[14:], tag=1),
        ),
        "jumbo": (f.ether(gate, aim.mac, f.IPV4, big), f.ether(gate, aim.other_mac, f.IPV4, big)),
        "fragments with another address": (data(aim.other, fragment=0x2000), data(aim.other, fragment=0x0100)),
        "malformed": (
            data()[:20], data()[:14], data()[:34], data(version=5), data(version=6), b"\xff" * 60, bytes(60),
            f.ether(gate, aim.mac, f.IPV6, data()[14:]), f.ether(gate, aim.mac, f.IPV4, data6()[14:]),
            f.ether(gate, aim.mac, 0x88CC, token * 9),
            f.ether(gate, aim.mac, 0x0027, b"\x42\x42\x03" + token + bytes(40)),
            f.ether(gate, aim.mac, 0x8864, b"\x11\x00\x00\x01\x00\x20\x00\x21" + data()[14:]),
        ),
        "mpls and tunnels": (
            f.ether(gate, aim.mac, 0x8847, b"\x00\x01\x01\xff" + data()[14:]),
            f.ether(gate, aim.mac, f.IPV4, f.ip4(aim.ip, aim.gate, 4, data(to=aim.other)[14:])),
        ),
        "a rule says drop": (
            f.ether(gate, aim.mac, f.IPV4, f.ip4(aim.ip, aim.world, f.UDP, f.udp(aim.ip, aim.world, 5, 666, token))),
            f.ether(gate, aim.mac, f.IPV4, f.ip4(aim.ip, aim.world, f.TCP, f.tcp(aim.ip, aim.world, 5, 82, token))),
        ),
        "an answer to nothing": (
            f.ether(gate, aim.mac, f.IPV4,
                    f.ip4(aim.ip, aim.world, f.TCP, f.tcp(aim.ip, aim.world, 5, 82, token, flags=0x12))),
        ),
    }  # fmt: skip
