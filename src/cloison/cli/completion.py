"""``cloison completion``."""

from __future__ import annotations

import os
from typing import Any

import click
from click.shell_completion import (
    BashComplete,
    CompletionItem,
    add_completion_class,
    get_completion_class,
    split_arg_string,
)

from cloison.cli.command import command
from cloison.cli.session import Session


class Bash(BashComplete):
    """Bash takes words apart at ``:`` and ``=``; we read the line itself, and answer what follows the last of them."""

    source_template = BashComplete.source_template.replace(
        'COMP_WORDS="${COMP_WORDS[*]}" COMP_CWORD=$COMP_CWORD',
        'COMP_LINE="${COMP_LINE:0:COMP_POINT}" COMP_WORDBREAKS="$COMP_WORDBREAKS"',
    ).replace("    return 0\n", "    [[ $COMPREPLY == *[:=] ]] && compopt -o nospace\n\n    return 0\n")
    _standing = ""

    def get_completion_args(self) -> tuple[list[str], str]:
        line = os.environ.get("COMP_LINE", "")
        words = split_arg_string(line)
        incomplete = "" if not words or line[-1:].isspace() else words.pop()
        breaks = set(os.environ.get("COMP_WORDBREAKS", "")) & set(":=")
        self._standing = incomplete[: max((incomplete.rfind(mark) + 1 for mark in breaks), default=0)]
        return words[1:], incomplete

    def format_completion(self, item: CompletionItem[Any]) -> str:
        return f"{item.type},{item.value.removeprefix(self._standing)}"


add_completion_class(Bash)


@command("completion", examples=(
    ('eval "$(cloison completion bash)"', "in ~/.bashrc"),
    ('eval "$(cloison completion zsh)"', "in ~/.zshrc, after compinit"),
    ("cloison completion fish > ~/.config/fish/completions/cloison.fish", "once"),
))  # fmt: skip
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def COMMAND(session: Session, shell: str) -> None:
    """Print the completion script of a shell. Commands, options and names of qubes are completed.

    It is for `cloison` and for the `qvm-*` commands.
    """
    from cloison.cli import qvm
    from cloison.cli.entry import program

    kind = get_completion_class(shell)
    assert kind is not None
    for name in ("cloison", *qvm.PROGRAMS):
        click.echo(kind(program, {}, name, qvm.COMPLETE).source())
