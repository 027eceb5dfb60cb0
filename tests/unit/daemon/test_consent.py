"""cloison.Consent: the policy's question is all there is to it."""

from __future__ import annotations

import pytest

from cloison.daemon.calls import consent
from cloison.errors import BadRequest
from cloison.model.names import QubeName
from cloison.qrexec.ports import ServiceCall


async def test_who_was_told_yes_gets_an_empty_answer() -> None:
    call = ServiceCall(QubeName("vault"), "cloison.Consent", "qubes.Gpg+work", "dom0")
    assert await consent(call, b"whatever") == b""


async def test_a_question_says_what_for() -> None:
    with pytest.raises(BadRequest):
        await consent(ServiceCall(QubeName("vault"), "cloison.Consent", "", "dom0"), b"")
