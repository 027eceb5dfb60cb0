"""The reference pages say what the tables say."""

from __future__ import annotations

from pathlib import Path

import pytest

from cloison.admin.dispatch import METHODS
from cloison.admin.reference import PAGES

DOCS = Path(__file__).parents[3] / "docs"
HINT = "write it again: python -m cloison.admin.reference docs"


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_fresh(name):
    assert (DOCS / name).read_text() == PAGES[name](), HINT


def test_every_method_is_on_the_page():
    page = PAGES["admin-api.md"]()
    assert all(f"`{name}`" in page for name in METHODS)
