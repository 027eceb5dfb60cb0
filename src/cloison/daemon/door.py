"""The door as people see it: the broker's calls, the desk of questions, and notices of what was refused.

In: wishes of the Admin API; what the broker tells. Out: JSON values, events. May import: every room but cli.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cloison.engine import events as e
from cloison.engine.inventory import Ledger
from cloison.model.names import DOM0, QubeName
from cloison.policy.remember import Memory
from cloison.qrexec.asking import AskDesk
from cloison.qrexec.broker import Broker
from cloison.qrexec.calls import CallAllowed, CallEnded, CallEvent, CallRefused, CallView
from cloison.qrexec.notices import Notice, NoticeBoard
from cloison.qrexec.ports import Limits, Targets

Json = Mapping[str, Any]


@dataclass(frozen=True)
class _Happened(e.Event):
    """Something happened to a call, for who follows them."""

    name: str
    value: Json


def open_desk(memory: Memory, targets: Targets, ledger: Ledger, limits: Limits) -> AskDesk:
    """The desk of questions, which shows qubes with their labels."""

    def face(name: str) -> tuple[str, str]:
        inventory = ledger.inventory
        qube = inventory.qubes.get(QubeName(name))
        return (qube.label, inventory.label(qube.label).colour) if qube is not None else ("", "")

    return AskDesk(memory, targets.system_info, face, timeout_s=limits.ask_timeout_s)


class Door:
    """Implements ``DoorVerbs``. ``tell`` is the broker's; the broker itself comes last, because it needs all others."""

    def __init__(self, ledger: Ledger, desk: AskDesk) -> None:
        self._ledger = ledger
        self._desk = desk
        self._board = NoticeBoard()
        self._timer: asyncio.TimerHandle | None = None
        self._followers = e.EventBus()
        self.broker: Broker | None = None

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    # What the broker tells

    def tell(self, event: CallEvent) -> None:
        match event:
            case CallAllowed(view, notify):
                self._happened("began", view, {})
                if notify:
                    self._notice("allowed", view, "")
            case CallRefused(view, reason, notify, failed):
                kind = "failed" if failed else "denied"
                self._happened(kind, view, {"reason": reason})
                if notify and view.source != DOM0:
                    self._notice(kind, view, reason)
            case CallEnded(view, exit_code, reason):
                self._happened("ended", view, {"exit_code": exit_code, "reason": reason})

    def _happened(self, name: str, view: CallView, more: Json) -> None:
        if len(self._followers):
            self._followers.emit(_Happened(name, {**_as_json(view), **more}))

    def _notice(self, kind: str, view: CallView, reason: str) -> None:
        now = asyncio.get_running_loop().time()
        service = _plain(view.service.partition("+")[0])
        target = _plain(view.target or view.requested_target or "@default")
        if (told := self._board.add(Notice(kind, view.source, service, target, reason), now, view.owner)) is not None:
            self._show(told)
        self._plan()

    def _plan(self) -> None:
        self.close()
        if (due := self._board.next_due()) is not None:
            self._timer = asyncio.get_running_loop().call_at(due, self._sum_up)

    def _sum_up(self) -> None:
        for notice in self._board.take_due(asyncio.get_running_loop().time()):
            self._show(notice)
        self._plan()

    def _show(self, notice: Notice) -> None:
        self._desk.tell("notice", {**notice._asdict(), "time": round(time.time(), 3)})
        qube = QubeName(notice.source)
        self._ledger.tell(e.CallNoticed(qube, notice.kind, notice.service, notice.target, notice.reason, notice.calls))

    # What people ask

    async def calls(self) -> Sequence[Json]:
        return [_as_json(view) for view in await self._broker().calls()]

    def kill_call(self, number: int) -> bool:
        return self._broker().kill(number)

    async def follow_calls(self) -> AsyncIterator[tuple[str, Json]]:
        subscription = self._followers.subscribe()
        try:
            async for event in subscription:
                if isinstance(event, _Happened):
                    yield event.name, event.value
        finally:
            subscription.close()

    def revoke(self, *, dry_run: bool) -> Sequence[Json]:
        return [{**_as_json(view), "reason": reason} for view, reason in self._broker().revoke(dry_run=dry_run)]

    async def listen(self) -> AsyncIterator[tuple[str, Json]]:
        told = self._desk.listen()
        try:
            async for event in told:
                yield event.name, event.fields
        finally:
            await told.aclose()

    async def answer(self, prompt_id: str, chosen: str | None, *, by: str, line: str | None) -> None:
        await self._desk.answer(prompt_id, chosen, by=by, line=line)

    def _broker(self) -> Broker:
        assert self.broker is not None, "the wiring is not complete"
        return self.broker


def _plain(untrusted_word: str) -> str:
    """A guest's word for people: short, printable ASCII."""
    return "".join(c if c.isascii() and c.isprintable() else "_" for c in untrusted_word[:80])


def _as_json(view: CallView) -> Json:
    return {
        "id": view.id,
        "state": view.state.value,
        "source": view.source,
        "requested_target": view.requested_target,
        "target": view.target,
        "service": view.service,
        "user": view.user,
        "rule": view.rule,
        "started_at": view.started_at,
        "age_s": round(max(0.0, time.time() - view.started_at), 3),
        "stdin_bytes": view.stdin_bytes,
        "stdout_bytes": view.stdout_bytes,
        "stderr_bytes": view.stderr_bytes,
    }
