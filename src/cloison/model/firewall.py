"""Firewall rules of a qube as dom0 keeps them: from untrusted text to canonical text (the format is ``wire.firewall``).

In: lines of rules. Out: canonical text, or BadRequest. May import: wire. No clock: ``unexpired`` is told the time.
"""

from __future__ import annotations

from cloison.errors import BadRequest
from cloison.wire import firewall
from cloison.wire.firewall import DEFAULT_RULES, RuleError

__all__ = ["DEFAULT_RULES", "parse_rules", "unexpired"]


def parse_rules(untrusted_text: str) -> str:
    """Canonical rules, one per line; BadRequest naming the line that is wrong."""
    try:
        rules = firewall.parse_rules(untrusted_text)
    except RuleError as error:
        raise BadRequest(str(error)) from None
    if not rules:
        raise BadRequest("a firewall needs at least one rule", hint="action=accept allows everything")
    return "".join(f"{rule}\n" for rule in rules)


def unexpired(rules: str, now: float) -> str:
    """The rules that still hold at ``now`` (seconds since the epoch)."""
    lines = rules.splitlines()
    return "".join(f"{line}\n" for line in lines if not firewall.parse_rule(line).has_expired(now))
