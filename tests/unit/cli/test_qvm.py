"""The `qvm-*` commands, as scripts written for Qubes use them."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest

from cloison.cli.qvm import PROGRAMS, run

Run = Callable[..., Any]


@pytest.fixture
def qvm(daemon: Any, capfd: pytest.CaptureFixture[str]) -> Run:
    def call(program: str, *words: str) -> tuple[int, str, str]:
        capfd.readouterr()
        code = run(program, list(words))
        out, err = capfd.readouterr()
        return int(code), out, err

    return call


def test_every_program_is_installed_and_helps(qvm: Run) -> None:
    root = Path(__file__).parents[3]
    scripts = tomllib.loads((root / "pyproject.toml").read_text())["project"]["scripts"]
    for program in PROGRAMS:
        assert scripts[program] == "cloison.cli.qvm:main"
        code, out, _ = qvm(program, "--help")
        assert code == 0
        assert "Examples:" in out


@pytest.mark.parametrize(
    ("words", "asked"),
    [
        ("qvm-start vault", ["admin.vm.List vault", "admin.vm.Start vault"]),
        ("qvm-start --skip-if-running work", ["admin.vm.Start work"]),
        ("qvm-shutdown work", ["admin.vm.Shutdown work"]),
        ("qvm-shutdown --wait work", ["admin.vm.List dom0", "admin.vm.Shutdown+wait work"]),
        ("qvm-shutdown --wait vault", ["admin.vm.List dom0", "admin.vm.List vault"]),
        ("qvm-kill work", ["admin.vm.Kill work"]),
        ("qvm-pause work", ["admin.vm.Pause work"]),
        ("qvm-pause -S work", ["admin.vm.Suspend work"]),
        ("qvm-unpause work", ["admin.vm.List work", "admin.vm.Unpause work"]),
        ("qvm-remove -f vault", ["admin.vm.Remove vault"]),
        ("qvm-create -l red new", ["admin.vm.Create.AppVM dom0 name=new label=red"]),
        (
            "qvm-create --class DispVM -t default-dvm -l red d",
            ["admin.vm.Create.DispVM+default-dvm dom0 name=d label=red"],
        ),
        ("qvm-create -P main -l red new", ["admin.vm.CreateInPool.AppVM dom0 name=new label=red pool=main"]),
        ("qvm-clone work w2", ['cloison.qube.Clone work {"name":"w2"}']),
        ("qvm-prefs -s work memory 500", ["admin.vm.property.Set+memory work 500"]),
        ("qvm-prefs -D work memory", ["admin.vm.property.Reset+memory work"]),
        ("qubes-prefs stats_interval 5", ["admin.property.Set+stats_interval dom0 5"]),
        ("qvm-features work a b", ["admin.vm.feature.Set+a work b"]),
        ("qvm-features --unset work a", ["admin.vm.feature.Remove+a work"]),
        ("qvm-service work cups on", ["admin.vm.feature.Set+service.cups work 1"]),
        ("qvm-service -d work cups", ["admin.vm.feature.Set+service.cups work"]),
        ("qvm-tags work add a", ["admin.vm.tag.Set+a work"]),
        ("qvm-tags work del a", ["admin.vm.tag.Remove+a work"]),
    ],
)
def test_a_program_asks_the_daemon(qvm: Run, daemon: Any, words: str, asked: list[str]) -> None:
    code, _, err = qvm(*words.split())
    assert (code, err) == (0, "")
    assert daemon.calls() == asked


def test_no_such_qube_is_2(qvm: Run) -> None:
    for words in ("qvm-start nope", "qvm-prefs nope", "qvm-kill nope", "qvm-ls nope"):
        code, out, err = qvm(*words.split())
        assert (code, out) == (2, "")
        assert err.startswith(f"{words.split()[0]}: no qube is named 'nope'")


def test_no_such_property_is_2(qvm: Run) -> None:
    assert qvm("qvm-prefs", "work", "nope") == (2, "", "qvm-prefs: no such property: 'nope'\n")


def test_a_qube_that_runs_already_is_an_error_unless_told_otherwise(qvm: Run) -> None:
    assert qvm("qvm-start", "work") == (1, "", "qvm-start: domain work is already running\n")
    assert qvm("qvm-start", "--skip-if-running", "work")[0] == 0


def test_killing_what_is_off_is_fine(qvm: Run, daemon: Any) -> None:
    daemon.answers("admin.vm.Kill", daemon.refused("QubesVMNotStartedError", "off"))
    assert qvm("qvm-kill", "vault") == (0, "", "")


def test_a_label_is_needed(qvm: Run) -> None:
    code, _, err = qvm("qvm-create", "new")
    assert code == 2
    assert "--label" in err


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("work",), 0),
        (("nope",), 1),
        (("--running", "work"), 0),
        (("--running", "vault"), 1),
        (("--running", "work", "vault"), 1),
        (("--template", "debian-13"), 0),
        (("--template", "work"), 1),
    ],
)
def test_checks_answer_by_exit_code(qvm: Run, words: tuple[str, ...], code: int) -> None:
    assert qvm("qvm-check", "-q", *words) == (code, "", "")


def test_the_list_for_scripts(qvm: Run) -> None:
    assert qvm("qvm-ls", "--raw-data", "-O", "NAME,STATE,NETVM", "work")[1] == "work|Running|sys-firewall\n"
    assert qvm("qvm-ls", "--raw-list", "--running")[1].split() == ["dom0", "sys-firewall", "sys-net", "work"]
    assert qvm("qvm-ls")[1].splitlines()[0].split() == ["NAME", "STATE", "CLASS", "LABEL", "TEMPLATE", "NETVM"]


def test_the_list_of_networks_has_its_columns(qvm: Run) -> None:
    code, out, _ = qvm("qvm-ls", "-n")
    assert code == 0
    assert [word for word in ("NETVM", "IP", "GATEWAY") if word not in out.splitlines()[0]] == []


def test_a_missing_feature_is_1_without_a_word(qvm: Run, daemon: Any) -> None:
    daemon.answers("admin.vm.feature.Get", daemon.refused("QubesFeatureNotFoundError", "no"))
    assert qvm("qvm-features", "work", "a") == (1, "", "")


@pytest.mark.parametrize(
    ("words", "target", "command"),
    [
        ("qvm-run -p work id", "work", "id"),
        ("qvm-run -p work ls -l", "work", "ls -l"),
        ("qvm-run -p --no-shell work ls -l", "work", "ls -l"),
        ("qvm-run -p --dispvm id", "@dispvm", "id"),
        ("qvm-run -p --dispvm=x -- id", "@dispvm:x", "id"),
        ("qvm-run -a work id", "work", "id"),
    ],
)
def test_run_calls_the_broker(qvm: Run, broker: Any, words: str, target: str, command: str) -> None:
    broker.refuse = "only looking"
    code, _, _ = qvm(*words.split())
    assert code == 125
    assert (broker.calls[0].target, broker.calls[0].command) == (target, command)


def test_a_paused_qube_is_let_go_on(qvm: Run, daemon: Any, broker: Any) -> None:
    daemon.rows[-1]["state"] = "Paused"
    assert qvm("qvm-run", "-p", "work", "echo hello")[:2] == (0, "hello\n")
    assert daemon.calls() == ["admin.vm.List work", "admin.vm.Unpause work"]
    assert qvm("qvm-run", "-p", "nope", "true")[0] == 2


def test_without_pass_io_output_is_thrown_away(qvm: Run, broker: Any) -> None:
    assert qvm("qvm-run", "work", "echo hello; exit 3") == (3, "", "Running 'echo hello; exit 3' on work\n")
    assert qvm("qvm-run", "-q", "work", "echo hello") == (0, "", "")
    assert qvm("qvm-run", "-p", "work", "echo hello") == (0, "hello\n", "")


def test_a_local_command_is_joined_to_the_call(qvm: Run, broker: Any, tmp_path: Path) -> None:
    code, _, _ = qvm("qvm-run", "-p", "--localcmd", f"cat > {tmp_path}/got; echo no", "work", "echo hello; exit 5")
    assert code == 5
    assert (tmp_path / "got").read_text() == "hello\n"


def test_commands_are_click_commands() -> None:
    import importlib

    for program, file in PROGRAMS.items():
        assert isinstance(importlib.import_module(f"cloison.cli.qvm.{file}").COMMANDS[program], click.Command)
