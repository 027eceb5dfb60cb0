"""Verdicts for programs: JSON lines, and the answer of Qubes's policy daemon.

In: JSON lines or values. Out: JSON lines or values; a malformed request line is answered by a denial. May import:
evaluate, verdicts, system, ruleset.
"""

from __future__ import annotations

import json

from cloison.policy.evaluate import Request, evaluate
from cloison.policy.ruleset import BrokenPolicy, PolicySet
from cloison.policy.system import SystemInfo
from cloison.policy.tokens import DISPOSABLE_PREFIX, DOM0, UUID_PREFIX
from cloison.policy.verdicts import Allow, Ask, Cause, Deny, Verdict

_REQUEST_KEYS = frozenset({"source", "target", "service", "argument", "requested_source"})
_MAX_WRITTEN = 10_000  # verdict lines kept, some hundred bytes each (lists of targets: some thousand)
_encode = json.JSONEncoder(ensure_ascii=True, separators=(",", ":"), check_circular=False).encode


def verdict_value(verdict: Verdict, request: Request) -> dict[str, object]:
    """One verdict as a JSON object. All keys are always there; what does not apply is null.

    A call to a RemoteVM shows its relay as ``target`` and has one key more, ``service``: what the relay is asked for.
    """
    value: dict[str, object] = {
        "verdict": "deny",
        "reason": verdict.reason,
        "rule": None if verdict.rule is None else {"file": verdict.rule.file, "line": verdict.rule.line},
        "target": None,
        "user": None,
        "autostart": None,
        "notify": verdict.notify,
        "targets": None,
        "default_target": None,
    }
    match verdict:
        case Allow():
            value.update(verdict="allow", target=verdict.target, user=verdict.user, autostart=verdict.autostart)
            if verdict.relay is not None:
                service = verdict.relay.service_for(request.service, request.argument or "+")
                value.update(target=verdict.relay.qube, service=service)
        case Ask():
            value.update(verdict="ask", user=verdict.user, autostart=verdict.autostart)
            value.update(targets=list(verdict.targets), default_target=verdict.default_target)
        case Deny():
            pass
    return value


class LineEvaluator:
    """Answers JSON lines by JSON lines, each with its newline."""

    def __init__(self, policy: PolicySet | BrokenPolicy, system: SystemInfo) -> None:
        self._policy = policy
        self._system = system
        # The evaluator gives the same object again: write it out once. Holding it keeps its id its own.
        self._written: dict[int, tuple[Verdict, str]] = {}

    def answer(self, line: bytes) -> str:
        """The verdict line for one request line; "" for an empty one, a denial for one that is no request."""
        if not line or line.isspace():
            return ""
        try:
            request = parse_request(json.loads(line))
        except (ValueError, RecursionError) as error:
            bad = Deny(f"bad request: {error}", notify=False, rule=None, cause=Cause.BAD_REQUEST)
            return _encode(verdict_value(bad, Request("", "", "", ""))) + "\n"
        verdict = evaluate(self._policy, self._system, request)
        known = self._written.get(id(verdict))
        if known is not None:
            return known[1]
        text = _encode(verdict_value(verdict, request)) + "\n"
        if not (isinstance(verdict, Allow) and verdict.relay):  # what a relay is asked for depends on the request
            if len(self._written) >= _MAX_WRITTEN:
                self._written.clear()
            self._written[id(verdict)] = verdict, text
        return text


def parse_request(untrusted: object) -> Request:
    """A request from its JSON object; ValueError says what is wrong."""
    if not isinstance(untrusted, dict):
        raise ValueError("a request is a JSON object")
    if not _REQUEST_KEYS.issuperset(untrusted):
        raise ValueError(f"unknown key {next(key for key in untrusted if key not in _REQUEST_KEYS)!a}")
    source, target, service = untrusted.get("source"), untrusted.get("target", ""), untrusted.get("service")
    argument, requested_source = untrusted.get("argument", "+"), untrusted.get("requested_source")
    if not isinstance(source, str) or not isinstance(service, str):
        raise ValueError("source and service are needed, as strings")
    if not isinstance(target, str) or not isinstance(argument, str):
        raise ValueError("target and argument must be strings")
    if requested_source is not None and not isinstance(requested_source, str):
        raise ValueError("requested_source must be a string")
    return Request(source, target, service, argument, requested_source)


def daemon_answer(verdict: Allow | Deny, system: SystemInfo, request: Request) -> str:
    """The answer of Qubes's policy daemon, ``key=value`` lines (reference: B7)."""
    if isinstance(verdict, Deny):
        return "result=deny\n"
    requested = request.target if system.shape.targets.get(request.target) and request.target else "@default"
    target = verdict.target if verdict.relay is None else verdict.relay.qube
    lines = [f"user={verdict.user or 'DEFAULT'}", "result=allow", f"target={target}"]
    prefix = DISPOSABLE_PREFIX if target.startswith(DISPOSABLE_PREFIX) else ""
    facts = system.shape.qubes.get(target.removeprefix(prefix))
    if target != DOM0 and facts is not None and facts.uuid:
        lines.append(f"target_uuid={prefix}{UUID_PREFIX}{facts.uuid}")
    lines += [f"autostart={verdict.autostart}", f"requested_target={requested}"]
    if verdict.relay is not None:
        lines.append(f"service={verdict.relay.service_for(request.service, request.argument or '+')}")
    if request.requested_source:
        lines.append(f"policy_source={system.shape.names.get(request.requested_source, request.requested_source)}")
    return "\n".join(lines) + "\n"
