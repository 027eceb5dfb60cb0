"""Progress of long verbs.

In: events of a running call. Out: a moving line on a terminal, plain lines elsewhere, nothing with -q.
May import: client.framing. ``rich`` is imported only when it draws.

Events: ``progress`` (step, text, percent), ``log`` (line), ``warning`` (text); any key may be missing or empty.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click

from cloison.cli.table import human_seconds
from cloison.client.framing import Event, printable

OnEvent = Callable[[Event], None]
PLAIN_STEP_S = 3.0
"""In a log file, steps that pass faster than this are not all told."""
PLAIN_INTERVAL_S = 15.0
"""In a log file, a step that lasts says how far it is this often."""


@contextmanager
def open_progress(doing: str, *, quiet: bool, verbose: bool) -> Iterator[OnEvent]:
    """A sink for a call's events while it runs; says how long it took at the end."""
    if quiet:
        yield lambda event: None
    elif sys.stderr.isatty():
        with _moving(doing, verbose) as on_event:
            yield on_event
    else:
        plain = _PlainLines(doing, verbose)
        yield plain.on_event
        plain.finish()


def _number(text: str | None) -> float | None:
    try:
        return float(text) if text else None
    except ValueError:
        return None


def _step(fields: dict[str, str]) -> str:
    """What is going on now, in one short line."""
    parts = [printable(fields.get(key, "")) for key in ("step", "text")]
    return ": ".join(part for part in parts if part)


def _percent(fields: dict[str, str]) -> str:
    percent = _number(fields.get("percent"))
    return "" if percent is None else f"{percent:.0f} %"


class _PlainLines:
    """One line per step, with times: for log files. Work without steps is not worth a line."""

    def __init__(self, doing: str, verbose: bool) -> None:
        self._doing = doing
        self._verbose = verbose
        self._started = self._last = time.monotonic()
        self._step = ""
        self._is_announced = False

    def on_event(self, event: Event) -> None:
        if not self._is_announced:
            click.echo(self._doing, err=True)
            self._is_announced = True
        if event.name == "progress":
            step, now = _step(event.fields), time.monotonic()
            waited = now - self._last
            if (step != self._step and waited >= PLAIN_STEP_S) or waited >= PLAIN_INTERVAL_S or not self._step:
                self._step, self._last = step, now
                click.echo(
                    f"  [{human_seconds(now - self._started)}] {step} {_percent(event.fields)}".rstrip(), err=True
                )
        else:
            _show_remark(event, self._verbose)

    def finish(self) -> None:
        if self._is_announced:
            click.echo(f"{self._doing}: done in {human_seconds(time.monotonic() - self._started)}", err=True)


def _show_remark(event: Event, verbose: bool, show: Callable[[str], object] | None = None) -> None:
    show = show or (lambda text: click.echo(text, err=True))
    if event.name == "warning":
        show(f"  warning: {printable(event.fields.get('text', ''))}")
    elif event.name == "log" and verbose:
        show(f"  | {printable(event.fields.get('line', ''))}")


@contextmanager
def _moving(doing: str, verbose: bool) -> Iterator[OnEvent]:
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = Console(stderr=True, highlight=False)
    started = time.monotonic()
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[far]}", style="dim"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(escape(doing), total=None, far="")

        def on_event(event: Event) -> None:
            if event.name == "progress":
                step, percent = _step(event.fields), _number(event.fields.get("percent"))
                progress.update(
                    task,
                    description=escape(f"{doing}: {step}" if step else doing),
                    total=None if percent is None else 100,
                    completed=percent or 0,
                    far=_percent(event.fields),
                )
            else:
                _show_remark(event, verbose, lambda text: console.print(escape(text)))

        yield on_event
    console.print(f"[green]✓[/green] {escape(doing)} [dim]({human_seconds(time.monotonic() - started)})[/dim]")
