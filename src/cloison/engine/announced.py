"""What qubes tell of themselves, and what of it is believed.

In: payloads of qubes.FeaturesRequest, NotifyUpdates, NotifyTools and SyncAppMenus. Out: features. May import: model,
wire, errors. A qube can only change features of its own (NotifyUpdates: of its template), and only these.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Mapping

from cloison.engine import events as e
from cloison.engine.features import tell_followers
from cloison.engine.inventory import Ledger
from cloison.engine.running import Seats
from cloison.errors import BadRequest
from cloison.model.names import QubeName
from cloison.wire.appmenus import dump_apps, parse_menu
from cloison.wire.errors import RemoteProtocolError

log = logging.getLogger(__name__)

APPS_FEATURE = "menu-available"
"""The programs of a qube, as JSON; ``menu-items`` says which of them a person wants to see."""
UPDATES, CHECKED = "updates-available", "last-updates-check"
MAX_FEATURES = 1024
MAX_VALUE = 256
MAX_UPDATES = 100_000
GROUPS = ("supported-service.", "supported-rpc.", "supported-feature.")
"""Announced as a whole: what is not announced again is gone."""
FLAGS = ("qrexec", "gui", "gui-emulated", "vmexec")
TEXTS = ("os", "os-distribution", "os-distribution-like", "os-version", "os-eol", "qubes-agent-version")
TOOLS = {"windows": "Windows", "linux": "Linux"}
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,255}", re.ASCII)
_VALUE = re.compile(rf"[A-Za-z0-9.,_= -]{{0,{MAX_VALUE}}}", re.ASCII)


def parse_features(untrusted_payload: bytes) -> dict[str, str]:
    """Lines ``NAME=VALUE``; BadRequest if one is anything else."""
    found: dict[str, str] = {}
    for line in untrusted_payload.decode("ascii", "replace").splitlines():
        name, sign, value = line.partition("=")
        if not sign or not _NAME.fullmatch(name) or not _VALUE.fullmatch(value):
            raise BadRequest(f"{line[:60]!a} is no FEATURE=VALUE")
        found[name] = value
        if len(found) > MAX_FEATURES:
            raise BadRequest(f"more than {MAX_FEATURES} features")
    return found


def accept_features(ledger: Ledger, source: QubeName, untrusted_payload: bytes) -> None:
    """qubes.FeaturesRequest. Templates and standalones may announce what they can; others only services to call."""
    wanted = parse_features(untrusted_payload)
    qube = ledger.inventory.qube(source)
    own_root = qube.klass.keeps_root
    groups = GROUPS if own_root else ("supported-rpc.",)
    changes: dict[str, str | None] = {}
    for name, value in wanted.items():
        if name.startswith(groups):
            changes[name] = "1" if value == "1" else None
        elif own_root and name in FLAGS and value == "1" and name not in qube.features:
            changes[name] = value  # what a person has switched off stays off
        elif own_root and name in TEXTS and value:
            changes[name] = value
    for name in qube.features:
        if name.startswith(groups) and name not in wanted and any(key.startswith(groups) for key in wanted):
            changes[name] = None
    _apply(ledger, source, changes)


def accept_tools(ledger: Ledger, source: QubeName, untrusted_payload: bytes) -> None:
    """qubes.NotifyTools, of a guest with tools but without our agent's way to say so: ``os=NAME`` and ``qrexec=1``."""
    qube = ledger.inventory.qube(source)
    if not qube.klass.keeps_root:
        raise BadRequest(f"{source} takes its tools from its template")
    wanted = parse_features(untrusted_payload)
    changes: dict[str, str | None] = {}
    if (system := TOOLS.get(wanted.get("os", "").lower())) and "os" not in qube.features:
        changes["os"] = system
    for name in ("qrexec", "gui"):
        if wanted.get(name) == "1" and name not in qube.features:
            changes[name] = "1"
    _apply(ledger, source, changes)


def accept_updates(ledger: Ledger, seats: Seats, source: QubeName, untrusted_payload: bytes) -> None:
    """qubes.NotifyUpdates: how many updates wait. An app qube speaks of its template, while that does not run."""
    text = untrusted_payload.strip()
    if not re.fullmatch(rb"[0-9]{1,6}", text) or int(text) > MAX_UPDATES:
        raise BadRequest("the payload of qubes.NotifyUpdates is not a number")
    owner = ledger.inventory.template_of_root(source)
    count = int(text)
    if owner.name != source and (count == 0 or seats.is_running(owner.name)):
        return  # an app qube may lag behind: its good news are no news
    changes: dict[str, str | None] = {UPDATES: "1" if count else None}
    if owner.name == source:
        changes[CHECKED] = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime())
    _apply(ledger, owner.name, changes)


def accept_apps(ledger: Ledger, source: QubeName, untrusted_payload: bytes) -> None:
    """qubes.SyncAppMenus: the programs of a qube that has a root of its own."""
    if not ledger.inventory.qube(source).klass.keeps_root:
        raise BadRequest(f"{source} takes its programs from its template")
    try:
        apps = parse_menu(untrusted_payload)
    except RemoteProtocolError as error:
        raise BadRequest(str(error)) from None
    _apply(ledger, source, {APPS_FEATURE: dump_apps(apps)})


def _apply(ledger: Ledger, name: QubeName, changes: Mapping[str, str | None]) -> None:
    """Set and remove (None) what differs, in one transaction, and tell of it."""
    before = ledger.inventory.qube(name).features
    real = {feature: value for feature, value in changes.items() if before.get(feature) != value}
    if not real:
        return
    told: list[e.Event] = [
        e.FeatureRemoved(name, feature) if value is None else e.FeatureSet(name, feature, value, before.get(feature))
        for feature, value in real.items()
    ]
    if "qrexec" in real and "qrexec" not in before:
        told.append(e.QubeToolsAnnounced(name))
    picture = ledger.inventory
    with ledger.change() as records:
        for feature, value in real.items():
            if value is None:
                records.remove_feature(name, feature)
            else:
                records.set_feature(name, feature, value)
    tell_followers(ledger, picture, name, real)
    ledger.tell(*told)
    log.info("%s announced %d changes of its features", name, len(real))
