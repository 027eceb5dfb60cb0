"""What is written down about a qube while it runs, so that a later daemon finds it again.

In: the state store's ``runs`` rows. Out: frozen records. May import: model, errors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, NamedTuple

from cloison.errors import BackendFailed


class VolumeRef(NamedTuple):
    """Where a volume lives."""

    pool: str
    vid: str


class Phase(Enum):
    """Where a run stands. A record exists from before the first side effect until after the last clean-up."""

    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"


class StartMode(Enum):
    FORK = "fork"
    BOOT = "boot"


@dataclass(frozen=True)
class Run:
    """One run of one qube."""

    phase: Phase
    mode: StartMode
    volumes: tuple[VolumeRef, ...]
    """Opened for the run; each must be ended."""
    started_at: float
    root_revision: str
    """Content identity of the template's root that this run started from (for "outdated")."""
    forkpoint: str = ""
    machine: Mapping[str, str | int] = field(default_factory=dict)
    """The hypervisor's record; empty until the machine exists."""
    call_owned: bool = False
    """A disposable that belongs to one call: the call is lost with the daemon, so the disposable goes too."""
    on_trial: bool = False
    """What it writes counts only once it is settled: nobody does that any more when its daemon is gone."""
    paused: bool = False

    def to_record(self) -> dict[str, Any]:
        """As plain JSON values."""
        fields: dict[str, Any] = dict(
            vars(self), phase=self.phase.value, mode=self.mode.value, machine=dict(self.machine)
        )
        return fields

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Run:
        """The opposite; BackendFailed if it is none of ours."""
        try:
            fields = dict(record)
            fields.update(
                phase=Phase(fields["phase"]),
                mode=StartMode(fields["mode"]),
                volumes=tuple(VolumeRef(*ref) for ref in fields["volumes"]),
            )
            return cls(**fields)
        except (ValueError, TypeError, KeyError) as error:
            raise BackendFailed(f"a run record cannot be read: {error}") from error
