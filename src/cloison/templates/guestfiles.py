"""The guest side's files: agent, units, services and tools, as bytes to put into an image.

In: nothing. Out: a tree. May import: this package's recipe (types).
"""

from __future__ import annotations

from cloison.templates.recipe import GuestTree


def guest_tree() -> GuestTree:
    """All files of our guest side."""
    return {}
