"""Why a call is answered as it is: the rule that decided, those before it, and one line that would change it.

In: PolicySet, SystemInfo, Request. Out: ``Explanation``. May import: evaluate, grammar, rules, ruleset, system, tokens,
verdicts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePath

from cloison.policy.evaluate import Request, evaluate
from cloison.policy.grammar import parse_new
from cloison.policy.rules import Rule, RulePlace
from cloison.policy.ruleset import PolicySet
from cloison.policy.system import Shape, SystemInfo
from cloison.policy.tokens import TokenKind
from cloison.policy.verdicts import Allow, Ask, Cause, Deny, Verdict

USER_FILE = "30-user.policy"
_UNCHANGEABLE = (Cause.BAD_REQUEST, Cause.LOOPBACK, Cause.BAD_REMOTE)


@dataclass(frozen=True)
class PassedOver:
    """A rule about the service that was read before the decision, and why it did not match."""

    rule: Rule
    why: str


@dataclass(frozen=True)
class Change:
    """A line which, put at that place, gives another verdict (this was tried, not guessed)."""

    line: str
    where: str
    verdict: Verdict


@dataclass(frozen=True)
class Explanation:
    request: Request
    verdict: Verdict
    rule: Rule | None
    passed_over: tuple[PassedOver, ...]
    other_services: int
    """How many rules before the decision speak of other services."""
    changes: tuple[Change, ...]


def explain(policy: PolicySet, system: SystemInfo, request: Request) -> Explanation:
    """Evaluate, and look at every rule on the way."""
    verdict = evaluate(policy, system, request)
    position = _position_of(policy, verdict.rule)
    before = policy.rules if position is None else policy.rules[:position]
    about = [rule for rule in before if rule.service in ("*", request.service)]
    shape = system.shape
    source = shape.names.get(request.requested_source or request.source, request.source)
    target = shape.targets.get(request.target, "@default")
    reached = not isinstance(verdict, Deny) or verdict.cause not in (Cause.BAD_REQUEST, Cause.BAD_REMOTE)
    return Explanation(
        request,
        verdict,
        None if position is None else policy.rules[position],
        tuple(PassedOver(rule, _mismatch(shape, rule, request, source, target)) for rule in about) if reached else (),
        len(before) - len(about),
        tuple(_find_changes(policy, system, request, verdict, position, (source, target))),
    )


def _position_of(policy: PolicySet, place: RulePlace | None) -> int | None:
    return next((i for i, rule in enumerate(policy.rules) if rule.place == place), None) if place is not None else None


def _mismatch(shape: Shape, rule: Rule, request: Request, source: str, target: str) -> str:
    argument = request.argument or "+"
    if rule.argument not in ("*", argument):
        return f"the argument is {argument}, the rule is about {rule.argument}"
    if not shape.may_be_source(rule.source, source):
        return f"the source {source} {_is_not(rule.source.kind)} {rule.source}"
    if not shape.may_be_target(rule.target, source, target):
        return f"the target {target} {_is_not(rule.target.kind)} {rule.target}"
    return "it matches"  # only a rule of the same line as the deciding one: an old-syntax file that is included twice


def _is_not(kind: TokenKind) -> str:
    match kind:
        case TokenKind.TAG:
            return "does not carry"
        case TokenKind.TYPE:
            return "is not of"
        case _:
            return "is not"


def _find_changes(
    policy: PolicySet,
    system: SystemInfo,
    request: Request,
    verdict: Verdict,
    position: int | None,
    ends: tuple[str, str],
) -> Iterator[Change]:
    """For each other outcome one line that gives it, if some line can."""
    if isinstance(verdict, Deny) and verdict.cause in _UNCHANGEABLE:
        return
    source, target = ends
    place = user_position(policy)
    where = f"at the end of {USER_FILE}"
    if position is not None and position < place:
        place, where = position, f"above {policy.rules[position].place}"
    redirect = " target=dom0" if target == "@default" else ""
    endings = {Allow: f"allow{redirect}", Ask: "ask", Deny: "deny"}
    for kind, ending in endings.items():
        line = f"{request.service} {_argument_column(policy, request)} {source} {target} {ending}"
        if isinstance(verdict, kind) or (kind is Allow and redirect):
            continue
        rules = tuple(rule for rule in parse_new(line, USER_FILE) if isinstance(rule, Rule))
        changed = evaluate(PolicySet(policy.rules[:place] + rules + policy.rules[place:]), system, request)
        if isinstance(changed, kind):
            yield Change(line, where, changed)


def _argument_column(policy: PolicySet, request: Request) -> str:
    """As wide as the rules themselves are: the exact argument only where some rule names arguments of this service."""
    named = any(rule.service == request.service and rule.argument != "*" for rule in policy.rules)
    return (request.argument or "+") if named else "*"


def user_position(policy: PolicySet) -> int:
    """Where the rules of files after the user's begin."""
    for path, position in policy.beginnings:
        if PurePath(path).name > USER_FILE:
            return position
    return len(policy.rules)
