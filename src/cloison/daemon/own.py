"""Our own verbs (``cloison.*``) as the Admin API wants them: plain JSON in, plain JSON out.

In: wishes from clients. Out: the engine's verbs, answers as JSON values. May import: admin, engine, templates.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cloison import __version__
from cloison.admin.own import Json, Progress, Report
from cloison.daemon.auditing import Auditing
from cloison.drivers.hypervisor.base import Accelerator
from cloison.drivers.storage.base import Chain
from cloison.drivers.storage.qcow2 import export_raw
from cloison.engine import templates as engine
from cloison.engine.inventory import Ledger
from cloison.engine.stock import Stock
from cloison.engine.system import System
from cloison.engine.templates import ForkPointRow, Templates
from cloison.engine.trials import Trials
from cloison.errors import BadRequest, ProtocolError
from cloison.guest_tree import guest_services
from cloison.layout import Layout
from cloison.model.classes import Klass
from cloison.model.names import DOM0, QubeName
from cloison.templates.bootfiles import read_boot_files
from cloison.templates.build import ImageRequest, build_image
from cloison.templates.importer import inspect_image


@dataclass(frozen=True)
class Facade:
    """What never changes while the daemon runs."""

    layout: Layout
    accelerator: Accelerator
    hypervisor: str
    why_accelerator: str
    started_at: float


@dataclass(frozen=True)
class _Built:
    """An image as the engine wants it."""

    disk: Path
    kernel: Path
    initrd: Path
    key: str
    size_bytes: int
    distribution: str
    services: tuple[str, ...]


class DaemonVerbs:
    """Implements ``OwnVerbs``."""

    def __init__(
        self,
        facade: Facade,
        system: System,
        templates: Templates,
        ledger: Ledger,
        stock: Stock,
        auditing: Auditing,
        stop: Callable[[bool], None],
    ) -> None:
        self._trials = Trials(system)
        self._auditing = auditing
        self._facade = facade
        self._system = system
        self._templates = templates
        self._ledger = ledger
        self._stop = stop
        self._stock = stock

    def status(self) -> Json:
        layout = self._facade.layout
        return {
            "version": __version__,
            "pid": os.getpid(),
            "started_at": self._facade.started_at,
            "uptime_s": round(time.time() - self._facade.started_at, 1),
            "accelerator": self._facade.accelerator.value,
            "why_accelerator": self._facade.why_accelerator,
            "hypervisor": self._facade.hypervisor,
            "audit": self._auditing.log.trouble or "recorded",
            "running": sorted(self._system.running()),
            "qubes": len(self._ledger.inventory.qubes) - 1,
            "data": str(layout.data),
            "runtime": str(layout.runtime),
            "config": str(layout.config),
            "cache": str(layout.cache),
        }

    def stop_daemon(self, *, kill_qubes: bool) -> None:
        self._stop(kill_qubes)

    def policy_changed(self) -> None:
        self._auditing.note_policy(who=DOM0)

    async def erase_audit(self, name: str) -> int:
        return await self._auditing.erase(name)

    async def take_preloaded(self, template: QubeName | None, source: QubeName) -> QubeName | None:
        return await self._stock.take(template, source, call_owned=False)

    # -- templates

    async def hold_trial(self, name: QubeName, report: Report) -> Json:
        return {"settled": await self._trials.hold(name, lambda: report(Progress("begun", f"{name} runs on trial")))}

    async def settle_trial(self, name: QubeName) -> None:
        await self._trials.settle(name)

    async def build_template(self, name: QubeName, wishes: Json, report: Report) -> Json:
        template, revision = await self._templates.build(
            name, wishes, label=_text(wishes, "label", "black"), progress=_reporter(report)
        )
        return {"name": template, "revision": revision}

    async def templates(self) -> Sequence[Json]:
        inventory = self._ledger.inventory
        points = self._templates.forkpoints()
        rows = []
        for qube in inventory:
            if qube.klass is not Klass.TEMPLATE:
                continue
            root = qube.volumes["root"]
            info = await self._system.ground.pool(root.pool).info(root.vid)
            based = [found.name for found in inventory.descendants(qube.name)]
            rows.append(
                {
                    "name": qube.name,
                    "label": qube.label,
                    "state": self._system.power_state(qube.name).value,
                    "revision": info.revision_id,
                    "revisions": list(info.revisions),
                    "size_bytes": info.size_bytes,
                    "usage_bytes": info.usage_bytes,
                    "qubes": based,
                    "outdated": [name for name in based if self._templates.is_outdated(name)],
                    "forkpoints": sum(point.template == qube.name for point in points),
                }
            )
        return rows

    async def commit_template(self, name: QubeName, report: Report) -> Json:
        return {"revision": await self._templates.commit(name, _reporter(report))}

    async def import_standalone(self, name: QubeName, wishes: Json, report: Report) -> Json:
        path = Path(_text(wishes, "image", ""))
        if not path.is_absolute():
            raise BadRequest(f"image path {str(path)!a} is not absolute")
        report(Progress("checking the image", "", None))
        found = await inspect_image(path, image_format=_text(wishes, "format", "") or None)
        report(Progress("importing the image", "", None))
        size = max(_number(wishes, "size_bytes"), found.size_bytes)
        qube = await self._templates.import_standalone(
            name, path, image_format=found.format, size_bytes=size, label=_text(wishes, "label", "red"),
            memory_mib=_number(wishes, "memory_mib"),
        )  # fmt: skip
        return {"name": qube}

    # -- fork points

    async def forkpoints(self) -> Sequence[Json]:
        await self._templates.learn_revisions()
        return [_as_json(row) for row in self._templates.forkpoints()]

    async def make_forkpoint(self, name: QubeName, report: Report) -> Json:
        report(Progress("booting the template once", "", None))
        point = await self._templates.make_forkpoint(name)
        return next(_as_json(row) for row in self._templates.forkpoints() if row.key == point.key)

    async def drop_forkpoints(self, *, key: str | None, template: QubeName | None) -> Sequence[str]:
        return self._templates.drop_forkpoints(key=key or "", template=template or "")

    def trouble(self, name: QubeName) -> str:
        return self._system.trouble(name)

    def network_trouble(self, name: QubeName) -> str:
        return self._system.cables.trouble(name)

    async def rule_counters(self, name: QubeName) -> Json:
        return dict(await self._system.cables.rule_counters(name))

    def outdated(self, name: QubeName) -> Sequence[str]:
        return ["root"] if self._templates.is_outdated(name) else []


async def build_for_engine(cache: Path, wishes: Mapping[str, Any], progress: engine.Progress) -> engine.BuiltImage:
    """Build the image that a template shall be made of (``engine.templates.BuildImage``)."""
    include = wishes.get("include") or []
    if not isinstance(include, list) or not all(isinstance(package, str) for package in include):
        raise ProtocolError("include must be a list of package names")
    request = ImageRequest(
        distribution=_text(wishes, "distribution", "debian"),
        suite=_text(wishes, "suite", ""),
        include=tuple(include),
        size_bytes=_number(wishes, "size_bytes") or ImageRequest.size_bytes,
        mirror=_text(wishes, "mirror", ""),
    )
    image = await build_image(request, cache, progress, again=bool(wishes.get("force")))
    version = f"{request.distribution}-{request.suite or 'stable'}"
    content_key = f"{image.key} {image.built}"  # built again, it holds newer packages
    return _Built(image.disk, image.kernel, image.initrd, content_key, image.size_bytes, version, guest_services())


async def read_boot_files_of(chain: Chain, directory: Path) -> tuple[Path, Path] | None:
    """Kernel and initrd out of a root volume (``engine.templates.ReadBootFiles``)."""
    raw = directory / "root.raw"
    await export_raw(chain, raw)
    found = await read_boot_files(raw, directory)
    return (found.kernel, found.initrd) if found else None


def _as_json(row: ForkPointRow) -> Json:
    point = row.point
    return {
        "template": row.template,
        "qube": row.template,
        "key": row.key,
        "state": row.state,
        "memory_mib": point.memory_mib if point else 0,
        "memory_bytes": point.memory_mib << 20 if point else 0,
        "vcpus": point.vcpus if point else 0,
        "disk_bytes": point.disk_bytes() if point else 0,
        "made_at": point.made_at if point else 0,
        "boot_s": point.boot_s if point else 0,
        "users": list(row.users),
    }


def _reporter(report: Report) -> engine.Progress:
    return lambda step, done: report(Progress(step, "", None if done is None else round(done * 100, 1)))


def _text(wishes: Json, key: str, default: str) -> str:
    value = wishes.get(key)
    if value is None:
        return default
    if not isinstance(value, str):
        raise ProtocolError(f"{key} must be text")
    return value


def _number(wishes: Json, key: str) -> int:
    value = wishes.get(key)
    if value is None:
        return 0
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ProtocolError(f"{key} must be a number")
    return value
