"""Every property of qubes and of the system: one row each, from which come storage, Admin API, command line and docs.

In: nothing. Out: ``QUBE_PROPERTIES``, ``GLOBAL_PROPERTIES``. Names, types and defaults are those of Qubes
(Admin API notes, sections 5 and 6); ``start_mode``, ``share_memory`` and those of the audit log are ours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import cache
from typing import TYPE_CHECKING

from cloison.model import addresses, values
from cloison.model import defaults as rule
from cloison.model.classes import EVERY, MACHINES, Klass
from cloison.model.values import Parser, PropertyType, Value

if TYPE_CHECKING:
    from cloison.model.inventory import Inventory
    from cloison.model.qube import Qube

Rule = Callable[["Inventory", "Qube"], Value]
"""A default (or a computed value) from the picture of the system; for global properties the qube is dom0."""


class Mode(Enum):
    RW = "rw"
    ONCE = "once"
    """Written when the qube is made, never after."""
    COMPUTED = "ro"


@dataclass(frozen=True)
class Property:
    """``default`` is a value, or a Rule, or absent (``has_default`` False: Reset is refused)."""

    name: str
    type: PropertyType
    on: frozenset[Klass]
    doc: str
    parse: Parser
    mode: Mode = Mode.RW
    default: Value | Rule = None
    has_default: bool = True
    inherited: bool = False
    """The template's value is the default."""
    unit: str = ""
    column: Callable[[Qube], Value] | None = None
    """Part of the qube's record rather than of its table of properties."""
    halted_only: bool = False
    empty_resets: bool = False
    """What a client got while there was no value, it may set again: that means the default."""

    @property
    def is_computed(self) -> bool:
        return self.mode is Mode.COMPUTED

    def default_for(self, inventory: Inventory, qube: Qube) -> Value:
        return self.default(inventory, qube) if callable(self.default) else self.default


STR, INT, BOOL, VM, LABEL = PropertyType
_PARSERS: Mapping[PropertyType, Parser] = {
    STR: values.parse_text,
    INT: values.parse_natural,
    BOOL: values.parse_bool,
    VM: values.parse_vm,
    LABEL: values.parse_text,
}
T, S, A, P, D, R = Klass.TEMPLATE, Klass.STANDALONE, Klass.APP, Klass.DISPOSABLE, Klass.ADMIN, Klass.REMOTE
Q = MACHINES


def _row(name: str, kind: PropertyType, on: frozenset[Klass], doc: str, default: Value | Rule = None, *,
         parse: Parser | None = None, mode: Mode = Mode.RW, has_default: bool = True, inherited: bool = False,
         unit: str = "", column: Callable[[Qube], Value] | None = None,
         halted_only: bool = False, empty_resets: bool = False) -> Property:  # fmt: skip
    parser = parse or _PARSERS[kind]
    return Property(name, kind, on, doc, parser, mode, default, has_default, inherited, unit, column, halted_only,
                    empty_resets)  # fmt: skip


def _computed(name: str, kind: PropertyType, on: frozenset[Klass], doc: str, default: Value | Rule) -> Property:
    return _row(name, kind, on, doc, default, mode=Mode.COMPUTED)


def _tables(*rows: Property) -> Mapping[str, Property]:
    table = {row.name: row for row in rows}
    if len(table) != len(rows):
        raise ValueError("a property is declared twice")
    return table


QUBE_PROPERTIES: Mapping[str, Property] = _tables(
    # identity
    _row("name", STR, EVERY, "Name of the qube.", mode=Mode.ONCE, column=lambda q: q.name),
    _row("qid", INT, EVERY, "Number of the qube on this system; never changes.", mode=Mode.ONCE,
         column=lambda q: q.qid),
    _row("uuid", STR, EVERY, "Identity of the qube, unique everywhere.", mode=Mode.ONCE, column=lambda q: q.uuid),
    _computed("klass", STR, EVERY, "Class of the qube.", lambda _i, q: q.klass.value),
    _row("label", LABEL, EVERY, "Colour that says how far you trust this qube.", column=lambda q: q.label,
         has_default=False),
    _computed("icon", STR, EVERY, "Name of the icon shown for this qube.", rule.icon),
    # what it is based on
    _row("template", VM, frozenset({A, P}), "The qube whose system this one starts from.", has_default=False,
         halted_only=True),
    _row("template_for_dispvms", BOOL, frozenset({A, S}), "Whether disposables may be based on this qube.", False),
    _row("auto_cleanup", BOOL, frozenset({P}), "Remove this disposable when it stops.", False),
    _row("dispid", INT, frozenset({P}), "Number of this disposable; its addresses follow from it.", mode=Mode.ONCE),
    _computed("is_preload", BOOL, frozenset({P}), "Whether this disposable waits, ready, for its first use.",
              lambda _i, q: q.is_preloaded),
    # network
    _row("netvm", VM, Q, "The qube through which this one reaches the network; none: no network.",
         lambda i, q: None if q.klass is T else i.setting("default_netvm")),
    _row("provides_network", BOOL, Q, "Whether other qubes may use this one as their netvm.", False),
    _row("ip", STR, Q, "Address of this qube.", rule.ip, parse=values.optional(addresses.parse_ip4),
         empty_resets=True),
    _row("ip6", STR, Q, "IPv6 address of this qube.", rule.ip6, parse=values.optional(addresses.parse_ip6),
         empty_resets=True),
    _row("mac", STR, Q, "Hardware address of the network card.", addresses.MAC, parse=values.parse_mac),
    _computed("gateway", STR, Q, "Address under which this qube's clients reach it.", rule.gateway("visible_ip")),
    _computed("gateway6", STR, Q, "IPv6 address under which this qube's clients reach it.",
              rule.gateway("visible_ip6")),
    _computed("visible_ip", STR, Q, "Address that the qube itself sees.", rule.faked("net.fake-ip", rule.own("ip"))),
    _computed("visible_ip6", STR, Q, "IPv6 address that the qube itself sees.", rule.own("ip6")),
    _computed("visible_gateway", STR, Q, "Gateway that the qube itself sees.",
              rule.faked("net.fake-gateway", rule.of_netvm("gateway"))),
    _computed("visible_gateway6", STR, Q, "IPv6 gateway that the qube itself sees.", rule.of_netvm("gateway6")),
    _computed("visible_netmask", STR, Q, "Netmask that the qube itself sees.",
              rule.faked("net.fake-netmask", rule.netmask)),
    _computed("dns", STR, Q, "Name servers of the qube, blank-separated.", rule.dns),
    # size and machine
    _row("memory", INT, Q, "Memory at start.", 400, inherited=True, unit="MiB", parse=values.parse_positive),
    _row("maxmem", INT, Q, "Memory that the qube may grow to; 0: no balancing.", rule.maxmem, inherited=True,
         unit="MiB"),
    _row("vcpus", INT, Q, "Number of virtual processors.", 2, inherited=True, parse=values.parse_positive),
    _row("virt_mode", STR, Q, "Kind of virtual machine.", "pvh", inherited=True,
         parse=values.one_of("pvh", "pv", "hvm")),
    _row("kernel", STR, Q, "Kernel to start; 'template': that of the qube's template; empty: that on its own disk.",
         lambda i, _q: i.setting("default_kernel"), inherited=True, parse=values.parse_kernel),
    _row("kernelopts", STR, Q, "Words added to the kernel's command line.", "", inherited=True,
         parse=values.parse_kernel_options),
    _row("bootmode", STR, Q, "Named set of kernel options, from the features boot-mode.*.", rule.bootmode),
    _row("appvm_default_bootmode", STR, frozenset({T}), "Boot mode of app qubes that have none of their own.",
         "default"),
    _row("start_mode", STR, Q, "How the qube starts: fork (from a fork point of its template), boot, or auto.",
         "auto", inherited=True, parse=values.one_of("auto", "fork", "boot")),
    _row("share_memory", BOOL, Q, "Share unchanged memory pages with other qubes forked from the same fork point.",
         True, inherited=True),
    _row("stubdom_mem", INT, Q, "Memory of the device model's own domain (Xen).", unit="MiB",
         parse=values.optional(values.parse_positive)),
    # behaviour
    _row("default_user", STR, Q, "User for whom programs run when none is named.", "user", inherited=True,
         parse=values.parse_user),
    _row("qrexec_timeout", INT, Q, "How long a start waits for the qube's agent.",
         lambda i, _q: i.setting("default_qrexec_timeout"), inherited=True, unit="s", parse=values.parse_positive),
    _row("shutdown_timeout", INT, Q, "How long a shutdown waits for the qube to end.",
         lambda i, _q: i.setting("default_shutdown_timeout"), inherited=True, unit="s", parse=values.parse_positive),
    _row("autostart", BOOL, Q, "Start this qube when the system starts.", False),
    _row("audit", STR, Q | {R}, "How much the audit log keeps of this qube's calls and changes: full, metadata (no "
         "arguments, no values) or off.", rule.audit, parse=values.one_of("full", "metadata", "off")),
    _row("debug", BOOL, Q, "Keep more logs and show the qube's console.", False),
    _row("include_in_backups", BOOL, EVERY, "Whether backups take this qube along unless told otherwise.",
         rule.include_in_backups),
    _row("backup_timestamp", INT, Q, "When this qube was last backed up, in seconds since 1970.",
         parse=values.optional(values.parse_natural), unit="s"),
    _row("installed_by_rpm", BOOL, Q, "Whether a package owns this qube; such a qube cannot be removed.", False),
    _row("prevent_remove", BOOL, Q, "Refuse to remove this qube.", False),
    _computed("updateable", BOOL, frozenset({D}) | Q, "Whether updates are installed in this qube itself.",
              lambda _i, q: not q.klass.has_template),
    # other qubes that serve it
    _row("default_dispvm", VM, frozenset({D}) | Q, "Disposable template used when this qube asks for a disposable.",
         lambda i, q: q.properties.get("template") if q.klass is P else i.setting("default_dispvm")),
    _row("management_dispvm", VM, Q, "Disposable template that does management work for this qube.",
         lambda i, _q: i.setting("management_dispvm"), inherited=True),
    _row("guivm", VM, Q, "Where the windows of this qube are shown.", lambda i, _q: i.setting("default_guivm")),
    _row("audiovm", VM, Q, "Where the sound of this qube is heard.", lambda i, _q: i.setting("default_audiovm")),
    _row("keyboard_layout", STR, frozenset({D}) | Q, "Keyboard as layout+variant+options.", rule.keyboard_layout,
         parse=values.parse_keyboard),
    _row("devices_denied", STR, Q, "Device interfaces that may not be attached by hand.", "",
         parse=values.parse_interfaces),
    # what is seen of its machine
    _computed("xid", INT, Q, "Number of the running machine; -1 when it is off.", rule.xid),
    _computed("stubdom_xid", INT, Q, "Number of the device model's own domain; -1 when there is none.", -1),
    _computed("stubdom_uuid", STR, Q, "Identity of the device model's own domain.", ""),
    _computed("start_time", STR, Q, "When the qube was started, in seconds since 1970.", rule.start_time),
    # remote qubes
    _row("relayvm", VM, frozenset({R}), "Local qube through which the remote one is reached."),
    _row("transport_rpc", STR, frozenset({R}), "Service that carries calls to the remote qube.",
         parse=values.optional(values.parse_text)),
    _row("remote_name", STR, frozenset({R}), "Name of the qube on the remote system.",
         parse=values.optional(values.parse_text)),
)  # fmt: skip

_D0 = frozenset({D})

GLOBAL_PROPERTIES: Mapping[str, Property] = _tables(
    _row("default_netvm", VM, _D0, "Netvm of qubes that have none of their own."),
    _row("default_template", VM, _D0, "Template of new app qubes.", has_default=False),
    _row("default_dispvm", VM, _D0, "Disposable template used when none is named."),
    _row("management_dispvm", VM, _D0, "Disposable template for management work."),
    _row("updatevm", VM, _D0, "Qube through which the host is updated."),
    _row("clockvm", VM, _D0, "Qube that knows the time."),
    _row("default_guivm", VM, _D0, "Where windows are shown.", "dom0"),
    _row("default_audiovm", VM, _D0, "Where sound is heard.", "dom0"),
    _row("default_kernel", STR, _D0, "Kernel of qubes that have none of their own.", rule.default_kernel,
         parse=values.parse_kernel),
    _row("default_pool", STR, _D0, "Pool of new volumes.", "default", parse=values.parse_pool_name),
    *(
        _row(f"default_pool_{volume}", STR, _D0, f"Pool of new {volume} volumes.",
             lambda i, _q: i.setting("default_pool"), parse=values.parse_pool_name)
        for volume in ("private", "root", "volatile", "kernel")
    ),
    _row("default_qrexec_timeout", INT, _D0, "How long a start waits for the qube's agent.", 60, unit="s",
         parse=values.parse_positive),
    _row("default_shutdown_timeout", INT, _D0, "How long a shutdown waits for the qube to end.", 60, unit="s",
         parse=values.parse_positive),
    _row("default_audit", STR, _D0, "How much the audit log keeps about qubes that do not say.", "full",
         parse=values.one_of("full", "metadata", "off")),
    _row("audit_limit", INT, _D0, "Size above which the oldest part of the audit log is removed; 0: never.", 1024,
         unit="MiB"),
    _row("stats_interval", INT, _D0, "Time between two measurements.", 3, unit="s", parse=values.parse_positive),
    _row("check_updates_vm", BOOL, _D0, "Whether qubes look for updates.", True),
    _computed("maxmem", INT, _D0, "Memory of this computer.", lambda i, _q: i.host.memory_mib),
    _computed("no_cpus", INT, _D0, "Processors of this computer.", lambda i, _q: i.host.cpus),
)  # fmt: skip


@cache
def properties_of(klass: Klass) -> Mapping[str, Property]:
    """The properties that qubes of a class have, by name."""
    return {name: row for name, row in sorted(QUBE_PROPERTIES.items()) if klass in row.on}
