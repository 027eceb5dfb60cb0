"""The contract of ways out: what is at the end of a chain of netvms.

In: which way. Out: a connected descriptor for the last netvm's network card, and what its agent must be told. May
import: model, wire, errors.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import Protocol

from cloison.model.network import Exit
from cloison.wire.network import Uplink


@dataclass(frozen=True)
class OpenedExit:
    """A way out that waits for packets."""

    socket: socket.socket
    """Stream socket, each packet after its length. The caller closes it; whoever is at the other end then stops."""
    uplink: Uplink
    """As the netvm's agent is to be told; its resolvers answer the questions of all clients of the chain."""
    link: str
    """Identity of this way out, letters and digits, by which ``wait_gone`` knows it, in a later daemon too."""


class WaysOut(Protocol):
    async def open(self, exit: Exit, name: str, mac: str, *, ipv6: bool = False) -> OpenedExit:
        """Open the way out of the qube ``name``, which is neither NONE nor PCI. BackendFailed says what is missing."""
        ...

    def resolvers(self, exit: Exit) -> tuple[str, ...]:
        """What the netvm at this way out asks for names; none: whom the network beyond tells it."""
        ...

    async def wait_gone(self, link: str) -> None:
        """Returns when the way out has ended; never, if that cannot be known."""
        ...
