"""What else has another value after a change, told so that clients forget what they knew.

In: the pictures before and after, and whose change it was. Out: events. Pure. May import: model.

Clients keep every value that they were told until an event names it. Many values follow from others: a qube's gateway
from its netvm's address, its icon from its label. ``MAY_FOLLOW`` says which; after a change they are compared, in the
qubes that it can have reached. (Inherited properties, and the system's defaults of one property, are told by
``properties``, whether or not the value differs: so do clients expect it.)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from cloison.engine import events as e
from cloison.model.inventory import Inventory
from cloison.model.names import QubeName
from cloison.model.properties import GLOBAL_PROPERTIES, QUBE_PROPERTIES, properties_of
from cloison.model.values import Value

NETWORK = frozenset(
    {"ip", "ip6", "gateway", "gateway6", "visible_ip", "visible_ip6", "visible_gateway", "visible_gateway6",
     "visible_netmask", "dns"}
)  # fmt: skip
ICON, SCREEN, BOOTMODE = frozenset({"icon"}), frozenset({"keyboard_layout"}), frozenset({"bootmode"})
NOTHING: frozenset[str] = frozenset()
MAY_FOLLOW: Mapping[str, frozenset[str]] = {
    "label": ICON,
    "template_for_dispvms": ICON,
    "template": frozenset(name for name, prop in QUBE_PROPERTIES.items() if prop.inherited or callable(prop.default)),
    "netvm": NETWORK,
    "provides_network": NETWORK | ICON,
    "ip": NETWORK,
    "ip6": NETWORK,
    "memory": frozenset({"maxmem"}),
    "guivm": SCREEN,
    "keyboard_layout": SCREEN,
    "appvm_default_bootmode": BOOTMODE,
    "auto_cleanup": frozenset({"include_in_backups"}),
    "audit": frozenset({"audit"}),
    # the system's
    "default_netvm": NETWORK,
    "default_guivm": SCREEN,
    # features, or beginnings of their names
    "feature servicevm": ICON,
    "feature net.fake-": NETWORK,
    "feature ipv6": NETWORK,
    "feature os": frozenset({"maxmem"}),
    "feature boot-mode.": BOOTMODE,
}
"""What was changed -> the properties that may follow from it, in the same qube or in another."""


def followers_of_feature(feature: str) -> frozenset[str]:
    for name, followers in MAY_FOLLOW.items():
        kind, _, start = name.partition(" ")
        if kind == "feature" and (feature == start or (start[-1] in "-." and feature.startswith(start))):
            return followers
    return NOTHING


def consequences(before: Inventory, after: Inventory, cause: QubeName, names: frozenset[str],
                 told: Iterable[e.Event] = ()) -> list[e.Event]:  # fmt: skip
    """After something of this qube changed from which ``names`` may follow. ``told``: events that say it already."""
    return _changed(before, after, _reached(after, cause, names), names, told) if names else []


def consequences_of_setting(before: Inventory, after: Inventory, setting: str,
                            told: Iterable[e.Event] = ()) -> list[e.Event]:  # fmt: skip
    """After a property of the system changed."""
    names = MAY_FOLLOW.get(setting, NOTHING)
    found: list[e.Event] = [
        e.PropertyReset(None, name, before.setting(name), is_consequence=True)
        for name, prop in sorted(GLOBAL_PROPERTIES.items())
        if name != setting and callable(prop.default) and before.setting(name) != after.setting(name)
    ]
    return found + (_changed(before, after, after.qubes, names, told) if names else [])


def _reached(inventory: Inventory, cause: QubeName, names: frozenset[str]) -> list[QubeName]:
    """The qube, those based on it, those that reach the network or show their windows through it, and so on."""
    looked_through = ["netvm"] * bool(names & NETWORK) + ["guivm"] * bool(names & SCREEN)
    users: dict[Value, list[QubeName]] = {}
    for role in looked_through:
        for qube in inventory:
            if role in properties_of(qube.klass) and (peer := inventory.value(qube.name, role)):
                users.setdefault(peer, []).append(qube.name)
    waiting, found = [cause], dict[QubeName, None]()
    while waiting:
        name = waiting.pop()
        if name not in found:
            found[name] = None
            waiting += [child.name for child in inventory.children(name)] + users.get(name, [])
    return list(found)


def _changed(before: Inventory, after: Inventory, qubes: Iterable[QubeName], names: frozenset[str],
             told: Iterable[e.Event]) -> list[e.Event]:  # fmt: skip
    known = {(event.qube, event.name) for event in told if isinstance(event, e.PropertySet | e.PropertyReset)}
    return [
        e.PropertyReset(qube, name, old, is_consequence=True)
        for qube in qubes
        if qube in before.qubes
        for name, old in _differing(before, after, qube, names)
        if (qube, name) not in known
    ]


def _differing(before: Inventory, after: Inventory, qube: QubeName,
               names: frozenset[str]) -> Iterator[tuple[str, Value]]:  # fmt: skip
    known = properties_of(after.qube(qube).klass)
    for name in sorted(names & known.keys()):
        was, now = before.resolve(qube, name), after.resolve(qube, name)
        if was.is_default and now.is_default and was.value != now.value:
            yield name, was.value
