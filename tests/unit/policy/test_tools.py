"""Explaining, checking and drawing a policy, and verdicts for programs."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloison.policy import Allow, BrokenPolicy, Deny, PolicyError, PolicySet, Request, SystemInfo, evaluate, load_policy
from cloison.policy.explain import explain
from cloison.policy.graph import Filters, edges_value, find_edges, write_dot, write_svg
from cloison.policy.lint import Severity, check_policy, check_text
from cloison.policy.output import LineEvaluator, daemon_answer, verdict_value

Write = Callable[[str, str], Path]


@pytest.fixture
def policy(policy_dir: Path, write: Write) -> PolicySet:
    write("policy.d/30-user.policy", "s +x work @anyvm deny\nt * * * allow\n")
    write(
        "policy.d/90-default.policy",
        "s * @tag:home @anyvm deny\ns * @type:TemplateVM * deny\ns * work @dispvm allow\n"
        "s * @anyvm @anyvm deny notify=no\n",
    )
    return load_policy(policy_dir)


def test_an_explanation_names_the_rule_and_those_passed_over(policy: PolicySet, system: SystemInfo):
    found = explain(policy, system, Request("work", "vault", "s", "+"))
    assert found.rule is not None and str(found.rule) == "s * @anyvm @anyvm deny notify=no"
    assert [(p.rule.place.line, p.why) for p in found.passed_over] == [
        (1, "the argument is +, the rule is about +x"),
        (1, "the source work does not carry @tag:home"),
        (2, "the source work is not of @type:TemplateVM"),
        (3, "the target vault is not @dispvm"),
    ]
    assert found.other_services == 1
    assert [(c.line, c.where) for c in found.changes] == [
        ("s + work vault allow", "at the end of 30-user.policy"),
        ("s + work vault ask", "at the end of 30-user.policy"),
    ]


def test_a_change_goes_above_a_rule_of_an_earlier_file(policy: PolicySet, system: SystemInfo, policy_dir: Path):
    found = explain(policy, system, Request("work", "vault", "s", "+x"))
    assert {c.where for c in found.changes} == {f"above {policy_dir}/30-user.policy:1"}


def test_every_proposed_change_does_what_it_says(policy_dir: Path, system: SystemInfo, policy: PolicySet):
    user = policy_dir / "30-user.policy"
    before = user.read_text()
    for request in (
        Request(source, target, service, argument)
        for source in ("work", "personal", "stranger")
        for target in ("vault", "@dispvm", "@default", "dom0", "nobody", "far", "cut-off")
        for service in ("s", "u")
        for argument in ("+", "+z")
    ):
        for change in explain(policy, system, request).changes:
            assert change.where == "at the end of 30-user.policy"
            user.write_text(before + change.line + "\n")
            assert type(evaluate(load_policy(policy_dir), system, request)) is type(change.verdict)
            user.write_text(before)


@pytest.mark.parametrize("target", ["@dispvm:nobody", "@anyvm", "*"])
def test_what_no_rule_can_change_has_no_proposal(policy: PolicySet, system: SystemInfo, target: str):
    found = explain(policy, system, Request("work", target, "s", "+"))
    assert isinstance(found.verdict, Deny) and found.changes == ()


def test_check_shows_all_errors_of_all_files(policy_dir: Path, write: Write):
    write("policy.d/10-a.policy", "bad\ns * * * allow\nworse")
    write("policy.d/20-b.policy", "!include nowhere\ns * * * maybe")
    assert [str(f).split(" (hint")[0] for f in check_policy(policy_dir)] == [
        f"{policy_dir}/10-a.policy:1: error: a rule needs at least 5 words, here are 1",
        f"{policy_dir}/10-a.policy:3: error: a rule needs at least 5 words, here are 1",
        f"{policy_dir}/20-b.policy:2: error: unknown action 'maybe'",
    ]


def test_check_shows_errors_that_no_single_file_has(policy_dir: Path, write: Write):
    write("policy.d/20-b.policy", "!include nowhere")
    (finding,) = check_policy(policy_dir)
    assert (
        str(finding)
        == f"{policy_dir}/20-b.policy:1: error: cannot read {policy_dir}/nowhere: No such file or directory"
    )


@pytest.mark.parametrize(
    ("lines", "hints"),
    [
        (["s * a @anyvm allow", "s * a b deny"], {2: "this never matches: {0}:1 already decides every such call"}),
        (["s * @anyvm @anyvm ask", "s +x @tag:t @dispvm:d allow"], {}),
        (["s * @anyvm @anyvm ask", "s +x a @dispvm:d allow"], {2: "this never matches: {0}:1 already"}),
        (["* * * * ask", "s +x @tag:t dom0 allow"], {2: "this never matches: {0}:1 already"}),
        (["s * @anyvm * ask", "s * dom0 a allow", "s * @type:AdminVM a allow"], {}),
        (["s * a dom0 deny", "s * a @adminvm allow"], {2: "this never matches: {0}:1 already"}),
        (["s +x a b deny", "s * a b allow", "s + a b deny"], {3: "this never matches: {0}:2 already"}),
        (["s * @dispvm:d b allow"], {1: "this never matches: no call comes from @dispvm:d"}),
        (["s * $anyvm b allow"], {1: "$anyvm is taken as a qube name: in this syntax keywords begin with '@'"}),
        (["s * uuid:ABC b allow"], {1: "uuid:ABC is not a uuid: 36 characters, lower case"}),
        (["s * a,b c allow"], {1: "'a,b' cannot be the name of a qube"}),
        (["s * @type:Appvm c allow"], {1: "no qube is of class Appvm (known: AdminVM, AppVM, "}),
        (["* * @anyvm * allow"], {1: "this allows every call between qubes: there is no isolation left"}),
        (["s * a b ask default_target=uuid:6f1c0d3e-0000-4000-8000-00000000abcd"], {1: "default_target="}),
        (["s * a @dispvm:d deny"], {1: "prompts may still offer @dispvm:d"}),
    ],
)  # fmt: skip
def test_check_hints(policy_dir: Path, write: Write, lines: list[str], hints: dict[int, str]):
    path = write("policy.d/10-x.policy", "\n".join(lines))
    found = {f.line: f.message for f in check_policy(policy_dir)}
    assert found.keys() == hints.keys()
    for line, message in hints.items():
        assert found[line].startswith(message.format(path))


def test_check_looks_names_up_if_the_system_is_known(policy_dir: Path, write: Write, system: SystemInfo):
    write("policy.d/10-x.policy", "s * work nobody allow target=@dispvm:vault\ns * @tag:none vault deny\n")
    assert [f.message for f in check_policy(policy_dir, system=system)] == [
        "no qube is named nobody now", "vault is not a disposable template", "no qube carries the tag none now"
    ]  # fmt: skip


def test_one_file_is_checked_by_itself():
    assert check_text(b"s * a b allow\n!include anything\n", "f") == []
    assert [str(f) for f in check_text(b"a b allow", "f", old_syntax=True)] == []
    assert [f.line for f in check_text(b"\n\xff", "f")] == [2]
    hints = check_text(b"s * a b allow\ns * a b deny\nt * $anyvm b allow\n", "f")
    assert [(f.line, f.severity) for f in hints] == [(2, Severity.HINT), (3, Severity.HINT)]
    assert [f.severity for f in check_text(b"s * a b allow\ns * a b deny\nt * a b alow\n", "f")] == [Severity.ERROR]


def test_the_graph_has_an_edge_for_each_possible_call(policy: PolicySet, system: SystemInfo):
    edges = find_edges(policy, system, Filters(sources=frozenset({"work"}), services=frozenset({"s"})))
    assert edges_value(edges) == [
        {"source": "work", "target": "@dispvm:dvm", "service": "s", "argument": "*", "verdict": "allow"}
    ]
    everything = find_edges(policy, system, Filters(services=frozenset({"t"})))
    assert {edge.source for edge in everything} == set(system.shape.qubes) - {"dom0"}
    assert "dom0" in {edge.target for edge in everything}
    only = find_edges(policy, system, Filters(services=frozenset({"t"}), targets=frozenset({"vault"})))
    assert {edge.target for edge in only} == {"vault"}


def test_asked_calls_are_shown_on_demand(policy_dir: Path, write: Write, system: SystemInfo):
    write("policy.d/10-x.policy", "s +x work vault ask\n* * work personal allow\n")
    policy = load_policy(policy_dir)
    assert {e.label for e in find_edges(policy, system, Filters())} == {"s", "s+x", "*"}
    asked = find_edges(policy, system, Filters(with_ask=True))
    assert [(e.target, e.label) for e in asked if e.verdict == "ask"] == [("vault", "s+x")]


def test_drawings_have_the_colours_of_labels(policy: PolicySet):
    system = SystemInfo.parse({"domains": {"a": {"label": "0xCC0001"}, "b": {"label": "green"}, "c": {"label": "0x1"}}})
    edges = find_edges(policy, system, Filters())
    dot = write_dot(edges, system)
    assert '"a" [color="#CC0001"]' in dot and '"b" [color="green"]' in dot and '"c" [color="black"]' in dot
    assert 'fill="#CC0001"' in write_svg(edges, system)


def test_drawings_are_well_formed(policy: PolicySet):
    hostile = SystemInfo.parse({"domains": {'a"<&>\\': {"label": 'red"/>'}, "b": {"label": "green"}}})
    edges = find_edges(policy, hostile, Filters())
    tree = ET.fromstring(write_svg(edges, hostile))
    assert any(element.text == 'a"<&>\\' for element in tree.iter())
    dot = write_dot(edges, hostile)
    assert '"a\\"<&>\\\\" -> "b" [color=red label="t"];' in dot and '[color="green"]' in dot
    assert "label" not in write_dot(edges, hostile, labels=False)
    ET.fromstring(write_svg([], hostile))


KEYS = ["verdict", "reason", "rule", "target", "user", "autostart", "notify", "targets", "default_target"]


def answers(policy: PolicySet | BrokenPolicy, system: SystemInfo, *requests: dict[str, Any]) -> list[dict[str, Any]]:
    evaluator = LineEvaluator(policy, system)
    return [json.loads(evaluator.answer(json.dumps(request).encode())) for request in requests]


def test_verdict_lines_have_exactly_the_promised_keys(policy_dir: Path, write: Write, system: SystemInfo):
    path = write(
        "policy.d/10-x.policy", "a * * @dispvm allow user=root\nb * * * ask default_target=vault\nc * * far allow"
    )
    policy = load_policy(policy_dir)
    call = {"source": "work", "target": "@dispvm", "service": "a", "argument": "+x"}
    got = answers(policy, system, call, {**call, "service": "b"}, {**call, "service": "z"}, {**call, "service": "c",
                  "target": "far"})  # fmt: skip
    assert got[0] == {"verdict": "allow", "reason": f"allowed by {path}:1", "rule": {"file": str(path), "line": 1},
                      "target": "@dispvm:dvm", "user": "root", "autostart": True, "notify": False, "targets": None,
                      "default_target": None}  # fmt: skip
    assert got[1]["verdict"] == "ask" and got[1]["target"] is None and got[1]["default_target"] == "vault"
    assert "personal" in got[1]["targets"] and got[1]["targets"] == sorted(got[1]["targets"])
    assert got[2] == {"verdict": "deny", "reason": "no rule matches", "rule": None, "target": None, "user": None,
                      "autostart": None, "notify": True, "targets": None, "default_target": None}  # fmt: skip
    assert (got[3]["target"], got[3]["service"]) == ("relay", "air.Call+far+c+x")
    assert [list(verdict) for verdict in got[:3]] == [KEYS] * 3 and list(got[3]) == [*KEYS, "service"]


def test_a_relayed_call_shows_its_own_argument(policy_dir: Path, write: Write, system: SystemInfo):
    write("policy.d/10-x.policy", "c * * far allow")
    call = {"source": "work", "target": "far", "service": "c"}
    got = answers(load_policy(policy_dir), system, {**call, "argument": "+1"}, {**call, "argument": "+2"}, call)
    assert [verdict["service"] for verdict in got] == ["air.Call+far+c+1", "air.Call+far+c+2", "air.Call+far+c+"]


@pytest.mark.parametrize(
    "line",
    [b"{", b"[]", b"null", b'"x"', b"{}", b'{"source":"a"}', b'{"source":1,"service":"s"}', b"\xff", b"[" * 100_000,
     b'{"source":"a","service":"s","target":null}', b'{"source":"a","service":"s","argument":1}',
     b'{"source":"a","service":"s","surprise":1}', b'{"source":"a","service":"s","requested_source":[]}'],
)  # fmt: skip
def test_what_is_no_request_is_denied(policy: PolicySet, system: SystemInfo, line: bytes):
    verdict = json.loads(LineEvaluator(policy, system).answer(line))
    assert verdict["verdict"] == "deny" and verdict["reason"].startswith("bad request: ") and list(verdict) == KEYS


@given(st.binary())
def test_no_line_raises(line: bytes):
    LineEvaluator(PolicySet(()), SystemInfo.parse({"domains": {}})).answer(line)


def test_a_broken_policy_answers_each_line_with_its_fault(system: SystemInfo):
    broken = BrokenPolicy(PolicyError("oh", file="f.policy", line=3))
    (verdict,) = answers(broken, system, {"source": "work", "target": "vault", "service": "s", "argument": "+"})
    assert (verdict["verdict"], verdict["reason"]) == ("deny", "the policy is broken: f.policy:3: oh")


def test_the_answer_of_the_policy_daemon(policy_dir: Path, write: Write, system: SystemInfo):
    write("policy.d/10-x.policy", "s * far * allow target=@adminvm\ns * * work allow autostart=no\ns * * far allow")

    def told(request: Request) -> str:
        verdict = evaluate(load_policy(policy_dir), system, request)
        assert isinstance(verdict, Allow | Deny)
        return daemon_answer(verdict, system, request)

    assert told(Request("vault", "work", "s", "+")) == (
        "user=DEFAULT\nresult=allow\ntarget=work\ntarget_uuid=uuid:11111111-1111-4111-8111-111111111111\n"
        "autostart=False\nrequested_target=work\n"
    )
    assert told(Request("vault", "nobody", "s", "+")) == "result=deny\n"
    assert told(Request("vault", "far", "s", "+x")) == (
        "user=DEFAULT\nresult=allow\ntarget=relay\nautostart=True\nrequested_target=far\nservice=air.Call+far+s+x\n"
    )
    assert told(Request("relay", "nobody", "s", "+", "far")) == (
        "user=DEFAULT\nresult=allow\ntarget=dom0\nautostart=True\nrequested_target=@default\npolicy_source=far\n"
    )


def test_every_verdict_can_be_written(policy: PolicySet, system: SystemInfo):
    request = Request("work", "vault", "s", "+")
    assert list(verdict_value(evaluate(policy, system, request), request)) == KEYS
