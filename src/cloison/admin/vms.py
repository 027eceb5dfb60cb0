"""Methods on qubes as a whole: list, create, remove, power (Admin API notes, sections 4.1, 4.2, 8, 10, 12)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping

from cloison.admin.framing import encode_event
from cloison.admin.methods import Answer, Call, Desk, Dest, Handler, Method, Need, Scope, lines, may_know, target
from cloison.engine.features import parse_tag
from cloison.engine.qubes import Wish
from cloison.errors import BadRequest, NotNow, ProtocolError, QubeNotHalted, QubeNotRunning, Refused
from cloison.model.classes import Klass
from cloison.model.names import DOM0, QubeName, parse_qube_name
from cloison.model.power import PowerState
from cloison.model.properties import properties_of
from cloison.model.qube import Qube
from cloison.model.values import Value
from cloison.model.volumes import VOLUMES_OF


def state_of(desk: Desk, qube: Qube) -> PowerState:
    """dom0 and remote qubes are always running."""
    return desk.running.power_state(qube.name) if qube.is_machine else PowerState.RUNNING


def known_qubes(desk: Desk, call: Call) -> list[Qube]:
    """All qubes that the caller may know."""
    return [q for q in desk.inventory if call.source == DOM0 or desk.permits(call.source, call.method, "", q.name)]


async def list_qubes(desk: Desk, call: Call) -> Answer:
    wanted = known_qubes(desk, call) if call.dest == DOM0 else [target(desk, call)]
    return lines(f"{q.name} class={q.klass.value} state={state_of(desk, q).value} uuid={q.uuid}" for q in wanted)


async def list_classes(_desk: Desk, _call: Call) -> Answer:
    return lines(sorted(klass.value for klass in Klass))


def _parse_creation(klass: Klass, text: str, *, with_pools: bool) -> tuple[QubeName, str, dict[str, str]]:
    """``name=N label=L`` and for pools ``pool=P`` or ``pool:VOLUME=P``, in any order, none twice."""
    found: dict[str, str] = {}
    for part in text.split(" "):
        key, equals, value = part.partition("=")
        if not equals or not value or key in found:
            raise ProtocolError(f"{part[:40]!a} is no key=value, or comes twice")
        found[key] = value
    name, label = found.pop("name", ""), found.pop("label", "")
    if not name or not label:
        raise ProtocolError("a name and a label are needed")
    pools = {key.removeprefix("pool").removeprefix(":"): pool for key, pool in found.items()}
    allowed = {"pool", *(f"pool:{volume}" for volume in (*VOLUMES_OF[klass], "kernel"))} if with_pools else set()
    if set(found) - allowed or ("" in pools and len(pools) > 1):
        raise ProtocolError(f"unexpected {', '.join(sorted(found))}")
    return parse_qube_name(name), label, pools


def _creator(klass: Klass, *, with_pools: bool) -> Handler:
    async def create(desk: Desk, call: Call) -> Answer:
        name, label, pools = _parse_creation(klass, call.text, with_pools=with_pools)
        template = parse_qube_name(call.arg) if call.arg else None
        tags, properties = _creators_wishes(desk, call.source, klass)
        wish = Wish(
            klass, name, label, template, pools, properties, tags=tags, source=call.source,
            may_name=lambda named: may_know(desk, call, named),
        )  # fmt: skip
        await desk.qubes.create(wish)
        return ""

    return create


def _creators_wishes(desk: Desk, source: QubeName, klass: Klass) -> tuple[frozenset[str], dict[str, Value]]:
    """Tags and properties that a management qube's features ask for in every qube that it creates."""
    if source == DOM0:
        return frozenset(), {}
    features = desk.inventory.qube(source).features
    tags = frozenset(parse_tag(tag) for tag in features.get("tag-created-vm-with", "").split())
    guivm = features.get("set-created-guivm", "")
    if not guivm or "guivm" not in properties_of(klass):
        return tags, {}
    return tags, {"guivm": desk.inventory.qube(parse_qube_name(guivm)).name}


async def create_disposable(desk: Desk, call: Call) -> Answer:
    if call.arg not in ("", "preload"):
        raise ProtocolError(f"{call.method} knows no argument {call.arg[:40]!a}")
    if call.text not in ("", "uuid"):
        raise ProtocolError(f"{call.method} knows no payload {call.text[:40]!a}")
    if call.arg == "preload":
        return ""
    template = None if call.dest == DOM0 else call.dest
    name = await desk.own.take_preloaded(template, call.source)
    if name is None:
        name = await desk.qubes.create_disposable(template, source=call.source)
    return f"uuid:{desk.inventory.qube(name).uuid}" if call.payload else name


async def remove(desk: Desk, call: Call) -> Answer:
    await desk.qubes.remove(call.dest)
    return ""


# -- power ---------------------------------------------------------------------------------------------------------


async def start(desk: Desk, call: Call) -> Answer:
    qube = target(desk, call)
    if not qube.is_machine:
        raise QubeNotHalted(f"{qube.name} is always running")
    if "backup-restore-in-progress" in qube.tags:
        raise NotNow(f"{qube.name} is being restored from a backup")
    await desk.running.start(qube.name)
    return ""


async def shutdown(desk: Desk, call: Call) -> Answer:
    words = call.arg.split("+") if call.arg else []
    if set(words) - {"force", "wait"} or len(words) != len(set(words)):
        raise ProtocolError(f"{call.method} knows the arguments force and wait")
    _require_machine(target(desk, call), "shut down")
    await desk.running.shutdown(call.dest, force="force" in words, wait="wait" in words)
    return ""


async def kill(desk: Desk, call: Call) -> Answer:
    _require_machine(target(desk, call), "killed")
    await desk.running.kill(call.dest)
    return ""


async def pause(desk: Desk, call: Call) -> Answer:
    _require_machine(target(desk, call), "paused")
    await desk.running.pause(call.dest)
    return ""


async def unpause(desk: Desk, call: Call) -> Answer:
    _require_machine(target(desk, call), "unpaused")
    await desk.running.unpause(call.dest)
    return ""


async def suspend(desk: Desk, call: Call) -> Answer:
    _require_machine(target(desk, call), "suspended")
    await desk.sleep.suspend(call.dest)
    return ""


async def resume(desk: Desk, call: Call) -> Answer:
    _require_machine(target(desk, call), "resumed")
    await desk.sleep.resume(call.dest)
    return ""


async def before_sleep(desk: Desk, _call: Call) -> Answer:
    await desk.sleep.before_sleep()
    return ""


async def after_sleep(desk: Desk, _call: Call) -> Answer:
    await desk.sleep.after_sleep()
    return ""


def _require_machine(qube: Qube, what: str) -> None:
    if not qube.is_machine:
        raise BadRequest(f"{qube.name} cannot be {what}: it is no virtual machine")


async def current_state(desk: Desk, call: Call) -> Answer:
    qube = target(desk, call)
    state = state_of(desk, qube)
    memory = ceiling = cpu_ns = 0
    if qube.klass is Klass.ADMIN:
        memory = ceiling = desk.inventory.host.memory_mib * 1024
    elif qube.is_machine and state.has_machine:
        memory = await desk.running.memory_kib(qube.name)
        cpu_ns = desk.running.cpu_time_ns(qube.name)
        names = ("memory", "maxmem")
        ceiling = max(desk.inventory.number(qube.name, name) for name in names) * 1024
    return f"mem={memory} mem_static_max={ceiling} cputime={cpu_ns} power_state={state.value}"


async def console(desk: Desk, call: Call) -> Answer:
    qube = target(desk, call)
    if not qube.is_machine:
        raise Refused(f"{qube.name} has no console here")
    if not desk.running.is_running(qube.name):
        raise QubeNotRunning(f"{qube.name} is not running")
    return str(desk.running.console_path(qube.name))


async def stats(desk: Desk, call: Call) -> AsyncIterator[bytes]:
    """One record per running qube (and dom0) every ``stats_interval`` seconds."""
    yield encode_event("", "connection-established", {})
    before: dict[QubeName, tuple[float, int]] = {}
    while True:
        for qube in desk.inventory:
            if call.dest not in (DOM0, qube.name) or not _may_measure(desk, call, qube):
                continue
            yield encode_event(qube.name, "vm-stats", await _measure(desk, qube, before))
        interval = desk.inventory.setting("stats_interval")
        assert isinstance(interval, int)
        await asyncio.sleep(interval)


def _may_measure(desk: Desk, call: Call, qube: Qube) -> bool:
    if call.source != DOM0 and not desk.permits(call.source, call.method, "", qube.name):
        return False
    return qube.klass is Klass.ADMIN or (qube.is_machine and state_of(desk, qube).has_machine)


async def _measure(desk: Desk, qube: Qube, before: dict[QubeName, tuple[float, int]]) -> Mapping[str, str]:
    if qube.klass is Klass.ADMIN:
        memory, cpu_ns, vcpus = desk.inventory.host.memory_mib * 1024, time.process_time_ns(), desk.inventory.host.cpus
    else:
        memory = await desk.running.memory_kib(qube.name)
        cpu_ns, vcpus = desk.running.cpu_time_ns(qube.name), desk.inventory.number(qube.name, "vcpus")
    now = time.monotonic()
    then, used = before.get(qube.name, (now, cpu_ns))
    before[qube.name] = (now, cpu_ns)
    usage = 0 if now <= then else round((cpu_ns - used) / (now - then) / 1e9 / max(vcpus, 1) * 100)
    return {
        "memory_kb": str(memory),
        "memory_assigned_total": str(memory),
        "memory_assigned_usable": str(memory),
        "memory_with_swap_used": str(memory),
        "cpu_time": str(cpu_ns // 1_000_000),
        "cpu_usage": str(max(0, min(100, usage))),
        "online_vcpus": str(vcpus),
    }


def _power(verb: str, handler: Handler, doc: str, arg: Need = Need.NONE) -> Method:
    return Method(f"admin.vm.{verb}", Dest.ANY, arg, Need.NONE, Scope.LOCAL_X, doc, handler)


METHODS = (
    Method("admin.vmclass.List", Dest.DOM0, Need.NONE, Need.NONE, Scope.GLOBAL_RO,
           "The classes of qubes, one per line.", list_classes),
    Method("admin.vm.List", Dest.ANY, Need.NONE, Need.NONE, Scope.GLOBAL_RO,
           "One line per qube: name, class, power state, uuid. To dom0: all that the caller may know.", list_qubes),
    *(
        Method(f"admin.vm.{verb}.{klass.value}", Dest.DOM0, Need.OPTIONAL, Need.REQUIRED, Scope.GLOBAL_RW,
               f"Create a {klass.value}{' in chosen pools' if with_pools else ''}. Argument: its template. "
               f"Payload: name=NAME label=LABEL{' pool=POOL' if with_pools else ''}.",
               _creator(klass, with_pools=with_pools))
        for verb, with_pools in (("Create", False), ("CreateInPool", True))
        for klass in Klass
    ),
    Method("admin.vm.CreateDisposable", Dest.ANY, Need.OPTIONAL, Need.OPTIONAL, Scope.GLOBAL_RW,
           "Create a disposable of the destination (dom0: of the caller's default_dispvm); answers its name.",
           create_disposable),
    Method("admin.vm.Remove", Dest.ANY, Need.NONE, Need.NONE, Scope.GLOBAL_RW,
           "Remove a halted qube that nothing refers to.", remove),
    _power("Start", start, "Start a qube and wait until programs may run in it; nothing happens if it runs."),
    _power("Shutdown", shutdown, "Ask a qube to power off. Arguments: force, wait, or both joined by '+'.",
           Need.OPTIONAL),
    _power("Kill", kill, "End a qube at once."),
    _power("Pause", pause, "Stop a qube's processors."),
    _power("Unpause", unpause, "Let a paused qube go on."),
    _power("Suspend", suspend, "Prepare a qube for the sleep of the host, and pause it."),
    _power("Resume", resume, "Wake a suspended qube: it goes on and gets the time."),
    Method("internal.SuspendPre", Dest.DOM0, Need.NONE, Need.NONE, Scope.INTERNAL,
           "The host is about to sleep: running qubes are told, those with devices are paused.", before_sleep),
    Method("internal.SuspendPost", Dest.DOM0, Need.NONE, Need.NONE, Scope.INTERNAL,
           "The host has slept: qubes go on, get the time and are told.", after_sleep),
    Method("admin.vm.CurrentState", Dest.ANY, Need.NONE, Need.NONE, Scope.LOCAL_RO,
           "Memory in KiB, its ceiling, processor time in ns and the power state, in one line.", current_state),
    Method("admin.vm.Console", Dest.ANY, Need.NONE, Need.NONE, Scope.LOCAL_RW,
           "Where the serial console of a running qube is to be reached.", console),
    Method("admin.vm.Stats", Dest.ANY, Need.NONE, Need.NONE, Scope.GLOBAL_RO,
           "Stream of measurements of running qubes.", streamer=stats),
)  # fmt: skip
