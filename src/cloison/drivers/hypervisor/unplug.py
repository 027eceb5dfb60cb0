"""Devices that leave a running machine: the guest is asked to let go, and waited for.

In: a way to send commands. Out: a device that is gone. May import: errors.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

from cloison.errors import BackendFailed

UNPLUG_TIMEOUT_S = 20.0
"""A guest lets go of a card or a drive within a second; an emulated one that is busy takes a few."""
PERIPHERAL = "/machine/peripheral"

Execute = Callable[[str, dict[str, object]], Awaitable[Any]]


class Unplugging:
    """For one kind of devices of one machine: those whose id begins with ``prefix``."""

    def __init__(self, prefix: str, execute: Execute) -> None:
        self._prefix = prefix
        self._execute = execute
        self._leaving: dict[str, asyncio.Event] = {}

    async def plugged(self) -> list[str]:
        """The names (without the prefix) of those that are there."""
        children = await self._execute("qom-list", {"path": PERIPHERAL})
        ids = (str(child["name"]) for child in children)
        return [each.removeprefix(self._prefix) for each in ids if each.startswith(self._prefix)]

    async def remove(self, name: str) -> None:
        """Returns when it is gone, or was never there; TimeoutError if the guest does not let go."""
        gone = self._leaving[name] = asyncio.Event()
        try:
            if name in await self.plugged():
                # The guest may have refused before, or be about to agree to an earlier request.
                with contextlib.suppress(BackendFailed):
                    await self._execute("device_del", {"id": self._prefix + name})
            if name in await self.plugged():
                async with asyncio.timeout(UNPLUG_TIMEOUT_S):
                    await gone.wait()
        finally:
            del self._leaving[name]

    def note_gone(self, device: str) -> str | None:
        """QEMU says that a device is gone. Its name, if it is of this kind and left without being waited for."""
        if not device.startswith(self._prefix):
            return None
        name = device.removeprefix(self._prefix)
        if leaving := self._leaving.get(name):
            leaving.set()
            return None
        return name
