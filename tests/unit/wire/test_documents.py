"""docs/wire.md says what the code does."""

from __future__ import annotations

from pathlib import Path

import pytest

from cloison.wire import frames

PAGE = (Path(__file__).parents[3] / "docs/wire.md").read_text()


@pytest.mark.parametrize("kind", frames.Kind, ids=lambda kind: kind.name)
def test_the_page_has_every_kind_with_its_number_and_limits(kind: frames.Kind) -> None:
    low, high = frames.LENGTHS[kind]
    length = str(low) if low == high else f"{low} to {high}"
    assert f"| {int(kind)} | {kind.name} | {length} |" in PAGE


@pytest.mark.parametrize("name", ["WINDOW", "MAX_SESSIONS", "MAX_GARBAGE"])
def test_the_page_has_the_limits(name: str) -> None:
    assert str(getattr(frames, name)) in PAGE


def test_the_page_knows_how_a_connection_begins() -> None:
    assert frames.MAGIC == b"\xff" + b"CLOISON-WIRE-1" + b"\n"
    assert f"{len(frames.FILLER)} bytes of `ff`" in PAGE
