"""What a start needs to know of a qube, read from one frozen inventory.

In: an inventory and a name. Out: ``Facts``. Pure. May import: model.
"""

from __future__ import annotations

from cloison.engine.runs import VolumeRef
from cloison.engine.start import Facts
from cloison.model.classes import Klass
from cloison.model.inventory import Inventory
from cloison.model.names import QubeName
from cloison.model.properties import properties_of

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
        services={
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
        prohibited=qube.features.get("prohibit-start", ""),
    )
