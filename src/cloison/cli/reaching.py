"""Who reaches what through whom: the tree of netvms as pictures, and where a connection would end.

In: rows of ``cloison.qube.List`` and rules of qubes. Out: text, DOT, SVG; verdicts. Pure. May import: wire.
"""

from __future__ import annotations

import html
import ipaddress
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from cloison.errors import BadRequest
from cloison.wire.firewall import Flow, Rule, find_rule, may_open

Row = Mapping[str, Any]
_STEP_X, _STEP_Y, _BOX = 210, 44, (180, 32)


@dataclass(frozen=True)
class Hop:
    """What happens in one netvm to packets of its client."""

    netvm: str
    client: str
    passes: bool
    why: str
    rule: int | None = None

    def as_json(self) -> dict[str, Any]:
        return {"netvm": self.netvm, "client": self.client, "passes": self.passes, "why": self.why, "rule": self.rule}


def netvm_of(rows: Mapping[str, Row], name: str) -> str:
    """Empty: it has none."""
    netvm = rows[name].get("netvm")
    return netvm if isinstance(netvm, str) and netvm in rows else ""


def path_out(rows: Mapping[str, Row], name: str) -> list[str]:
    """The qube, its netvm, and so on."""
    path = [name]
    while (following := netvm_of(rows, path[-1])) and following not in path:
        path.append(following)
    return path


def check(rows: Mapping[str, Row], rules_of: Callable[[str], Sequence[Rule]], source: str, to: str, proto: str,
          port: int | None) -> list[Hop]:  # fmt: skip
    """The hops on the way, up to the one that stops it. ``to`` is a qube, an address or the name of a host."""
    if source not in rows:
        raise BadRequest(f"there is no qube {source!a}")
    if not netvm_of(rows, source):
        if _provides(rows[source]):
            return [Hop("", source, True, "it is the end of the chain itself: only its own way out could stop it")]
        return [Hop("", source, False, "it has no netvm: no network card, no packet")]
    target = find_target(rows, to)
    path = path_out(rows, source)
    hops: list[Hop] = []
    for client, netvm in pairwise(path):
        hops.append(_hop(rows, rules_of(client), client, netvm, target or to, proto, port))
        if not hops[-1].passes or target == netvm:
            break
    return hops


def find_target(rows: Mapping[str, Row], to: str) -> str:
    """The qube that is meant, by name or by its address; empty: the world."""
    if to in rows:
        return to
    owners = [name for name, row in rows.items() if to and to in (value_of(row, "ip"), value_of(row, "ip6"))]
    return owners[0] if owners else ""


def value_of(row: Row, name: str) -> Any:
    shown = row.get("properties", {}).get(name)
    return shown.get("value") if isinstance(shown, dict) else None


def _provides(row: Row) -> bool:
    return value_of(row, "provides_network") in (True, "True")


def _hop(rows: Mapping[str, Row], rules: Sequence[Rule], client: str, netvm: str, to: str, proto: str,
         port: int | None) -> Hop:  # fmt: skip
    if to == netvm:
        return Hop(netvm, client, proto == "icmp", "a netvm answers its clients' pings and nothing else")
    if to in rows and netvm_of(rows, to) == netvm:
        return Hop(netvm, client, False, f"no packet passes between clients of {netvm}, whatever the rules say")
    if to in rows and not netvm_of(rows, netvm):
        return Hop(netvm, client, False, f"{to} is nobody's on the way out, and its address means nothing outside")
    number = _decide(rules, str(value_of(rows[to], "ip") or "") if to in rows else to, proto, port)
    if number is None:
        return Hop(netvm, client, False, f"no rule of {client} fits, so it is refused")
    rule = rules[number]
    return Hop(netvm, client, rule.action == "accept", f"rule {number} of {client}: {rule}", number)


def _decide(rules: Sequence[Rule], to: str, proto: str, port: int | None) -> int | None:
    try:
        address = ipaddress.ip_address(to)
    except ValueError:
        return _decide_name(rules, to, proto, port)
    flow = Flow(address, proto, port)
    for number, rule in enumerate(rules):
        if find_rule([rule._replace(dsthost="")], flow, {}) is None:
            continue
        if not rule.dsthost:
            return number
        if rule.action == "drop" or may_open(address):
            raise BadRequest(
                f"rule {number} speaks of {rule.dsthost}, whose addresses only the netvm knows",
                hint=f"ask for {rule.dsthost} instead of {to}",
            )
    return None


def _decide_name(rules: Sequence[Rule], host: str, proto: str, port: int | None) -> int | None:
    """dom0 looks no name up, so rules that speak of addresses cannot be judged for a name."""
    somewhere = ipaddress.ip_address("9.9.9.9")
    for number, rule in enumerate(rules):
        plain = rule._replace(dst4="", dst6="")
        if rule.dsthost not in ("", host):
            continue
        if find_rule([plain], Flow(somewhere, proto, port, host), {}) == 0:
            network = rule.dst4 or rule.dst6
            if network and not network.endswith("/0"):
                raise BadRequest(f"rule {number} speaks of {network}; whether {host} is there dom0 cannot know",
                                 hint="give its address instead of its name")  # fmt: skip
            return number
    return None


# -- pictures --------------------------------------------------------------------------------------------------------


def tree(rows: Mapping[str, Row]) -> list[tuple[int, str]]:
    """(depth, name) from the ends of chains inwards; qubes without a network last, at depth -1."""
    clients: dict[str, list[str]] = {name: [] for name in rows}
    for name in sorted(rows):
        if netvm := netvm_of(rows, name):
            clients[netvm].append(name)
    found: list[tuple[int, str]] = []

    def walk(name: str, depth: int) -> None:
        found.append((depth, name))
        for client in clients[name]:
            walk(client, depth + 1)

    for name in sorted(rows):
        if not netvm_of(rows, name) and (clients[name] or _provides(rows[name])):
            walk(name, 0)
    alone = [name for name in sorted(rows) if name not in {n for _, n in found}]
    return found + [(-1, name) for name in alone]


def draw_text(rows: Mapping[str, Row], note: Callable[[str], str] = lambda name: "") -> Iterator[str]:
    """The tree with lines, as ``tree`` the program draws it."""
    found = tree(rows)
    for place, (depth, name) in enumerate(found):
        if depth < 0:
            continue
        bars = ""
        for level in range(1, depth + 1):
            below = next((d for d, _ in found[place + 1 :] if d <= level), -1)
            is_last = below < level
            bars += ("   " if is_last else "│  ") if level < depth else ("└─ " if is_last else "├─ ")
        yield f"{bars}{name}{note(name)}"
    if alone := [name for depth, name in found if depth < 0]:
        yield f"no network: {', '.join(alone)}"


def draw_dot(rows: Mapping[str, Row]) -> Iterator[str]:
    yield "digraph network {"
    yield "  rankdir=LR; node [shape=box, style=rounded];"
    for _, name in tree(rows):
        yield f'  "{name}" [color="{rows[name].get("colour", "#000000").replace("0x", "#")}"];'
    for name in sorted(rows):
        if netvm := netvm_of(rows, name):
            yield f'  "{name}" -> "{netvm}";'
    yield "}"


def draw_svg(rows: Mapping[str, Row]) -> Iterator[str]:
    """Boxes in columns: ends of chains left, clients to their right."""
    found = [(max(depth, 0), name) for depth, name in tree(rows)]
    places = {name: (20 + depth * _STEP_X, 20 + row * _STEP_Y) for row, (depth, name) in enumerate(found)}
    width = max((x for x, _ in places.values()), default=0) + _BOX[0] + 20
    yield f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{40 + len(found) * _STEP_Y}" '
    yield 'font-family="sans-serif" font-size="14">'
    for name, (x, y) in places.items():
        if netvm := netvm_of(rows, name):
            from_x, from_y = places[netvm][0] + 20, places[netvm][1] + _BOX[1]
            yield f'<path d="M{from_x} {from_y} V{y + _BOX[1] // 2} H{x}" fill="none" stroke="#888"/>'
    for name, (x, y) in places.items():
        colour = html.escape(str(rows[name].get("colour", "#000000")).replace("0x", "#"))
        yield f'<rect x="{x}" y="{y}" width="{_BOX[0]}" height="{_BOX[1]}" rx="6" fill="#fff" stroke="{colour}" '
        yield f'stroke-width="2"/><text x="{x + 10}" y="{y + 21}">{html.escape(name)}</text>'
    yield "</svg>"
