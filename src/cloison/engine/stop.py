"""Ending a run: asking, waiting, putting away.

In: a live qube. Out: its volumes closed, its record gone. May import: model, errors, driver interfaces.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

from cloison.engine.agent import AgentLink
from cloison.engine.kernels import Kernel, Kernels
from cloison.engine.runs import Phase
from cloison.engine.start import Ground, Live, end_volumes
from cloison.errors import CloisonError

log = logging.getLogger(__name__)

ASK_TIMEOUT_S = 30.0
"""Longest wait for an agent to accept a request to shut down."""
KERNEL_TIMEOUT_S = 180.0
KERNEL_BYTES = 256 << 20
"""More than any kernel or initrd that Debian ships."""
GUEST_KERNEL = "/vmlinuz"
GUEST_INITRD = "/initrd.img"


async def ask_to_stop(live: Live) -> None:
    """Tell the guest to power off; falls back on the power button when its agent does not answer."""
    if live.link is not None:
        try:
            await live.link.control("shutdown", {}, timeout_s=ASK_TIMEOUT_S)
            return
        except CloisonError as error:
            log.warning(
                "%s does not take the request to shut down (%s): pressing its power button", live.facts.name, error
            )
    with contextlib.suppress(CloisonError):
        await live.machine.powerdown()


async def take_kernel(live: Live, kernels: Kernels) -> Kernel | None:
    """The kernel of a guest whose root is kept, fetched if it changed since the last commit.

    None when nothing changed or the guest has none; trouble is logged and leaves the old kernel in force.
    """
    link = live.link
    if link is None or not live.facts.kept_root:
        return None
    present = kernels.of_template(live.facts.name)
    try:
        listed = await _run(link, f"sha256sum {GUEST_KERNEL} {GUEST_INITRD}")
        digests = [line.split()[0] for line in listed.decode("ascii", "replace").splitlines()]
        if len(digests) != 2 or (present and digests == [_digest(present.vmlinuz), _digest(present.initrd)]):
            return None
        version = (await _run(link, f"basename $(readlink -f {GUEST_KERNEL})")).decode("ascii", "replace").strip()
        with tempfile.TemporaryDirectory(dir=live.directory) as scratch:
            files = []
            for guest_path, digest in zip((GUEST_KERNEL, GUEST_INITRD), digests, strict=True):
                path = Path(scratch) / Path(guest_path).name
                path.write_bytes(await _run(link, f"cat {guest_path}", KERNEL_BYTES))
                if _digest(path) != digest:
                    log.warning("the new kernel of %s could not be read whole: keeping the old one", live.facts.name)
                    return None
                files.append(path)
            return kernels.add(version, *files)
    except (CloisonError, OSError) as error:
        log.warning("the kernel of %s could not be read (%s): keeping the old one", live.facts.name, error)
        return None


async def _run(link: AgentLink, command: str, max_output_bytes: int = 1 << 16) -> bytes:
    result = await link.run_service(
        f"command:{command}", user="root", timeout_s=KERNEL_TIMEOUT_S, max_output_bytes=max_output_bytes
    )
    return result.stdout if result.exit_code == 0 else b""


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


async def put_away(ground: Ground, live: Live, *, clean: bool) -> None:
    """After the machine is gone: close the channel and the volumes, forget the run. Repeatable."""
    ground.write_run(live.facts.name, replace(live.run, phase=Phase.STOPPING))
    if live.link is not None:
        await live.link.close()
    await end_volumes(ground.pool, live.run.volumes, clean=clean)
    if not live.facts.auto_cleanup:
        kept = ground.kept_console_log(live.facts.name)
        with contextlib.suppress(OSError):
            kept.parent.mkdir(exist_ok=True)
            shutil.copyfile(live.machine.console_log, kept)
    await asyncio.to_thread(shutil.rmtree, live.directory, ignore_errors=True)
    ground.write_run(live.facts.name, None)
