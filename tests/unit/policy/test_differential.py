"""The fast evaluator against the slow one (``slow.py``), on random policies, systems and requests."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from random import Random
from typing import Any

import pytest

from cloison.policy import Allow, Ask, Deny, PolicySet, Request, Rule, SystemInfo, evaluate, resolve_ask
from cloison.policy.grammar import parse_new

_spec = importlib.util.spec_from_file_location("slow_policy", Path(__file__).with_name("slow.py"))
assert _spec is not None and _spec.loader is not None
slow = importlib.util.module_from_spec(_spec)
sys.modules["slow_policy"] = slow
_spec.loader.exec_module(slow)

UUID_A = "aaaaaaaa-1111-4111-8111-111111111111"
NAMES = ["a", "b", "c", "dvm", "dvm2", "7up"]
WORDS = ["a", "b", "dvm", "7up", "gone", "dom0", f"uuid:{UUID_A}", "uuid:gone", "@adminvm",
         "uuid:00000000-0000-0000-0000-000000000000"]  # fmt: skip
DISPOSABLES = ["@dispvm:dvm", "@dispvm:dvm2", "@dispvm:a", "@dispvm:gone", f"@dispvm:uuid:{UUID_A}"]
MANY = ["*", "@anyvm", "@tag:red", "@tag:none", "@type:AppVM", "@type:AdminVM"]
SOURCES = [*WORDS, *MANY, "@dispvm:dvm", "@dispvm:@tag:red"]
TARGETS = [*WORDS, *MANY, "@default", "@dispvm", "@dispvm:@tag:red", *DISPOSABLES]
REDIRECTS = [*WORDS, "@dispvm", *DISPOSABLES]
REQUESTED = [*WORDS, "", "@default", "@dispvm", *DISPOSABLES, "*", "@anyvm", "@tag:red", "@nonsense", "A", "a ", "c"]


def random_system(dice: Random) -> dict[str, Any]:
    domains: dict[str, Any] = {
        "dom0": {"type": "AdminVM", "tags": [], "template_for_dispvms": False, "default_dispvm": None,
                 "power_state": "Running", "internal": False, "uuid": "00000000-0000-0000-0000-000000000000"}
    }  # fmt: skip
    for index, name in enumerate(NAMES):
        domains[name] = {
            "type": dice.choice(["AppVM", "TemplateVM"]),
            "tags": dice.choice([[], ["red"], ["red", "blue"]]),
            "template_for_dispvms": name.startswith("dvm") and dice.random() < 0.8,
            "default_dispvm": dice.choice([None, "dvm", "dvm", "dvm2", "a", "gone"]),
            "power_state": dice.choice(["Running", "Halted", "Paused"]),
            "internal": dice.choice([False, False, False, True, "1"]),
            "uuid": UUID_A if name == "dvm" else f"{index:08x}-2222-4222-8222-222222222222",
        }
    return domains


def random_rule(dice: Random) -> str:
    service = dice.choice(["s.One", "s.One", "s.One", "s.Two", "*"])
    argument = "*" if service == "*" else dice.choice(["*", "*", "*", "+", "+x"])
    source = dice.choice([*SOURCES, *["@anyvm", "a", "*"] * 4])
    target = dice.choice([*TARGETS, *["@anyvm", "@dispvm"] * 2])
    action = dice.choice(["allow", "ask", "ask", "deny"])
    words = [service, argument, source, target, action]
    if action != "deny":
        if dice.random() < 0.25 or (action == "allow" and target == "@default"):
            words.append("target=" + dice.choice(REDIRECTS))
        if action == "ask" and dice.random() < 0.5:
            words.append("default_target=" + dice.choice(REDIRECTS))
        words += dice.choice([[], [], ["user=root"], ["user="], ["autostart=no"], ["autostart=yes"]])
    words += dice.choice([[], ["notify=yes"], ["notify=no"]])
    return " ".join(words)


def random_request(dice: Random) -> Request:
    return Request(
        dice.choice(["a", "a", "a", "b", "dvm", "7up", "gone", "dom0", f"uuid:{UUID_A}"]),
        dice.choice([*REQUESTED, *["a", "b", "dom0", "", "@dispvm", "@dispvm:dvm", "dvm"] * 2]),
        dice.choice(["s.One", "s.One", "s.One", "s.Two", "s.Other"]),
        dice.choice(["+", "+x", "+y"]),
    )


def shown(verdict: Allow | Ask | Deny) -> dict[str, Any]:
    line = verdict.rule.line if verdict.rule else None
    match verdict:
        case Allow():
            return {"verdict": "allow", "line": line, "target": verdict.target, "user": verdict.user,
                    "autostart": verdict.autostart, "notify": verdict.notify}  # fmt: skip
        case Ask():
            return {"verdict": "ask", "line": line, "targets": list(verdict.targets), "user": verdict.user,
                    "default_target": verdict.default_target, "autostart": verdict.autostart,
                    "notify": verdict.notify}  # fmt: skip
        case Deny():
            return {"verdict": "deny", "line": line, "notify": verdict.notify}


@pytest.mark.parametrize("seed", range(20))
def test_the_fast_evaluator_says_what_the_slow_one_says(seed: int) -> None:
    """One policy object meets several systems in turn and each request twice, so that its memory is tried too."""
    dice = Random(seed)
    for _ in range(25):
        text = "\n".join(random_rule(dice) for _ in range(dice.randrange(15)))
        policy = PolicySet(tuple(rule for rule in parse_new(text, "x") if isinstance(rule, Rule)))
        asked = [random_request(dice) for _ in range(40)]
        world = random_system(dice)
        later = {name: {**facts, "power_state": dice.choice(["Running", "Halted"])} for name, facts in world.items()}
        for domains in [world, later, random_system(dice), world]:
            compare(policy, text, domains, asked * 2)


def compare(policy: PolicySet, text: str, domains: dict[str, Any], asked: list[Request]) -> None:
    system = SystemInfo.parse({"domains": domains})
    reference = slow.Slow(domains, slow.parse(text))
    for request in asked:
        verdict = evaluate(policy, system, request)
        expected = reference.answer(*request[:4])
        got = shown(verdict)
        assert {key: got[key] for key in expected} == expected, (request, text)
        if isinstance(verdict, Ask):
            for target in verdict.targets:
                after = resolve_ask(verdict, target)
                assert isinstance(after, Allow) or system.shape.names.get(target) == verdict.source
