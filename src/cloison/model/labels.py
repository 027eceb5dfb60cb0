"""Labels: colours that say how far a qube is trusted (rules: Admin API notes, sections 2 and 4.8)."""

from __future__ import annotations

import re
from dataclasses import dataclass

from cloison.errors import BadRequest, InvalidLabel

_NAME = re.compile(r"[a-zA-Z0-9_.-]{1,64}", re.ASCII)
_COLOUR = re.compile(r"0x[0-9a-fA-F]{6}", re.ASCII)


@dataclass(frozen=True)
class Label:
    name: str
    index: int
    colour: str
    """``0xRRGGBB``."""


DEFAULT_LABELS = (
    Label("red", 1, "0xcc0000"),
    Label("orange", 2, "0xf57900"),
    Label("yellow", 3, "0xedd400"),
    Label("green", 4, "0x73d216"),
    Label("gray", 5, "0x555555"),
    Label("blue", 6, "0x3465a4"),
    Label("purple", 7, "0x75507b"),
    Label("black", 8, "0x000000"),
)
LAST_DEFAULT_INDEX = DEFAULT_LABELS[-1].index


def parse_label_name(untrusted_text: str) -> str:
    """A name for a new label."""
    if not _NAME.fullmatch(untrusted_text) or untrusted_text.isdigit():
        raise InvalidLabel(f"label name {untrusted_text[:64]!a} must be letters, digits, '_', '.' or '-'")
    return untrusted_text


def parse_colour(untrusted_text: str) -> str:
    if not _COLOUR.fullmatch(untrusted_text):
        raise BadRequest(f"colour {untrusted_text[:16]!a} must be 0x and six hexadecimal digits")
    return untrusted_text
