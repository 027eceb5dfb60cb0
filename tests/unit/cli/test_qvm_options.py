"""Options of the `qvm-*` commands that scripts use beside the plain ones."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cloison.cli.qvm import run

Run = Callable[..., Any]


@pytest.fixture
def qvm(daemon: Any, capfd: pytest.CaptureFixture[str]) -> Run:
    def call(program: str, *words: str) -> tuple[int, str, str]:
        capfd.readouterr()
        code = run(program, list(words))
        out, err = capfd.readouterr()
        return int(code), out, err

    return call


@pytest.mark.parametrize(
    ("words", "asked"),
    [
        (
            "qvm-create -l red -p root=fast --pool private=big new",
            "admin.vm.CreateInPool.AppVM dom0 name=new label=red pool:root=fast pool:private=big",
        ),
        ("qvm-clone -P big work w2", 'cloison.qube.Clone work {"name":"w2","pool":"big"}'),
        ("qvm-clone -p root=big -p private=big work w2", 'cloison.qube.Clone work {"name":"w2","pool":"big"}'),
        ("qvm-remove -f --all --exclude debian-13 --exclude default-dvm", "admin.vm.Remove vault"),
    ],
)
def test_a_program_asks_the_daemon(qvm: Run, daemon: Any, words: str, asked: str) -> None:
    code, _, err = qvm(*words.split())
    assert (code, err) == (0, "")
    assert daemon.calls()[-1] == asked


@pytest.mark.parametrize(
    "words",
    [
        "qvm-create -l red -P a -p root=b new",
        "qvm-create -l red -C StandaloneVM -t debian-13 -p root=a -p private=b new",
        "qvm-clone -p root=a -p private=b work w2",
        "qvm-remove",
        "qvm-remove --all work",
        "qvm-volume import work:private -",
    ],
)
def test_what_cannot_be_meant_is_wrong_use(qvm: Run, daemon: Any, words: str) -> None:
    assert qvm(*words.split())[0] == 2
    assert daemon.calls() == []


@pytest.mark.parametrize(
    ("words", "names"),
    [
        ("--class TemplateVM", "debian-13"),
        ("--label blue", "work"),
        ("--netvm-is sys-firewall", "default-dvm work"),
        ("--prefs memory=400", "work"),
        ("--features colour=warm", "vault"),
        ("--internal y", "vault"),
        ("--running --sort STATE --reverse --class AppVM", "work sys-net sys-firewall"),
    ],
)
def test_filters_of_the_list(qvm: Run, daemon: Any, words: str, names: str) -> None:
    missing = daemon.refused("QubesFeatureNotFoundError", "no")
    daemon.answers("admin.vm.feature.Get", lambda _, dest, __: daemon.ok("warm") if dest == "vault" else missing)
    assert qvm("qvm-ls", "--raw-list", *words.split())[1].split() == names.split()


@pytest.mark.parametrize(("flag", "column"), [("-d", "PRIV-CURR"), ("-n", "GATEWAY"), ("-k", "KERNELOPTS")])
def test_short_names_of_formats(qvm: Run, daemon: Any, flag: str, column: str) -> None:
    assert column in qvm("qvm-ls", flag)[1].splitlines()[0].split()


def test_a_volume_is_imported(qvm: Run, daemon: Any, tmp_path: Path) -> None:
    (tmp_path / "x.img").write_bytes(b"a" * 300_000)
    assert qvm("qvm-volume", "import", "work:private", str(tmp_path / "x.img")) == (0, "", "")
    assert daemon.asked[-1] == ("admin.vm.volume.ImportWithSize", "private", "work", b"300000\n" + b"a" * 300_000)
    assert qvm("qvm-volume", "import", "--no-resize", "work:private", str(tmp_path / "x.img"))[0] == 0
    assert daemon.asked[-1][0] == "admin.vm.volume.Import"
    daemon.answers("admin.vm.volume.ImportWithSize", daemon.refused("QubesVMNotHaltedError", "work is running"))
    assert qvm("qvm-volume", "import", "work:private", str(tmp_path / "x.img")) == (
        1, "", "qvm-volume: work is running\n")  # fmt: skip
    assert qvm("qvm-volume", "import", "work:private", str(tmp_path / "none"))[0] == 1


@pytest.mark.parametrize("option", ["--nogui", "--no-gui", "-G", "--auto", "--no-auto"])
def test_older_spellings_of_run(qvm: Run, broker: Any, option: str) -> None:
    assert qvm("qvm-run", "-p", option, "work", "echo hello")[:2] == (0, "hello\n")
    assert broker.calls[0].nogui is ("gui" in option or option == "-G")
    assert broker.calls[0].autostart is (option != "--no-auto")


def test_shells_complete_the_programs_too(daemon: Any, system: Any) -> None:
    words = {**os.environ, "_CLOISON_COMPLETE": "bash_complete", "COMP_LINE": "qvm-prefs wo", "COMP_WORDBREAKS": " "}
    program = "import sys; from cloison.cli.qvm import run; sys.exit(run('qvm-prefs', []))"
    done = subprocess.run([sys.executable, "-c", program], env=words, capture_output=True, text=True, timeout=60)
    assert done.stdout == "plain,work\n"


def test_the_completion_script_names_every_program(cloison: Run) -> None:
    from cloison.cli.qvm import PROGRAMS

    for shell, line in (("bash", "nosort -F _{}_completion {}\n"), ("fish", "--command {} "), ("zsh", "#compdef {}\n")):
        script = cloison("completion", shell).out
        for name in ("cloison", *PROGRAMS):
            assert line.replace("_{}_", f"_{name.replace('-', '_')}_").format(name) in script


@pytest.mark.parametrize(
    ("words", "asked"),
    [
        ("pool add -o dir_path=/x big qcow2", "admin.pool.Add+qcow2 dom0 name=big\ndir_path=/x"),
        ("pool remove big", "admin.pool.Remove+big dom0"),
        ("pool set -o revisions_to_keep=3 big", "admin.pool.Set.revisions_to_keep+big dom0 3"),
    ],
)
def test_pools_are_changed(cloison: Run, daemon: Any, words: str, asked: str) -> None:
    assert cloison(*words.split()).code == 0
    assert daemon.calls() == [asked]
    assert cloison("pool", "set", "-o", "driver=x", "big").code == 1
