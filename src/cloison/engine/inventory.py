"""The ledger: the one way in which verbs read and change records, and tell of it.

In: a store and a bus. Out: pictures, and changes whose events are told after they came true. May import: model and
the store's interface.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from cloison.drivers.state.base import StateStore, Transaction
from cloison.engine.events import Event, EventBus
from cloison.model.inventory import Inventory
from cloison.model.names import QubeName


class Ledger:
    """Store and bus together.

    ``with ledger.change(event, ...) as records:`` makes one transaction. Its events are told in order after the
    commit; if the block fails nothing is changed and nothing is told.
    """

    def __init__(self, store: StateStore, bus: EventBus) -> None:
        self.store = store
        self.bus = bus

    @property
    def inventory(self) -> Inventory:
        return self.store.inventory

    @contextmanager
    def change(self, *events: Event, durable: bool = True) -> Iterator[Transaction]:
        with self.store.transaction(durable=durable) as records:
            yield records
        for event in events:
            self.bus.emit(event)

    def tell(self, *events: Event) -> None:
        for event in events:
            self.bus.emit(event)

    def notes(self, name: QubeName) -> str:
        return self.store.notes(name)
