"""The contract of what the host has to give as disks.

In: ports. Out: descriptors. May import: errors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True)
class Image:
    """A file or block device that may be given to qubes."""

    port: str
    identity: str
    description: str
    size_bytes: int
    read_only: bool
    """Nobody gets it for writing."""


@dataclass(frozen=True)
class OpenedImage:
    """``descriptor`` holds a lock on the image, shared by its copies: for as long as any of them is open, nobody else
    of this system or another one gets the image for writing, nor at all if this one is open for writing."""

    descriptor: int
    read_only: bool
    is_block_node: bool


class Images(Protocol):
    def images(self) -> Sequence[Image]:
        """Those that can be used now."""
        ...

    def trouble(self, port: str) -> str:
        """Why nothing usable is at a port."""
        ...

    def expose(self, path: Path, port: str, *, read_only: bool) -> Image:
        """Have this file or block device from now on; ``port`` "": named after the file. BadRequest saying why not."""
        ...

    def hide(self, port: str) -> None:
        """The opposite; the file itself stays. DeviceNotFound."""
        ...

    def open(self, port: str, *, read_only: bool) -> OpenedImage:
        """Open and lock it; the caller closes the descriptor. DeviceNotFound, Refused (for writing), or DeviceInUse."""
        ...
