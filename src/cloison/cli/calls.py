"""``cloison calls``: what runs between qubes now."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from cloison.cli.choices import NumberType, complete_from
from cloison.cli.command import group, json_option, subcommand
from cloison.cli.session import Session
from cloison.cli.table import Cell, human_bytes, human_seconds
from cloison.client.framing import Event, printable

if TYPE_CHECKING:
    from cloison.cli.colours import Palette

_STYLES = {"denied": "31", "failed": "31", "began": "32", "ended": "2"}


class CallIdType(NumberType):
    """The id of a call that runs."""

    name = "id"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        text = str(value)
        if not text.isdecimal() or not text.isascii() or len(text) > 18:
            self.fail(f"{text!a} is not the id of a call; `cloison calls` shows them", param, ctx)
        return int(text)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        def question() -> list[tuple[str, str]]:
            from cloison.cli.choices import COMPLETION_TIMEOUT_S
            from cloison.client import Client, calls

            rows = Client(start_daemon=False).do(calls.call_list(), timeout_s=COMPLETION_TIMEOUT_S)
            return [(str(row["id"]), f"{row['source']} to {_target(row)}: {row['service']}") for row in rows]

        return complete_from(question, incomplete)


@group("calls", invoke_without_command=True, examples=(
    ("cloison calls", "what runs now"),
    ("cloison calls --follow", "what begins, ends and is refused, as it happens"),
    ("cloison calls kill 17", "end one of them"),
))  # fmt: skip
@click.option("-f", "--follow", is_flag=True, help="Go on: a line for each call that begins, ends or is refused.")
@json_option
@click.pass_context
def COMMAND(ctx: click.Context, follow: bool, as_json: bool) -> None:
    """Show the calls that run between qubes: who, to whom, which service, bytes each way, age."""
    if ctx.invoked_subcommand is None:
        session = ctx.ensure_object(Session)
        if follow:
            _follow(session, as_json)
        else:
            _show(session, as_json)


@subcommand(COMMAND, "kill", examples=(("cloison calls kill 17", "both ends are told that it is over"),))
@click.argument("ids", nargs=-1, required=True, type=CallIdType(), metavar="ID...")
def kill(session: Session, ids: tuple[int, ...]) -> None:
    """End calls now. Both programs see the connection end; what a service has done by then stays done."""
    from cloison.client import calls

    session.each(map(str, ids), lambda number: session.do(calls.call_kill(int(number))))


def _show(session: Session, as_json: bool) -> None:
    from cloison.client import calls

    rows = session.do(calls.call_list())
    if as_json:
        session.show_json(rows)
        return
    if not rows:
        session.say("no calls")
        return
    session.show_table(
        ("ID", "SOURCE", "TARGET", "SERVICE", "STATE", "SENT", "ANSWERED", "AGE"), [_cells(row) for row in rows]
    )


def _cells(row: dict[str, Any]) -> list[Cell]:
    return [
        Cell(str(row["id"]), right=True),
        Cell(printable(row["source"])),
        Cell(_target(row)),
        Cell(printable(row["service"])[:60]),
        Cell(row["state"]),
        Cell(human_bytes(row["stdin_bytes"]), right=True),
        Cell(human_bytes(row["stdout_bytes"] + row["stderr_bytes"]), right=True),
        Cell(human_seconds(row["age_s"]), right=True),
    ]


def _target(row: dict[str, Any]) -> str:
    return printable(row["target"] or row["requested_target"] or "@default")


def _follow(session: Session, as_json: bool) -> None:
    from cloison.client import calls

    def tell(event: Event) -> None:
        if "json" not in event.fields:
            return
        row = json.loads(event.fields["json"])
        if as_json:
            click.echo(json.dumps({"event": event.name, "time": round(time.time(), 3), **row}))
        else:
            click.echo(_line(session.palette, event.name, row), color=True)

    session.client.do(calls.call_follow(), on_event=tell)


def _line(palette: Palette, name: str, row: dict[str, Any]) -> str:
    more = ""
    if name == "ended":
        passed = human_bytes(row["stdin_bytes"]), human_bytes(row["stdout_bytes"] + row["stderr_bytes"])
        code = "no exit code" if row.get("exit_code") is None else f"exit code {row['exit_code']}"
        more = f"{code}, {passed[0]} sent, {passed[1]} answered, after {human_seconds(row['age_s'])}"
    why = printable(row.get("reason") or "")
    more = ", ".join(part for part in (more, why) if part)
    text = f"{row['id']} {printable(row['source'])} to {_target(row)}: {printable(row['service'])[:80]}"
    styled = palette.style(f"{name:<6}", _STYLES.get(name, ""))
    return f"{palette.dim(time.strftime('%H:%M:%S'))} {styled} {text}{f' ({more})' if more else ''}"
