"""What a start needs to know of a qube, read from one frozen inventory.

In: an inventory and a name. Out: ``Facts``. Pure. May import: model.
"""

from __future__ import annotations

from cloison.engine.runs import VolumeRef
from cloison.engine.start import Facts
from cloison.model.classes import Klass
from cloison.model.inventory import Inventory
from cloison.model.names import QubeName
from cloison.model.network import handed_devices, netvm_of
from cloison.model.properties import properties_of
from cloison.model.qube import Qube

AGENT_FEATURE = "qrexec"
"""Set on templates whose guests carry our agent, found through the template chain."""
SERVICE_PREFIX = "service."
CONFIG_PREFIX = "vm-config."


def facts_of(inventory: Inventory, name: QubeName) -> Facts:
    """The facts of one qube; QubeNotFound."""
    qube = inventory.qube(name)
    owner = inventory.template_of_root(name)
    private = inventory.volume_source(name, "private") or qube.volumes["private"]
    features = {key: value for holder in reversed(list(inventory.chain(name, "template")))
                for key, value in holder.features.items()}  # fmt: skip
    return Facts(
        name=qube.name,
        uuid=qube.uuid,
        klass=qube.klass.value,
        volumes={slot: VolumeRef(volume.pool, volume.vid) for slot, volume in qube.volumes.items()},
        kept_root=qube.klass.keeps_root,
        root_owner=owner.name,
        root_source=VolumeRef(owner.volumes["root"].pool, owner.volumes["root"].vid),
        private_source=VolumeRef(private.pool, private.vid),
        memory_mib=inventory.number(name, "memory"),
        vcpus=inventory.number(name, "vcpus"),
        kernel=inventory.text(name, "kernel"),
        kernel_options=inventory.text(name, "kernelopts"),
        start_mode=inventory.text(name, "start_mode"),
        share_memory=inventory.flag(name, "share_memory"),
        default_user=inventory.text(name, "default_user") or "user",
        agent_timeout_s=float(inventory.number(name, "qrexec_timeout")),
        shutdown_timeout_s=float(inventory.number(name, "shutdown_timeout")),
        services=_roles(inventory, qube)
        | {
            key.removeprefix(SERVICE_PREFIX): bool(value)
            for key, value in features.items()
            if key.startswith(SERVICE_PREFIX)
        },
        vm_config={
            key.removeprefix(CONFIG_PREFIX): value for key, value in features.items() if key.startswith(CONFIG_PREFIX)
        },
        template=template.name if (template := inventory.template(name)) else "",
        has_agent=bool(features.get(AGENT_FEATURE)),
        debug=inventory.flag(name, "debug"),
        disposable=qube.klass is Klass.DISPOSABLE,
        auto_cleanup="auto_cleanup" in properties_of(qube.klass) and inventory.flag(name, "auto_cleanup"),
        pci=handed_devices(inventory, qube.name),
        prohibited=qube.features.get("prohibit-start", ""),
    )


def _roles(inventory: Inventory, qube: Qube) -> dict[str, bool]:
    """Services that a qube has by what it is, unless a feature says otherwise: a template gets its packages through the
    updates proxy, and the end of a chain is one."""
    roles = {"updates-proxy-setup": True} if qube.klass is Klass.TEMPLATE else {}
    is_end = netvm_of(inventory, qube.name) is None and inventory.flag(qube.name, "provides_network")
    return roles | ({"qubes-updates-proxy": True} if is_end else {})
