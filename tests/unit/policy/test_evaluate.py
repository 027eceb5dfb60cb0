"""Decision tables: a policy, a call, the answer. Hostile rows included."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloison.policy import (
    Allow,
    Ask,
    BrokenPolicy,
    Cause,
    Deny,
    PolicyError,
    PolicySet,
    Relay,
    Request,
    Rule,
    SystemInfo,
    SystemInfoError,
    evaluate,
    refuse_ask,
    requested_target,
    resolve_ask,
)
from cloison.policy.grammar import parse_new

DOM0_UUID = "uuid:00000000-0000-0000-0000-000000000000"
WORK_UUID = "uuid:11111111-1111-4111-8111-111111111111"


def policy_of(*lines: str) -> PolicySet:
    return PolicySet(tuple(rule for rule in parse_new("\n".join(lines), "p") if isinstance(rule, Rule)))


def call(system: SystemInfo, target: str, *lines: str, source: str = "work", service: str = "s", argument: str = "+"):
    return evaluate(policy_of(*lines), system, Request(source, target, service, argument))


def test_the_first_rule_that_matches_decides(system: SystemInfo):
    lines = ("s * work vault deny", "s * work @anyvm allow", "s * work personal deny")
    assert call(system, "personal", *lines) == Allow("personal", None, True, False, "allowed by p:2", ("p", 2))
    assert call(system, "vault", *lines) == Deny("denied by p:1", True, ("p", 1), Cause.RULE)


def test_what_no_rule_allows_is_denied_and_told(system: SystemInfo):
    assert call(system, "vault", "other * * * allow") == Deny("no rule matches", True, None, Cause.NO_RULE)


@pytest.mark.parametrize(
    ("column", "argument", "matches"),
    [
        ("*", "", True), ("*", "+", True), ("*", "+x", True), ("+", "", True), ("+", "+", True), ("+", "+x", False),
        ("+x", "+x", True), ("+x", "+", False), ("+x", "+xy", False), ("+x", "+x+y", False), ("+x+y", "+x+y", True),
    ],
)  # fmt: skip
def test_arguments_are_compared_whole(system: SystemInfo, column: str, argument: str, matches: bool):
    verdict = call(system, "vault", f"s {column} * * allow", argument=argument)
    assert isinstance(verdict, Allow) == matches


@pytest.mark.parametrize(
    ("source", "token", "matches"),
    [
        ("work", "work", True), ("work", WORK_UUID, True), (WORK_UUID, "work", True), ("work", "Work", False),
        ("work", "*", True), ("work", "@anyvm", True), ("work", "@tag:office", True), ("work", "@tag:home", False),
        ("work", "@type:AppVM", True), ("work", "@type:TemplateVM", False), ("work", "@adminvm", False),
        ("work", "@dispvm:work", False), ("work", "@dispvm:@tag:office", False), ("dvm", "@dispvm:dvm", False),
        ("dom0", "@adminvm", True), ("dom0", "dom0", True), ("dom0", DOM0_UUID, True), ("dom0", "@anyvm", False),
        ("dom0", "*", True), ("dom0", "@type:AdminVM", True), ("@adminvm", "dom0", True),
        (DOM0_UUID, "@tag:admin", True),
        ("stranger", "@anyvm", True), ("stranger", "*", True), ("stranger", "stranger", True),
        ("stranger", "@type:AppVM", False), ("stranger", "work", False), ("uuid:none", "uuid:none", True),
    ],
)  # fmt: skip
def test_sources(system: SystemInfo, source: str, token: str, matches: bool):
    verdict = call(system, "vault", f"s * {token} * allow", source=source)
    assert isinstance(verdict, Allow) == matches


@pytest.mark.parametrize(
    ("target", "tokens"),
    [
        ("personal", {"personal", "*", "@anyvm", "@type:AppVM", "@tag:home"}),
        ("dom0", {"dom0", "@adminvm", DOM0_UUID, "*", "@type:AdminVM", "@tag:admin"}),
        ("@adminvm", {"dom0", "@adminvm", DOM0_UUID, "*", "@type:AdminVM", "@tag:admin"}),
        (DOM0_UUID, {"dom0", "@adminvm", DOM0_UUID, "*", "@type:AdminVM", "@tag:admin"}),
        ("", {"@default", "*", "@anyvm"}),
        ("@default", {"@default", "*", "@anyvm"}),
        ("nobody", {"@default", "*", "@anyvm"}),
        ("Personal", {"@default", "*", "@anyvm"}),
        ("personal ", {"@default", "*", "@anyvm"}),
        ("@dispvm", {"@dispvm", "@dispvm:dvm", "@dispvm:@tag:net", "*", "@anyvm"}),
        ("@dispvm:dvm", {"@dispvm:dvm", "@dispvm:@tag:net", "*", "@anyvm"}),
        ("@dispvm:fedora-dvm", {"@dispvm:fedora-dvm", "*", "@anyvm"}),
        ("dvm", {"dvm", "@type:AppVM", "@tag:net", "*", "@anyvm"}),
    ],
)  # fmt: skip
def test_targets(system: SystemInfo, target: str, tokens: set[str]):
    every = ["personal", "dom0", "@adminvm", DOM0_UUID, "*", "@anyvm", "@type:AppVM", "@type:AdminVM", "@tag:home",
             "@tag:admin", "@tag:net", "@default", "@dispvm", "@dispvm:dvm", "@dispvm:fedora-dvm", "@dispvm:@tag:net",
             "dvm", "nobody", "Personal"]  # fmt: skip
    matched = {
        token for token in every if isinstance(call(system, target, f"s * work {token} allow target=vault"), Allow)
    }
    assert matched == tokens


def test_a_source_without_default_disposable_matches_no_template_rule(system: SystemInfo):
    assert call(system, "@dispvm", "s * vault @dispvm:dvm allow", source="vault") == Deny(
        "no rule matches", True, None, Cause.NO_RULE
    )


@pytest.mark.parametrize(
    ("target", "cause", "notify"),
    [
        ("*", Cause.BAD_REQUEST, False), ("@anyvm", Cause.BAD_REQUEST, False),
        ("@tag:office", Cause.BAD_REQUEST, False),
        ("@type:AppVM", Cause.BAD_REQUEST, False), ("@dispvm:", Cause.BAD_REQUEST, False),
        ("@", Cause.BAD_REQUEST, False),
        ("@dispvm:@tag:net", Cause.BAD_REQUEST, False), ("@default\n", Cause.BAD_REQUEST, False),
        ("@dispvm:nobody", Cause.NO_TARGET, True), ("@dispvm:work", Cause.NO_TARGET, True),
        ("@dispvm:dvm ", Cause.NO_TARGET, True), ("@dispvm:dom0", Cause.NO_TARGET, True),
        ("@dispvm:uuid:none", Cause.NO_TARGET, True),
    ],
)  # fmt: skip
def test_impossible_targets_are_refused_whatever_the_rules_say(
    system: SystemInfo, target: str, cause: Cause, notify: bool
):
    verdict = call(system, target, "* * * * allow target=vault")
    assert isinstance(verdict, Deny)
    assert (verdict.cause, verdict.notify, verdict.rule) == (cause, notify, None)


@pytest.mark.parametrize(
    ("source", "service", "argument"),
    [
        ("", "s", "+"), ("*", "s", "+"), ("@anyvm", "s", "+"), ("@dispvm", "s", "+"), ("@default", "s", "+"),
        ("work", "", "+"), ("work", "*", "*"), ("work", "s+x", "+"), ("work", "s s", "+"), ("work", "s\n", "+"),
        ("work", "s", "x"), ("work", "s", "+a b"), ("work", "s", "+/etc"), ("work", "s", "*"), ("work", "sé", "+"),
    ],
)  # fmt: skip
def test_malformed_calls_are_refused_by_every_policy(system: SystemInfo, source: str, service: str, argument: str):
    verdict = call(system, "vault", "* * * * allow", source=source, service=service, argument=argument)
    assert isinstance(verdict, Deny)
    assert (verdict.cause, verdict.notify) == (Cause.BAD_REQUEST, False)


@pytest.mark.parametrize(
    ("source", "target", "rule", "answer"),
    [
        ("work", "personal", "@anyvm allow", "personal"),
        ("work", "personal", "@anyvm allow target=vault", "vault"),
        ("work", "@default", "@default allow target=vault", "vault"),
        ("work", "@default", "@anyvm allow", Cause.NO_TARGET),
        ("work", "vault", "@anyvm allow target=nobody", Cause.NO_TARGET),
        ("work", "vault", "@anyvm allow target=@dispvm:nobody", Cause.NO_TARGET),
        ("work", "vault", "@anyvm allow target=@dispvm:personal", Cause.NO_TARGET),
        ("work", "vault", "@anyvm allow target=@dispvm:dvm", "@dispvm:dvm"),
        ("work", "vault", "@anyvm allow target=@dispvm", "@dispvm:dvm"),
        ("work", "@dispvm", "@dispvm allow", "@dispvm:dvm"),
        ("personal", "@dispvm", "@dispvm allow", "@dispvm:fedora-dvm"),
        ("vault", "@dispvm", "@dispvm allow", Cause.NO_TARGET),
        ("lost", "@dispvm", "@dispvm allow", Cause.NO_TARGET),
        ("stranger", "@dispvm", "@dispvm allow", Cause.NO_TARGET),
        ("work", "@dispvm", "@dispvm:dvm allow", "@dispvm:dvm"),
        ("work", "@dispvm", "@dispvm:fedora-dvm allow", Cause.NO_RULE),
        ("work", "@adminvm", "@adminvm allow", "dom0"),
        ("work", "vault", "@anyvm allow target=@adminvm", "dom0"),
        ("work", DOM0_UUID, "dom0 allow", "dom0"),
        ("personal", WORK_UUID, "work allow", "work"),
        ("personal", "work", f"{WORK_UUID} allow", "work"),
        ("personal", "vault", f"vault allow target={WORK_UUID}", "work"),
        ("work", "work", "@anyvm allow", Cause.LOOPBACK),
        ("work", "vault", "@anyvm allow target=work", Cause.LOOPBACK),
        ("work", "vault", f"@anyvm allow target={WORK_UUID}", Cause.LOOPBACK),
        (WORK_UUID, "work", "@anyvm allow", Cause.LOOPBACK),
        ("dom0", "@adminvm", "* allow", Cause.LOOPBACK),
        ("work", "relay", "* allow autostart=no", "relay"),
        ("work", "dom0", "* allow autostart=no", "dom0"),
        ("work", "personal", "* allow autostart=no", Cause.NOT_RUNNING),
        ("work", "vault", "* allow autostart=no", Cause.NOT_RUNNING),
        ("work", "@dispvm", "* allow autostart=no", Cause.NOT_RUNNING),
        ("work", "@dispvm:dvm", "* allow autostart=no", Cause.NOT_RUNNING),
        ("work", "vault", "* allow autostart=no target=relay", "relay"),
    ],
)  # fmt: skip
def test_allow(system: SystemInfo, source: str, target: str, rule: str, answer: str | Cause):
    verdict = call(system, target, f"s * * {rule}", source=source)
    assert (verdict.target if isinstance(verdict, Allow) else getattr(verdict, "cause", None)) == answer


def test_a_redirect_is_not_evaluated_again(system: SystemInfo):
    assert isinstance(call(system, "personal", "s * work personal allow target=vault", "s * work vault deny"), Allow)


@pytest.mark.parametrize(
    ("ending", "notify"), [("", False), (" notify=yes", True), (" notify=no", False)]
)  # fmt: skip
def test_a_refusal_for_lack_of_autostart_notifies_as_the_rule_says(system: SystemInfo, ending: str, notify: bool):
    verdict = call(system, "personal", f"s * * * allow autostart=no{ending}")
    assert isinstance(verdict, Deny) and verdict.notify == notify


def test_users_and_notify_are_carried(system: SystemInfo):
    verdict = call(system, "vault", "s * * * allow user=root notify=yes")
    assert isinstance(verdict, Allow) and (verdict.user, verdict.notify) == ("root", True)
    assert call(system, "vault", "s * * * deny notify=no") == Deny("denied by p:1", False, ("p", 1), Cause.RULE)


ALL_QUBES = [
    "cut-off",
    "debian",
    "dvm",
    "far",
    "farther",
    "fedora-dvm",
    "lost",
    "mute",
    "orphan",
    "personal",
    "relay",
    "vault",
]
ALL_DISPOSABLES = ["@dispvm:dvm", "@dispvm:fedora-dvm"]


@pytest.mark.parametrize(
    ("source", "lines", "targets"),
    [
        ("work", ["@anyvm ask"], [*ALL_DISPOSABLES, *ALL_QUBES]),
        ("work", ["* ask"], sorted([*ALL_DISPOSABLES, "dom0", *ALL_QUBES])),
        ("work", ["@default ask", "personal allow", "vault ask"], ["personal", "vault"]),
        ("work", ["@default ask", "vault deny", "@type:AppVM allow"],
         ["dvm", "fedora-dvm", "lost", "personal", "relay"]),
        ("work", ["@default ask", "@type:AppVM allow", "vault deny"],
         ["dvm", "fedora-dvm", "lost", "personal", "relay", "vault"]),
        ("work", ["@default ask", "@tag:office allow", "@tag:home allow"], ["personal"]),
        ("work", ["@default ask", "@dispvm allow"], ["@dispvm:dvm"]),
        ("personal", ["@default ask", "@dispvm allow"], ["@dispvm:fedora-dvm"]),
        ("vault", ["@default ask", "@dispvm allow", "work allow"], ["work"]),
        ("work", ["@default ask", "@dispvm:fedora-dvm allow", "@dispvm:nobody allow", "@dispvm:personal ask"],
         ["@dispvm:fedora-dvm"]),
        ("work", ["@default ask", "@dispvm:@tag:net allow"], ["@dispvm:dvm"]),
        ("work", ["@default ask", "@adminvm deny", "* allow", "dom0 allow"], [*ALL_DISPOSABLES, *ALL_QUBES]),
        ("work", ["@default ask", f"{DOM0_UUID} deny", "@adminvm allow", "vault ask"], ["vault"]),
        ("work", ["@default ask", "vault allow target=personal"], ["personal"]),
        ("work", ["@default ask", "hidden allow", "@dispvm:hidden allow", "vault ask"], ["vault"]),
        ("work", ["@default ask", "work allow", "vault ask"], ["vault"]),
        ("personal", ["@default ask", f"{WORK_UUID} allow"], ["work"]),
        ("work", ["@default ask", "nobody allow", "@default ask"], None),
        ("work", ["@default ask autostart=no", "@anyvm allow"], ["far", "relay"]),
        ("work", ["@default ask autostart=no", "* allow"], ["dom0", "far", "relay"]),
        ("work", ["@default ask autostart=no", "personal allow", "@dispvm allow"], None),
        ("work", ["@default ask target=vault", "personal allow"], ["vault"]),
        ("work", ["@default ask target=@adminvm"], ["dom0"]),
        ("work", [f"@default ask target={DOM0_UUID}"], ["dom0"]),
        ("work", ["@default ask target=@dispvm"], ["@dispvm:dvm"]),
        ("vault", ["@default ask target=@dispvm"], None),
        ("work", ["@default ask target=nobody"], None),
        ("work", ["@default ask target=@dispvm:personal"], None),
        ("work", ["@default ask target=hidden"], ["hidden"]),
        ("personal", [f"@default ask target={WORK_UUID}"], [WORK_UUID]),
    ],
)  # fmt: skip
def test_ask_offers(system: SystemInfo, source: str, lines: list[str], targets: list[str] | None):
    verdict = call(system, "@default", *(f"s * @anyvm {line}" for line in lines), source=source)
    if targets is None:
        assert isinstance(verdict, Deny) and (verdict.cause, verdict.notify) == (Cause.NO_TARGET, True)
    else:
        assert isinstance(verdict, Ask) and list(verdict.targets) == targets


def test_rules_about_other_arguments_and_sources_offer_nothing(system: SystemInfo):
    lines = ("s * work @default ask", "s +x work vault allow", "s * personal vault allow", "t * work vault allow",
             "* * work personal allow")  # fmt: skip
    verdict = call(system, "@default", *lines)
    assert isinstance(verdict, Ask) and verdict.targets == ("personal",)


@pytest.mark.parametrize(
    ("rule", "default"),
    [
        ("@anyvm ask", None),
        ("@anyvm ask default_target=vault", "vault"),
        ("* ask default_target=@adminvm", "dom0"),
        ("* ask default_target=dom0", "dom0"),
        ("@anyvm ask default_target=dom0", None),
        ("@anyvm ask default_target=@dispvm", "@dispvm:dvm"),
        ("@anyvm ask default_target=@dispvm:fedora-dvm", "@dispvm:fedora-dvm"),
        ("@anyvm ask default_target=work", None),
        ("@anyvm ask default_target=hidden", None),
        ("@anyvm ask default_target=nobody", None),
        (f"@anyvm ask default_target={WORK_UUID}", None),
        ("@anyvm ask target=vault default_target=personal", None),
        ("@anyvm ask target=@dispvm default_target=@dispvm", "@dispvm:dvm"),
    ],
)
def test_the_default_target_is_preselected_if_it_is_offered(system: SystemInfo, rule: str, default: str | None):
    verdict = call(system, "vault", f"s * work {rule}")
    assert isinstance(verdict, Ask) and verdict.default_target == default
    assert bool(verdict.warning) == ("default_target" in rule and default is None)


def test_an_answer_must_be_one_of_those_offered(system: SystemInfo):
    ask = call(system, "@default", "s * work vault ask", "s * work @default ask user=root autostart=no notify=yes",
               "s * work relay allow")  # fmt: skip
    assert isinstance(ask, Ask) and ask.targets == ("relay",)
    assert resolve_ask(ask, "relay") == Allow(
        "relay", "root", False, True, "allowed by the user, asked by p:2", ("p", 2)
    )
    for untrusted in ("vault", "", "relay ", "@dispvm", "dom0", "RELAY"):
        refused = resolve_ask(ask, untrusted)
        assert isinstance(refused, Deny) and (refused.cause, refused.notify) == (Cause.USER, True)
    assert refuse_ask(ask, "denied by the user") == Deny(
        "denied by the user (asked by p:2)", True, ("p", 2), Cause.USER
    )


def test_a_chosen_uuid_is_answered_by_its_name(system: SystemInfo):
    ask = call(system, "vault", f"s * * vault ask target={WORK_UUID}", source="personal")
    assert isinstance(ask, Ask)
    chosen = resolve_ask(ask, WORK_UUID)
    assert isinstance(chosen, Allow) and chosen.target == "work"


def test_a_question_about_oneself_ends_in_a_refusal(system: SystemInfo):
    ask = call(system, "vault", "s * * vault ask target=work")
    assert isinstance(ask, Ask)
    refused = resolve_ask(ask, "work")
    assert isinstance(refused, Deny) and refused.cause is Cause.LOOPBACK


@pytest.mark.parametrize(
    ("target", "relay"),
    [
        ("far", Relay("relay", "air.Call", "far")),
        ("farther", Relay("relay", "air.Call", "their-name")),
        ("cut-off", None),
        ("mute", None),
        ("orphan", None),
    ],
)
def test_calls_to_remote_qubes_go_through_their_relay(system: SystemInfo, target: str, relay: Relay | None):
    verdict = call(system, target, "s * work @type:RemoteVM allow user=root")
    if relay is None:
        assert isinstance(verdict, Deny) and verdict.cause is Cause.BAD_REMOTE
    else:
        assert isinstance(verdict, Allow)
        assert (verdict.target, verdict.relay, verdict.user) == (target, relay, None)
        assert relay.service_for("s", "+x").endswith("+s+x")
    ask = call(system, "@default", f"s * work @default ask target={target}")
    assert isinstance(ask, Ask)
    assert getattr(resolve_ask(ask, target), "relay", None) == relay


@pytest.mark.parametrize(
    ("source", "remote", "allowed"),
    [
        ("relay", "far", True), ("relay", "farther", True), ("relay", "mute", True), ("work", "far", False),
        ("relay", "cut-off", False), ("relay", "orphan", False), ("relay", "work", False), ("relay", "nobody", False),
        ("relay", "relay", False), ("relay", "@adminvm", False), ("nobody", "orphan", False), ("dom0", "far", False),
    ],
)  # fmt: skip
def test_only_its_relay_speaks_for_a_remote_qube(system: SystemInfo, source: str, remote: str, allowed: bool):
    policy = policy_of(f"s * {remote if remote in ('far', 'farther', 'mute') else 'far'} vault allow", "s * * * deny")
    verdict = evaluate(policy, system, Request(source, "vault", "s", "+", remote))
    assert isinstance(verdict, Allow) == allowed
    if not allowed:
        assert isinstance(verdict, Deny) and verdict.cause is Cause.BAD_REMOTE
    plain = evaluate(policy, system, Request(source, "vault", "s", "+"))
    assert isinstance(plain, Deny) and plain.rule == ("p", 2)


def test_a_broken_policy_is_a_denial_that_names_the_line(system: SystemInfo):
    broken = BrokenPolicy(PolicyError("no good", file="/etc/x.policy", line=7))
    verdict = evaluate(broken, system, Request("work", "vault", "s", "+"))
    assert verdict == Deny("the policy is broken: /etc/x.policy:7: no good", False, None, Cause.BROKEN_POLICY)


def test_power_states_count_at_once(system: SystemInfo):
    policy = policy_of("s * * @default ask autostart=no", "s * * * allow autostart=no")
    request = Request("work", "personal", "s", "+")
    question = Request("work", "@default", "s", "+")
    assert isinstance(evaluate(policy, system, request), Deny)
    running = SystemInfo(system.shape, {**system.power_states, "personal": "Running"}, system.looks)
    assert isinstance(evaluate(policy, running, request), Allow)
    ask = evaluate(policy, running, question)
    assert isinstance(ask, Ask) and "personal" in ask.targets
    ask = evaluate(policy, system, question)
    assert isinstance(ask, Ask) and "personal" not in ask.targets


def test_the_same_call_in_the_same_system_gives_the_same_verdict_object(system: SystemInfo):
    policy = policy_of("s * * * allow")
    request = Request("work", "vault", "s", "+")
    assert evaluate(policy, system, request) is evaluate(policy, SystemInfo.parse(_json_of(system)), request)


def _json_of(system: SystemInfo) -> dict[str, Any]:
    return {
        "domains": {
            name: {**facts._asdict(), "type": facts.klass, "tags": sorted(facts.tags)}
            for name, facts in system.shape.qubes.items()
        }
    }


def test_the_requested_target_is_told_as_spelled_if_it_exists(system: SystemInfo):
    told = {
        word: requested_target(system, word) for word in ("work", WORK_UUID, "@adminvm", "@dispvm", "", "nobody", "@x")
    }
    assert told == {"work": "work", WORK_UUID: WORK_UUID, "@adminvm": "@adminvm", "@dispvm": "@dispvm", "": "@default",
                    "nobody": "@default", "@x": "@default"}  # fmt: skip


@pytest.mark.parametrize(
    "value",
    [
        None, [], "x", {}, {"domains": []}, {"domains": {"a": 1}}, {"domains": {"@anyvm": {}}}, {"domains": {"*": {}}},
        {"domains": {"": {}}}, {"domains": {"uuid:x": {}}}, {"domains": {"a": {"tags": "x"}}},
        {"domains": {"a": {"tags": [1]}}}, {"domains": {"a": {"type": 1}}}, {"domains": {"a": {"default_dispvm": {}}}},
        {"domains": {"a": {"uuid": "u"}, "b": {"uuid": "u"}}},
    ],
)  # fmt: skip
def test_a_malformed_system_is_refused(value: object):
    with pytest.raises(SystemInfoError):
        SystemInfo.parse(value)


anything = st.one_of(
    st.text(max_size=12),
    st.sampled_from(["work", "dom0", "@dispvm", "@dispvm:dvm", "@default", "", "uuid:", "@", "+", "+x", "*", "s"]),
)


@given(anything, anything, anything, anything, st.none() | anything)
def test_no_request_raises(source: str, target: str, service: str, argument: str, requested_source: str | None):
    system = SystemInfo.parse({"domains": {"work": {"default_dispvm": "dvm"}, "dvm": {"template_for_dispvms": True}}})
    policy = policy_of("s +x * @dispvm allow", "s * work * ask", "* * * @anyvm allow")
    verdict = evaluate(policy, system, Request(source, target, service, argument, requested_source))
    assert isinstance(verdict, Allow | Ask | Deny)
    if isinstance(verdict, Allow):
        assert verdict.target in system.shape.qubes or verdict.target == "@dispvm:dvm"
