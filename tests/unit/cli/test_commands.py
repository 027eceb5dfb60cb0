"""The commands: what they ask of the daemon, what they print, how they end."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest

from cloison.cli.command import ExampleCommand, ExampleGroup
from cloison.cli.entry import SECTIONS, program
from cloison.cli.exitcodes import MEANINGS, ExitCode
from cloison.layout import Layout

Run = Callable[..., Any]
PROGRAM = [sys.executable, "-m", "cloison.cli"]


def all_commands() -> list[tuple[str, click.Command]]:
    context = click.Context(program)
    found: list[tuple[str, click.Command]] = []
    for name in (n for names in SECTIONS.values() for n in names):
        if name == "policy":
            continue
        made = program.get_command(context, name)
        assert made is not None
        found.append((name, made))
        if isinstance(made, click.Group):
            found += [(f"{name} {child}", command) for child, command in made.commands.items()]
    return found


@pytest.mark.parametrize(("name", "made"), all_commands())
def test_every_help_says_what_it_does_and_shows_examples(name: str, made: click.Command, cloison: Run) -> None:
    assert isinstance(made, ExampleCommand | ExampleGroup)
    assert made.help and made.help.rstrip().splitlines()[0].endswith((".", ":")), name
    assert made.examples, name
    done = cloison(*name.split(), "--help")
    assert done.code == 0
    assert "Examples:" in done.out


@pytest.mark.parametrize(("name", "made"), all_commands())
def test_examples_begin_with_the_command_itself(name: str, made: Any) -> None:
    assert f"cloison {name}" in made.examples[0][0] or name in {"run", "tags", "label", "pool", "volume"}
    assert all("cloison " in line for line, _ in made.examples)


def test_everything_that_lists_can_print_json() -> None:
    for name, made in all_commands():
        if name.split()[-1] in {"list", "info", "revisions", "status", "prefs", "system-prefs", "features", "services"}:
            assert any("--json" in p.opts for p in made.params), name


TABLE = """\
NAME          STATE               CLASS       LABEL  TEMPLATE   NETVM         FORK
dom0          Running             AdminVM     black  -          -             -
debian-13     Halted              TemplateVM  black  -          -             ready
default-dvm   Halted              AppVM       red    debian-13  sys-firewall  ready
sys-firewall  Running             AppVM       green  debian-13  sys-net       ready
sys-net       Running             AppVM       red    debian-13  -             ready
vault         Halted              AppVM       black  debian-13  -             ready
work          Running (outdated)  AppVM       blue   debian-13  sys-firewall  ready
"""
NETWORK_TREE = """\
NAME               NETVM
dom0               -
debian-13          -
sys-net            -
└─sys-firewall     sys-net
  ├─default-dvm    sys-firewall
  └─work           sys-firewall
vault              -
"""
TEMPLATE_TREE = """\
NAME              TEMPLATE
dom0              -
debian-13         -
├─default-dvm     debian-13
├─sys-firewall    debian-13
├─sys-net         debian-13
├─vault           debian-13
└─work            debian-13
"""


def test_the_list_as_a_table(cloison: Run) -> None:
    assert cloison("list").out == TABLE


def test_the_list_is_two_calls_however_many_qubes_there_are(cloison: Run, daemon: Any) -> None:
    cloison("list")
    assert [method for method, *_ in daemon.asked] == ["cloison.qube.List", "cloison.forkpoint.List"]


def test_a_disposable_shows_the_fork_point_of_its_templates_template(cloison: Run, daemon: Any) -> None:
    daemon.rows.append({**daemon.rows[-1], "name": "disp1", "class": "DispVM", "template": "default-dvm"})
    daemon.points[0]["state"] = "making"
    assert cloison("list", "--raw-data", "-o", "fork", "disp1").out == "making\n"
    daemon.points.clear()
    assert cloison("list", "--raw-data", "-o", "fork", "disp1").out == "-\n"


def test_a_fork_point_of_another_shape_is_none_for_a_qube(cloison: Run, daemon: Any) -> None:
    daemon.points[0].update(memory_mib=400, vcpus=2)
    for name, memory, mode in (("work", 800, "auto"), ("vault", 400, "boot"), ("default-dvm", 400, "auto")):
        shape = {"memory": ("int", memory, True), "vcpus": ("int", 2, True), "start_mode": ("str", mode, True)}
        daemon.properties.setdefault(name, {}).update(shape)
    shown = cloison("list", "--raw-data", "-o", "name,fork", "work", "vault", "default-dvm", "debian-13").out
    assert sorted(shown.splitlines()) == ["debian-13|ready", "default-dvm|ready", "vault|-", "work|-"]


def test_the_list_as_trees(cloison: Run) -> None:
    assert _squeezed(cloison("list", "--tree", "-o", "name,netvm").out) == _squeezed(NETWORK_TREE)
    assert _squeezed(cloison("list", "--by-template", "-o", "name,template").out) == _squeezed(TEMPLATE_TREE)


def _squeezed(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()]


def test_a_loop_in_a_tree_is_drawn_not_followed(cloison: Run, daemon: Any) -> None:
    for row in daemon.rows:
        if row["name"] in {"work", "vault"}:
            row["netvm"] = "vault" if row["name"] == "work" else "work"
    done = cloison("list", "--tree", "-o", "name")
    assert sorted(w for line in _squeezed(done.out)[1:] for w in line if "└" not in w) != []
    assert all(done.out.count(name) == 1 for name in ("work", "vault"))


@pytest.mark.parametrize(
    ("words", "lines"),
    [
        (("--raw-data", "-o", "name,state", "work", "vault"), ["vault|Halted", "work|Running"]),
        (("--raw-data", "-o", "name,memory,fork", "work"), ["work|400|ready"]),
        (("--raw-list", "--running"), ["dom0", "sys-firewall", "sys-net", "work"]),
        (("--raw-list", "--halted", "--exclude", "vault"), ["debian-13", "default-dvm"]),
        (("--raw-list", "--class", "TemplateVM"), ["debian-13"]),
        (("--raw-list", "--tag", "nothing"), []),
    ],
)
def test_the_list_for_scripts(cloison: Run, words: tuple[str, ...], lines: list[str]) -> None:
    assert cloison("list", *words).out.splitlines() == lines


def test_the_list_as_json(cloison: Run) -> None:
    rows = json.loads(cloison("list", "--json", "work").out)
    assert (rows[0]["name"], rows[0]["state"], rows[0]["outdated"]) == ("work", "Running", True)
    assert json.loads(cloison("list", "--json", "-o", "name,memory", "work").out) == [{"name": "work", "memory": "400"}]


def test_a_qube_that_is_not_there_is_3(cloison: Run) -> None:
    for words in (("list", "nope"), ("start", "nope"), ("prefs", "nope"), ("remove", "--yes", "nope")):
        done = cloison(*words)
        assert (done.code, done.out) == (ExitCode.NOT_FOUND, "")
        assert done.err == "cloison: no qube is named 'nope' (hint: `cloison list` shows them all)\n"


@pytest.mark.parametrize(
    "words",
    [
        ("frobnicate",),
        ("lst",),
        ("list", "--nope"),
        ("list", "--format", "pretty"),
        ("start",),
        ("start", "--all", "work"),
        ("start", "bad name"),
        ("start", "-x"),
        ("create",),
        ("create", "--prop", "memory", "x"),
        ("create", "x" * 32),
        ("prefs", "--set", "work", "memory"),
        ("prefs", "--default", "work"),
        ("remove", "work"),
        ("volume", "resize", "work", "3G"),
        ("volume", "resize", "work:private", "lots"),
        ("forkpoint", "drop"),
        ("standalone", "import", "x", "/does/not/exist"),
        ("help", "nothing"),
        ("tags", "list"),
    ],
)
def test_wrong_use_is_one_line_with_a_hint_and_2(cloison: Run, words: tuple[str, ...]) -> None:
    done = cloison(*words)
    assert (done.code, done.out) == (ExitCode.USAGE, "")
    assert done.err.count("\n") == 1
    assert done.err.startswith("cloison: ")
    assert "hint: " in done.err


def test_a_group_without_a_command_shows_its_help_as_it_is(cloison: Run) -> None:
    done = cloison("template")
    assert (done.code, done.out) == (ExitCode.USAGE, "")
    assert done.err.startswith("Usage: cloison template ")
    assert "\nExamples:\n" in done.err


def test_a_guess_is_offered(cloison: Run) -> None:
    assert "did you mean 'list'?" in cloison("lst").err
    assert "did you mean memory?" in cloison("prefs", "work", "memroy").err


@pytest.mark.parametrize(
    ("words", "asked"),
    [
        (("kill", "work"), ["admin.vm.Kill work"]),
        (("pause", "work"), ["admin.vm.Pause work"]),
        (("unpause", "work"), ["admin.vm.List work", "admin.vm.Unpause work"]),
        (("start", "vault"), ["admin.vm.Start vault"]),
        (("shutdown", "work"), ["admin.vm.Shutdown+wait work"]),
        (("shutdown", "--force", "work"), ["admin.vm.Shutdown+force+wait work"]),
        (("shutdown", "--no-wait", "work"), ["admin.vm.Shutdown work"]),
        (("restart", "work"), ["admin.vm.Shutdown+wait work", "admin.vm.Start work"]),
        (("rename", "vault", "safe"), ['cloison.qube.Rename vault {"name":"safe"}']),
        (("clone", "work", "work-2"), ['cloison.qube.Clone work {"name":"work-2"}']),
        (("features", "work", "internal", "1"), ["admin.vm.feature.Set+internal work 1"]),
        (("features", "-D", "work", "internal"), ["admin.vm.feature.Remove+internal work"]),
        (("services", "work", "cups", "off"), ["admin.vm.feature.Set+service.cups work"]),
        (("tags", "add", "work", "a", "b"), ["admin.vm.tag.Set+a work", "admin.vm.tag.Set+b work"]),
        (("label", "create", "pink", "#ff88aa"), ["admin.label.Create+pink dom0 0xff88aa"]),
        (("volume", "config", "work:private", "rw", "False"), ["admin.vm.volume.Set.rw+private work False"]),
        (("prefs", "work", "memory", "800"), ["admin.vm.property.Set+memory work 800"]),
        (("prefs", "-D", "work", "memory"), ["admin.vm.property.Reset+memory work"]),
        (("system-prefs", "stats_interval", "5"), ["admin.property.Set+stats_interval dom0 5"]),
        (("autostart", "work"), ["admin.vm.property.Set+autostart work True"]),
        (("forkpoint", "drop", "--key", "k"), ['cloison.forkpoint.Drop dom0 {"key":"k"}']),
        (("notes", "--set", "hello", "work"), ["admin.vm.notes.Set work hello"]),
        (
            ("template", "build", "--include", "a,b", "--include", "c", "--size", "2G", "t"),
            [
                'cloison.template.Build+t dom0 {"include":["a","b","c"],"size_bytes":2147483648}',
                "admin.property.Get+default_template dom0",
            ],
        ),
    ],
)
def test_a_command_asks_the_daemon(cloison: Run, daemon: Any, words: tuple[str, ...], asked: list[str]) -> None:
    done = cloison("-q", *words)
    assert (done.code, done.out, done.err) == (0, "", "")
    assert daemon.calls() == asked


def test_creating_sets_it_all_up(cloison: Run, daemon: Any) -> None:
    daemon.table["admin.vm.property.Set"] = daemon.table["admin.vm.tag.Set"] = daemon.ok()
    daemon.table["admin.vm.volume.Resize"] = daemon.ok()
    done = cloison("create", "new", "-l", "blue", "-t", "debian-13", "--prop", "memory=500", "--tag", "t",
                   "--private-size", "4G")  # fmt: skip
    assert done.code == 0
    assert daemon.calls() == [
        "admin.vm.Create.AppVM+debian-13 dom0 name=new label=blue",
        "admin.vm.property.Set+memory new 500",
        "admin.vm.tag.Set+t new",
        "admin.vm.volume.Resize+private new 4294967296",
    ]


def test_a_qube_that_cannot_be_set_up_is_removed_again(cloison: Run, daemon: Any) -> None:
    daemon.answers("admin.vm.property.Set", daemon.refused("QubesPropertyValueError", "memory must be a number"))
    daemon.answers("admin.vm.Remove", daemon.ok())
    done = cloison("create", "new", "--prop", "memory=many")
    assert (done.code, done.err) == (1, "cloison: memory must be a number\n")
    assert daemon.calls()[-1] == "admin.vm.Remove new"


def test_several_qubes_each_get_their_turn_and_the_first_failure_is_the_code(cloison: Run, daemon: Any) -> None:
    daemon.answers("admin.vm.Kill", daemon.refused("QubesVMNotStartedError", "vault is not running"), dest="vault")
    done = cloison("kill", "nope", "vault", "work")
    assert done.code == ExitCode.NOT_FOUND
    assert sorted(done.err.splitlines())[1] == "cloison: vault is not running"
    assert "admin.vm.Kill work" in daemon.calls()


def test_all_means_those_it_applies_to(cloison: Run, daemon: Any) -> None:
    cloison("shutdown", "--all", "--exclude", "work")
    assert sorted(daemon.calls()[1:]) == ["admin.vm.Shutdown+wait sys-firewall", "admin.vm.Shutdown+wait sys-net"]


def test_those_in_use_are_shut_down_after_their_users(cloison: Run, daemon: Any) -> None:
    off: list[str] = []

    def shutdown(method: str, dest: str, payload: bytes) -> bytes:
        if dest == "sys-net" and "sys-firewall" not in off:
            time.sleep(0.05)
            return bytes(daemon.refused("QubesVMInUseError", "sys-net is the netvm of sys-firewall"))
        off.append(dest)
        return bytes(daemon.ok())

    daemon.answers("admin.vm.Shutdown", shutdown)
    first = daemon.table["admin.vm.Shutdown"]
    assert first is shutdown
    done = cloison("shutdown", "sys-net", "sys-firewall")
    assert (done.code, done.err) == (0, "")
    assert set(off) == {"sys-net", "sys-firewall"}


def test_a_shutdown_that_takes_too_long_can_end_in_a_kill(cloison: Run, daemon: Any) -> None:
    daemon.answers("admin.vm.Shutdown", daemon.refused("QubesVMShutdownTimeoutError", "still there"))
    done = cloison("shutdown", "work")
    assert done.code == ExitCode.NOT_NOW
    assert "cloison kill work" in done.err
    assert cloison("shutdown", "--kill", "work").code == 0
    assert daemon.calls()[-1] == "admin.vm.Kill work"


def test_a_property_is_shown_and_explained(cloison: Run) -> None:
    assert cloison("prefs", "work", "memory").out == "400\n"
    assert cloison("prefs", "work", "netvm").out == "\n"
    assert json.loads(cloison("prefs", "--json", "work", "memory").out) == {
        "value": 400,
        "type": "int",
        "default": True,
    }
    assert "What memory is good for." in cloison("prefs", "--help-properties", "work").out


PREFS = """\
PROPERTY                 VALUE
autostart             D  False
debug                 D  False
default_dispvm        D  default-dvm
label                 -  blue
memory                D  400
netvm                 -
stubdom_mem           U
template_for_dispvms  D  False
"""


def test_all_properties_are_shown_with_where_they_come_from(cloison: Run) -> None:
    assert cloison("prefs", "work").out == PREFS
    assert "memory" not in cloison("prefs", "--hide-default", "work").out


def test_dom0_shows_the_system(cloison: Run, daemon: Any) -> None:
    assert "default_template" in cloison("prefs", "dom0").out
    assert cloison("prefs", "dom0", "default_template").out == "debian-13\n"


def test_shrinking_a_volume_needs_force(cloison: Run, daemon: Any) -> None:
    daemon.answers("admin.vm.volume.Info", daemon.ok("size=4294967296\nusage=0\n"))
    done = cloison("volume", "resize", "work:private", "1G")
    assert done.code == 1
    assert "more than 1.0 GiB" in done.err
    assert cloison("volume", "resize", "--force", "work:private", "1G").code == 0


def test_long_work_is_told_in_plain_lines_and_not_at_all_with_q(cloison: Run, daemon: Any) -> None:
    steps = daemon.event("t", "progress", step="download", percent="10") + daemon.event(
        "t", "warning", text="slow disk"
    )
    daemon.answers("cloison.template.Build", steps + daemon.ok({"name": "t", "revision": "r1"}))
    told = cloison("template", "build", "t").err
    assert "download 10 %" in told
    assert "slow disk" in told
    assert "done in" in told
    assert cloison("template", "build", "-q", "t").err == ""
    assert cloison("-q", "template", "build", "t").err == ""


def test_the_first_template_becomes_the_default(cloison: Run, daemon: Any) -> None:
    daemon.properties[""]["default_template"] = ("vm", "", True)
    daemon.answers("cloison.template.Build", daemon.ok({"name": "t", "revision": "r1"}))
    cloison("-q", "template", "build", "t")
    assert daemon.calls()[-1] == "admin.property.Set+default_template dom0 t"


def test_events_are_shown_until_the_last_one(cloison: Run, daemon: Any) -> None:
    stream = daemon.event("", "connection-established") + daemon.event("work", "domain-start", start_guid="1")
    daemon.answers("admin.Events", stream)
    lines = cloison("events", "--json", "--until", "domain-start").out.splitlines()
    assert [json.loads(line)["event"] for line in lines] == ["connection-established", "domain-start"]
    assert "work domain-start start_guid=1" in cloison("events", "--only", "domain-*", "--until", "domain-start").out


def test_help_knows_the_exit_codes(cloison: Run) -> None:
    text = cloison("help", "exit-codes").out
    for code in ExitCode:
        assert code in MEANINGS
        assert f"{int(code):>4}  " in text
    assert "CLOISON_ROOT" in cloison("help", "environment").out
    assert "Usage: cloison run" in cloison("help", "run").out


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(cloison: Run, shell: str) -> None:
    assert "_CLOISON_COMPLETE" in cloison("completion", shell).out


def _completed(line: str) -> subprocess.CompletedProcess[str]:
    """What bash is told at the end of ``line``."""
    env = {**os.environ, "_CLOISON_COMPLETE": "bash_complete", "COMP_LINE": line, "COMP_WORDBREAKS": " :="}
    return subprocess.run(
        [sys.executable, "-c", "from cloison.cli import main; main()"], env=env, capture_output=True, text=True
    )


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        *((line, "work") for line in ("cloison start wo", "cloison run wo", "cloison run -t wo")),
        ("cloison list --json wo", "work"),
        ("cloison volume info wo", "work:"),
        ("cloison volume info work:pri", "private"),
        ("cloison run --dispvm=def", "default-dvm"),
        ("cloison help exit", "exit-codes"),
        ("cloison help stand", "standalone"),
    ],
)
def test_bash_is_told_how_the_word_goes_on(daemon: Any, line: str, answer: str) -> None:
    assert _completed(line).stdout == f"plain,{answer}\n"


def test_completion_without_a_daemon_is_silent_and_starts_none(system: Layout) -> None:
    done = _completed("cloison start wo")
    assert (done.stdout.strip(), done.stderr) == ("", "")
    assert not system.log.exists()


def test_the_daemon_that_is_not_there_is_4(system: Layout, capfd: pytest.CaptureFixture[str]) -> None:
    from cloison.cli import main

    assert main(["daemon", "status"]) == 1
    assert "not running" in capfd.readouterr().out


def test_an_unknown_outcome_is_5(cloison: Run, daemon: Any) -> None:
    daemon.answers("admin.vm.Kill", b"")
    done = cloison("kill", "work")
    assert done.code == ExitCode.UNKNOWN
    assert done.err.count("\n") == 1


def test_a_reader_that_goes_away_is_no_drama(daemon: Any) -> None:
    for number in range(2000):
        daemon.rows.append({**daemon.rows[-1], "name": f"q{number}"})
    done = subprocess.run(f"{' '.join(PROGRAM)} list | head -1", shell=True, capture_output=True, text=True)
    assert done.stderr == ""
    assert done.stdout.startswith("NAME")


def test_ctrl_c_is_130_without_a_word(daemon: Any) -> None:
    daemon.answers("admin.Events", daemon.event("", "connection-established"))
    code = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); from cloison.cli import main; "
    )
    code += "sys.exit(main())"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "events"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout and process.stderr
    process.stdout.readline()
    process.send_signal(2)
    assert process.wait(20) == 130
    assert process.stderr.read() == ""


def test_colours_only_on_terminals_and_never_with_no_color(daemon: Any) -> None:
    assert "\x1b[94mwork" in _on_terminal(["list"])
    assert "\x1b" not in _on_terminal(["list"], NO_COLOR="1")
    assert "\x1b" not in _on_terminal(["--color", "never", "list"])


def _on_terminal(words: list[str], **env: str) -> str:
    pid, master = pty.fork()
    if pid == 0:
        os.environ.update({"TERM": "xterm", **env})
        os.execv(sys.executable, [*PROGRAM, *words])
    seen = b""
    while True:
        try:
            data = os.read(master, 65536)
        except OSError:
            break
        if not data:
            break
        seen += data
    os.waitpid(pid, 0)
    return seen.decode()


def test_another_root_is_another_system(daemon: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from cloison.cli import main

    assert main(["--root", str(tmp_path / "other"), "daemon", "status"]) == 1
    assert "other" in capfd.readouterr().out


def test_a_list_of_a_hundred_qubes_imports_little(daemon: Any) -> None:
    heavy = {"asyncio", "rich", "cloison.wire", "subprocess", "concurrent.futures"}
    code = "import sys; from cloison.cli import main; main(['list']); "
    code += f"print(sorted({heavy} & set(sys.modules)), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr == "[]\n"


def test_the_documented_exit_codes_are_the_real_ones() -> None:
    page = (Path(__file__).parents[3] / "docs" / "command-line.md").read_text()
    rows = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("|") and line[2].isdigit()]
    assert {(int(code), meaning) for code, meaning in rows} == {(int(c), m) for c, m in MEANINGS.items()}
