"""Rules, system, request to verdict. Pure and fast: each decision is worked out once for a system and then remembered.

In: PolicySet, SystemInfo, Request. Out: Allow, Ask or Deny; nothing is raised for any request. May import: ruleset,
rules, system, tokens, verdicts, grammar (alphabets).

What is remembered is bounded by policy and system, never by what callers send: requests are brought to a normal form
first (an unknown target is ``@default``, an argument that no rule names is "any other").
"""

from __future__ import annotations

from bisect import bisect_left
from typing import NamedTuple

from cloison.policy.grammar import is_argument, is_service_name
from cloison.policy.rules import Action, Rule
from cloison.policy.ruleset import BrokenPolicy, PolicySet, RuleList
from cloison.policy.system import REMOTE, Shape, SystemInfo
from cloison.policy.tokens import DISPOSABLE_PREFIX, DOM0, TokenKind
from cloison.policy.verdicts import Allow, Ask, Cause, Deny, Relay, Verdict

MAX_REMEMBERED = 20_000  # verdicts, some 400 bytes each; when there are more, all are forgotten


class Request(NamedTuple):
    """One call as it came in. ``argument`` has its leading "+" ("" counts as "+"); ``target`` is what the caller wrote.

    ``source`` was stamped by the broker. ``requested_source``: the RemoteVM on whose behalf a relay calls.
    """

    source: str
    target: str
    service: str
    argument: str
    requested_source: str | None = None


class Decisions:
    """All that was worked out for one policy and one shape of the system."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self._cells: dict[tuple[RuleList, str], _Cell] = {}
        self._choices: dict[tuple[int, ...], tuple[str, ...]] = {}
        self._remembered = 0

    def find_cell(self, rules: RuleList, source: str) -> _Cell:
        key = rules, source
        cell = self._cells.get(key)
        if cell is None:
            cell = _Cell(self.shape, rules, source)
            if source in self.shape.qubes:
                self._cells[key] = cell
        return cell

    def decide(self, system: SystemInfo, cell: _Cell, target: str) -> Verdict:
        """The verdict, worked out anew, and remembered if nothing but policy and shape had a say in it."""
        verdict, lasting = cell.decide(self, system, target)
        if lasting:
            self._remembered += 1
            if self._remembered > MAX_REMEMBERED:
                self._cells.clear()
                self._choices.clear()
                self._remembered = 0
            cell.verdicts[target] = verdict
        return verdict

    def choices(self, rules: list[Rule], source: str) -> tuple[str, ...]:
        """Every target that some of the rules (those that match the source) gives; sorted.

        Earlier rules override later ones. Sources under the same rules differ only by themselves and by what
        ``@dispvm`` means for them.
        """
        key = tuple([id(rule) for rule in rules])  # the policy keeps the rules alive
        shared = self._choices.get(key)
        if shared is None:
            shared = self._choices[key] = self._collect(rules)
        choices = list(shared)
        if _drop_sorted(choices, "@dispvm"):
            disposable = self.shape.default_disposable(source)
            name = (disposable or "").removeprefix(DISPOSABLE_PREFIX)
            if disposable is not None and name in self.shape.qubes and disposable not in self.shape.hidden:
                position = bisect_left(choices, disposable)
                if choices[position : position + 1] != [disposable]:
                    choices.insert(position, disposable)
        _drop_sorted(choices, source)
        return tuple(choices)

    def _collect(self, rules: list[Rule]) -> tuple[str, ...]:
        chosen: set[str] = set()
        for rule in reversed(rules):
            if rule.action is Action.DENY:
                chosen -= self.shape.offered(rule.target)
            else:
                chosen |= self.shape.offered(rule.redirect or rule.target)
        return tuple(sorted(chosen))


class _Cell:
    """The rules about one (service, argument) from one source, and what they say for each target."""

    __slots__ = ("_shape", "_source", "rules", "verdicts")

    def __init__(self, shape: Shape, rules: RuleList, source: str) -> None:
        candidates = rules.find_candidates(shape.spellings(source))
        self._shape = shape
        self._source = source
        self.rules = [rule for rule in candidates if shape.may_be_source(rule.source, source)]
        self.verdicts: dict[str, Verdict] = {}

    def find_rule(self, target: str) -> Rule | None:
        """The first rule that matches."""
        shape, source, matching = self._shape, self._source, self._shape.matching
        for rule in self.rules:
            if target in matching[rule.target.text] or (
                target == "@dispvm" and shape.may_be_target(rule.target, source, target)
            ):
                return rule
        return None

    def decide(self, decisions: Decisions, system: SystemInfo, target: str) -> tuple[Verdict, bool]:
        """The verdict, and whether it holds whatever the power states are."""
        rule = self.find_rule(target)
        if rule is None:
            return _NO_RULE, True
        match rule.action:
            case Action.ALLOW:
                return _allow(self._shape, system, rule, self._source, target), rule.autostart
            case Action.ASK:
                return self._ask(decisions, system, rule), rule.autostart
            case Action.DENY:
                return Deny(f"denied by {rule.place}", rule.notify, rule.place, Cause.RULE), True

    def _ask(self, decisions: Decisions, system: SystemInfo, rule: Rule) -> Ask | Deny:
        shape, source = self._shape, self._source
        if rule.redirect is not None:
            targets = _fixed_choice(shape, rule, source)
        else:
            targets = decisions.choices(self.rules, source)
        if not rule.autostart:
            targets = tuple(target for target in targets if system.is_running(shape.names.get(target, "")))
        if not targets:
            reason = f"{rule.place} asks, but no target is available"
            return Deny(reason, notify=True, rule=rule.place, cause=Cause.NO_TARGET)
        default_target, warning = _default_target(shape, rule, source, targets)
        return Ask(
            targets=targets,
            default_target=default_target,
            user=rule.user,
            autostart=rule.autostart,
            notify=rule.notify,
            reason=f"asked by {rule.place}",
            rule=rule.place,
            warning=warning,
            source=source,
            origin=rule,
            shape=shape,
        )


_NO_RULE = Deny("no rule matches", notify=True, rule=None, cause=Cause.NO_RULE)


def evaluate(policy: PolicySet | BrokenPolicy, system: SystemInfo, request: Request) -> Verdict:
    """The verdict on one call. Never raises for any text in the request; a broken policy is a denial."""
    if isinstance(policy, BrokenPolicy):
        return policy.verdict
    untrusted_source, untrusted_target, service, argument, requested_source = request
    decisions = policy.decisions
    if decisions is None or (decisions.shape is not system.shape and decisions.shape != system.shape):
        decisions = policy.decisions = Decisions(system.shape)
    shape = decisions.shape
    source = shape.names.get(untrusted_source)
    target = shape.targets.get(untrusted_target)
    rules = policy.usual.get((service, argument))
    if source is None or target is None or rules is None or requested_source:
        checked = _check_unusual(shape, request)
        if isinstance(checked, Deny):
            return checked
        source, target = checked
        rules = policy.rules_for(service, argument or "+")
    cell = decisions.find_cell(rules, source)
    return cell.verdicts.get(target) or decisions.decide(system, cell, target)


def resolve_ask(ask: Ask, chosen: str) -> Allow | Deny:
    """What follows when the user allowed the call to ``chosen``; anything that was not offered is refused."""
    if chosen not in ask.targets:
        return refuse_ask(ask, f"the answer {chosen[:80]!a} was not among the targets offered")
    target = ask.shape.targets.get(chosen, chosen)
    return _grant(ask.shape, ask.origin, ask.source, target, f"allowed by the user, asked by {ask.rule}")


def refuse_ask(ask: Ask, why: str) -> Deny:
    """What follows when the user denied, nobody could be asked, or nobody answered in time."""
    return Deny(f"{why} ({ask.reason})", notify=ask.notify, rule=ask.rule, cause=Cause.USER)


def requested_target(system: SystemInfo, untrusted_target: str) -> str:
    """The target as the called side may be told it: as spelled if it exists, else ``@default``."""
    return untrusted_target if system.shape.targets.get(untrusted_target) and untrusted_target else "@default"


def _check_unusual(shape: Shape, request: Request) -> Deny | tuple[str, str]:
    """Source and target in normal form, for requests with something in them that was not met and checked before."""
    argument = request.argument or "+"
    if not is_service_name(request.service):
        return _bad_request(f"{request.service[:80]!a} is not a service name")
    if not is_argument(argument):
        return _bad_request(f"{argument[:80]!a} is not an argument (a '+', then letters, digits, '-', '.', '_', '+')")
    source = shape.names.get(request.source)
    if source is None:
        source = request.source
        if not source or source[0] in "@*":
            return _bad_request(f"{source[:80]!a} cannot be the source of a call")
    if request.requested_source:
        remote = shape.names.get(request.requested_source, "")
        facts = shape.qubes.get(remote)
        if facts is None or facts.klass != REMOTE or not facts.relayvm or shape.names.get(facts.relayvm) != source:
            reason = f"{source} is not the relay of a RemoteVM {request.requested_source[:80]!a}"
            return Deny(reason, notify=True, rule=None, cause=Cause.BAD_REMOTE)
        source = remote
    target = _normal_target(shape, request.target)
    return target if isinstance(target, Deny) else (source, target)


def _normal_target(shape: Shape, untrusted_target: str) -> str | Deny:
    target = shape.targets.get(untrusted_target)
    if target is not None:
        return target
    shown = ascii(untrusted_target[:80])
    if untrusted_target.startswith(DISPOSABLE_PREFIX):
        name = untrusted_target.removeprefix(DISPOSABLE_PREFIX)
        if not name or name.startswith("@"):
            return _bad_request(f"{shown} is not a target")
        reason = f"{shown}: no disposable template of that name"
        return Deny(reason, notify=True, rule=None, cause=Cause.NO_TARGET)
    if untrusted_target[0] in "@" or untrusted_target == "*":
        return _bad_request(f"{shown} is not a target")
    return "@default"


def _drop_sorted(entries: list[str], entry: str) -> bool:
    """Remove the entry from a sorted list; whether it was there."""
    position = bisect_left(entries, entry)
    present = entries[position : position + 1] == [entry]
    if present:
        del entries[position]
    return present


def _bad_request(reason: str) -> Deny:
    return Deny(f"bad request: {reason}", notify=False, rule=None, cause=Cause.BAD_REQUEST)


def _allow(shape: Shape, system: SystemInfo, rule: Rule, source: str, target: str) -> Allow | Deny:
    if rule.redirect is not None:
        redirected = _normal_target(shape, rule.redirect.text)
        if isinstance(redirected, Deny):
            return _no_target(rule, f"target={rule.redirect} is not a disposable template")
        target = redirected
    if target == "@default":
        why = "the caller named none" if rule.redirect is None else f"target={rule.redirect} does not exist"
        return _no_target(rule, f"there is no target: {why}")
    if target == "@dispvm":
        disposable = shape.default_disposable(source)
        if disposable is None:
            return _no_target(rule, f"{source} has no default disposable template")
        if disposable.removeprefix(DISPOSABLE_PREFIX) not in shape.qubes:
            return _no_target(rule, f"the default disposable template of {source} does not exist")
        target = disposable
    if not rule.autostart and not system.is_running(target):
        reason = f"{rule.place} allows it only while {target} is running"
        return Deny(reason, notify=rule.notify, rule=rule.place, cause=Cause.NOT_RUNNING)
    return _grant(shape, rule, source, target, f"allowed by {rule.place}")


def _grant(shape: Shape, rule: Rule, source: str, target: str, reason: str) -> Allow | Deny:
    """The last checks, the same for an allow rule and for an allowed question."""
    if target == source:
        return Deny(f"{source} called itself ({rule.place})", notify=True, rule=rule.place, cause=Cause.LOOPBACK)
    relay = None
    facts = shape.qubes.get(target)
    if facts is not None and facts.klass == REMOTE:
        relay_qube = shape.names.get(facts.relayvm or "")
        if relay_qube is None or not facts.transport_rpc:
            why = f"RemoteVM {target} has no usable relayvm and transport_rpc ({rule.place})"
            return Deny(why, notify=True, rule=rule.place, cause=Cause.BAD_REMOTE)
        relay = Relay(relay_qube, facts.transport_rpc, facts.remote_name or target)
    user = rule.user if relay is None else None
    return Allow(target, user, rule.autostart, rule.notify, reason, rule.place, relay)


def _no_target(rule: Rule, why: str) -> Deny:
    return Deny(f"{rule.place} allows it, but {why}", notify=True, rule=rule.place, cause=Cause.NO_TARGET)


def _fixed_choice(shape: Shape, rule: Rule, source: str) -> tuple[str, ...]:
    """The one entry of an ask rule with target=, spelled as in the rule; none if that target cannot exist."""
    assert rule.redirect is not None
    match rule.redirect.kind:
        case TokenKind.ADMIN:
            return (DOM0,)
        case TokenKind.DISPOSABLE:
            disposable = shape.default_disposable(source)
            name = (disposable or "").removeprefix(DISPOSABLE_PREFIX)
            return (disposable,) if disposable is not None and name in shape.qubes else ()
        case _:
            return (rule.redirect.text,) if rule.redirect.text in shape.targets else ()


def _default_target(shape: Shape, rule: Rule, source: str, targets: tuple[str, ...]) -> tuple[str | None, str]:
    """The preselected entry, and a warning if the rule names one that is not on offer."""
    token = rule.default_target
    if token is None:
        return None, ""
    match token.kind:
        case TokenKind.ADMIN:
            wanted: str | None = DOM0
        case TokenKind.DISPOSABLE:
            wanted = shape.default_disposable(source)
        case _:
            wanted = token.text
    if wanted in targets:
        return wanted, ""
    return None, f"{rule.place}: default_target={token} is not among the targets and was dropped"
