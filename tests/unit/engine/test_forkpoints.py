"""Fork points that several systems share: nobody loses what somebody else still uses."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from cloison.drivers.hypervisor.base import MachineSpec
from cloison.drivers.storage.base import DiskLayer
from cloison.engine.forkpoints import ForkPoints, ForkSource
from cloison.model.names import QubeName

from .conftest import Bench

MakeBench = Callable[[], Bench]
DEBIAN = QubeName("debian")
SOURCE = ForkSource(DEBIAN, "r1", (DiskLayer(Path("/base"), "qcow2"),), MachineSpec(64, 1, None, None, ""))


@pytest.fixture
def two(bench: MakeBench, tmp_path: Path) -> tuple[ForkPoints, ForkPoints]:
    """Two systems' views of one cache."""
    it = bench()
    made = it.ground.forkpoints
    systems = []
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        systems.append(
            ForkPoints(
                it.layout.forkpoints, it.hypervisor, it.connector, made._make_layer, made._make_blank, tmp_path / name
            )  # type: ignore[arg-type]
        )
    return systems[0], systems[1]


async def test_what_another_system_uses_stays_when_our_template_moves_on(two: tuple[ForkPoints, ForkPoints]) -> None:
    one, other = two
    point = await one.make(SOURCE)
    await other.make(SOURCE)
    assert one.drop_stale(DEBIAN, "r2") == [point.key]
    assert one.find(point.key), "the other one's qubes start from it"
    assert not one.is_ours(point)
    assert other.is_ours(point)
    assert one.drop_stale(DEBIAN, "r2") == [], "given up once is enough"
    other.drop_stale(DEBIAN, "r2")
    assert other.complete() == []


async def test_what_only_others_use_is_not_ours_to_drop(two: tuple[ForkPoints, ForkPoints]) -> None:
    one, other = two
    await other.make(SOURCE)
    assert one.drop_stale(DEBIAN, "r2") == []
    assert len(one.complete()) == 1


async def test_systems_that_are_gone_do_not_count(two: tuple[ForkPoints, ForkPoints], tmp_path: Path) -> None:
    one, other = two
    await other.make(SOURCE)
    await one.make(SOURCE)
    shutil.rmtree(tmp_path / "other")
    one.drop_stale(DEBIAN, "r2")
    assert one.complete() == []
