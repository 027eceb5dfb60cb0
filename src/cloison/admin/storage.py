"""Methods on volumes and pools (Admin API notes, sections 4.4, 4.5, 7)."""

from __future__ import annotations

import re

from cloison.admin import uploads
from cloison.admin.methods import (
    Answer,
    Call,
    Desk,
    Dest,
    Handler,
    Method,
    Need,
    Scope,
    lines,
    may_know,
    parse_bool_payload,
    target,
)  # fmt: skip
from cloison.engine.volumes import volume_not_found
from cloison.errors import BadRequest, CloisonError, ProtocolError, StorageNotFound
from cloison.model.qube import Pool
from cloison.model.volumes import KERNEL_OF_TEMPLATE, KERNEL_POOL, Volume

KERNEL_VOLUME = "kernel"
"""Shown by clients as a fourth volume: read-only, its id is the value of the property kernel."""
_REVISION = re.compile(r"[a-zA-Z0-9:._-]{1,256}", re.ASCII)


def _volume_names(desk: Desk, call: Call) -> list[str]:
    volumes = target(desk, call).volumes
    return [*volumes, KERNEL_VOLUME] if volumes else []


def _record(desk: Desk, call: Call) -> Volume:
    """The volume that the argument names; the kernel is not one that can be changed."""
    if call.arg == KERNEL_VOLUME and target(desk, call).volumes:
        raise BadRequest(f"the kernel volume of {call.dest} follows its property kernel and cannot be changed")
    found = target(desk, call).volumes.get(call.arg)
    if found is None:
        raise volume_not_found(target(desk, call), call.arg)
    return found


def _fields(**fields: object) -> str:
    return lines(f"{key}={value}" for key, value in fields.items())


async def list_volumes(desk: Desk, call: Call) -> Answer:
    return lines(_volume_names(desk, call))


async def volume_info(desk: Desk, call: Call) -> Answer:
    if call.arg == KERNEL_VOLUME and target(desk, call).volumes:
        kernel = desk.inventory.text(call.dest, "kernel")
        return _fields(pool=KERNEL_POOL, vid=kernel, size=0, usage=0, rw=False, source="", path="",
                       save_on_stop=False, snap_on_start=False, revisions_to_keep=0, ephemeral=False)  # fmt: skip
    volume = _record(desk, call)
    info = await desk.volumes.info(call.dest, volume.name)
    source = desk.inventory.volume_source(call.dest, volume.name)
    shown = _fields(
        pool=volume.pool,
        vid=volume.vid,
        size=info.size_bytes,
        usage=info.usage_bytes,
        rw=volume.rw,
        source=source.vid if source else "",
        path="",
        save_on_stop=volume.kind.save_on_stop,
        snap_on_start=volume.kind.snap_on_start,
        revisions_to_keep=volume.revisions_to_keep,
        ephemeral=volume.ephemeral,
    )
    if volume.kind.snap_on_start:
        shown += _fields(is_outdated=volume.name in desk.own.outdated(call.dest))
    return shown


async def list_snapshots(desk: Desk, call: Call) -> Answer:
    if call.arg == KERNEL_VOLUME and target(desk, call).volumes:
        return ""
    return lines((await desk.volumes.info(call.dest, _record(desk, call).name)).revisions)


async def revert(desk: Desk, call: Call) -> Answer:
    revision = call.text.strip()
    if not _REVISION.fullmatch(revision):
        raise ProtocolError("this is no revision's name")
    await desk.volumes.revert(call.dest, _record(desk, call).name, revision)
    return ""


async def resize(desk: Desk, call: Call) -> Answer:
    volume = _record(desk, call).name
    await desk.volumes.resize(call.dest, volume, call.number)
    await desk.running.grow_disk(call.dest, volume, call.number)
    return ""


async def clone_from(desk: Desk, call: Call) -> Answer:
    return desk.volumes.clone_token(call.dest, _record(desk, call).name)


async def clone_to(desk: Desk, call: Call) -> Answer:
    await desk.volumes.clone_to(call.dest, _record(desk, call).name, call.text.strip())
    return ""


async def clear(desk: Desk, call: Call) -> Answer:
    await desk.volumes.clear(call.dest, _record(desk, call).name)
    return ""


async def set_revisions_to_keep(desk: Desk, call: Call) -> Answer:
    await desk.volumes.set_revisions_to_keep(call.dest, _record(desk, call).name, call.signed_number)
    return ""


async def set_rw(desk: Desk, call: Call) -> Answer:
    await desk.volumes.set_rw(call.dest, _record(desk, call).name, parse_bool_payload(call))
    return ""


async def set_ephemeral(desk: Desk, call: Call) -> Answer:
    await desk.volumes.set_ephemeral(call.dest, _record(desk, call).name, parse_bool_payload(call))
    return ""


# -- importing: the data come through a file that the caller fills between two calls ----------------------------------


async def import_begin(desk: Desk, call: Call) -> Answer:
    """``SIZE PATH``: the caller writes that many bytes to the file, then calls ImportEnd."""
    volume = _record(desk, call)
    size = call.number if call.payload else volume.size_bytes
    return f"{size} {uploads.open_file(desk, call.dest, volume.name, size)}"


async def import_end(desk: Desk, call: Call) -> Answer:
    status, _, message = call.text.partition("\n")
    if status not in ("ok", "fail"):
        raise ProtocolError("an import ends with ok or fail")
    await desk.volumes.end_import(call.dest, call.arg, success=status == "ok")
    if status == "fail":
        raise BadRequest(f"the import into volume {call.arg} of {call.dest} failed: {message[:200]}")
    return ""


async def import_whole(desk: Desk, call: Call) -> Answer:
    """An import whose data came with the call; the server feeds larger ones in portions."""
    _record(desk, call)
    upload = uploads.Upload(desk, call)
    try:
        await upload.receive(call.payload)
        return await upload.finish()
    except BaseException:
        await upload.abandon()
        raise


# -- pools -----------------------------------------------------------------------------------------------------------


def _is_kernel_pool(call: Call) -> bool:
    return call.arg == KERNEL_POOL


async def list_pools(desk: Desk, _call: Call) -> Answer:
    return lines(sorted({*desk.inventory.pools, KERNEL_POOL}))


async def list_drivers(desk: Desk, _call: Call) -> Answer:
    return lines(" ".join((name, *driver.options)) for name, driver in sorted(desk.volumes.drivers.items()))


def _pool_config(pool: Pool) -> dict[str, str]:
    return {
        **pool.config,
        "name": pool.name,
        "driver": pool.driver,
        "revisions_to_keep": str(pool.revisions_to_keep),
        "ephemeral_volatile": str(pool.ephemeral_volatile),
    }


async def pool_info(desk: Desk, call: Call) -> Answer:
    if _is_kernel_pool(call):
        return _fields(driver="linux-kernel", name=KERNEL_POOL, revisions_to_keep=0)
    shown = _fields(**dict(sorted(_pool_config(desk.volumes.pool_record(call.arg)).items())))
    try:
        size, used = await desk.volumes.pool(call.arg).usage()
    except CloisonError:
        return shown
    return shown + _fields(size=size, usage=used)


async def pool_usage(desk: Desk, call: Call) -> Answer:
    if _is_kernel_pool(call):
        return ""
    size, used = await desk.volumes.pool(call.arg).usage()
    return _fields(data_size=size, data_usage=used)


async def pool_volumes(desk: Desk, call: Call) -> Answer:
    if _is_kernel_pool(call):
        return lines((KERNEL_OF_TEMPLATE, *desk.inventory.host.kernels))
    hidden = {
        volume.vid
        for qube in desk.inventory
        for volume in qube.volumes.values()
        if volume.pool == call.arg and not may_know(desk, call, qube.name)
    }
    return lines(sorted(set(await desk.volumes.pool(call.arg).volumes()) - hidden))


async def add_pool(desk: Desk, call: Call) -> Answer:
    config: dict[str, str] = {}
    for line in call.text.splitlines():
        key, equals, value = line.partition("=")
        if not equals or key in config:
            raise ProtocolError(f"{line[:40]!a} is no key=value, or comes twice")
        config[key] = value
    name = config.pop("name", "")
    if not name:
        raise ProtocolError("a pool needs a name")
    desk.volumes.add_pool(call.arg, name, config)
    return ""


async def remove_pool(desk: Desk, call: Call) -> Answer:
    _refuse_kernel_pool(call)
    desk.volumes.remove_pool(call.arg)
    return ""


async def set_pool_revisions(desk: Desk, call: Call) -> Answer:
    _refuse_kernel_pool(call)
    desk.volumes.set_pool_revisions_to_keep(call.arg, call.signed_number)
    return ""


async def set_pool_ephemeral(desk: Desk, call: Call) -> Answer:
    _refuse_kernel_pool(call)
    desk.volumes.set_pool_ephemeral_volatile(call.arg, parse_bool_payload(call))
    return ""


def _refuse_kernel_pool(call: Call) -> None:
    if _is_kernel_pool(call):
        raise StorageNotFound(f"the pool {KERNEL_POOL} is built in and cannot be changed")


_NO, _YES, _MAY = Need.NONE, Need.REQUIRED, Need.OPTIONAL


def _volume(verb: str, handler: Handler, doc: str, *, payload: Need = _NO, scope: Scope = Scope.LOCAL_RW) -> Method:
    return Method(f"admin.vm.volume.{verb}", Dest.ANY, _YES, payload, scope, doc, handler)


def _pool(verb: str, handler: Handler, doc: str, *, arg: Need = _YES, payload: Need = _NO,
          scope: Scope = Scope.GLOBAL_RO) -> Method:  # fmt: skip
    return Method(f"admin.pool.{verb}", Dest.DOM0, arg, payload, scope, doc, handler)


METHODS = (
    Method("admin.vm.volume.List", Dest.ANY, _NO, _NO, Scope.LOCAL_RO, "Names of a qube's volumes.", list_volumes),
    _volume("Info", volume_info, "All about a volume, key=value per line.", scope=Scope.LOCAL_RO),
    _volume("ListSnapshots", list_snapshots, "A volume's revisions, oldest first.", scope=Scope.LOCAL_RO),
    _volume("Revert", revert, "Back to a revision (payload).", payload=_YES),
    _volume("Resize", resize, "Grow to this many bytes (payload).", payload=_YES),
    _volume("CloneFrom", clone_from, "A token with which another volume can be made a copy of this one."),
    _volume("CloneTo", clone_to, "Replace the content by that of the token's volume (payload: token).", payload=_YES),
    _volume("Clear", clear, "Replace the content by nothing, keeping the size."),
    _volume("Set.revisions_to_keep", set_revisions_to_keep, "How many revisions are kept (payload).", payload=_YES),
    _volume("Set.rw", set_rw, "Whether the qube may write to it (payload).", payload=_YES),
    _volume("Set.ephemeral", set_ephemeral, "Whether it is encrypted under a throw-away key (payload).", payload=_YES),
    _volume("Import", import_whole, "Replace the content; payload: data of exactly the volume's size.", payload=_YES),
    _volume("ImportWithSize", import_whole, "Replace content and size; payload: the size, a newline, the data.",
            payload=_YES),
    Method("internal.vm.volume.ImportBegin", Dest.ANY, _YES, _MAY, Scope.INTERNAL,
           "Begin to replace a volume's content: answers size and path of a file to fill.", import_begin),
    Method("internal.vm.volume.ImportEnd", Dest.ANY, _YES, _YES, Scope.INTERNAL,
           "End an import: ok, or fail and a message.", import_end),
    _pool("List", list_pools, "Names of the pools.", arg=_NO),
    _pool("ListDrivers", list_drivers, "Pool drivers with their options.", arg=_NO),
    _pool("Info", pool_info, "All about a pool, key=value per line."),
    _pool("UsageDetails", pool_usage, "Bytes that a pool has and uses."),
    _pool("Add", add_pool, "Add a pool of a driver (argument); payload: name and options, one per line.", payload=_YES,
          scope=Scope.GLOBAL_RW),
    _pool("Remove", remove_pool, "Remove a pool that is not used.", scope=Scope.GLOBAL_RW),
    _pool("Set.revisions_to_keep", set_pool_revisions, "Revisions kept of new volumes.", payload=_YES,
          scope=Scope.GLOBAL_RW),
    _pool("Set.ephemeral_volatile", set_pool_ephemeral, "Whether new volatile volumes are ephemeral.", payload=_YES,
          scope=Scope.GLOBAL_RW),
    _pool("volume.List", pool_volumes, "Ids of the volumes in a pool."),
)  # fmt: skip
