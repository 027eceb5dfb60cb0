"""Which lines of shell may be executed without a shell."""

from __future__ import annotations

import shlex
import subprocess

import pytest

from cloison_agent.plainline import find_words

BASH = "/bin/bash"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("true", ["true"]),
        ("/usr/bin/id -u", ["/usr/bin/id", "-u"]),
        ("ls  --color=never 'my file' it''s", ["ls", "--color=never", "my file", "its"]),
        (" cat - ", ["cat", "-"]),
        (shlex.join(["printenv", "", "a b", "$HOME", "*"]), ["printenv", "", "a b", "$HOME", "*"]),
        ("'my program'", ["my program"]),
    ],
)
def test_plain_commands_need_no_shell(line: str, words: list[str]) -> None:
    assert find_words(line, BASH) == words
    if words[0] not in ("true",):
        seen = subprocess.run([BASH, "-c", f"set -- {line}; printf '%s\\n' \"$@\""], capture_output=True, text=True)
        assert seen.stdout == "".join(f"{word}\n" for word in words), "bash splits it in the same way"


@pytest.mark.parametrize(
    "line",
    [
        *("", " ", "echo hi", "cd /", "exit 3", ": x", ". file", "time true", "kill 1", "test -e x", "export A"),
        *("A=1 true", "a=b", "true; false", "true && false", "true | cat", "true &", "true > x", "true < x"),
        *("ls *", "ls ?", "ls [a]", "ls ~", "echo $HOME", "ls `x`", "ls $(x)", "ls {a,b}", "! true", "ls # x"),
        *('ls "a"', "ls a\\ b", "ls 'a", "ls a\nid", "ls 'a\nb'", "(true)", "ls\ttab", "''", "-x", "ls \x00", "ls é"),
    ],
)
def test_everything_else_is_the_shell_s_business(line: str) -> None:
    assert find_words(line, BASH) is None


def test_only_for_shells_that_we_know() -> None:
    assert find_words("true", "/usr/bin/fish") is None
    assert find_words("true", "/bin/sh") == ["true"]
