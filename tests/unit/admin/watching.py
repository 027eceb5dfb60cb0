"""Every call of these tests is watched: it may refuse and tell only what ``admin.contracts`` declares of its method."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import pytest

from cloison.admin.contracts import ALWAYS, CHANGING, CONTRACTS, GUARDED
from cloison.admin.dispatch import METHODS, Admin
from cloison.admin.eventnames import records
from cloison.admin.methods import Scope
from cloison.engine import events as e

_method: ContextVar[str] = ContextVar("method", default="")


def undeclared_error(method: str, part: bytes) -> str:
    """Why an answer breaks the contract of its method, or ""."""
    if part[:2] != b"2\0" or method not in METHODS:
        return ""
    name = part.split(b"\0")[1].decode()
    row = METHODS[method]
    allowed = ALWAYS | CONTRACTS[method].errors | (CHANGING if row.may_change else set())
    allowed |= GUARDED if row.scope is Scope.INTERNAL else set()
    return "" if name in allowed else f"{method} answered {part!r}"


def undeclared_event(method: str, event: e.Event) -> str:
    names = {record.name.partition(":")[0] for record in records(event)}
    strange = names - set(CONTRACTS[method].events)
    return f"{method} told {sorted(strange)}" if strange else ""


@contextmanager
def watched(patch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The breaches, as they are found."""
    breaches: list[str] = []
    stream, take, emit = Admin.stream, Admin.take, e.EventBus.emit

    async def watched_stream(self: Admin, source: str, dest: str, method: str, arg: str,
                             payload: bytes) -> AsyncGenerator[bytes, None]:  # fmt: skip
        parts = stream(self, source, dest, method, arg, payload)
        try:
            while True:
                token = _method.set(method if method in METHODS else "")
                try:
                    part = await anext(parts, None)
                finally:
                    _method.reset(token)
                if part is None:
                    return
                breaches.append(undeclared_error(method, part))
                yield part
        finally:
            await parts.aclose()

    async def watched_take(self: Admin, request: Any, more: Any) -> bytes:
        token = _method.set(request.method)
        try:
            answer = await take(self, request, more)
        finally:
            _method.reset(token)
        breaches.append(undeclared_error(request.method, answer))
        return answer

    def watched_emit(self: e.EventBus, event: e.Event) -> None:
        if method := _method.get():
            breaches.append(undeclared_event(method, event))
        emit(self, event)

    patch.setattr(Admin, "stream", watched_stream)
    patch.setattr(Admin, "take", watched_take)
    patch.setattr(e.EventBus, "emit", watched_emit)
    yield breaches
