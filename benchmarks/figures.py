"""What was measured, and whether it is good enough. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Samples:
    """Repeated measurements of one thing."""

    values: tuple[float, ...]
    unit: str
    """s, ms, us, MiB, MiB/s, each as printed."""

    @classmethod
    def of(cls, values: Sequence[float], unit: str) -> Samples:
        return cls(tuple(values), unit)

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    def percentile(self, share: float) -> Samples:
        """One value: that share of all samples is not above it."""
        return Samples((sorted(self.values)[min(len(self.values) - 1, int(share * len(self.values)))],), self.unit)

    def __str__(self) -> str:
        if len(self.values) == 1:
            return f"{short(self.median)} {self.unit}"
        return f"{short(self.median)} {self.unit} ({short(min(self.values))}–{short(max(self.values))})"


def short(value: float) -> str:
    """Three digits that mean something."""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


@dataclass(frozen=True)
class Goal:
    """In words as the design puts it, and as a test of the median and of ours divided by the peer's."""

    text: str
    is_reached: Callable[[float, float | None], bool]


def at_most(limit: float, unit: str) -> Goal:
    return Goal(f"≤ {limit:g} {unit}", lambda ours, _: ours <= limit)


def times_faster(factor: float) -> Goal:
    return Goal(f"{factor:g}× faster", lambda _, ratio: ratio is not None and ratio * factor <= 1)


def at_most_times(factor: float, limit: float | None = None, unit: str = "") -> Goal:
    text = f"≤ {factor:g}×" + (f" and ≤ {limit:g} {unit}" if limit is not None else "")
    return Goal(text, lambda ours, ratio: ratio is not None and ratio <= factor and (limit is None or ours <= limit))


def at_least_share(share: float) -> Goal:
    return Goal(f"≥ {share:.0%}", lambda _, ratio: ratio is not None and ratio >= share)


def at_most_share(share: float) -> Goal:
    return Goal(f"≤ {share:.0%}", lambda _, ratio: ratio is not None and ratio <= share)


@dataclass(frozen=True)
class Figure:
    """One line of the table. Without a goal it is there to explain the others."""

    what: str
    ours: Samples
    peer: Samples | None = None
    against: str = ""
    """What the peer is."""
    goal: Goal | None = None
    note: str = ""

    @property
    def ratio(self) -> float | None:
        """Ours divided by the peer's."""
        return None if self.peer is None else self.ours.median / self.peer.median

    @property
    def reached(self) -> bool | None:
        return None if self.goal is None else self.goal.is_reached(self.ours.median, self.ratio)

    def ratio_text(self) -> str:
        if self.ratio is None:
            return ""
        if self.goal is not None and self.goal.text.endswith("%"):
            return f"{self.ratio:.0%}"
        return f"{self.ratio:.2f}×" if self.ratio >= 0.5 else f"1/{1 / self.ratio:.1f}"

    def as_json(self) -> dict[str, Any]:
        return {
            "what": self.what,
            "median": self.ours.median,
            "unit": self.ours.unit,
            "samples": self.ours.values,
            "against": self.against or None,
            "peer_median": self.peer.median if self.peer else None,
            "peer_samples": self.peer.values if self.peer else None,
            "ratio": self.ratio,
            "goal": self.goal.text if self.goal else None,
            "reached": self.reached,
            "note": self.note or None,
        }
