"""Whatever is typed: an exit code, at most one line of complaint, never a traceback."""

from __future__ import annotations

from typing import Any

import click
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cloison.cli import main
from cloison.cli.entry import program
from cloison.cli.exitcodes import ExitCode

HARMLESS = ("list", "start", "shutdown", "kill", "pause", "unpause", "create", "clone", "rename", "remove", "prefs",
            "features", "services", "tags", "autostart", "template", "forkpoint", "volume", "pool", "system-prefs",
            "label", "standalone", "version", "help", "completion")  # fmt: skip
"""Those that start no process and read no standard input."""
ODD = st.one_of(
    st.text(max_size=40),
    st.sampled_from(
        ["work", "dom0", "", "-", "--", "--json", "-x", "a b", "work:private", "\0", "\x1b[31m", "é", "10G"]
    ),
    st.sampled_from(["list", "add", "make", "resize", "build", "--prop", "--label", "-h", "%s", "x" * 70000]),
)


def words() -> st.SearchStrategy[list[str]]:
    return st.builds(lambda name, rest: [name, *rest], st.sampled_from(HARMLESS), st.lists(ODD, max_size=4))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(line=words())
def test_no_words_make_a_traceback(daemon: Any, capfd: pytest.CaptureFixture[str], line: list[str]) -> None:
    capfd.readouterr()
    code = main(line)
    out, err = capfd.readouterr()
    assert code in set(ExitCode), line
    assert "Traceback" not in out + err
    assert code != 0 or "cloison:" not in err
    is_help = code == ExitCode.USAGE and err.startswith("Usage: cloison")  # of a group whose command is missing
    assert code == 0 or is_help or len(err.splitlines()) <= 1 + len(line), (line, err)
    assert "\x1b" not in err


def test_the_harmless_are_commands() -> None:
    assert set(HARMLESS) <= set(program.list_commands(click.Context(program)))
