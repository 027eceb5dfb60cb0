"""Default rules of properties: pure functions from the picture of the system and one of its qubes to a value."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from cloison.model import addresses
from cloison.model.classes import Klass
from cloison.model.values import Value
from cloison.model.volumes import KERNEL_OF_TEMPLATE

if TYPE_CHECKING:
    from cloison.model.inventory import Inventory
    from cloison.model.qube import Qube

Rule = Callable[["Inventory", "Qube"], Value]


def icon(inventory: Inventory, qube: Qube) -> str:
    match qube.klass:
        case Klass.ADMIN:
            return "adminvm-black"
        case Klass.TEMPLATE:
            prefix = "templatevm"
        case Klass.DISPOSABLE:
            prefix = "dispvm"
        case Klass.STANDALONE:
            prefix = "standalonevm"
        case Klass.REMOTE:
            prefix = "remotevm"
        case Klass.APP:
            prefix = "templatevm" if inventory.flag(qube.name, "template_for_dispvms") else "appvm"
    if qube.klass is not Klass.TEMPLATE and prefix != "templatevm" and qube.features.get("servicevm"):
        prefix = "servicevm"
    return f"{prefix}-{qube.label}"


def audit(inventory: Inventory, qube: Qube) -> Value:
    template = qube.properties.get("template")
    if qube.klass is Klass.DISPOSABLE and isinstance(template, str):
        return inventory.value(template, "audit")
    return inventory.setting("default_audit")


def is_networked(inventory: Inventory, qube: Qube) -> bool:
    return inventory.flag(qube.name, "provides_network") or inventory.value(qube.name, "netvm") is not None


def _dispid(qube: Qube) -> int | None:
    number = qube.properties.get("dispid")
    return number if qube.klass is Klass.DISPOSABLE and isinstance(number, int) else None


def ip(inventory: Inventory, qube: Qube) -> str:
    if not is_networked(inventory, qube):
        return ""
    dispid = _dispid(qube)
    return addresses.qube_ip(qube.qid) if dispid is None else addresses.disposable_ip(dispid)


def ip6(inventory: Inventory, qube: Qube) -> str:
    if not is_networked(inventory, qube) or not inventory.feature(qube.name, "ipv6", via="netvm"):
        return ""
    dispid = _dispid(qube)
    return addresses.qube_ip6(qube.qid) if dispid is None else addresses.disposable_ip6(dispid)


def own(property_name: str) -> Rule:
    return lambda inventory, qube: inventory.text(qube.name, property_name)


def gateway(property_name: str) -> Rule:
    """The qube's own address, if it provides network."""

    def rule(inventory: Inventory, qube: Qube) -> str:
        provides = inventory.flag(qube.name, "provides_network")
        return inventory.text(qube.name, property_name) if provides else ""

    return rule


def of_netvm(property_name: str) -> Rule:
    """A property of the qube's netvm."""

    def rule(inventory: Inventory, qube: Qube) -> str:
        netvm = inventory.peer(qube.name, "netvm")
        return "" if netvm is None or not netvm.is_machine else inventory.text(netvm.name, property_name)

    return rule


def faked(feature: str, truth: Rule) -> Rule:
    """A feature of the qube (or its template) overrides what it would see."""

    def rule(inventory: Inventory, qube: Qube) -> Value:
        return inventory.feature(qube.name, feature) or truth(inventory, qube)

    return rule


def netmask(inventory: Inventory, qube: Qube) -> str:
    return addresses.NETMASK if is_networked(inventory, qube) else ""


def dns(inventory: Inventory, qube: Qube) -> str:
    return " ".join(addresses.DNS) if is_networked(inventory, qube) else ""


def maxmem(inventory: Inventory, qube: Qube) -> int:
    """Ten times the memory at start (4000 MiB if the system is unknown), at most half of the computer's."""
    is_linux = inventory.feature(qube.name, "os") == "Linux"
    wish = 10 * inventory.number(qube.name, "memory") if is_linux else 4000
    return min(wish, inventory.host.memory_mib // 2)


def bootmode(inventory: Inventory, qube: Qube) -> str:
    template = inventory.template(qube.name)
    if qube.klass is not Klass.TEMPLATE and template is not None:
        wish = inventory.text(inventory.template_of_root(qube.name).name, "appvm_default_bootmode")
        if wish and inventory.feature(qube.name, f"boot-mode.kernelopts.{wish}") is not None:
            return wish
    return inventory.feature(qube.name, "boot-mode.active") or "default"


def include_in_backups(inventory: Inventory, qube: Qube) -> bool:
    match qube.klass:
        case Klass.REMOTE:
            return False
        case Klass.DISPOSABLE:
            return not inventory.flag(qube.name, "auto_cleanup")
        case _:
            return True


def keyboard_layout(inventory: Inventory, qube: Qube) -> str:
    """That of the qube on whose screen it is shown, and so on."""
    for holder in inventory.chain(qube.name, "guivm"):
        if isinstance(layout := holder.properties.get("keyboard_layout"), str):
            return layout
    return "us++"


def xid(inventory: Inventory, qube: Qube) -> int:
    """Clients only ask whether it is -1 and whether it changed: the qube's number serves."""
    return qube.qid if qube.name in inventory.runs else -1


def start_time(inventory: Inventory, qube: Qube) -> str:
    run = inventory.runs.get(qube.name)
    return "" if run is None else f"{run.started_at:.3f}"


def default_kernel(inventory: Inventory, _qube: Qube) -> str:
    return KERNEL_OF_TEMPLATE
