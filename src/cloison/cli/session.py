"""What one run of the program holds: the client, the terminal, how talkative to be.

In: options. Out: calls carried out, text shown. May import: client, cli.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

import click

from cloison.cli.colours import Palette, terminal_width
from cloison.cli.exitcodes import exit_code_for
from cloison.cli.table import Cell, render_table
from cloison.errors import CloisonError
from cloison.layout import Layout

if TYPE_CHECKING:
    from cloison.client import Client
    from cloison.client.calls import Call

T = TypeVar("T")


class Session:
    """Made once by the program's group, handed to every command."""

    def __init__(self, program: str = "cloison", code_of: Callable[[CloisonError], int] = exit_code_for) -> None:
        self.program = program
        self._code_of = code_of
        self.quiet = False
        self.verbose = False
        self.colour = "auto"

    @cached_property
    def layout(self) -> Layout:
        return Layout.from_environment()

    @cached_property
    def client(self) -> Client:
        from cloison.client import Client

        return Client(self.layout)

    @cached_property
    def palette(self) -> Palette:
        return Palette.for_stream(sys.stdout, self.colour)

    @cached_property
    def is_talking(self) -> bool:
        """Somebody watches standard error."""
        return not self.quiet and sys.stderr.isatty()

    def do(self, call: Call[T], *, timeout_s: float | None = None) -> T:
        """One quick call."""
        return self.client.do(call, timeout_s=timeout_s)

    def wait(self, call: Call[T], doing: str) -> T:
        """A call that takes a moment: says what it is doing while it does, and wipes that out afterwards."""
        if not self.is_talking:
            return self.client.do(call)
        sys.stderr.write(f"{doing}…")
        sys.stderr.flush()
        try:
            return self.client.do(call)
        finally:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()

    def carry_out(self, call: Call[T], doing: str) -> T:
        """A long verb: its progress is shown on terminals, told in plain lines elsewhere, not at all with -q."""
        from cloison.cli.progress import open_progress

        with open_progress(doing, quiet=self.quiet, verbose=self.verbose) as on_event:
            return self.client.do(call, on_event=on_event)

    def say(self, text: str) -> None:
        """A remark for a person who watches; never part of the output."""
        if self.is_talking:
            click.echo(text, err=True)

    def complain(self, error: CloisonError) -> None:
        """One line on standard error."""
        from cloison.client.framing import printable

        word = Palette.for_stream(sys.stderr, self.colour).error(f"{self.program}:")
        click.echo(f"{word} {printable(str(error))}", err=True)

    def each(self, names: Iterable[str], act: Callable[[str], object]) -> None:
        """``act`` on every name; failures are told and the rest goes on; exits with the first failure's code."""
        first = 0
        for name in names:
            try:
                act(name)
            except CloisonError as error:
                self.complain(error)
                first = first or int(self._code_of(error))
        if first:
            raise click.exceptions.Exit(first)

    def show_json(self, value: Any) -> None:
        import json

        click.echo(json.dumps(value, indent=2, ensure_ascii=False))

    def show_table(self, headings: Sequence[str], rows: Sequence[Sequence[Cell]]) -> None:
        width = terminal_width() if sys.stdout.isatty() else None
        click.echo("\n".join(render_table(headings, rows, self.palette, width=width)), color=True)

    def confirm(self, question: str, *, assume_yes: bool, option: str = "--yes") -> None:
        """Go on if the person says yes; otherwise end. Without a person ``option`` must have been given."""
        if assume_yes:
            return
        if not sys.stdin.isatty():
            raise click.UsageError(f"{question} Nobody is there to ask; give {option}")
        if not click.confirm(question, err=True):
            raise click.exceptions.Exit(1)
