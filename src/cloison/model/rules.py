"""What a property may be set to, given everything else: pure checks that raise, or return nothing.

In: the picture of the system, a row, a value that was parsed. Out: an error with its reason, or consent.
Rules: Admin API notes, sections 5, 6, 9 and 12.4.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from cloison.errors import BadPropertyValue, QubeInUse, QubeNotHalted, QubeNotStarted, StorageNotFound
from cloison.model.classes import Klass
from cloison.model.inventory import Inventory
from cloison.model.names import QubeName
from cloison.model.network import find_loop
from cloison.model.properties import Mode, Property, properties_of
from cloison.model.qube import Qube
from cloison.model.values import PropertyType, Value
from cloison.model.volumes import KERNEL_OF_TEMPLATE

DISPOSABLE_TEMPLATE_ROLES = ("template", "default_dispvm", "management_dispvm")


MIN_MEMORY_MIB, MAX_VCPUS = 64, 128
"""What a machine can have at all; its driver checks it again."""


def check_qube_property(inventory: Inventory, qube: Qube, prop: Property, value: Value,
                        running: frozenset[QubeName]) -> None:  # fmt: skip
    """Raise unless ``prop`` of ``qube`` may become ``value`` now; ``running``: qubes that have a machine."""
    if prop.mode is not Mode.RW:
        raise BadPropertyValue(f"property {prop.name} of {qube.name} cannot be set")
    if prop.halted_only and qube.name in running:
        raise QubeNotHalted(f"property {prop.name} of {qube.name} cannot be changed while it runs")
    if prop.type is PropertyType.VM and isinstance(value, str):
        inventory.qube(value)
    if check := _CHECKS.get(prop.name):
        check(inventory, qube, value, running)


def check_setting(inventory: Inventory, prop: Property, value: Value) -> None:
    """The same for global properties."""
    if prop.mode is not Mode.RW:
        raise BadPropertyValue(f"the system's property {prop.name} cannot be set")
    if prop.type is PropertyType.VM and isinstance(value, str):
        inventory.qube(value)
    if prop.name == "default_netvm":
        _check_provides_network(inventory, value)
        for qube in inventory:
            if (
                qube.is_machine
                and inventory.resolve(qube.name, "netvm").is_default
                and qube.klass is not Klass.TEMPLATE
            ):
                _check_no_loop(inventory, qube, value)
    elif prop.name == "default_template" and isinstance(value, str):
        if inventory.qube(value).klass is not Klass.TEMPLATE:
            raise BadPropertyValue(f"{value} is not a TemplateVM")
    elif prop.name in ("default_dispvm", "management_dispvm"):
        check_disposable_template(inventory, value)
    elif prop.name == "default_kernel":
        _check_kernel(inventory, inventory.qube("dom0"), value, frozenset())
    elif prop.name.startswith("default_pool") and value not in inventory.pools:
        raise StorageNotFound(f"no pool is named {value!a}", hint=f"there are {', '.join(inventory.pools)}")


def check_reset(inventory: Inventory, qube: Qube | None, prop: Property, running: frozenset[QubeName]) -> None:
    """Raise unless the property may go back to its default."""
    owner = "the system" if qube is None else qube.name
    if prop.mode is not Mode.RW or not prop.has_default:
        raise BadPropertyValue(f"property {prop.name} of {owner} has no default to go back to")
    if qube is None:
        return
    default = inventory.default_value(qube.name, prop)
    if default is not None:
        check_qube_property(inventory, qube, prop, default, running)


def check_template_for(inventory: Inventory, klass: Klass, template: Qube) -> None:
    """Raise unless qubes of the class may be based on ``template``."""
    if klass is Klass.APP and template.klass is not Klass.TEMPLATE:
        raise BadPropertyValue(f"an AppVM needs a TemplateVM as its template, and {template.name} is "
                               f"{_article(template.klass)}")  # fmt: skip
    if klass is Klass.DISPOSABLE:
        check_disposable_template(inventory, template.name)


def check_disposable_template(inventory: Inventory, value: Value) -> None:
    """Raise unless disposables may be based on the qube (None is fine)."""
    if not isinstance(value, str):
        return
    qube = inventory.qube(value)
    if "template_for_dispvms" not in properties_of(qube.klass) or not inventory.flag(value, "template_for_dispvms"):
        raise BadPropertyValue(
            f"{value} is no disposable template", hint=f"`cloison prefs {value} template_for_dispvms True` makes it one"
        )


def _article(klass: Klass) -> str:
    return f"a{'n' if klass.value[0] == 'A' else ''} {klass.value}"


def _check_template(inventory: Inventory, qube: Qube, value: Value, running: frozenset[QubeName]) -> None:
    if not isinstance(value, str):
        raise BadPropertyValue(f"{qube.name} needs a template")
    check_template_for(inventory, qube.klass, inventory.qube(value))
    below = inventory.descendants(qube.name)
    busy = [child.name for child in below if child.name in running and not child.is_preloaded]
    if busy:
        raise QubeInUse(f"the template of {qube.name} cannot change while {', '.join(busy)} runs", others=busy)


def _check_provides_network(inventory: Inventory, value: Value) -> None:
    if not isinstance(value, str):
        return
    netvm = inventory.qube(value)
    if not netvm.is_machine or not inventory.flag(value, "provides_network"):
        raise BadPropertyValue(
            f"{value} does not provide network", hint=f"`cloison prefs {value} provides_network True` lets it"
        )


def _check_no_loop(inventory: Inventory, qube: Qube, value: Value) -> None:
    if isinstance(value, str) and (loop := find_loop(inventory, qube.name, value)):
        raise BadPropertyValue(
            f"{qube.name} cannot reach the network through {value}: that would be the loop {' -> '.join(loop)}",
            hint="choose a netvm whose own way out does not lead through this qube",
            others={*loop} - {qube.name, value},
        )


def _check_netvm(inventory: Inventory, qube: Qube, value: Value, running: frozenset[QubeName]) -> None:
    _check_provides_network(inventory, value)
    _check_no_loop(inventory, qube, value)
    if isinstance(value, str) and qube.name in running and value not in running:
        raise QubeNotStarted(
            f"{value} is not running, so it cannot become the netvm of {qube.name}, which is",
            hint=f"`cloison start {value}` first",
        )


def _check_provider(inventory: Inventory, qube: Qube, value: Value, _running: frozenset[QubeName]) -> None:
    users = [] if value else [user.name for user in inventory.users(qube.name, "netvm")]
    if users:
        raise QubeInUse(f"{qube.name} is the netvm of {', '.join(users)}", others=users)


def _check_role(inventory: Inventory, qube: Qube, value: Value, _running: frozenset[QubeName]) -> None:
    if value:
        return
    found = sorted((by, user or "") for user, by in inventory.references(qube.name) if by in DISPOSABLE_TEMPLATE_ROLES)
    if found:
        users = ", ".join(f"{by} of {user or 'the system'}" for by, user in found)
        raise QubeInUse(
            f"{qube.name} must stay a disposable template while it is {users}", others=[user for _, user in found]
        )


def _check_dispvm(inventory: Inventory, qube: Qube, value: Value, _running: frozenset[QubeName]) -> None:
    check_disposable_template(inventory, value)


def _check_kernel(inventory: Inventory, _qube: Qube, value: Value, _running: frozenset[QubeName]) -> None:
    known = ("", KERNEL_OF_TEMPLATE, *inventory.host.kernels)
    if value not in known:
        raise BadPropertyValue(f"no kernel is named {value!a}", hint=f"there are {', '.join(known[1:])}")


def _check_virt_mode(_inventory: Inventory, qube: Qube, value: Value, _running: frozenset[QubeName]) -> None:
    if value == "pvh" and any(assignment.devclass == "pci" for assignment in qube.assignments):
        raise BadPropertyValue(f"{qube.name} has PCI devices, which mode pvh cannot have")


def _check_maxmem(_inventory: Inventory, qube: Qube, _value: Value, running: frozenset[QubeName]) -> None:
    if qube.name in running:
        raise QubeNotHalted(f"property maxmem of {qube.name} cannot be changed while it runs")


def _check_memory(inventory: Inventory, qube: Qube, value: Value, _running: frozenset[QubeName]) -> None:
    host_mib = inventory.host.memory_mib
    if not isinstance(value, int) or not MIN_MEMORY_MIB <= value <= host_mib:
        raise BadPropertyValue(
            f"{qube.name} cannot have {value} MiB of memory: a qube has at least {MIN_MEMORY_MIB}, "
            f"and this computer has {host_mib}"
        )


def _check_vcpus(_inventory: Inventory, qube: Qube, value: Value, _running: frozenset[QubeName]) -> None:
    if not isinstance(value, int) or value > MAX_VCPUS:
        raise BadPropertyValue(f"{qube.name} cannot have {value} virtual processors: a qube has at most {MAX_VCPUS}")


def _check_label(inventory: Inventory, _qube: Qube, value: Value, _running: frozenset[QubeName]) -> None:
    inventory.label(str(value))


_Check = Callable[[Inventory, Qube, Value, frozenset[QubeName]], None]

_CHECKS: Mapping[str, _Check] = {
    "label": _check_label,
    "template": _check_template,
    "template_for_dispvms": _check_role,
    "netvm": _check_netvm,
    "provides_network": _check_provider,
    "default_dispvm": _check_dispvm,
    "management_dispvm": _check_dispvm,
    "kernel": _check_kernel,
    "virt_mode": _check_virt_mode,
    "maxmem": _check_maxmem,
    "memory": _check_memory,
    "vcpus": _check_vcpus,
}
