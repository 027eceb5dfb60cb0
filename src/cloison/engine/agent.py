"""What the engine needs of a qube's agent; the qrexec room provides it.

In: requests. Out: the agent's answers. May import: model, errors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from cloison.errors import BackendFailed
from cloison.model.names import QubeName


class AgentFailed(BackendFailed):
    """The agent answered, and the answer was that it could not do it: its machine and channel are fine."""


@dataclass(frozen=True)
class ServiceResult:
    exit_code: int
    stdout: bytes
    stderr: bytes


class AgentLink(Protocol):
    """A connected agent of one running qube, behind its jailed relay process."""

    async def control(self, verb: str, fields: Mapping[str, Any], *, timeout_s: float) -> Mapping[str, Any]:
        """One CONTROL request; raises AgentFailed when the agent says no, BackendFailed when it is
        silent for timeout_s or gone."""
        ...

    async def run_service(self, service: str, *, user: str = "", stdin: bytes = b"", timeout_s: float,
                          max_output_bytes: int = 1 << 20) -> ServiceResult:  # fmt: skip
        """Run a service or (``command:TEXT``) a shell command in the qube on dom0's behalf."""
        ...

    async def wait_closed(self) -> None:
        """Returns when the channel is gone, or after ``close``; a relay that dies is replaced."""
        ...

    async def close(self) -> None:
        """End the relay; running calls end with an error at their callers. Idempotent."""
        ...


class AgentConnector(Protocol):
    """Makes agent links."""

    async def connect(self, qube: QubeName, socket: Path, *, ready_timeout_s: float, resync: bool = False,
                      wait_ready: bool = True) -> AgentLink:  # fmt: skip
        """Connect to the agent behind ``socket``; returns after its HELLO (and NOTICE ready, if ``wait_ready``).

        ``resync``: the channel may hold rests of an earlier daemon's frames. Raises BackendFailed after the deadline.
        """
        ...
