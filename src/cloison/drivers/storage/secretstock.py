"""A small stock of ready LUKS headers, made while nobody waits.

In: nothing. Out: (secret, header) pairs, each given out once. May import: luks.
"""

from __future__ import annotations

import asyncio
from collections import deque

from cloison.drivers.storage import luks

STOCK = 9
"""Three disposables' worth (262 KB each); an empty stock costs 3 ms per layer."""
REFILL_DELAY_S = 2.0
"""Long enough for the start that emptied the stock to be over."""


class SecretStock:
    def __init__(self) -> None:
        self._ready: deque[tuple[bytes, bytes]] = deque()
        self._refill: asyncio.Task[None] | None = None

    def take(self) -> tuple[bytes, bytes]:
        """A new secret and the LUKS header it opens."""
        pair = self._ready.popleft() if self._ready else make_pair()
        return pair

    def refill_soon(self) -> None:
        """Fill the stock up in the background (event loop needed)."""
        if self._refill is None or self._refill.done():
            self._refill = asyncio.create_task(self._fill())

    async def close(self) -> None:
        if self._refill is not None:
            self._refill.cancel()
            await asyncio.gather(self._refill, return_exceptions=True)
        self._ready.clear()

    async def _fill(self) -> None:
        await asyncio.sleep(REFILL_DELAY_S)
        while len(self._ready) < STOCK:
            self._ready.append(await asyncio.to_thread(make_pair))


def make_pair() -> tuple[bytes, bytes]:
    secret = luks.make_secret()
    return secret, luks.make_header(secret)
