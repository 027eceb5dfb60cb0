"""``cloison completion``."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from cloison.cli.command import command
from cloison.cli.session import Session


@command("completion", examples=(
    ('eval "$(cloison completion bash)"', "in ~/.bashrc"),
    ('eval "$(cloison completion zsh)"', "in ~/.zshrc, after compinit"),
    ("cloison completion fish > ~/.config/fish/completions/cloison.fish", "once"),
))  # fmt: skip
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def COMMAND(session: Session, shell: str) -> None:
    """Print the completion script of a shell: commands, options, names of qubes."""
    from cloison.cli.entry import program

    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(program, {}, "cloison", "_CLOISON_COMPLETE").source())
