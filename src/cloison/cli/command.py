"""How a command is declared: a function, its options, and examples that the help shows.

In: functions. Out: click commands. May import: cli.session.

Every command has ``-q`` and ``-v`` beside the group's, and gets the ``Session`` as its first argument.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import click

from cloison.cli.session import Session

Examples = Sequence[tuple[str, str]]
HELP_OPTIONS: dict[str, Any] = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


class ExampleCommand(click.Command):
    """A command whose help ends with examples."""

    def __init__(self, *args: Any, examples: Examples = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.examples = examples

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        write_examples(self.examples, formatter)
        super().format_epilog(ctx, formatter)


class ExampleGroup(click.Group):
    """A command with sub-commands, shown in the order of their declaration."""

    command_class = ExampleCommand

    def __init__(self, *args: Any, examples: Examples = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.examples = examples

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        write_examples(self.examples, formatter)
        super().format_epilog(ctx, formatter)


class QubeFirstGroup(ExampleGroup):
    """A group whose commands may also follow the qube: ``firewall work list`` is ``firewall list work``."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if len(args) > 1 and args[0] not in self.commands and args[1] in self.commands:
            args = [args[1], args[0], *args[2:]]
        return super().resolve_command(ctx, args)


def write_examples(examples: Examples, formatter: click.HelpFormatter) -> None:
    if examples:
        with formatter.section("Examples"):
            formatter.write_dl([(f"$ {line}", comment) for line, comment in examples], col_max=52)


def _be(attribute: str) -> Callable[[click.Context, click.Parameter, bool], None]:
    def callback(ctx: click.Context, _: click.Parameter, value: bool) -> None:
        if value:
            setattr(ctx.ensure_object(Session), attribute, True)

    return callback


def talk_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """``-q`` and ``-v``."""
    quiet = click.option("-q", "--quiet", is_flag=True, expose_value=False, callback=_be("quiet"),
                         help="Say nothing but results and errors.")  # fmt: skip
    verbose = click.option("-v", "--verbose", is_flag=True, expose_value=False, callback=_be("verbose"),
                           help="Show the details of long work.")  # fmt: skip
    return quiet(verbose(function))


def command(name: str, *, examples: Examples, cls: type[ExampleCommand] = ExampleCommand,
            **kwargs: Any) -> Callable[[Callable[..., Any]], ExampleCommand]:  # fmt: skip
    """Declare a command. The function's docstring is its help; its first argument is the Session."""

    def declare(function: Callable[..., Any]) -> ExampleCommand:
        settings = {**HELP_OPTIONS, **kwargs.pop("context_settings", {})}
        wrapped = talk_options(click.make_pass_decorator(Session, ensure=True)(function))
        return click.command(name, cls=cls, examples=examples, context_settings=settings, **kwargs)(wrapped)

    return declare


def group(name: str, *, examples: Examples = (), cls: type[ExampleGroup] = ExampleGroup,
          **kwargs: Any) -> Callable[[Callable[..., Any]], ExampleGroup]:  # fmt: skip
    """Declare a command with sub-commands (``add`` them with ``@subcommand``)."""

    def declare(function: Callable[..., Any]) -> ExampleGroup:
        made = click.group(name, cls=cls, examples=examples, context_settings=HELP_OPTIONS, **kwargs)(function)
        assert isinstance(made, ExampleGroup)
        return made

    return declare


def subcommand(parent: click.Group, name: str, *, examples: Examples,
               **kwargs: Any) -> Callable[[Callable[..., Any]], ExampleCommand]:  # fmt: skip
    """Declare a sub-command of ``parent``."""

    def declare(function: Callable[..., Any]) -> ExampleCommand:
        made = command(name, examples=examples, **kwargs)(function)
        parent.add_command(made)
        return made

    return declare


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
yes_option = click.option("-y", "--yes", is_flag=True, help="Do not ask.")


def is_interactive() -> bool:
    """Both ends of the conversation are a terminal."""
    return sys.stdin.isatty() and sys.stdout.isatty()
