"""All rules of one policy, in reading order, and the index that finds those about a service.

In: rules. Out: for a service and argument the rules that speak of it. May import: rules, errors, verdicts, tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cloison.policy.errors import PolicyError
from cloison.policy.rules import Rule
from cloison.policy.tokens import TokenKind
from cloison.policy.verdicts import Cause, Deny

if TYPE_CHECKING:
    from cloison.policy.evaluate import Decisions

_ANY = "*"


class RuleList:
    """Rules about one (service, argument), in order. Those whose source is one qube are found by its name."""

    __slots__ = ("_by_source", "_for_many", "rules")

    def __init__(self, rules: tuple[Rule, ...]) -> None:
        self.rules = rules
        self._by_source: dict[str, list[int]] = {}
        self._for_many: list[int] = []
        for position, rule in enumerate(rules):
            if rule.source.kind in (TokenKind.QUBE, TokenKind.ADMIN):
                self._by_source.setdefault(rule.source.value, []).append(position)
            else:
                self._for_many.append(position)

    def find_candidates(self, spellings: tuple[str, ...]) -> list[Rule]:
        """The rules that may match a source with these names (its name, its ``uuid:...``), in order.

        Rules whose source column is a name do match; the others still have to be asked.
        """
        positions = list(self._for_many)
        for spelling in spellings:
            positions += self._by_source.get(spelling, ())
        positions.sort()
        return [self.rules[position] for position in positions]


class PolicySet:
    """A whole, valid policy. Immutable; what it remembers is only what evaluation would compute again."""

    __slots__ = ("_by_service", "_lists", "beginnings", "decisions", "digest", "files", "rules", "usual")

    def __init__(
        self,
        rules: tuple[Rule, ...],
        digest: str = "",
        files: tuple[str, ...] = (),
        beginnings: tuple[tuple[str, int], ...] = (),
    ) -> None:
        self.rules = rules
        self.digest = digest
        self.files = files
        self.beginnings = beginnings
        """Each top-level file in reading order, and the position of its first rule."""
        self.decisions: Decisions | None = None
        self.usual: dict[tuple[str, str], RuleList] = {}
        """Answers of ``rules_for`` for services and arguments that rules name, and for their empty argument."""
        self._lists: dict[tuple[str, str], RuleList] = {}
        self._by_service: dict[str, dict[str, list[int]]] = {_ANY: {_ANY: []}}
        for position, rule in enumerate(rules):
            self._by_service.setdefault(rule.service, {_ANY: []}).setdefault(rule.argument, []).append(position)

    def rules_for(self, service: str, argument: str) -> RuleList:
        """The rules about a call of this (well-formed) service with this argument ("+..."), wildcards included."""
        arguments = self._by_service.get(service)
        if arguments is None:
            return self._gather(_ANY, _ANY)
        found = self._gather(service, argument if argument in arguments else _ANY)
        if argument in arguments or argument == "+":
            self.usual[service, argument] = found
        return found

    def _gather(self, service: str, argument: str) -> RuleList:
        """One of a number of lists that the policy bounds, whatever callers send."""
        found = self._lists.get((service, argument))
        if found is not None:
            return found
        positions = set(self._by_service[_ANY][_ANY])
        positions.update(self._by_service[service][_ANY])
        positions.update(self._by_service[service][argument])
        found = self._lists[service, argument] = RuleList(tuple(self.rules[position] for position in sorted(positions)))
        return found


@dataclass(frozen=True)
class BrokenPolicy:
    """A policy that could not be loaded: it has no rules to ask, only a denial to give."""

    error: PolicyError

    @property
    def digest(self) -> str:
        return "broken"

    @property
    def verdict(self) -> Deny:
        return Deny(f"the policy is broken: {self.error}", notify=False, rule=None, cause=Cause.BROKEN_POLICY)
