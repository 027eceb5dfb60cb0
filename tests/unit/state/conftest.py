from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cloison.drivers.state.sqlite import Store
from cloison.model.qube import Host

HOST = Host(8192, 4)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "state.sqlite"


@pytest.fixture
def opened(path: Path) -> Iterator[Callable[[], Store]]:
    """Opens the store; all are closed at the end."""
    stores: list[Store] = []

    def open_store() -> Store:
        stores.append(Store.open(path, host=HOST))
        return stores[-1]

    yield open_store
    for store in stores:
        store.close()


@pytest.fixture
def store(opened: Callable[[], Store]) -> Store:
    return opened()
