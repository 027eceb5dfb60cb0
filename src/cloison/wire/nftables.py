"""A netvm's packet filter as text for ``nft -f -``: the same for the guest that loads it and who wants to read it.

In: links (``wire.network``), rules (``wire.firewall``), addresses of names. Out: text; each text is one transaction.
May import: the standard library, this package.

Where a client's packet goes, in this order, and where it may end:

1. ``netdev cloison in-vifN`` (ingress of its own card, before anything else of the kernel parses it): from its own
   hardware address, from its own address, to the netvm's card, plain ARP, IPv4 or IPv6, no tag. The rest is dropped.
   What passes carries the mark ``CHECKED``; packets of a client's card without it go nowhere.
2. ``ip/ip6 qubes custom-input, custom-forward``: the user's own chains, never touched once made. What they accept is
   accepted for good: it carries the mark ``CUSTOM``.
3. ``inet cloison input``: to the netvm itself: an echo, and nothing else.
4. ``inet cloison forward``: never to another client; a connection that this client's *present* rules let through before
   (its connection mark says so) goes on; else ``rules-vifN``, in order. A change of the rules is a change of the mark,
   so open connections are judged anew. Replies are judged by the connection that they answer.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator, Mapping, Sequence

from cloison.wire.firewall import DNS_ADDRESSES, DNS_PORT, Names, Rule, may_open
from cloison.wire.network import Downlink, Downlinks

CHECKED, CUSTOM = 0x20000000, 0x10000000
"""Packet marks: came through a client's ingress chain; was accepted by the user's own chain."""
MAX_CONNECTIONS = 4096
"""Open connections of one client: a flood of its own fills its own share of the kernel's table only."""
ECHOES = "20/second burst 40 packets"
"""Pings of one's gateway are for people who look for a fault."""
_REFUSE = "goto refuse"
_CUSTOM_HOOKS = (("input", "input"), ("forward", "forward"))


def whole_text(downlinks: Downlinks, clients: Iterable[tuple[Downlink, str]]) -> str:
    """Everything from nothing: ``clients`` are links with the text that ``link_text`` made for them."""
    reset = "".join(f"add table {table}\ndelete table {table}\n" for table in ("netdev cloison", "inet cloison"))
    return reset + base_text(downlinks) + "".join(text for _, text in clients)


def base_text(downlinks: Downlinks) -> str:
    """What belongs to no client's rules. Repeating it changes nothing but what the resolvers and the links are."""
    return "".join(_custom(family) for family in ("ip", "ip6")) + _FIXED.format(
        checked=hex(CHECKED), custom=hex(CUSTOM), echoes=ECHOES, dns="".join(_redirects(downlinks.resolvers)),
        known=known_text(downlinks),
    )  # fmt: skip


def known_text(downlinks: Downlinks) -> str:
    """Which cards are clients', with rules or not: what comes from one of these and was not checked goes nowhere, not
    even where the user's own chains would let it."""
    names = ", ".join(f'"{link.interface}"' for link in downlinks.links)
    filled = f"add element inet cloison downlinks {{ {names} }}\n" if names else ""
    return f"flush set inet cloison downlinks\n{filled}"


def _custom(family: str) -> str:
    """The user's own chains, named as in Qubes, called from chains of ours in the same table."""
    lines = [f"add table {family} qubes"]
    for name, hook in _CUSTOM_HOOKS:
        lines += [
            f"add chain {family} qubes custom-{name}",
            f"add chain {family} qubes cloison-{name} {{ type filter hook {hook} priority -10; policy accept; }}",
            f"flush chain {family} qubes cloison-{name}",
            f"add rule {family} qubes cloison-{name} meta mark set meta mark | {hex(CUSTOM)}",
            f"add rule {family} qubes cloison-{name} jump custom-{name}",
            f"add rule {family} qubes cloison-{name} meta mark set meta mark & {hex(0xFFFFFFFF ^ CUSTOM)}",
        ]
    return "\n".join(lines) + "\n"


_FIXED = """\
add table netdev cloison
table inet cloison {{
	set downlinks {{ type ifname; }}
	map from-client {{ type ifname : verdict; }}
	map to-client {{ type ifname : verdict; }}
	chain refuse {{ }}
	chain input {{ type filter hook input priority 0; policy drop; }}
	chain forward {{ type filter hook forward priority 0; policy drop; }}
	chain dns {{ type nat hook prerouting priority -100; policy accept; }}
	chain way-out {{ type nat hook postrouting priority 100; policy accept; }}
}}
flush chain inet cloison refuse
flush chain inet cloison input
flush chain inet cloison forward
flush chain inet cloison dns
flush chain inet cloison way-out
{known}table inet cloison {{
	chain refuse {{
		ct direction reply drop
		reject with icmpx admin-prohibited
	}}
	chain input {{
		iifname "lo" accept
		iifname @downlinks meta mark & {checked} == 0 counter drop
		meta mark & {custom} != 0 accept
		ct state invalid drop
		ct direction reply ct state established,related accept
		iifname @downlinks icmp type echo-request limit rate {echoes} accept
		iifname @downlinks icmpv6 type echo-request limit rate {echoes} accept
		iifname @downlinks icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert }} accept
		iifname @downlinks counter drop
		ct state established,related accept
		icmpv6 type {{ nd-router-advert, nd-neighbor-solicit, nd-neighbor-advert }} accept
		udp sport 67 udp dport 68 accept
	}}
	chain forward {{
		iifname @downlinks meta mark & {checked} == 0 counter drop
		meta mark & {custom} != 0 accept
		ct state invalid drop
		iifname @downlinks oifname @downlinks counter goto refuse
		iifname vmap @from-client
		oifname vmap @to-client
		counter
	}}
	chain dns {{
{dns}	}}
	chain way-out {{
		oifname != "lo" oifname != @downlinks masquerade
	}}
}}
"""


def _redirects(resolvers: Sequence[str]) -> Iterator[str]:
    """Questions of clients go to whom the netvm itself asks; a netvm that asks 10.139.1.1 need not change them."""
    usable = [address for address in resolvers if "." in address]
    if not usable or set(usable) <= set(DNS_ADDRESSES):
        return
    for number, address in enumerate(DNS_ADDRESSES):
        to = usable[number % len(usable)]
        for proto in ("udp", "tcp"):
            yield f"\t\tiifname @downlinks ip daddr {address} {proto} dport {DNS_PORT} dnat ip to {to}\n"


# -- one client ------------------------------------------------------------------------------------------------------


def link_text(link: Downlink, gateway: str, gateway6: str, rules: Sequence[Rule], names: Names, mark: int,
              old_sets: Iterable[str] = ()) -> str:  # fmt: skip
    """One client's part, made or replaced as a whole; the base must be there.

    ``mark``: the connection mark (1 to 2**32 - 1) by which connections that these rules let through are known; a new
    one for each text. ``old_sets``: what ``set_names`` said for the rules before. The rule at index N is commented
    ``rN``, and its first expressions are its conditions, so that its counter can be found.
    """
    name = link.interface
    text = [
        f"add chain netdev cloison in-{name} "
        f'{{ type filter hook ingress device "{name}" priority -500; policy drop; }}',
        f"flush chain netdev cloison in-{name}",
        *(f"add chain inet cloison {chain}-{name}" for chain in ("rules", "from", "to")),
        *(f"flush chain inet cloison {chain}-{name}" for chain in ("rules", "from", "to")),
        *(f"delete set inet cloison {old}" for old in old_sets),
    ]
    if _is_translated(link):
        text += [
            f"add chain netdev cloison out-{name} "
            f'{{ type filter hook egress device "{name}" priority 0; policy accept; }}',
            f"flush chain netdev cloison out-{name}",
            f"add rule netdev cloison out-{name} ip daddr {link.ip} ip daddr set {link.visible_ip}",
        ]
    return "\n".join([
        *text,
        "table netdev cloison {",
        f"\tchain in-{name} {{",
        *(f"\t\t{line}" for line in _ingress(link, gateway, gateway6)),
        "\t}",
        "}",
        "table inet cloison {",
        *_sets(name, rules, names),
        f"\tchain rules-{name} {{",
        *(f"\t\t{line}" for line in _rules(name, rules, names, mark)),
        f"\t\tcounter {_REFUSE}",
        "\t}",
        f"\tchain from-{name} {{",
        f"\t\tct mark {hex(mark)} accept",
        "\t\tct direction reply ct state established accept",
        "\t\tct state related drop",
        f"\t\tct state new ct count over {MAX_CONNECTIONS} counter drop",
        f"\t\tgoto rules-{name}",
        "\t}",
        f"\tchain to-{name} {{",
        f"\t\tct mark {hex(mark)} ct direction reply accept",
        f"\t\tct direction reply ct state established goto rules-{name}",
        "\t\tcounter drop",
        "\t}",
        "}",
        f'add element inet cloison from-client {{ "{name}" : goto from-{name} }}',
        f'add element inet cloison to-client {{ "{name}" : goto to-{name} }}',
        "",
    ])  # fmt: skip


def removal_text(link: Downlink, old_sets: Iterable[str] = ()) -> str:
    """Take a client's part away; its card may be gone already, and with it the chains on it. (``known_text`` is said
    besides.)"""
    name = link.interface
    inner, outer = ("from", "to", "rules"), ("in", "out") if _is_translated(link) else ("in",)
    return "".join(
        f"{line}\n"
        for line in (
            *(f'delete element inet cloison {kind} {{ "{name}" }}' for kind in ("to-client", "from-client")),
            *(f"flush chain inet cloison {chain}-{name}" for chain in inner),
            *(f"delete set inet cloison {old}" for old in old_sets),
            *(f"delete chain inet cloison {chain}-{name}" for chain in inner),
            *(f"add chain netdev cloison {chain}-{name}" for chain in outer),
            *(f"flush chain netdev cloison {chain}-{name}" for chain in outer),
            *(f"delete chain netdev cloison {chain}-{name}" for chain in outer),
        )
    )


def _is_translated(link: Downlink) -> bool:
    return bool(link.ip and link.visible_ip and link.visible_ip != link.ip)


def _ingress(link: Downlink, gateway: str, gateway6: str) -> Iterator[str]:
    """What a client's card may send at all."""
    yield f"ether saddr != {link.client_mac} counter drop"
    yield "ether type { 0x8100, 0x88a8 } counter drop"
    if link.ip:
        visible = link.visible_ip or link.ip
        gateways = ", ".join(dict.fromkeys(address for address in (link.visible_gateway, gateway) if address))
        if gateways:
            yield (
                f"ether daddr {{ {link.mac}, ff:ff:ff:ff:ff:ff }} arp htype 1 arp ptype 0x0800 arp hlen 6 arp plen 4 "
                f"arp operation {{ 1, 2 }} arp saddr ether {link.client_mac} arp saddr ip {visible} "
                f"arp daddr ip {{ {gateways} }} limit rate 50/second accept"
            )
        translate = f"ip saddr set {link.ip} " if _is_translated(link) else ""
        yield (
            f"ether daddr {link.mac} ip saddr {visible} ip version 4 ip hdrlength 5 "
            "ip daddr != { 0.0.0.0/8, 127.0.0.0/8, 169.254.0.0/16, 224.0.0.0-255.255.255.255 } "
            f"{translate}meta mark set {hex(CHECKED)} accept"
        )
    if link.ip6:
        yield from _ingress6(link, gateway6)
    yield "counter"


def _ingress6(link: Downlink, gateway6: str) -> Iterator[str]:
    """Neighbour discovery is looked at whole: fixed offsets of its only sensible form (RFC 4861), nothing before it."""
    own = f"{{ {link.ip6}, fe80::/10 }}"
    target = f"@th,64,128 {{ {', '.join(_hex6(address) for address in (gateway6, link_local(link.mac)) if address)} }}"
    yield (
        f"ether daddr {{ {link.mac}, 33:33:00:00:00:00-33:33:ff:ff:ff:ff }} ip6 nexthdr 58 ip6 hoplimit 255 "
        f"ip6 saddr {own} icmpv6 type nd-neighbor-solicit {target} limit rate 50/second "
        f"meta mark set {hex(CHECKED)} accept"
    )
    yield (
        f"ether daddr {link.mac} ip6 nexthdr 58 ip6 hoplimit 255 ip6 saddr {own} icmpv6 type nd-neighbor-advert "
        f"@th,64,128 {{ {_hex6(link.ip6)}, {_hex6(link_local(link.client_mac))} }} limit rate 50/second "
        f"meta mark set {hex(CHECKED)} accept"
    )
    yield "meta l4proto ipv6-icmp icmpv6 type { 130-137, 143, 151-153 } counter drop"
    yield (
        f"ether daddr {link.mac} ip6 saddr {link.ip6} ip6 nexthdr {{ tcp, udp, ipv6-icmp, ipv6-frag }} "
        "ip6 daddr != { ::/127, ::ffff:0:0/96, fe80::/10, ff00::/8 } "
        f"meta mark set {hex(CHECKED)} accept"
    )


def link_local(mac: str) -> str:
    """The IPv6 link-local address that a card with this hardware address takes."""
    octets = bytes.fromhex(mac.replace(":", ""))
    inner = bytes([octets[0] ^ 2, *octets[1:3], 0xFF, 0xFE, *octets[3:]])
    return str(ipaddress.IPv6Address(b"\xfe\x80" + bytes(6) + inner))


def _hex6(address: str) -> str:
    return f"0x{int(ipaddress.IPv6Address(address)):032x}"


# -- rules -----------------------------------------------------------------------------------------------------------


def set_names(interface: str, rules: Sequence[Rule]) -> tuple[str, ...]:
    """The sets that ``link_text`` makes for rules with names of hosts."""
    return tuple(f"{_set(interface, number, version)}" for number, _ in enumerate(_hosts(rules)) for version in (4, 6))


def names_text(interface: str, rules: Sequence[Rule], names: Names, changed: str) -> str:
    """Give the sets of the name ``changed`` their new addresses; all else stays."""
    lines = []
    for number, (action, host) in enumerate(_hosts(rules)):
        for version in (4, 6) if host == changed else ():
            lines.append(f"flush set inet cloison {_set(interface, number, version)}\n")
            if elements := _addresses(action, names.get(host), version):
                where = _set(interface, number, version)
                lines.append(f"add element inet cloison {where} {{ {', '.join(elements)} }}\n")
    return "".join(lines)


def _hosts(rules: Sequence[Rule]) -> list[tuple[str, str]]:
    return list(dict.fromkeys((rule.action, rule.dsthost) for rule in rules if rule.dsthost))


def _set(interface: str, number: int, version: int) -> str:
    return f"name{number}-{interface}-{version}"


def _addresses(action: str, known: Sequence[str] | None, version: int) -> list[str]:
    parsed = sorted({ipaddress.ip_address(address) for address in known or ()}, key=lambda a: (a.version, int(a)))
    return [str(a) for a in parsed if a.version == version and (action == "drop" or may_open(a))]


def _sets(interface: str, rules: Sequence[Rule], names: Names) -> Iterator[str]:
    for number, (action, host) in enumerate(_hosts(rules)):
        for version in (4, 6):
            found = _addresses(action, names.get(host), version)
            elements = f" elements = {{ {', '.join(found)} }}" if found else ""
            kind = "ipv4_addr" if version == 4 else "ipv6_addr"
            yield f"\tset {_set(interface, number, version)} {{ type {kind};{elements} }}"


def _rules(interface: str, rules: Sequence[Rule], names: Names, mark: int) -> Iterator[str]:
    sets = {key: number for number, key in enumerate(_hosts(rules))}
    for number, rule in enumerate(rules):
        verdict = f"ct mark set {hex(mark)} accept" if rule.action == "accept" else _REFUSE
        for destination in _destinations(interface, rule, sets, names):
            for match in _matches(rule):
                yield f'{destination}{match}counter {verdict} comment "r{number}"'


def _destinations(interface: str, rule: Rule, sets: Mapping[tuple[str, str], int], names: Names) -> Iterator[str]:
    if rule.dst4:
        yield f"ct original ip daddr {rule.dst4} "
    elif rule.dst6:
        yield f"ct original ip6 daddr {rule.dst6} "
    elif rule.dsthost and not (rule.action == "drop" and names.get(rule.dsthost) is None):
        number = sets[rule.action, rule.dsthost]
        yield f"ct original ip daddr @{_set(interface, number, 4)} "
        yield f"ct original ip6 daddr @{_set(interface, number, 6)} "
    else:
        yield ""


def _matches(rule: Rule) -> Iterator[str]:
    """The conditions of a rule apart from where it leads, as one or more alternatives; none: it can fit nothing."""
    low, high = rule.dstports or (0, 65535)
    if rule.specialtarget == "dns":
        if rule.proto != "icmp" and low <= DNS_PORT <= high:
            resolvers = f"ct original ip daddr {{ {', '.join(DNS_ADDRESSES)} }} "
            for proto in (rule.proto,) if rule.proto else ("udp", "tcp"):
                yield f"{resolvers}meta l4proto {proto} ct original proto-dst {DNS_PORT} "
    elif rule.proto == "icmp":
        if rule.icmptype is None:
            yield "meta l4proto { icmp, ipv6-icmp } "
        if rule.icmptype is not None and not rule.dst6:
            yield f"icmp type {rule.icmptype} "
        if rule.icmptype is not None and not rule.dst4:
            yield f"icmpv6 type {rule.icmptype} "
    elif rule.dstports:
        yield f"meta l4proto {rule.proto} ct original proto-dst {low if low == high else f'{low}-{high}'} "
    else:
        yield f"meta l4proto {rule.proto} " if rule.proto else ""
