"""``cloison pci``: what it shows and refuses. (What root's step does is in tests/unit/drivers.)"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

import pytest

from cloison.cli import pci
from cloison.drivers.pci.host import Device

Run = Callable[..., Any]
FREE = Device("0000:02:00.0", "020000", "8086:10d3", "e1000e", 7, interfaces=("eth0",))
USED = Device("0000:03:00.0", "020000", "8086:10d3", "e1000e", 8, interfaces=("eth1",), active=("eth1",))
GIVEN = Device("0000:04:00.0", "020000", "8086:10d3", "vfio-pci", 9)
BARE = Device("0000:05:00.0", "020000", "8086:10d3", "", None)


@pytest.fixture(autouse=True)
def cards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pci, "list_network_cards", lambda: [FREE, USED, GIVEN, BARE])


def test_every_card_is_shown_with_who_has_it_and_what_stands_in_the_way(cloison: Run) -> None:
    free, used, given, bare = cloison("pci", "list").out.splitlines()[1:]
    assert free.split() == ["0000:02:00.0", "8086:10d3", "eth0", "-"]
    assert "in use by the host: eth1 is up" in used
    assert given.split() == ["0000:04:00.0", "8086:10d3", "qubes", "-"]
    assert "is not behind an IOMMU" in bare


def test_the_list_as_json(cloison: Run) -> None:
    rows = json.loads(cloison("pci", "list", "--json").out)
    assert [(row["address"], row["handed"], bool(row["obstacle"])) for row in rows] == [
        (FREE.address, False, False),
        (USED.address, False, True),
        (GIVEN.address, True, False),
        (BARE.address, False, True),
    ]


@pytest.mark.parametrize("words", [("give", FREE.address, "--to", "anna"), ("take-back", FREE.address)])
def test_who_is_not_root_is_told_the_command(
    cloison: Run, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    done = cloison("pci", *words)
    assert done.code == 1
    assert done.err.splitlines() == [
        "cloison: only root may take a device from the host or give it back (hint: sudo cloison pci "
        + " ".join(words) + ")"
    ]  # fmt: skip


def test_what_is_no_address_is_refused(cloison: Run) -> None:
    done = cloison("pci", "give", "eth0", "--to", "anna")
    assert done.code != 0 and "'eth0' is no PCI address" in done.err and len(done.err.splitlines()) == 1
