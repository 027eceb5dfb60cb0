"""Calls as people may see them, and what happens to them.

In: nothing. Out: frozen values. May import: policy's verdicts.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from cloison.policy.verdicts import Cause


class CallState(Enum):
    DECIDING = "deciding"
    ASKING = "asking"
    PREPARING = "preparing"
    RUNNING = "running"


@dataclass(frozen=True)
class CallView:
    """One call as people may see it. ``target`` is empty until it is known."""

    id: int
    source: str
    requested_target: str
    service: str
    target: str
    user: str
    rule: str
    state: CallState
    started_at: float
    stdin_bytes: int = 0
    stdout_bytes: int = 0
    stderr_bytes: int = 0
    owner: str = ""
    """The qube that the call counts for: its source, or whose call made that disposable."""


@dataclass(frozen=True)
class CallAllowed:
    call: CallView
    notify: bool


@dataclass(frozen=True)
class CallRefused:
    """``failed``: it was allowed, but could not be carried out. ``cause`` None: not the policy's doing."""

    call: CallView
    reason: str
    notify: bool
    failed: bool = False
    cause: Cause | None = None


@dataclass(frozen=True)
class CallEnded:
    call: CallView
    exit_code: int | None
    reason: str


CallEvent = CallAllowed | CallRefused | CallEnded
