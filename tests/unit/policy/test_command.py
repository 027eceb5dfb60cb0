"""``cloison policy`` as a person or a script runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cloison.policy import install_defaults

Write = Callable[[str, str], Path]
PROGRAM = [sys.executable, "-c", "import sys; from cloison.cli import main; sys.exit(main())", "policy"]
SYSTEM = {
    "domains": {
        "dom0": {"type": "AdminVM"},
        "work": {"type": "AppVM", "default_dispvm": "dvm"},
        "vault": {"type": "AppVM"},
        "dvm": {"type": "AppVM", "template_for_dispvms": True},
    }
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A system with the default policy and no daemon."""
    install_defaults(tmp_path / "config" / "policy.d")
    (tmp_path / "run" / "policy.d").mkdir(parents=True)
    (tmp_path / "system.json").write_text(json.dumps(SYSTEM))
    return tmp_path


def run(root: Path, *words: str, stdin: str = "", editor: str = "false") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "CLOISON_ROOT": str(root), "VISUAL": editor}
    return subprocess.run(
        [*PROGRAM, *words], input=stdin, text=True, capture_output=True, env=environment, timeout=30, check=False
    )


def system_of(root: Path) -> tuple[str, str]:
    return "--system", str(root / "system.json")


def request(target: str, service: str) -> str:
    return json.dumps({"source": "work", "target": target, "service": service, "argument": "+"}) + "\n"


def test_eval_answers_line_by_line_while_the_other_side_waits(root: Path):
    command = [*PROGRAM, "eval", "--policy", str(root / "config/policy.d"), *system_of(root)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdin is not None and program.stdout is not None
        for target, service, verdict in (
            ("@dispvm", "qubes.VMShell", "allow"),
            ("vault", "qubes.VMShell", "deny"),
            ("vault", "qubes.Filecopy", "ask"),
        ):  # fmt: skip
            program.stdin.write(request(target, service))
            program.stdin.flush()
            assert json.loads(program.stdout.readline())["verdict"] == verdict
        program.stdin.close()
        assert program.wait(10) == 0


def test_eval_answers_a_last_line_without_newline_and_the_runtime_directory_counts(root: Path):
    (root / "run/policy.d/10-x.policy").write_text("qubes.VMShell * work vault allow")
    lines = request("vault", "qubes.VMShell") * 2000
    got = run(root, "eval", *system_of(root), stdin=lines.rstrip("\n"))
    verdicts = [json.loads(line)["verdict"] for line in got.stdout.splitlines()]
    assert verdicts == ["allow"] * 2000 and got.returncode == 0


def test_eval_with_a_broken_policy_denies_every_line_and_names_the_fault(root: Path):
    (root / "config/policy.d/50-x.policy").write_text("broken")
    got = run(root, "eval", *system_of(root), stdin=request("@dispvm", "qubes.VMShell"))
    verdict = json.loads(got.stdout)
    assert verdict["verdict"] == "deny" and "50-x.policy:1: " in verdict["reason"]
    assert "50-x.policy:1: " in got.stderr


def test_eval_with_a_malformed_system_says_so(root: Path):
    (root / "system.json").write_text('{"domains": 1}')
    got = run(root, "eval", *system_of(root))
    assert (got.returncode, got.stdout) == (1, "") and '"domains"' in got.stderr


def test_check_is_quiet_about_the_defaults_and_fails_on_errors(root: Path):
    good = run(root, "check", *system_of(root))
    assert (good.returncode, good.stderr) == (0, "")
    (root / "config/policy.d/30-user.policy").write_text("s * work * deny\ns * work vault allow\n")
    hint = run(root, "check", "--json")
    assert hint.returncode == 0 and json.loads(hint.stdout)[0]["severity"] == "hint"
    (root / "config/policy.d/30-user.policy").write_text("nonsense\n")
    bad = run(root, "check")
    assert bad.returncode == 1 and "30-user.policy:1: error: a rule needs at least 5 words" in bad.stdout
    stdin = run(root, "check", "-", stdin="s * a b allow\nx")
    assert stdin.returncode == 1 and stdin.stdout.startswith("-:2: error: ")


def test_explain_shows_the_rule_and_a_line_that_changes_it(root: Path):
    got = run(root, "explain", "work", "vault", "qubes.VMShell", *system_of(root))
    assert got.stdout.startswith("deny: denied by ")
    assert "qubes.VMShell * work vault allow" in got.stdout and "the target vault is not @dispvm" in got.stdout
    as_json = json.loads(run(root, "explain", "work", "@dispvm", "qubes.VMShell+x", "--json", *system_of(root)).stdout)
    assert (as_json["verdict"], as_json["target"]) == ("allow", "@dispvm:dvm")


def test_files_are_listed_got_replaced_and_removed(root: Path):
    listed = run(root, "list").stdout.split()
    assert listed == sorted(listed) and {"30-user", "80-cloison", "90-default", "91-admin-default-deny"} <= set(listed)
    assert run(root, "replace", "40-x", "--token", "new", stdin="s * a b deny\n").returncode == 0
    token, content = run(root, "get", "40-x", "--with-token").stdout.split("\n", 1)
    assert content == "s * a b deny\n" and token.startswith("sha256:")
    refused = run(root, "replace", "40-x", "--token", token, stdin="nonsense")
    assert refused.returncode == 1 and "40-x.policy:1: " in refused.stderr
    assert run(root, "replace", "40-x", "--token", "new", stdin="").returncode == 1
    assert run(root, "list", "--service", "s").stdout.split() == ["40-x"]
    assert run(root, "remove", "40-x", "--token", token).returncode == 0
    assert run(root, "get", "40-x").returncode == 1


def test_edit_puts_in_place_what_is_right_and_nothing_else(root: Path):
    user = root / "config/policy.d/30-user.policy"
    user.write_text("")
    append = root / "append"
    append.write_text('#!/bin/sh\necho "s * work vault allow" >> "$1"\n')
    append.chmod(0o755)
    assert run(root, "edit", editor=str(append)).returncode == 0
    assert user.read_text() == "s * work vault allow\n"
    append.write_text('#!/bin/sh\necho "nonsense" >> "$1"\n')
    assert run(root, "edit", editor=str(append)).returncode == 1
    assert user.read_text() == "s * work vault allow\n"


def test_the_graph_is_drawn_as_asked(root: Path):
    picture = root / "policy.svg"
    assert run(root, "graph", "--output", str(picture), *system_of(root)).returncode == 0
    assert picture.read_text().startswith("<svg ")
    edges = json.loads(run(root, "graph", "--format", "json", "--source", "work", *system_of(root)).stdout)
    assert {
        "source": "work",
        "target": "@dispvm:dvm",
        "service": "qubes.VMShell",
        "argument": "*",
        "verdict": "allow",
    } in edges
    assert run(root, "graph", *system_of(root)).stdout.startswith("digraph policy {")
