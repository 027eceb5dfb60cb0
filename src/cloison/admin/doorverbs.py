"""What the methods about calls and questions need of the daemon."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Protocol

from cloison.admin.own import Json
from cloison.errors import NotNow


class DoorVerbs(Protocol):
    """Provided by the daemon's wiring. Answers are plain JSON values."""

    async def calls(self) -> Sequence[Json]: ...
    def kill_call(self, number: int) -> bool: ...
    def follow_calls(self) -> AsyncIterator[tuple[str, Json]]:
        """What happens to calls from now on: a name and the call."""
        ...

    def revoke(self, *, dry_run: bool) -> Sequence[Json]: ...
    def listen(self) -> AsyncIterator[tuple[str, Json]]:
        """Questions and notices, for an agent that shows them. Whoever listens is asked."""
        ...

    async def answer(self, prompt_id: str, chosen: str | None, *, by: str, line: str | None) -> None: ...


class ClosedDoor:
    """The door of a house without a broker."""

    async def calls(self) -> Sequence[Json]:
        return []

    def kill_call(self, number: int) -> bool:
        return False

    async def follow_calls(self) -> AsyncIterator[tuple[str, Json]]:
        return
        yield

    def revoke(self, *, dry_run: bool) -> Sequence[Json]:
        return []

    async def listen(self) -> AsyncIterator[tuple[str, Json]]:
        raise NotNow("there are no questions")
        yield

    async def answer(self, prompt_id: str, chosen: str | None, *, by: str, line: str | None) -> None:
        raise NotNow("there are no questions")
