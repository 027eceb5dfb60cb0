"""Power states and which may follow which. The documentation draws its picture from ``TRANSITIONS``."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum


class PowerState(Enum):
    """The value is the name on the wire."""

    HALTED = "Halted"
    TRANSIENT = "Transient"
    """Starting: the machine is there, its agent has not answered yet."""
    RUNNING = "Running"
    PAUSED = "Paused"
    SUSPENDED = "Suspended"
    HALTING = "Halting"
    """Asked to shut down."""
    DYING = "Dying"
    """The machine is gone, its volumes are being put away."""
    CRASHED = "Crashed"
    NA = "NA"

    @property
    def is_halted(self) -> bool:
        return self in (PowerState.HALTED, PowerState.CRASHED)

    @property
    def has_machine(self) -> bool:
        return self in _WITH_MACHINE


_WITH_MACHINE = frozenset(
    {PowerState.TRANSIENT, PowerState.RUNNING, PowerState.PAUSED, PowerState.SUSPENDED, PowerState.HALTING}
)

TRANSITIONS: Mapping[PowerState, frozenset[PowerState]] = {
    PowerState.HALTED: frozenset({PowerState.TRANSIENT}),
    PowerState.TRANSIENT: frozenset({PowerState.RUNNING, PowerState.PAUSED, PowerState.HALTING, PowerState.DYING}),
    PowerState.RUNNING: frozenset(
        {PowerState.PAUSED, PowerState.SUSPENDED, PowerState.HALTING, PowerState.DYING, PowerState.CRASHED}
    ),
    PowerState.PAUSED: frozenset({PowerState.RUNNING, PowerState.DYING, PowerState.CRASHED}),
    PowerState.SUSPENDED: frozenset({PowerState.RUNNING, PowerState.DYING, PowerState.CRASHED}),
    PowerState.HALTING: frozenset({PowerState.RUNNING, PowerState.DYING, PowerState.CRASHED}),
    PowerState.DYING: frozenset({PowerState.HALTED}),
    PowerState.CRASHED: frozenset({PowerState.DYING, PowerState.HALTED, PowerState.TRANSIENT}),
    PowerState.NA: frozenset(),
}


def may_follow(before: PowerState, after: PowerState) -> bool:
    return after in TRANSITIONS[before]
