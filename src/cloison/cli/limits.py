"""``cloison limits``: how much a qube may ask for. Reads the files itself: no daemon is needed."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from cloison.cli.command import group, json_option, subcommand
from cloison.cli.session import Session
from cloison.cli.table import Cell

COMMAND = group("limits", examples=(
    ("cloison limits list", "the rules in reading order, the built-in ones last"),
    ("cloison limits check", "are the files right?"),
))(lambda: None)  # fmt: skip
COMMAND.help = "Limits of calls: how many at once, how often, how many bytes, how long (files limits.d/NAME.limits)."


@subcommand(COMMAND, "list", examples=(("cloison limits list", "for each kind of limit the first match wins"),))
@json_option
def list_limits(session: Session, as_json: bool) -> None:
    """List the limit rules in reading order. Fails if a file is wrong, as then every call is refused."""
    from cloison.policy.limits import LimitSource

    rules = LimitSource(session.layout.limits).current().rules
    if as_json:
        session.show_json([
            {"service": rule.service, "argument": rule.argument, "source": rule.source.text, "target": rule.target.text,
             **{limit.kind.value: limit.text for limit in rule.limits},
             "file": rule.place.file, "line": rule.place.line or None}
            for rule in rules
        ])  # fmt: skip
        return
    rows = [
        [Cell(word) for word in (rule.service, rule.argument, rule.source.text, rule.target.text,
                                 " ".join(map(str, rule.limits)), rule.where)]
        for rule in rules
    ]  # fmt: skip
    session.show_table(("SERVICE", "ARGUMENT", "SOURCE", "TARGET", "LIMITS", "WHERE"), rows)


@subcommand(COMMAND, "check", examples=(
    ("cloison limits check", "this system's files"),
    ("cloison limits check office.limits", "a file, before it is put in place"),
))  # fmt: skip
@click.argument(
    "files", nargs=-1, type=click.Path(path_type=Path, dir_okay=False, allow_dash=True), metavar="[FILE]..."
)
@json_option
def check_limits(session: Session, files: tuple[Path, ...], as_json: bool) -> None:
    """Find the first error, as FILE:LINE. Exit code 1 if there is one."""
    from cloison.policy.errors import PolicyError

    try:
        _check(session, files)
    except PolicyError as error:
        if not as_json:
            raise
        session.show_json([{"file": error.file, "line": error.line, "message": error.plain_message}])
        raise click.exceptions.Exit(1) from None
    if as_json:
        session.show_json([])
    else:
        session.say("nothing to complain about")


def _check(session: Session, files: tuple[Path, ...]) -> None:
    from cloison.policy.grammar import decode_policy
    from cloison.policy.limits import LimitSource, parse_limits

    if not files:
        LimitSource(session.layout.limits).current()
    for file in files:
        content = sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
        for _ in parse_limits(decode_policy(content, str(file)), str(file)):
            pass
