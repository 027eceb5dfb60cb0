"""Our own methods, for what Qubes has none. Payloads and answers are JSON; long work tells its progress in events."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

from cloison.admin.framing import encode_event, encode_ok
from cloison.admin.methods import Answer, Call, Desk, Dest, Method, Need, Scope, Streamer, may_know, target
from cloison.admin.own import Progress, Report
from cloison.admin.vms import known_qubes, state_of
from cloison.errors import BadRequest, NoSuchProperty, ProtocolError
from cloison.model.classes import find_klass
from cloison.model.firewall import DEFAULT_RULES, parse_rules, unexpired
from cloison.model.names import QubeName, parse_qube_name
from cloison.model.network import downlinks_of, inner_resolvers, netvm_of
from cloison.model.properties import GLOBAL_PROPERTIES, QUBE_PROPERTIES, Property, properties_of
from cloison.model.qube import Qube
from cloison.wire.firewall import parse_rules as wire_rules
from cloison.wire.nftables import link_text, whole_text

MAX_CONSOLE_BYTES = 256 * 1024
"""How much of a console's log is answered: more than any kernel's boot messages."""


def parse_json(call: Call, **allowed: type | tuple[type, ...]) -> dict[str, Any]:
    """The payload as a flat JSON object with known keys of known types; ProtocolError otherwise."""
    try:
        found = json.loads(call.payload) if call.payload else {}
    except (ValueError, RecursionError):
        raise ProtocolError(f"the payload of {call.method} is no JSON") from None
    if not isinstance(found, dict):
        raise ProtocolError(f"the payload of {call.method} is no JSON object")
    for key, value in found.items():
        if key not in allowed:
            raise ProtocolError(f"{call.method} knows no key {key[:40]!a}", hint=f"it knows {', '.join(allowed)}")
        if value is not None and (not isinstance(value, allowed[key]) or _is_stray_bool(value, allowed[key])):
            raise ProtocolError(f"{call.method}: the value of {key} is of the wrong kind")
    return found


def _is_stray_bool(value: object, allowed: type | tuple[type, ...]) -> bool:
    kinds = allowed if isinstance(allowed, tuple) else (allowed,)
    return isinstance(value, bool) and bool not in kinds


def _dump(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))


# -- the daemon and its tables -----------------------------------------------------------------------------------------


async def status(desk: Desk, _call: Call) -> Answer:
    return _dump(dict(desk.own.status()))


async def stop_daemon(desk: Desk, call: Call) -> Answer:
    desk.own.stop_daemon(kill_qubes=bool(parse_json(call, kill_qubes=bool).get("kill_qubes")))
    return "{}"


def _declaration(prop: Property) -> dict[str, object]:
    return {
        "name": prop.name,
        "type": prop.type.value,
        "mode": prop.mode.value,
        "classes": sorted(klass.value for klass in prop.on),
        "unit": prop.unit,
        "inherited": prop.inherited,
        "doc": prop.doc,
    }


async def catalogue(_desk: Desk, _call: Call) -> Answer:
    return _dump(
        {
            "qube": [_declaration(prop) for prop in QUBE_PROPERTIES.values()],
            "system": [_declaration(prop) for prop in GLOBAL_PROPERTIES.values()],
        }
    )


# -- qubes -------------------------------------------------------------------------------------------------------------

USUAL = ("template", "netvm", "memory", "maxmem", "vcpus", "autostart", "auto_cleanup", "template_for_dispvms")


async def list_qubes(desk: Desk, call: Call) -> Answer:
    wanted = parse_json(call, properties=list).get("properties") or list(USUAL)
    if not all(isinstance(name, str) for name in wanted):
        raise ProtocolError("properties are names")
    for name in wanted:
        if name not in QUBE_PROPERTIES:
            raise NoSuchProperty(f"no qube has a property {name[:64]!a}")
    return _dump([_row(desk, qube, wanted) for qube in known_qubes(desk, call)])


def _row(desk: Desk, qube: Qube, wanted: list[str]) -> dict[str, object]:
    inventory, known = desk.inventory, properties_of(qube.klass)
    shown: dict[str, object] = {}
    for name in wanted:
        if name in known:
            value, is_default = inventory.resolve(qube.name, name)
            shown[name] = {"value": value, "default": is_default, "type": known[name].type.value}
    running = qube.is_machine and desk.running.is_running(qube.name)
    return {
        "name": qube.name,
        "class": qube.klass.value,
        "state": state_of(desk, qube).value,
        "label": qube.label,
        "colour": inventory.label(qube.label).colour,
        "uuid": qube.uuid,
        "qid": qube.qid,
        "tags": sorted(qube.tags),
        "features": dict(qube.features),
        "outdated": running and bool(desk.own.outdated(qube.name)),
        "trouble": desk.own.trouble(qube.name) if running else "",
        "network_trouble": desk.own.network_trouble(qube.name) if running else "",
        "preloaded": qube.is_preloaded,
        "template": qube.properties.get("template"),
        "netvm": inventory.value(qube.name, "netvm") if "netvm" in known else None,
        "properties": shown,
    }


async def clone_qube(desk: Desk, call: Call) -> Answer:
    wish = parse_json(call, name=str, klass=str, label=str, pool=str)
    new = parse_qube_name(wish.get("name") or "")
    klass = find_klass(wish.get("klass") or "")
    if wish.get("klass") and klass is None:
        raise BadRequest(f"there is no class {wish['klass'][:32]!a}")
    qube = await desk.qubes.clone(
        call.dest, new, klass=klass, label=wish.get("label"), pool=wish.get("pool"), source=call.source
    )
    return _dump({"name": qube.name})


async def settle_trial(desk: Desk, call: Call) -> Answer:
    await desk.own.settle_trial(call.dest)
    return "{}"


async def rename_qube(desk: Desk, call: Call) -> Answer:
    await desk.qubes.rename(call.dest, parse_qube_name(parse_json(call, name=str).get("name") or ""))
    return "{}"


async def console_log(desk: Desk, call: Call) -> Answer:
    if not target(desk, call).is_machine:
        raise BadRequest(f"{call.dest} has no console here")
    path = desk.running.console_log(call.dest)
    try:
        data = path.read_bytes()[-MAX_CONSOLE_BYTES:]
    except FileNotFoundError:
        data = b""
    return _dump({"text": data.decode("utf-8", "replace")})


async def firewall_counters(desk: Desk, call: Call) -> Answer:
    return _dump(dict(await desk.own.rule_counters(target(desk, call).name)))


async def firewall_table(desk: Desk, call: Call) -> Answer:
    """What the netvm would load. Names of hosts are looked up there, so here they have no addresses."""
    qube = target(desk, call)
    netvm = netvm_of(desk.inventory, qube.name)
    if netvm is None:
        raise BadRequest(f"{qube.name} has no netvm that could keep its rules")
    rules = parse_rules(call.text) if call.payload else qube.firewall or DEFAULT_RULES
    downlinks = downlinks_of(
        desk.inventory, netvm.name, frozenset({qube.name}), inner_resolvers(desk.inventory, netvm.name)
    )
    link = downlinks.links[0]
    parsed = wire_rules(unexpired(rules, time.time()))
    return whole_text(downlinks, [(link, link_text(link, downlinks.gateway, downlinks.gateway6, parsed, {}, 1))])


# -- long work -----------------------------------------------------------------------------------------------------

Work = Callable[[Desk, Call, Report], Awaitable[Mapping[str, Any]]]


def _with_progress(work: Work) -> Streamer:
    """Progress records as they come, then the answer. The work is cancelled when the caller goes away."""

    async def stream(desk: Desk, call: Call) -> AsyncIterator[bytes]:
        waiting: asyncio.Queue[Progress | None] = asyncio.Queue()
        task = asyncio.ensure_future(work(desk, call, waiting.put_nowait))
        task.add_done_callback(lambda _task: waiting.put_nowait(None))
        try:
            while (progress := await waiting.get()) is not None:
                percent = "" if progress.percent is None else f"{progress.percent:.0f}"
                fields = {"step": progress.step, "text": progress.text, "percent": percent}
                yield encode_event(call.arg or call.dest, "progress", fields)
            yield encode_ok(_dump(dict(await task)))
        finally:
            task.cancel()
            await asyncio.wait({task})

    return stream


async def _build_template(desk: Desk, call: Call, report: Report) -> Mapping[str, Any]:
    wishes = parse_json(
        call, distribution=str, suite=str, include=list, size_bytes=int, mirror=str, force=bool, label=str
    )
    if not all(isinstance(package, str) for package in wishes.get("include") or ()):
        raise ProtocolError("packages are names")
    return await desk.own.build_template(parse_qube_name(call.arg), wishes, report)


async def _commit_template(desk: Desk, call: Call, report: Report) -> Mapping[str, Any]:
    return await desk.own.commit_template(call.dest, report)


async def _make_forkpoint(desk: Desk, call: Call, report: Report) -> Mapping[str, Any]:
    return await desk.own.make_forkpoint(call.dest, report)


async def _hold_trial(desk: Desk, call: Call, report: Report) -> Mapping[str, Any]:
    return await desk.own.hold_trial(call.dest, report)


async def _import_standalone(desk: Desk, call: Call, report: Report) -> Mapping[str, Any]:
    wishes = parse_json(call, image=str, format=str, label=str, memory_mib=int, size_bytes=int)
    if not wishes.get("image"):
        raise ProtocolError("the path of an image is needed")
    return await desk.own.import_standalone(parse_qube_name(call.arg), wishes, report)


async def policy_changed(desk: Desk, _call: Call) -> Answer:
    desk.own.policy_changed()
    return "{}"


async def erase_audit(desk: Desk, call: Call) -> Answer:
    return _dump({"erased": await desk.own.erase_audit(call.arg)})


async def list_templates(desk: Desk, call: Call) -> Answer:
    rows = [dict(row) for row in await desk.own.templates() if may_know(desk, call, row["name"])]
    for row in rows:
        for key in {"qubes", "outdated"} & row.keys():
            row[key] = [name for name in row[key] if may_know(desk, call, name)]
    return _dump(rows)


async def list_forkpoints(desk: Desk, _call: Call) -> Answer:
    return _dump([dict(row) for row in await desk.own.forkpoints()])


async def drop_forkpoints(desk: Desk, call: Call) -> Answer:
    wish = parse_json(call, key=str, template=str)
    template: QubeName | None = parse_qube_name(wish["template"]) if wish.get("template") else None
    return _dump({"dropped": list(await desk.own.drop_forkpoints(key=wish.get("key"), template=template))})


_NO, _YES, _MAY = Need.NONE, Need.REQUIRED, Need.OPTIONAL
_DOM0, _QUBE = Dest.DOM0, Dest.QUBE
_GRO, _GRW, _IN = Scope.GLOBAL_RO, Scope.GLOBAL_RW, Scope.INTERNAL

METHODS = (
    Method("cloison.daemon.Status", _DOM0, _NO, _NO, _GRO, "What the daemon is and runs.", status),
    Method("cloison.daemon.Stop", _DOM0, _NO, _MAY, _IN, "End the daemon; qubes go on unless kill_qubes.", stop_daemon),
    Method("cloison.audit.Erase", _DOM0, _YES, _NO, _IN, "Make what is recorded about a qube unreadable for ever.",
           erase_audit),
    Method("cloison.policy.Changed", _DOM0, _NO, _YES, _IN, "Policy files were changed; payload: which.",
           policy_changed),
    Method("cloison.property.Catalogue", _DOM0, _NO, _NO, _GRO, "Declarations of all properties.", catalogue),
    Method("cloison.qube.List", _DOM0, _NO, _MAY, _GRO, "All qubes with chosen properties in one answer.", list_qubes),
    Method("cloison.qube.Clone", _QUBE, _NO, _YES, _GRW, "Make a copy of a qube.", clone_qube),
    Method("cloison.qube.Rename", _QUBE, _NO, _YES, _GRW, "Give a halted qube another name.", rename_qube),
    Method("cloison.qube.ConsoleLog", _QUBE, _NO, _NO, Scope.LOCAL_RO, "The end of a console's log.", console_log),
    Method("cloison.firewall.Counters", _QUBE, _NO, _NO, Scope.LOCAL_RO, "What a qube's firewall rules have decided.",
           firewall_counters),
    Method("cloison.firewall.Table", _QUBE, _NO, _MAY, Scope.LOCAL_RO,
           "What the netvm would load for these rules (none: the present ones).", firewall_table),
    Method("cloison.template.Build", _DOM0, _YES, _MAY, _GRW, "Build a template (argument: its name).",
           streamer=_with_progress(_build_template)),
    Method("cloison.template.List", _DOM0, _NO, _NO, _GRO, "Templates with revisions and users.", list_templates),
    Method("cloison.template.Commit", _QUBE, _NO, _NO, _GRW, "Make a template's changes a revision now.",
           streamer=_with_progress(_commit_template)),
    Method("cloison.trial.Hold", _QUBE, _NO, _NO, _GRW,
           "Start a template or standalone qube; what is changed in it is gone when the caller goes, unless settled.",
           streamer=_with_progress(_hold_trial)),
    Method("cloison.trial.Settle", _QUBE, _NO, _NO, _GRW, "What was changed under Hold is kept.", settle_trial),
    Method("cloison.forkpoint.List", _DOM0, _NO, _NO, _GRO, "Fork points and what they cost.", list_forkpoints),
    Method("cloison.forkpoint.Make", _QUBE, _NO, _NO, _GRW, "Make the fork point that a qube would start from.",
           streamer=_with_progress(_make_forkpoint)),
    Method("cloison.forkpoint.Drop", _DOM0, _NO, _MAY, _GRW, "Drop fork points.", drop_forkpoints),
    Method("cloison.standalone.Import", _DOM0, _YES, _YES, _IN, "Make a StandaloneVM of a disk image.",
           streamer=_with_progress(_import_standalone)),
)  # fmt: skip
