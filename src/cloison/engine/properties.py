"""Setting and resetting properties of qubes and of the system.

In: names and untrusted text. Out: changed records, and events in the order that clients rely on: what was asked for,
what else changed because of it, what was set (Admin API notes, section 4.11). May import: model, errors.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping

from cloison.drivers.state.base import Transaction
from cloison.engine import events as e
from cloison.engine.consequences import MAY_FOLLOW, NOTHING, consequences, consequences_of_setting
from cloison.engine.inventory import Ledger
from cloison.engine.qubes import MayName
from cloison.engine.running import Seats
from cloison.engine.volumes import Volumes
from cloison.errors import BadPropertyValue, NoSuchProperty, QubeNotFound
from cloison.model import rules
from cloison.model.classes import Klass
from cloison.model.inventory import Inventory
from cloison.model.names import QubeName
from cloison.model.properties import GLOBAL_PROPERTIES, QUBE_PROPERTIES, Mode, Property, properties_of
from cloison.model.qube import Qube
from cloison.model.values import PropertyType, Value

ICON_FOLLOWS = ("label", "template_for_dispvms")
ROLE_TAGS = {"guivm": "guivm-", "audiovm": "audiovm-"}
FOLLOWERS: Mapping[str, str] = {
    "default_netvm": "netvm",
    "default_dispvm": "default_dispvm",
    "management_dispvm": "management_dispvm",
    "default_guivm": "guivm",
    "default_audiovm": "audiovm",
    "default_audit": "audit",
    "default_kernel": "kernel",
    "default_qrexec_timeout": "qrexec_timeout",
    "default_shutdown_timeout": "shutdown_timeout",
}
"""Global property -> the property of qubes whose default it is."""
CLOCK_FEATURE = "service.clocksync"


def find_property(qube: Qube, property_name: str) -> Property:
    prop = properties_of(qube.klass).get(property_name)
    if prop is None:
        raise NoSuchProperty(f"{qube.name} ({qube.klass.value}) has no property {property_name[:64]!a}")
    return prop


def parse_value(prop: Property, owner: str, untrusted_text: str) -> Value:
    """The typed value, or BadPropertyValue saying of what and why."""
    if prop.mode is not Mode.RW:
        raise BadPropertyValue(f"property {prop.name} of {owner} cannot be set")
    try:
        return prop.parse(untrusted_text)
    except BadPropertyValue as error:
        raise BadPropertyValue(f"cannot set {prop.name} of {owner}: {error.message}") from None


class Properties:
    def __init__(self, ledger: Ledger, seats: Seats, volumes: Volumes) -> None:
        self._ledger = ledger
        self._seats = seats
        self._volumes = volumes
        self.follow_netvm: Callable[[QubeName], Awaitable[None]] = _nobody_follows
        """Makes a running qube's cable what its netvm now is."""

    async def set(
        self, name: QubeName, property_name: str, untrusted_text: str, may_name: MayName = lambda _: True
    ) -> None:
        """Set it, explicitly, also to the value it has. Raises what ``model.rules`` raises."""
        qube = self._ledger.inventory.qube(name)
        prop = find_property(qube, property_name)
        value = parse_value(prop, name, untrusted_text)
        if prop.halted_only:
            async with self._volumes.held(name):
                self._set(name, prop, value, may_name)
                await self._volumes.follow_template(name)
        else:
            self._set(name, prop, value, may_name)
        if property_name == "netvm":
            await self.follow_netvm(name)

    def _set(self, name: QubeName, prop: Property, value: Value, may_name: MayName) -> None:
        before = self._ledger.inventory
        qube = before.qube(name)
        old = before.value(name, prop.name)
        self._ledger.tell(e.PropertySetRequested(name, prop.name, value, old))
        _check_known(prop, value, may_name)
        rules.check_qube_property(before, qube, prop, value, self._seats.running())
        with self._ledger.change() as records:
            if prop.column is not None:
                records.set_label(name, str(value))
            elif value is None and prop.empty_resets:
                records.reset_property(name, prop.name)
            else:
                records.set_property(name, prop.name, value)
            if prop.halted_only:
                self._volumes.doom_snapshots(records, name)
            caused = list(_side_changes(records, qube, prop, value, old))
        caused += _inherited(self._ledger.inventory, name, prop, old)
        done = e.PropertySet(name, prop.name, value, old)
        caused += consequences(
            before, self._ledger.inventory, name, MAY_FOLLOW.get(prop.name, NOTHING), (*caused, done)
        )
        self._ledger.tell(*caused, done)

    async def reset(self, name: QubeName, property_name: str) -> None:
        before = self._ledger.inventory
        qube = before.qube(name)
        prop = find_property(qube, property_name)
        old = before.value(name, prop.name)
        self._ledger.tell(e.PropertyResetRequested(name, prop.name, old))
        rules.check_reset(before, qube, prop, self._seats.running())
        with self._ledger.change() as records:
            records.reset_property(name, prop.name)
            caused = list(_side_changes(records, qube, prop, before.default_value(name, prop), old))
        caused += _inherited(self._ledger.inventory, name, prop, old)
        done = e.PropertyReset(name, prop.name, old)
        caused += consequences(
            before, self._ledger.inventory, name, MAY_FOLLOW.get(prop.name, NOTHING), (*caused, done)
        )
        self._ledger.tell(*caused, done)
        if property_name == "netvm":
            await self.follow_netvm(name)

    # -- the system's own ------------------------------------------------------------------------------------------

    def set_setting(self, property_name: str, untrusted_text: str, may_name: MayName = lambda _: True) -> None:
        before = self._ledger.inventory
        prop = _find_setting(property_name)
        value = parse_value(prop, "the system", untrusted_text)
        old = before.setting(property_name)
        self._ledger.tell(e.PropertySetRequested(None, prop.name, value, old))
        _check_known(prop, value, may_name)
        rules.check_setting(before, prop, value)
        with self._ledger.change() as records:
            records.set_setting(prop.name, value)
            caused = list(_setting_side_changes(records, before, prop, value, old))
        caused += _followers(before, self._ledger.inventory, prop)
        caused += consequences_of_setting(before, self._ledger.inventory, prop.name, caused)
        self._ledger.tell(*caused, e.PropertySet(None, prop.name, value, old))

    def reset_setting(self, property_name: str) -> None:
        before = self._ledger.inventory
        prop = _find_setting(property_name)
        old = before.setting(property_name)
        self._ledger.tell(e.PropertyResetRequested(None, prop.name, old))
        rules.check_reset(before, None, prop, frozenset())
        with self._ledger.change() as records:
            records.reset_setting(prop.name)
            after = prop.default_for(before, before.qubes[QubeName("dom0")])
            caused = list(_setting_side_changes(records, before, prop, after, old))
        caused += _followers(before, self._ledger.inventory, prop)
        caused += consequences_of_setting(before, self._ledger.inventory, prop.name, caused)
        self._ledger.tell(*caused, e.PropertyReset(None, prop.name, old))


async def _nobody_follows(name: QubeName) -> None: ...


def _check_known(prop: Property, value: Value, may_name: MayName) -> None:
    """QubeNotFound where the rules would raise it for a qube that does not exist."""
    if prop.type is PropertyType.VM and isinstance(value, str) and not may_name(QubeName(value)):
        raise QubeNotFound(value)


def _find_setting(property_name: str) -> Property:
    prop = GLOBAL_PROPERTIES.get(property_name)
    if prop is None:
        raise NoSuchProperty(f"the system has no property {property_name[:64]!a}")
    return prop


def _side_changes(records: Transaction, qube: Qube, prop: Property, value: Value, old: Value) -> Iterator[e.Event]:
    """Records that must go along with a property, and what to tell of it."""
    name = qube.name
    if prop.name in ICON_FOLLOWS:
        yield e.PropertyReset(name, "icon", None, is_consequence=True)
    if prop.name == "provides_network":
        yield from _mark_service_qube(records, qube, bool(value))
    if prefix := ROLE_TAGS.get(prop.name):
        yield from move_role_tag(records, qube, prefix, old, value)


def _mark_service_qube(records: Transaction, qube: Qube, provides: bool) -> Iterator[e.Event]:
    had = qube.features.get("servicevm")
    if provides:
        records.set_feature(qube.name, "servicevm", "1")
        yield e.FeatureSet(qube.name, "servicevm", "1", had)
    elif had is not None:
        records.remove_feature(qube.name, "servicevm")
        yield e.FeatureRemoved(qube.name, "servicevm")
    yield e.PropertyReset(qube.name, "icon", None, is_consequence=True)


def move_role_tag(records: Transaction, qube: Qube, prefix: str, old: Value, new: Value) -> Iterator[e.Event]:
    """Keep the tags ``guivm-NAME`` and ``audiovm-NAME`` in step with the property."""
    keep = f"{prefix}{new}" if new else None
    stale = {tag for tag in qube.tags if tag.startswith(prefix)} - {keep}
    for tag in sorted(stale):
        records.remove_tag(qube.name, tag)
        yield e.TagRemoved(qube.name, tag)
    if keep and keep not in qube.tags:
        records.add_tag(qube.name, keep)
        yield e.TagAdded(qube.name, keep)


def _inherited(inventory: Inventory, name: QubeName, prop: Property, old: Value) -> list[e.Event]:
    """A changed template property is a changed default in every child that did not set its own."""
    if not prop.inherited:
        return []
    found: list[e.Event] = []
    for child in inventory.children(name):
        if prop.name in properties_of(child.klass) and inventory.resolve(child.name, prop.name).is_default:
            found.append(e.PropertyReset(child.name, prop.name, old, is_consequence=True))
            found += _inherited(inventory, child.name, prop, old)
    return found


def _setting_side_changes(records: Transaction, inventory: Inventory, prop: Property, value: Value,
                          old: Value) -> Iterator[e.Event]:  # fmt: skip
    if prop.name == "clockvm":
        if isinstance(old, str) and CLOCK_FEATURE in inventory.qube(old).features and old != value:
            records.remove_feature(QubeName(old), CLOCK_FEATURE)
            yield e.FeatureRemoved(QubeName(old), CLOCK_FEATURE)
        if isinstance(value, str):
            had = inventory.qube(value).features.get(CLOCK_FEATURE)
            records.set_feature(QubeName(value), CLOCK_FEATURE, "1")
            yield e.FeatureSet(QubeName(value), CLOCK_FEATURE, "1", had)
    role = {"default_guivm": "guivm", "default_audiovm": "audiovm"}.get(prop.name)
    if role is not None:
        for qube in inventory:
            if role in properties_of(qube.klass) and inventory.resolve(qube.name, role).is_default:
                yield from move_role_tag(records, qube, ROLE_TAGS[role], old, value)


def _followers(before: Inventory, after: Inventory, setting: Property) -> list[e.Event]:
    """Qubes whose default just changed with a global property."""
    name = FOLLOWERS.get(setting.name)
    if name is None:
        return []
    found: list[e.Event] = []
    for qube in after:
        if not _follows(after, qube, name):
            continue
        old, new = before.value(qube.name, name), after.value(qube.name, name)
        if name == "netvm":
            found += [
                e.PropertySetRequested(qube.name, name, new, old),
                e.PropertySet(qube.name, name, new, old),
            ]
        found.append(e.PropertyReset(qube.name, name, old, is_consequence=True))
    return found


def _follows(inventory: Inventory, qube: Qube, name: str) -> bool:
    if name not in properties_of(qube.klass) or not inventory.resolve(qube.name, name).is_default:
        return False
    if name == "netvm":
        return qube.klass is not Klass.TEMPLATE
    if name == "default_dispvm":
        return qube.klass is not Klass.DISPOSABLE
    template = inventory.template(qube.name) if QUBE_PROPERTIES[name].inherited else None
    return template is None or _follows(inventory, template, name)
