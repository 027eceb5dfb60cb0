"""The few jobs left to the qemu-img program: thorough checks, merging, converting.

In: layers with their secrets. Out: nothing, or BackendFailed/DiskFull. May import: errors, the contract.

Secrets go through an anonymous memory file whose descriptor the program inherits: never in arguments, never on disk.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path

from cloison.drivers.storage.base import Chain, DiskLayer
from cloison.errors import BackendFailed, DiskFull

CHECK_LEAKS_ONLY = 3
"""qemu-img's exit status for clusters that are merely lost, which does no harm."""
TIMEOUT_S = 3600.0
LOCKED = re.compile(r"Failed to get .{0,20}lock")
LOCK_PATIENCE_S, LOCK_PAUSE_S = 30.0, 0.1
"""A qemu-img that a killed daemon left behind ends what it was told to do, and holds its images until then."""


async def check(chain: Chain) -> None:
    """BackendFailed naming the first image of the chain whose tables do not fit together."""
    for layer in chain:
        if layer.format == "raw":
            continue
        status, said = await _run("check", (layer,), "-q", _options((layer,)))
        if status not in (0, CHECK_LEAKS_ONLY):
            wrong = "is in use by another process" if LOCKED.search(said) else "is damaged"
            raise BackendFailed(f"disk image {layer.path} {wrong}: {_short(said)}")


async def merge_down(chain: Chain) -> None:
    """Write the top layer's data into the layer below it (which grows to its size); the top stays as it is."""
    status, said = await _run("commit", chain, "-q", "-d", "-t", "writeback", _options(chain))
    if status != 0:
        raise _failure(f"cannot merge disk layer {chain[0].path} into {chain[1].path}", said)


async def convert(source: Path, source_format: str, target: Path, target_format: str = "qcow2") -> None:
    """Copy an image as a whole (sparse, standing alone). Only for images that name no other file."""
    status, said = await _run("convert", (), "-f", source_format, "-O", target_format, str(source), str(target))
    if status != 0:
        raise _failure(f"cannot convert {source}", said)


async def flatten(chain: Chain, target: Path) -> None:
    """Write what the chain shows into a sparse raw file."""
    status, said = await _run("convert", chain, "-O", "raw", _options(chain), str(target))
    if status != 0:
        raise _failure(f"cannot write {target}", said)


async def fill(source: Path, source_format: str, target: DiskLayer) -> None:
    """Copy an image that names no other file into an empty qcow2 image of the same size, encrypted or not."""
    options = f"driver={target.format},file.filename={str(target.path).replace(',', ',,')}"
    options += ",encrypt.format=luks,encrypt.key-secret=key0" if target.secret is not None else ""
    status, said = await _run(
        "convert", (target,), "-n", "--target-is-zero", "-f", source_format, str(source), "--target-image-opts", options
    )
    if status != 0:
        raise _failure(f"cannot copy {source} into {target.path}", said)


def _options(chain: Chain) -> str:
    """The chain as a ``json:`` file name: every layer named, so that no name inside a file is followed."""
    node: dict[str, object] | None = None
    for depth in reversed(range(len(chain))):
        layer = chain[depth]
        this: dict[str, object] = {
            "driver": layer.format,
            "file": {"driver": "file", "filename": str(layer.path)},
        }
        if layer.secret is not None:
            this["encrypt"] = {"format": "luks", "key-secret": f"key{depth}"}
        if layer.format == "qcow2":
            this["backing"] = node
        node = this
    return "json:" + json.dumps(node)


def _hold_secrets(layers: Iterable[DiskLayer], stack: ExitStack) -> tuple[list[str], list[int]]:
    arguments: list[str] = []
    descriptors: list[int] = []
    for depth, layer in enumerate(layers):
        if layer.secret is None:
            continue
        descriptor = os.memfd_create("secret")
        stack.callback(os.close, descriptor)
        os.write(descriptor, layer.secret)
        descriptors.append(descriptor)
        arguments += ["--object", f"secret,id=key{depth},file=/proc/self/fd/{descriptor}"]
    return arguments, descriptors


async def _run(verb: str, chain: Chain, *arguments: str) -> tuple[int, str]:
    """As ``_run_once``, after a wait for whoever has the images locked."""
    clock = asyncio.get_running_loop().time
    deadline = clock() + LOCK_PATIENCE_S
    while True:
        status, said = await _run_once(verb, chain, *arguments)
        if status == 0 or not LOCKED.search(said) or clock() > deadline:
            return status, said
        await asyncio.sleep(LOCK_PAUSE_S)


async def _run_once(verb: str, chain: Chain, *arguments: str) -> tuple[int, str]:
    """Exit status and what it said on standard error; killed after TIMEOUT_S or on cancellation."""
    with ExitStack() as stack:
        objects, descriptors = _hold_secrets(chain, stack)
        try:
            process = await asyncio.create_subprocess_exec(
                "qemu-img", verb, *objects, *arguments,
                stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
                pass_fds=descriptors,
            )  # fmt: skip
        except FileNotFoundError as error:
            raise BackendFailed("the program qemu-img is missing", hint="sudo apt install qemu-utils") from error
        try:
            async with asyncio.timeout(TIMEOUT_S):
                _, said = await process.communicate()
        except TimeoutError as error:
            raise BackendFailed(f"qemu-img {verb} did not end within {TIMEOUT_S:.0f} s") from error
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
    assert process.returncode is not None
    return process.returncode, said.decode(errors="replace")


def _failure(tried: str, said: str) -> BackendFailed:
    if "No space left on device" in said:
        return DiskFull(f"{tried}: the disk is full")
    return BackendFailed(f"{tried}: {_short(said)}")


def _short(said: str) -> str:
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return "; ".join(lines[:3])[:400] or "qemu-img gave no reason"
