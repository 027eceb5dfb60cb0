"""Who may call what on whom: every call that the rules speak of, tried, as a graph.

In: PolicySet, SystemInfo, filters. Out: edges; DOT, SVG or JSON text. May import: evaluate, rules, ruleset, system,
verdicts.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape

from cloison.policy.evaluate import Request, evaluate
from cloison.policy.ruleset import PolicySet
from cloison.policy.system import SystemInfo
from cloison.policy.tokens import DOM0
from cloison.policy.verdicts import Allow, Ask, Deny

_ALLOW_COLOUR, _ASK_COLOUR, _NEUTRAL = "red", "orange", "grey"
_SVG_COLOURS = {"black": "#000000", "gray": "#888888", "red": "#cc0000", "orange": "#f57900", "yellow": "#edd400",
                "green": "#73d216", "blue": "#3465a4", "purple": "#75507b"}  # fmt: skip
_COLOUR_NUMBER = re.compile(r"0x[0-9a-fA-F]{6}", re.ASCII)


@dataclass(frozen=True, order=True)
class Edge:
    """``source`` may call ``service`` on ``target``; ``argument`` "*" is any that no rule names."""

    source: str
    target: str
    service: str
    argument: str
    verdict: str

    @property
    def label(self) -> str:
        return self.service + ("" if self.argument == "*" else self.argument)


@dataclass(frozen=True)
class Filters:
    """Empty sets mean everything."""

    sources: frozenset[str] = frozenset()
    targets: frozenset[str] = frozenset()
    services: frozenset[str] = frozenset()
    with_ask: bool = False


def find_edges(policy: PolicySet, system: SystemInfo, filters: Filters) -> list[Edge]:
    """All calls between different qubes that end in allow (or ask, if wanted), sorted, each once."""
    shape = system.shape
    keywords = ["@dispvm", "@default", *sorted("@dispvm:" + name for name in shape.templates)]
    sources = [name for name in sorted(shape.qubes) if name != DOM0 and _wanted(name, filters.sources)]
    edges: set[Edge] = set()
    for service, argument, shown in _calls(policy, filters):
        for source in sources:
            for target in (*sorted(shape.qubes), *keywords):
                verdict = evaluate(policy, system, Request(source, target, service, argument))
                match verdict:
                    case Allow():
                        reached, outcome = verdict.target, "allow"
                    case Ask() if filters.with_ask:
                        reached, outcome = target, "ask"
                    case Ask() | Deny():
                        continue
                if _wanted(reached, filters.targets):
                    edges.add(Edge(source, reached, *shown, outcome))
    return sorted(edges)


def _wanted(name: str, chosen: frozenset[str]) -> bool:
    return not chosen or name in chosen


def _calls(policy: PolicySet, filters: Filters) -> Iterator[tuple[str, str, tuple[str, str]]]:
    """(service, argument to try, how to show both) for everything that a rule names, and for "any other"."""
    arguments: dict[str, set[str]] = {}
    for rule in policy.rules:
        arguments.setdefault(rule.service, set()).add(rule.argument)
    for service, named in sorted(arguments.items()):
        if not _wanted(service, filters.services):
            continue
        tried = service if service != "*" else _unused("any.other-service", set(arguments))
        for argument in sorted(named | {"*"}):
            yield tried, argument if argument != "*" else _unused("+", named), (service, argument)


def _unused(text: str, used: set[str]) -> str:
    while text in used:
        text += "x"
    return text


def edges_value(edges: list[Edge]) -> list[dict[str, str]]:
    return [
        {"source": e.source, "target": e.target, "service": e.service, "argument": e.argument, "verdict": e.verdict}
        for e in edges
    ]


def _nodes(edges: list[Edge]) -> list[str]:
    return sorted({name for edge in edges for name in (edge.source, edge.target)})


def _colour_of(system: SystemInfo, name: str) -> str:
    """A label is told as its colour's number (0xRRGGBB), in files made by hand perhaps as a word."""
    looks = system.looks.get(name)
    label = looks.label if looks is not None else ""
    if _COLOUR_NUMBER.fullmatch(label):
        return f"#{label[2:]}"
    return label if label in _SVG_COLOURS else "black"


def write_dot(edges: list[Edge], system: SystemInfo, *, labels: bool = True) -> str:
    """A Graphviz digraph; parallel services share one arrow."""
    lines = ["digraph policy {", "  node [shape=box];"]
    for name in _nodes(edges):
        style = "style=dotted" if name.startswith("@") else f'color="{_colour_of(system, name)}"'
        lines.append(f'  "{_dot(name)}" [{style}];')
    for (source, target, verdict), services in _bundles(edges).items():
        colour = _ALLOW_COLOUR if verdict == "allow" else _ASK_COLOUR
        label = f' label="{_dot(chr(10).join(services))}"' if labels else ""
        lines.append(f'  "{_dot(source)}" -> "{_dot(target)}" [color={colour}{label}];')
    return "\n".join([*lines, "}", ""])


def _dot(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _bundles(edges: list[Edge]) -> dict[tuple[str, str, str], list[str]]:
    bundles: dict[tuple[str, str, str], list[str]] = {}
    for edge in edges:
        bundles.setdefault((edge.source, edge.target, edge.verdict), []).append(edge.label)
    return bundles


def write_svg(edges: list[Edge], system: SystemInfo) -> str:
    """The qubes on a circle, an arrow for each pair that may talk; what it may say is the arrow's tooltip."""
    nodes = _nodes(edges)
    radius = max(140, 26 * len(nodes) / math.tau * 2)
    width, height = radius * 2 + 360, radius * 2 + 120
    centre_x, centre_y = width / 2, height / 2
    spots = {
        name: (
            centre_x + radius * math.cos(math.tau * i / max(1, len(nodes))),
            centre_y + radius * math.sin(math.tau * i / max(1, len(nodes))),
        )
        for i, name in enumerate(nodes)
    }
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
        'font-family="sans-serif" font-size="13">',
        "<defs>"
        + "".join(
            f'<marker id="{colour}" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" markerHeight="8" '
            f'orient="auto"><path d="M0 0L8 4L0 8z" fill="{colour}"/></marker>'
            for colour in (_ALLOW_COLOUR, _ASK_COLOUR)
        )
        + "</defs>",
    ]
    for (source, target, verdict), services in _bundles(edges).items():
        colour = _ALLOW_COLOUR if verdict == "allow" else _ASK_COLOUR
        title = f"{source} -> {target} ({verdict}):\n" + "\n".join(services)
        parts.append(_arrow(spots[source], spots[target], (centre_x, centre_y), colour, title))
    parts += [_node(name, spots[name], centre_x, _colour_of(system, name)) for name in nodes]
    return "\n".join([*parts, "</svg>", ""])


def _arrow(
    start: tuple[float, float], end: tuple[float, float], centre: tuple[float, float], colour: str, title: str
) -> str:
    """A bow that leans to the middle, so that the two directions do not lie on each other."""
    lean_x = (start[0] + end[0]) / 2 * 0.7 + centre[0] * 0.3 + (end[1] - start[1]) * 0.12
    lean_y = (start[1] + end[1]) / 2 * 0.7 + centre[1] * 0.3 - (end[0] - start[0]) * 0.12
    path = f"M{start[0]:.1f} {start[1]:.1f}Q{lean_x:.1f} {lean_y:.1f} {end[0]:.1f} {end[1]:.1f}"
    return (
        f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="1.3" marker-end="url(#{colour})">'
        f"<title>{escape(title)}</title></path>"
    )


def _node(name: str, spot: tuple[float, float], centre_x: float, colour: str) -> str:
    x, y = spot
    on_right = x >= centre_x
    anchor, text_x = ("start", x + 9) if on_right else ("end", x - 9)
    dashes = ' stroke-dasharray="2 2"' if name.startswith("@") else ""
    fill = "white" if name.startswith("@") else _SVG_COLOURS.get(colour, colour)
    return (
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{fill}" stroke="{_NEUTRAL}"{dashes}/>'
        f'<text x="{text_x:.1f}" y="{y + 4:.1f}" text-anchor="{anchor}">{escape(name)}</text>'
    )
