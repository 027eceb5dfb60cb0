"""The guest side's files: agent, units, services and tools, as bytes to put into an image.

In: nothing. Out: a tree. May import: the guest's own packing list.
"""

from __future__ import annotations

from cloison import guest_tree as packing
from cloison.templates.recipe import GuestTree


def guest_tree() -> GuestTree:
    """All files of our guest side."""
    return packing.guest_tree()
