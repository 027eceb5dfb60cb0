"""Methods on properties, features, tags, notes and firewall (Admin API notes, sections 4.3 to 4.6, 5, 6, 13)."""

from __future__ import annotations

import time

from cloison.admin.methods import Answer, Call, Desk, Dest, Handler, Method, Need, Scope, lines, may_know, target
from cloison.engine import events as e
from cloison.engine import features
from cloison.engine.properties import find_property
from cloison.errors import BadRequest, NoSuchProperty, ProtocolError
from cloison.model.firewall import DEFAULT_RULES, parse_rules, unexpired
from cloison.model.inventory import Resolved
from cloison.model.properties import GLOBAL_PROPERTIES, Mode, Property, properties_of
from cloison.model.values import format_value

MAX_NOTES_BYTES = 256_000


def format_property(prop: Property, resolved: Resolved) -> str:
    return f"default={resolved.is_default} type={prop.type.value} {format_value(resolved.value)}"


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n")


def _global_property(name: str) -> Property:
    prop = GLOBAL_PROPERTIES.get(name)
    if prop is None:
        raise NoSuchProperty(f"the system has no property {name[:64]!a}")
    return prop


# -- properties of qubes ---------------------------------------------------------------------------------------------


async def list_properties(desk: Desk, call: Call) -> Answer:
    return lines(properties_of(target(desk, call).klass))


async def get_property(desk: Desk, call: Call) -> Answer:
    prop = find_property(target(desk, call), call.arg)
    return format_property(prop, desk.inventory.resolve(call.dest, prop.name))


async def get_all_properties(desk: Desk, call: Call) -> Answer:
    inventory = desk.inventory
    rows = properties_of(target(desk, call).klass).values()
    return lines(
        f"{prop.name} {_escape(format_property(prop, inventory.resolve(call.dest, prop.name)))}" for prop in rows
    )


async def get_property_default(desk: Desk, call: Call) -> Answer:
    prop = find_property(target(desk, call), call.arg)
    if not prop.has_default or prop.mode is Mode.ONCE:
        return ""
    return f"type={prop.type.value} {format_value(desk.inventory.default_value(call.dest, prop))}"


async def get_property_help(desk: Desk, call: Call) -> Answer:
    return help_text(find_property(target(desk, call), call.arg))


def help_text(prop: Property) -> str:
    unit = f" Unit: {prop.unit}." if prop.unit else ""
    inherited = " Default: as in the template." if prop.inherited else ""
    return f"{prop.doc}{unit}{inherited}"


async def set_property(desk: Desk, call: Call) -> Answer:
    await desk.properties.set(call.dest, call.arg, call.text, lambda named: may_know(desk, call, named))
    return ""


async def reset_property(desk: Desk, call: Call) -> Answer:
    await desk.properties.reset(call.dest, call.arg)
    return ""


# -- properties of the system ----------------------------------------------------------------------------------------


async def list_settings(_desk: Desk, _call: Call) -> Answer:
    return lines(sorted(GLOBAL_PROPERTIES))


async def get_setting(desk: Desk, call: Call) -> Answer:
    prop = _global_property(call.arg)
    return format_property(prop, desk.inventory.resolve_setting(prop.name))


async def get_all_settings(desk: Desk, _call: Call) -> Answer:
    return lines(
        f"{name} {_escape(format_property(prop, desk.inventory.resolve_setting(name)))}"
        for name, prop in sorted(GLOBAL_PROPERTIES.items())
    )


async def get_setting_default(desk: Desk, call: Call) -> Answer:
    prop = _global_property(call.arg)
    if not prop.has_default:
        return ""
    default = prop.default_for(desk.inventory, desk.inventory.qube("dom0"))
    return f"type={prop.type.value} {format_value(default)}"


async def get_setting_help(_desk: Desk, call: Call) -> Answer:
    return help_text(_global_property(call.arg))


async def set_setting(desk: Desk, call: Call) -> Answer:
    desk.properties.set_setting(call.arg, call.text, lambda named: may_know(desk, call, named))
    return ""


async def reset_setting(desk: Desk, call: Call) -> Answer:
    desk.properties.reset_setting(call.arg)
    return ""


# -- features --------------------------------------------------------------------------------------------------------


async def list_features(desk: Desk, call: Call) -> Answer:
    return lines(sorted(target(desk, call).features))


async def get_feature(desk: Desk, call: Call) -> Answer:
    value = target(desk, call).features.get(call.arg)
    if value is None:
        raise features.feature_not_found(call.dest, call.arg)
    return value


def _checker(via: str | None, *, dom0: bool) -> Handler:
    async def check(desk: Desk, call: Call) -> Answer:
        value = desk.inventory.feature(target(desk, call).name, call.arg, via=via, dom0=dom0)
        if value is None:
            raise features.feature_not_found(call.dest, call.arg)
        return value

    return check


async def set_feature(desk: Desk, call: Call) -> Answer:
    features.set_feature(desk.ledger, call.dest, call.arg, call.text)
    return ""


async def remove_feature(desk: Desk, call: Call) -> Answer:
    features.remove_feature(desk.ledger, call.dest, call.arg)
    return ""


# -- tags ------------------------------------------------------------------------------------------------------------


async def list_tags(desk: Desk, call: Call) -> Answer:
    return lines(sorted(target(desk, call).tags))


async def get_tag(desk: Desk, call: Call) -> Answer:
    return "1" if features.parse_tag(call.arg) in target(desk, call).tags else "0"


async def set_tag(desk: Desk, call: Call) -> Answer:
    features.add_tag(desk.ledger, call.dest, call.arg)
    return ""


async def remove_tag(desk: Desk, call: Call) -> Answer:
    features.remove_tag(desk.ledger, call.dest, call.arg)
    return ""


# -- notes and firewall ----------------------------------------------------------------------------------------------


async def get_notes(desk: Desk, call: Call) -> Answer:
    return desk.ledger.notes(call.dest)


async def set_notes(desk: Desk, call: Call) -> Answer:
    try:
        untrusted_text = call.payload.decode("utf-8")
    except UnicodeDecodeError:
        raise ProtocolError("notes must be UTF-8") from None
    if len(call.payload) > MAX_NOTES_BYTES:
        raise BadRequest(f"notes are longer than {MAX_NOTES_BYTES} bytes")
    text = "".join(c if c.isprintable() or c in "\t\n" else "_" for c in untrusted_text)
    with desk.ledger.change() as records:
        records.set_notes(call.dest, text)
    return ""


async def get_firewall(desk: Desk, call: Call) -> Answer:
    rules = target(desk, call).firewall
    return DEFAULT_RULES if rules is None else unexpired(rules, time.time())


async def set_firewall(desk: Desk, call: Call) -> Answer:
    if not target(desk, call).is_machine:
        raise BadRequest(f"{call.dest} is no virtual machine: it has no firewall here")
    rules = parse_rules(call.text)
    with desk.ledger.change(e.FirewallChanged(call.dest)) as records:
        records.set_firewall(call.dest, rules)
    return ""


async def reload_firewall(desk: Desk, call: Call) -> Answer:
    desk.ledger.tell(e.FirewallChanged(call.dest))
    return ""


_NO, _YES, _MAY = Need.NONE, Need.REQUIRED, Need.OPTIONAL
_RO, _RW, _GRO, _GRW = Scope.LOCAL_RO, Scope.LOCAL_RW, Scope.GLOBAL_RO, Scope.GLOBAL_RW

METHODS = (
    *(
        method
        for prefix, dest, ro, rw, whose, handlers in (
            ("admin.vm.property", Dest.ANY, _RO, _RW, "a qube",
             (list_properties, get_property, get_all_properties, get_property_default, get_property_help,
              set_property, reset_property)),
            ("admin.property", Dest.DOM0, _GRO, _GRW, "the system",
             (list_settings, get_setting, get_all_settings, get_setting_default, get_setting_help,
              set_setting, reset_setting)),
        )
        for method in (
            Method(f"{prefix}.List", dest, _NO, _NO, ro, f"Names of the properties of {whose}.", handlers[0]),
            Method(f"{prefix}.Get", dest, _YES, _NO, ro, f"A property of {whose}: default=, type= and value.",
                   handlers[1]),
            Method(f"{prefix}.GetAll", dest, _NO, _NO, ro, f"All properties of {whose}, one per line.", handlers[2]),
            Method(f"{prefix}.GetDefault", dest, _YES, _NO, ro, f"What a property of {whose} would be if not set.",
                   handlers[3]),
            Method(f"{prefix}.Help", dest, _YES, _NO, ro, f"What a property of {whose} means.", handlers[4]),
            Method(f"{prefix}.Set", dest, _YES, _MAY, rw, f"Set a property of {whose}; nothing means none.",
                   handlers[5]),
            Method(f"{prefix}.Reset", dest, _YES, _NO, rw, f"Back to the default of a property of {whose}.",
                   handlers[6]),
        )
    ),
    Method("admin.vm.feature.List", Dest.ANY, _NO, _NO, _RO, "Names of the features of a qube.", list_features),
    Method("admin.vm.feature.Get", Dest.ANY, _YES, _NO, _RO, "The value of a feature.", get_feature),
    Method("admin.vm.feature.CheckWithTemplate", Dest.ANY, _YES, _NO, _RO,
           "A feature of the qube or of its templates.", _checker("template", dom0=False)),
    Method("admin.vm.feature.CheckWithNetvm", Dest.ANY, _YES, _NO, _RO,
           "A feature of the qube or of its netvms.", _checker("netvm", dom0=False)),
    Method("admin.vm.feature.CheckWithAdminVM", Dest.ANY, _YES, _NO, _RO,
           "A feature of the qube or of dom0.", _checker(None, dom0=True)),
    Method("admin.vm.feature.CheckWithTemplateAndAdminVM", Dest.ANY, _YES, _NO, _RO,
           "A feature of the qube, of its templates or of dom0.", _checker("template", dom0=True)),
    Method("admin.vm.feature.Set", Dest.ANY, _YES, _MAY, _RW, "Set a feature.", set_feature),
    Method("admin.vm.feature.Remove", Dest.ANY, _YES, _NO, _RW, "Remove a feature.", remove_feature),
    Method("admin.vm.tag.List", Dest.ANY, _NO, _NO, _RO, "The tags of a qube.", list_tags),
    Method("admin.vm.tag.Get", Dest.ANY, _YES, _NO, _RO, "1 if the qube has the tag, else 0.", get_tag),
    Method("admin.vm.tag.Set", Dest.ANY, _YES, _NO, _RW, "Add a tag.", set_tag),
    Method("admin.vm.tag.Remove", Dest.ANY, _YES, _NO, _RW, "Remove a tag.", remove_tag),
    Method("admin.vm.notes.Get", Dest.QUBE, _NO, _NO, _RO, "The notes about a qube.", get_notes),
    Method("admin.vm.notes.Set", Dest.QUBE, _NO, _MAY, _RW, "Replace the notes about a qube.", set_notes),
    Method("admin.vm.firewall.Get", Dest.QUBE, _NO, _NO, _RO, "The firewall rules of a qube.", get_firewall),
    Method("admin.vm.firewall.Set", Dest.QUBE, _NO, _YES, _RW, "Replace all firewall rules.", set_firewall),
    Method("admin.vm.firewall.Reload", Dest.QUBE, _NO, _NO, Scope.LOCAL_X, "Apply the rules again.",
           reload_firewall),
)  # fmt: skip
