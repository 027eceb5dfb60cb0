"""``cloison audit``: what was decided and done, whether the record of it is whole, and erasing parts of it.

In: the audit log's files (no daemon is needed to read or check them). Out: tables, JSON. May import: ``qrexec.audit``.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from cloison.cli.choices import QUBE, TextType
from cloison.cli.colours import LABEL_STYLES
from cloison.cli.command import group, json_option, subcommand, talk_options, yes_option
from cloison.cli.session import Session
from cloison.cli.table import Cell, human_bytes, human_seconds
from cloison.errors import BadRequest, CloisonError

if TYPE_CHECKING:
    from cloison.qrexec.audit.query import Filter
    from cloison.qrexec.audit.segments import Entry
    from cloison.qrexec.audit.verify import Report

KINDS = ("call", "prompt", "change", "policy", "qube", "daemon", "audit")
VERDICTS = ("allow", "deny", "ask")
DEFAULT_COUNT = 50
HEADINGS = ("TIME", "WHAT", "FROM", "TO", "SERVICE", "DETAIL")
_FOLLOW_WIDTHS = (14, 16, 14, 14, 30)
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_STYLES = {"allow": "32", "deny": "31;1", "failed": "31", "start failed": "31", "erased": "33", "changed": "33",
           "repaired": "33", "shortened": "33"}  # fmt: skip
_FORMATS = ("%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%d %H:%M", "%Y-%m-%dT%H:%M", "%Y-%m-%d")


class MomentType(TextType):
    """``2h``, ``3d``, ``today``, ``14:30``, ``2026-03-01 14:30``: seconds since 1970, as text."""

    name = "time"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        moment = parse_moment(value, time.time())
        if moment is None:
            self.fail(f"{value!a} is no time, for example 2h, 3d, today, 14:30 or 2026-03-01", param, ctx)
        return str(moment)


def parse_moment(text: str, now: float) -> float | None:
    """Seconds since 1970; None if it is no time."""
    if match := re.fullmatch(r"(\d{1,6})([smhdw])", text):
        return now - int(match[1]) * _UNITS[match[2]]
    today = time.strftime("%Y-%m-%d", time.localtime(now))
    if text == "today":
        text = today
    elif text == "yesterday":
        text = time.strftime("%Y-%m-%d", time.localtime(now - 86400))
    elif re.fullmatch(r"\d{1,2}:\d{2}(:\d{2})?", text):
        text = f"{today} {text}"
    for form in _FORMATS:
        try:
            return time.mktime(time.strptime(text, form))
        except (ValueError, OverflowError):
            continue
    return None


MOMENT = MomentType()


class RecordedType(TextType):
    """The name of a qube that records exist of; it may be gone."""

    name = "qube"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        try:
            from cloison.qrexec.audit.recordkeys import RecordKeys

            names = RecordKeys(Session().layout.audit).names()
        except Exception:  # border: a shell waits; no answer is better than a traceback
            return []
        return [CompletionItem(name) for name in names if name.startswith(incomplete)]


def _complete_qube(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    return QUBE.shell_complete(ctx, param, incomplete)


def _qubes(name: str, variable: str, text: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """An option that names qubes, also such as are gone."""
    return click.option(name, variable, multiple=True, metavar="QUBE", help=text, shell_complete=_complete_qube)


@group("audit", invoke_without_command=True, examples=(
    ("cloison audit", "the last records"),
    ("cloison audit --qube work --since today", "what one qube did today"),
    ("cloison audit --verdict deny -n 20 --json", "for scripts"),
    ("cloison audit --follow", "as it happens, until Ctrl-C"),
    ("cloison audit verify", "is the record whole?"),
))  # fmt: skip
@_qubes("--source", "sources", "Calls by it.")
@_qubes("--target", "targets", "Calls to it, and changes of it.")
@_qubes("--qube", "qubes", "Anything about it.")
@click.option("--service", "services", multiple=True, metavar="SERVICE", help="Calls of it, without argument.")
@click.option("--verdict", "verdicts", multiple=True, type=click.Choice(VERDICTS), help="How it was decided.")
@click.option("--kind", "kinds", multiple=True, type=click.Choice(KINDS), help="What it is about.")
@click.option("--since", type=MOMENT, metavar="TIME", help="From then on: 2h, 3d, today, 14:30, 2026-03-01.")
@click.option("--until", type=MOMENT, metavar="TIME", help="Up to then.")
@click.option("-n", "--lines", type=click.IntRange(min=0),
              help=f"How many, the newest; 0: all. Default: {DEFAULT_COUNT}, or all with --since.")  # fmt: skip
@click.option("-f", "--follow", is_flag=True, help="Go on as records are added.")
@json_option
@talk_options
@click.pass_context
def COMMAND(ctx: click.Context, /, **options: Any) -> None:
    """Show what was decided and done: calls, answers, changes, starts and stops.

    Words for qubes and services may have * and ?. Options may be repeated: one of the words must fit.
    """
    if ctx.invoked_subcommand is None:
        _show(ctx.ensure_object(Session), **options)


def _show(session: Session, sources: tuple[str, ...], targets: tuple[str, ...], qubes: tuple[str, ...],
          services: tuple[str, ...], verdicts: tuple[str, ...], kinds: tuple[str, ...], since: str | None,
          until: str | None, lines: int | None, follow: bool, as_json: bool) -> None:  # fmt: skip
    from cloison.qrexec.audit.query import Filter, find_entries

    wanted = Filter(sources, targets, services, verdicts, qubes, kinds, _ns(since), _ns(until))
    count = lines if lines is not None else 0 if since else DEFAULT_COUNT
    directory = session.layout.audit
    entries = find_entries(directory, wanted, count)
    if follow:
        _follow(session, directory, wanted, entries, as_json)
    elif as_json:
        session.show_json([entry_value(entry) for entry in entries])
    elif entries:
        styles = _label_styles(session)
        session.show_table(HEADINGS, [_cells(entry, styles) for entry in entries])
    else:
        session.say("no such record")


def _ns(moment: str | None) -> int:
    return int(float(moment) * 1e9) if moment else 0


def _follow(session: Session, directory: Path, wanted: Filter, first: Sequence[Entry], as_json: bool) -> None:
    import json

    from cloison.qrexec.audit.query import Filter, find_entries, follow_entries

    newest = find_entries(directory, Filter(), 1)
    styles = {} if as_json else _label_styles(session)
    after = newest[-1].number if newest else 0
    for entry in _chain(first, follow_entries(directory, wanted, after)):
        if as_json:
            click.echo(json.dumps(entry_value(entry)))
            continue
        cells = _cells(entry, styles)
        padded = [
            session.palette.style(cell.text, cell.style) + " " * max(0, width - len(cell.text))
            for cell, width in zip(cells, (*_FOLLOW_WIDTHS, 0), strict=True)
        ]
        click.echo("  ".join(padded).rstrip(), color=True)


def _chain(first: Iterable[Entry], then: Iterable[Entry]) -> Iterable[Entry]:
    yield from first
    yield from then


def entry_value(entry: Entry) -> dict[str, Any]:
    """The JSON of a record: its place in the chain, when, and what is known of it."""
    seconds, fraction = divmod(entry.time_ns, 10**9)
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{fraction // 10**6:03}Z"
    return {
        "number": entry.number,
        "time": stamp,
        "monotonic_ns": entry.monotonic_ns,
        "boot": entry.boot,
        "erased": entry.fields is None,
        **(entry.fields or {}),
    }


def _label_styles(session: Session) -> dict[str, str]:
    """Colours of qubes' names, if a daemon runs that can tell."""
    from cloison.client import Client, calls

    try:
        rows = Client(session.layout, start_daemon=False).do(calls.list_qubes(["label"]), timeout_s=2.0)
    except CloisonError:
        return {}
    return {row["name"]: LABEL_STYLES.get(row["label"], "") for row in rows}


def _cells(entry: Entry, styles: dict[str, str]) -> list[Cell]:
    from cloison.client.framing import printable

    fields = entry.fields
    late = _number((fields or {}).get("at_ns"))  # it happened when nothing could be written
    when = time.strftime("%m-%d %H:%M:%S", time.localtime((late or entry.time_ns) / 1e9))
    if fields is None:
        return [Cell(when, "2"), Cell("(erased)", "2"), Cell("-"), Cell("-"), Cell("-"), Cell("")]
    what = _what(fields)
    style = _STYLES.get(str(fields.get("event")), _STYLES.get(str(fields.get("verdict", "")), ""))
    source = str(fields.get("source") or fields.get("who") or "")
    target = str(fields.get("target") or fields.get("qube") or fields.get("requested_target") or "")
    service = str(fields.get("service", ""))
    if argument := fields.get("argument"):
        service = f"{service}+{argument}" if service and service != "command" else f"{service} {argument}".strip()

    def qube(name: str) -> Cell:
        return Cell(printable(name) or "-", styles.get(name.removeprefix("@dispvm:"), ""))

    return [Cell(when), Cell(what, style), qube(source), qube(target), Cell(printable(service) or "-"),
            Cell(printable(_detail(fields)))]  # fmt: skip


def _what(fields: dict[str, Any]) -> str:
    kind, event = str(fields.get("kind")), str(fields.get("event"))
    match kind, event:
        case "call", "allowed":
            return "allow"
        case "call", "denied" | "denied-more":
            return "deny"
        case "call", _:
            return event
        case "prompt", _:
            return f"asked: {fields.get('verdict')}"
        case _:
            return f"{kind} {event}"


def _detail(fields: dict[str, Any]) -> str:
    parts = []
    if fields.get("event") == "ended":
        code = fields.get("exit_code")
        parts.append(f"exit {code}" if code is not None else "no exit code")
        parts.append(human_seconds(_number(fields.get("seconds"))))
        streams = (("in", "stdin_bytes"), ("out", "stdout_bytes"), ("err", "stderr_bytes"))
        parts += [f"{word} {human_bytes(int(count))}" for word, name in streams if (count := _number(fields.get(name)))]
    elif fields.get("rule"):
        parts.append(str(fields["rule"]).rpartition("/")[2])
    if "value" in fields or "old" in fields:
        parts.append(
            f"{fields.get('old', '')} → {fields.get('value', '')}" if "old" in fields else f"= {fields['value']}"
        )
    parts += [f"{name}={fields[name]}" for name in ("count", "refused", "until") if fields.get(name)]
    if "at_ns" in fields:
        parts.append("written late")
    if fields.get("event") != "allowed" and (reason := _reason_beyond_rule(fields)):
        parts.append(reason)
    return ", ".join(parts)


def _reason_beyond_rule(fields: dict[str, Any]) -> str:
    """The reason without the place of the rule, which stands before it already."""
    reason, rule = str(fields.get("reason") or ""), str(fields.get("rule") or "")
    return reason if not rule else "" if reason == f"denied by {rule}" else reason.removesuffix(f" (asked by {rule})")


def _number(value: object) -> float:
    """What somebody wrote into the log by hand may be anything."""
    return value if isinstance(value, int | float) and abs(value) < 1e18 else 0


@subcommand(COMMAND, "verify", examples=(
    ("cloison audit verify", "exit code 1: not whole, and the first wrong record is named"),
    ("cloison audit verify --key 3f21…", "with the key that you noted down when the system was new"),
    ("cloison audit verify --includes 1234:9c0e…", "is the head that you noted down still in it?"),
))  # fmt: skip
@click.option("--key", metavar="KEY", help="The first public key, from `cloison audit key`.")
@click.option("--includes", metavar="NUMBER:HASH", help="A head that an earlier verify printed.")
@json_option
def verify(session: Session, key: str | None, includes: str | None, as_json: bool) -> None:
    """Check that no record was altered, removed or moved."""
    from cloison.qrexec.audit.verify import verify_directory

    directory = session.layout.audit
    report = verify_directory(directory, _parse_key(key), _parse_head(includes))
    if as_json:
        session.show_json(report_value(report, key is not None))
    else:
        _show_report(session, report, given=key is not None)
    if not report.is_whole:
        raise click.exceptions.Exit(1)


def _parse_key(text: str | None) -> str:
    if text is None:
        return ""
    key = re.sub(r"[\s:-]", "", text).lower()
    if not re.fullmatch(r"[0-9a-f]{64}", key):
        raise click.BadParameter("a key has 64 hexadecimal digits; `cloison audit key` shows it")
    return key


def _parse_head(text: str | None) -> Any:
    from cloison.qrexec.audit.chain import Tip

    if text is None:
        return None
    match = re.fullmatch(r"(\d{1,15}):([0-9a-f]{64})", text.strip())
    if match is None:
        raise click.BadParameter("a head is NUMBER:HASH, as `cloison audit verify` prints it")
    return Tip(int(match[1]), match[2])


def report_value(report: Report, given_key: bool) -> dict[str, Any]:
    return {
        "whole": report.is_whole,
        "fault": None if report.fault is None else {"record": report.fault.number, "why": report.fault.why},
        "first": report.first,
        "last": report.tip.number,
        "head": f"{report.tip.number}:{report.tip.hash}",
        "checkpoints": report.checkpoints,
        "signed_until": report.signed_until,
        "erased": report.erased,
        "key": "given" if given_key else "beside the log",
        "notes": report.notes,
    }


def _show_report(session: Session, report: Report, *, given: bool) -> None:
    if report.fault is not None:
        click.echo(f"{session.palette.error('not whole:')} {report.fault.why}", color=True)
        if report.fault.number > max(report.first, 1):
            click.echo(f"records {report.first} to {report.fault.number - 1} hang together")
        return
    if not report.lines:
        click.echo("there is no record yet")
        return
    checkpoints = "1 checkpoint" if report.checkpoints == 1 else f"{report.checkpoints} checkpoints"
    click.echo(f"whole: records {report.first} to {report.tip.number}, {checkpoints}")
    unsigned = report.tip.number - report.signed_until
    if unsigned > 1:
        click.echo(f"the last {unsigned} are not signed yet")
    if report.erased:
        click.echo(f"{report.erased} records were erased, as recorded")
    for note in report.notes:
        click.echo(note)
    if not given:
        click.echo("checked with the key that lies beside the log; --key takes the one that you noted down")
    click.echo(f"head {report.tip.number}:{report.tip.hash}")


@subcommand(COMMAND, "key", examples=(("cloison audit key", "write it down, outside of this machine"),))
@json_option
def show_key(session: Session, as_json: bool) -> None:
    """Print the first public key, from which all later ones follow."""
    from cloison.qrexec.audit.signing import read_root

    key = read_root(session.layout.audit)
    if not key:
        raise BadRequest("there is no audit log yet", hint="the daemon's first start makes it")
    if as_json:
        session.show_json({"key": key})
    else:
        click.echo(key)


@subcommand(COMMAND, "erase", examples=(
    ("cloison remove old-work && cloison audit erase old-work", "the qube, and what is known of it"),
))  # fmt: skip
@click.argument("qube", type=RecordedType())
@yes_option
def erase(session: Session, qube: str, yes: bool) -> None:
    """Make all records about QUBE unreadable, for ever.

    The key under which they were written is destroyed. That something was recorded, and when, stays; so does the proof
    that the rest is whole. Records about QUBE and another one (calls between them) go too.
    """
    from cloison.client import calls
    from cloison.qrexec.audit.recordkeys import RecordKeys

    if not RecordKeys(session.layout.audit).find_ids(qube):
        raise BadRequest(f"nothing readable is recorded about {qube}", hint="is it the qube's last name?")
    session.confirm(f"Erase what is recorded about {qube}, for ever?", assume_yes=yes)
    session.do(calls.audit_erase(qube))
    session.say(f"the records about {qube} are erased")
