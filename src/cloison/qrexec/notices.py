"""What the user is told of refused calls (and of those with ``notify=yes``): at once, then summed up. Pure.

In: refusals, the time. Out: notices. May import: nothing of ours.

The first of a kind is told at once. Equal ones within the next seconds are counted and told as one; a qube that goes on
is summed up ever more seldom. A qube that varies what it calls is told of a few kinds, the rest as "other calls".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

FIRST_PAUSE_S, LONGEST_PAUSE_S = 10.0, 300.0
GROUPS_PER_OWNER = 5


class Notice(NamedTuple):
    """``calls`` of them since the last notice of the same group; service and target "" are several."""

    kind: str
    source: str
    service: str
    target: str
    reason: str
    calls: int = 1


@dataclass
class _Group:
    latest: Notice
    count: int
    pause_s: float
    due_at: float


class NoticeBoard:
    def __init__(self) -> None:
        self._groups: dict[tuple[str, str, str, str], _Group] = {}

    def add(self, notice: Notice, now: float, owner: str = "") -> Notice | None:
        """What to tell now, if anything; the rest comes from ``take_due``.

        ``owner``: the qube whose account it goes on, if not its source's: one that makes a new disposable for each
        call is told of like one that calls itself.
        """
        owner = owner or notice.source
        key = (notice.kind, owner, notice.service, notice.target)
        if key not in self._groups:
            mine = sum(1 for _, theirs, *_ in self._groups if theirs == owner)
            if mine >= GROUPS_PER_OWNER:
                notice = notice._replace(source=owner, service="", target="", reason="other calls")
                key = (notice.kind, owner, "", "")
        group = self._groups.get(key)
        if group is None:
            self._groups[key] = _Group(notice, 0, FIRST_PAUSE_S, now + FIRST_PAUSE_S)
            return notice
        group.latest = notice
        group.count += 1
        return None

    def next_due(self) -> float | None:
        return min((group.due_at for group in self._groups.values()), default=None)

    def take_due(self, now: float) -> list[Notice]:
        """Sums of what was counted; groups in which nothing happened are forgotten."""
        told = []
        for key, group in list(self._groups.items()):
            if group.due_at > now:
                continue
            if group.count == 0:
                del self._groups[key]
                continue
            told.append(group.latest._replace(calls=group.count))
            group.count = 0
            group.pause_s = min(2 * group.pause_s, LONGEST_PAUSE_S)
            group.due_at = now + group.pause_s
        return told
