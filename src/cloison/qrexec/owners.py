"""Who pays for what a disposable does: the qube whose call made it. Pure.

In: disposables as calls make them. Out: the qube that a limit counts for. May import: model.

Else a qube that may call one disposable may, through it, have as many of everything as it likes.
"""

from __future__ import annotations

from collections.abc import Container

from cloison.model.names import DOM0


class Owners:
    """Of the disposables that live as long as a call."""

    def __init__(self) -> None:
        self._owners: dict[str, str] = {}

    def add(self, disposable: str, source: str, existing: Container[str]) -> None:
        """``source`` called it into being. Of those that do not exist any more nothing is kept: until it is gone, one
        whose call is over may still call. What dom0 makes has no owner but itself: each is another wish of the user."""
        self._owners = {name: owner for name, owner in self._owners.items() if name in existing}
        if source != DOM0:
            self._owners[disposable] = self.find(source)

    def find(self, source: str) -> str:
        """The qube itself, unless it is such a disposable; then who made it, however long the line of disposables."""
        return self._owners.get(source, source)
