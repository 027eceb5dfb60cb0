"""Features and tags: small facts that hang on qubes (rules: Admin API notes, sections 2 and 13)."""

from __future__ import annotations

import re
from collections.abc import Iterable

from cloison.engine import events as e
from cloison.engine.consequences import consequences, followers_of_feature
from cloison.engine.inventory import Ledger
from cloison.errors import BadRequest, FeatureNotFound, InvalidTag, ProtocolError, Refused, TagNotFound
from cloison.model.inventory import Inventory
from cloison.model.names import QubeName
from cloison.model.network import HOST_PORTS_FEATURE, UPLINK_FEATURE, parse_way_out

OURS = frozenset(
    {"preload-dispvm", "preload-dispvm-in-progress", "preload-dispvm-completed", "deferred-netvm-original"}
)
"""Features that only the daemon may write."""
MAX_SERVICE_NAME = 48
MAX_TAG = 128
_NAME = re.compile(r"[a-zA-Z0-9_.-]{1,255}", re.ASCII)
_VALUE = re.compile(r"[\x20-\x7e]*")
_TAG = re.compile(r"[a-zA-Z0-9_-]+", re.ASCII)


def set_feature(ledger: Ledger, name: QubeName, untrusted_feature: str, untrusted_value: str) -> None:
    qube = ledger.inventory.qube(name)
    feature, value = _parse_feature(untrusted_feature), _parse_feature_value(untrusted_feature, untrusted_value)
    old = qube.features.get(feature)
    ledger.tell(e.FeatureSetRequested(name, feature, value, old))
    before = ledger.inventory
    with ledger.change() as records:
        records.set_feature(name, feature, value)
    tell_followers(ledger, before, name, (feature,))
    ledger.tell(e.FeatureSet(name, feature, value, old))


def remove_feature(ledger: Ledger, name: QubeName, feature: str) -> None:
    if feature in OURS:
        raise Refused(f"feature {feature} belongs to the daemon")
    if feature not in ledger.inventory.qube(name).features:
        raise feature_not_found(name, feature)
    ledger.tell(e.FeatureRemovalRequested(name, feature))
    before = ledger.inventory
    with ledger.change() as records:
        records.remove_feature(name, feature)
    tell_followers(ledger, before, name, (feature,))
    ledger.tell(e.FeatureRemoved(name, feature))


def feature_not_found(name: QubeName, feature: str) -> FeatureNotFound:
    return FeatureNotFound(f"{name} has no feature {feature[:80]!a}")


def _parse_feature(untrusted_feature: str) -> str:
    if not _NAME.fullmatch(untrusted_feature):
        raise ProtocolError(f"feature name {untrusted_feature[:80]!a} must be letters, digits, '_', '.' or '-'")
    if untrusted_feature in OURS:
        raise Refused(f"feature {untrusted_feature} belongs to the daemon")
    service = untrusted_feature.removeprefix("service.")
    if service != untrusted_feature and not 1 <= len(service) <= MAX_SERVICE_NAME:
        raise BadRequest(f"a service's name has 1 to {MAX_SERVICE_NAME} characters, and {service[:80]!a} has not")
    return untrusted_feature


def _parse_feature_value(feature: str, untrusted_value: str) -> str:
    if not _VALUE.fullmatch(untrusted_value):
        raise ProtocolError(f"the value of feature {feature} must be printable ASCII")
    if feature == UPLINK_FEATURE:
        parse_way_out(untrusted_value)
    if feature == HOST_PORTS_FEATURE:
        parse_way_out("", untrusted_value)
    if feature == "preload-dispvm-max" and untrusted_value and not untrusted_value.isdigit():
        raise BadRequest(f"the value of feature {feature} must be a number")
    return untrusted_value


def tell_followers(ledger: Ledger, before: Inventory, name: QubeName, features: Iterable[str]) -> None:
    """After features of a qube changed: the properties that follow from them, here and in other qubes."""
    ledger.tell(*consequences(before, ledger.inventory, name, frozenset().union(*map(followers_of_feature, features))))


def add_tag(ledger: Ledger, name: QubeName, untrusted_tag: str) -> None:
    """Adding a tag that is there already is fine, and tells nothing."""
    tag = parse_tag(untrusted_tag)
    if tag in ledger.inventory.qube(name).tags:
        return
    with ledger.change(e.TagAdded(name, tag)) as records:
        records.add_tag(name, tag)


def remove_tag(ledger: Ledger, name: QubeName, untrusted_tag: str) -> None:
    tag = parse_tag(untrusted_tag)
    if tag not in ledger.inventory.qube(name).tags:
        raise TagNotFound(f"{name} has no tag {tag}")
    with ledger.change(e.TagRemoved(name, tag)) as records:
        records.remove_tag(name, tag)


def parse_tag(untrusted_tag: str) -> str:
    if len(untrusted_tag) > MAX_TAG or not _TAG.fullmatch(untrusted_tag):
        raise InvalidTag(f"tag {untrusted_tag[:80]!a} must be letters, digits, '_' or '-'")
    return untrusted_tag
