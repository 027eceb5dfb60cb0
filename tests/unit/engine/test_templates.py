"""Templates' fork points: made again for every shape that was in use, and never silently absent."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from cloison.drivers.state.sqlite import Store
from cloison.engine.templates import Templates
from cloison.errors import BadRequest, NotNow
from cloison.model.names import QubeName
from cloison.model.qube import Host

from .conftest import Bench
from .test_stock import WORK, House, build, furnish

DEBIAN = QubeName("debian")


@pytest.fixture
async def house(bench: Callable[[], Bench], tmp_path: Path) -> AsyncIterator[House]:
    store = Store.open(tmp_path / "state.sqlite", host=Host(8192, 4, ("6.12",)))
    built = await build(bench(), store)
    await furnish(built)
    yield built
    await built.system.close()
    await built.system.ground.forkpoints.close()
    store.close()


@pytest.fixture
def templates(house: House) -> Templates:
    async def no_boot_files(chain: object, directory: Path) -> None:
        return None

    return Templates(house.system, house.ledger, house.qubes, None, no_boot_files)  # type: ignore[arg-type]


async def test_after_a_commit_every_shape_that_had_a_fork_point_gets_one_again(
    house: House, templates: Templates
) -> None:
    await house.properties.set(DEBIAN, "memory", "64")
    await house.properties.set(DEBIAN, "vcpus", "1")
    await house.properties.set(WORK, "vcpus", "2")
    await templates.learn_revisions()
    for name in (DEBIAN, WORK):
        await templates.make_forkpoint(name)
    house.pool.revisions[house.ledger.inventory.qube(DEBIAN).volumes["root"].vid] = "r2"
    templates.committed(DEBIAN)
    assert [row.state for row in templates.forkpoints() if row.point is None] == ["making"], "from the first moment"
    await house.until(lambda: not templates._refreshing, "the refresh to end")
    rows = templates.forkpoints()
    assert {(row.point.vcpus, row.point.revision_id) for row in rows if row.point} == {(1, "r2"), (2, "r2")}


async def test_what_is_on_trial_is_not_committed(house: House, templates: Templates) -> None:
    await house.system.start(DEBIAN, on_trial=True)
    with pytest.raises(NotNow, match="on trial"):
        await templates.commit(DEBIAN, lambda step, done: None)
    assert house.system.is_running(DEBIAN)


async def test_dropping_what_is_not_there_says_so(house: House, templates: Templates) -> None:
    with pytest.raises(BadRequest, match="debian has no fork point"):
        templates.drop_forkpoints(template="debian")
    with pytest.raises(BadRequest, match="work is no template") as refused:
        templates.drop_forkpoints(template="work")
    assert "debian" in refused.value.hint
    with pytest.raises(BadRequest, match="no fork point 'abc'"):
        templates.drop_forkpoints(key="abc")
    await templates.make_forkpoint(WORK)
    assert len(templates.drop_forkpoints(template="debian")) == 1
