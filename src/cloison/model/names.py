"""Names that were checked once and are held as proof afterwards (rules: Admin API notes, section 2).

In: untrusted text. Out: ``QubeName`` or ``BadRequest``. May import: errors.
"""

from __future__ import annotations

import re
from typing import NewType

from cloison.errors import BadRequest

QubeName = NewType("QubeName", str)
"""A well-formed qube name; says nothing about whether such a qube exists."""

DOM0 = QubeName("dom0")
MAX_NAME_LENGTH = 31
_NAME = re.compile(r"[a-zA-Z][a-zA-Z0-9_.-]*", re.ASCII)
_RESERVED = frozenset({"none", "default", "Domain-0"})


def parse_qube_name(untrusted_text: str) -> QubeName:
    """The text as a qube name, or BadRequest saying which rule it breaks."""
    shown = ascii(untrusted_text[:40])
    if not untrusted_text:
        raise BadRequest("a qube name may not be empty")
    if len(untrusted_text) > MAX_NAME_LENGTH:
        raise BadRequest(f"qube name {shown} is longer than {MAX_NAME_LENGTH} characters")
    if not _NAME.fullmatch(untrusted_text):
        raise BadRequest(f"qube name {shown} must be a letter followed by letters, digits, '_', '.' or '-'")
    if untrusted_text in _RESERVED or untrusted_text.endswith("-dm"):
        raise BadRequest(f"qube name {shown} is reserved")
    return QubeName(untrusted_text)
