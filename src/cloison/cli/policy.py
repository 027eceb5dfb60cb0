"""``cloison policy``: check, try out, explain, change and draw the policy.

In: arguments, files, JSON lines. Out: text. May import: policy, and what every command may. All but the picture of the
system (asked from the daemon, or given with ``--system``) works without a daemon.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cloison.cli.command import group, json_option, subcommand
from cloison.cli.session import Session
from cloison.client.framing import printable
from cloison.errors import BadRequest, CloisonError
from cloison.policy.errors import PolicyError
from cloison.policy.ruleset import BrokenPolicy, PolicySet
from cloison.policy.system import SystemInfo

if TYPE_CHECKING:
    from cloison.policy.evaluate import Request
    from cloison.policy.explain import Explanation
    from cloison.policy.store import PolicyStore

_CHUNK_BYTES = 65536
TELL_TIMEOUT_S = 5.0
_DEFAULT_FILE = "30-user"
_EXAMPLES = (
    ("cloison policy check", "are the files right, can every rule match?"),
    ("cloison policy explain work vault qubes.Filecopy", "which rule decides, and what would change it"),
    ("cloison policy edit", "your own rules, checked before they count"),
)

COMMAND = group("policy", examples=_EXAMPLES)(lambda: None)
COMMAND.help = "Check, explain, try out, change and draw the policy. It says who may call what on whom."


@dataclass(frozen=True)
class Directories:
    """Where the files are: what was given on the command line, else this system's."""

    policy: Path
    runtime: Path | None
    legacy: Path | None

    @classmethod
    def choose(cls, session: Session, policy: Path | None, runtime: Path | None, legacy: Path | None) -> Directories:
        if policy is not None:
            return cls(policy, runtime, legacy)
        of_system = session.layout.runtime_policy
        runtime = runtime or (of_system if of_system.is_dir() else None)
        return cls(session.layout.policy, runtime, legacy or session.layout.legacy_policy)

    def load(self) -> PolicySet:
        from cloison.policy.loader import load_policy

        return load_policy(self.policy, self.runtime, legacy=self.legacy)


def directory_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """``--policy``, ``--runtime-policy`` and ``--legacy``."""
    path = click.Path(path_type=Path, file_okay=False)
    for name, variable, text in (
        ("--legacy", "legacy", "The old-syntax directory that !compat-4.0 reads."),
        ("--runtime-policy", "runtime", "A second directory, whose files win over files of the same name."),
        ("--policy", "policy", "The policy directory (default: this system's)."),
    ):
        function = click.option(name, variable, type=path, metavar="DIR", help=text)(function)
    return function


system_option = click.option(
    "--system", "system_file", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
    help="The qubes, as JSON (default: ask the daemon).")  # fmt: skip


def _read_system(session: Session, file: Path | None) -> SystemInfo:
    if file is None:
        from cloison.client.calls import Call

        try:
            untrusted: object = session.do(Call("internal.GetSystemInfo", "dom0", parse=json.loads))
        except CloisonError as error:
            raise type(error)(error.message, hint=error.hint or "give --system FILE") from None
    else:
        try:
            untrusted = json.loads(file.read_bytes())
        except ValueError as error:
            raise BadRequest(f"{file} is not JSON: {error}") from None
    return SystemInfo.parse(untrusted)


@subcommand(COMMAND, "eval", examples=(
    ("cloison policy eval --policy DIR --system SYSTEM.json < REQUESTS", "a verdict per line, without a daemon"),
    ('echo \'{"source":"work","target":"","service":"qubes.Gpg","argument":"+"}\' | cloison policy eval', "one call"),
))  # fmt: skip
@directory_options
@system_option
def eval_requests(
    session: Session, policy: Path | None, runtime: Path | None, legacy: Path | None, system_file: Path | None
) -> None:
    """Read requests as JSON lines and write a verdict line for each.

    A request is {"source", "target", "service", "argument", "requested_source"?}; argument has its leading "+". With a
    broken policy each verdict is a denial that names the bad line.
    """
    from cloison.policy.output import LineEvaluator

    system = _read_system(session, system_file)
    current: PolicySet | BrokenPolicy
    try:
        current = Directories.choose(session, policy, runtime, legacy).load()
    except PolicyError as error:
        session.complain(error)
        current = BrokenPolicy(error)
    _answer_stream(LineEvaluator(current, system).answer)


def _answer_stream(answer: Callable[[bytes], str]) -> None:
    """Answer what is there, then wait for more: so a program may talk to us line by line, and files go fast."""
    rest = b""
    output = sys.stdout.buffer
    descriptor = sys.stdin.fileno()
    while chunk := os.read(descriptor, _CHUNK_BYTES):
        *lines, rest = (rest + chunk).split(b"\n")
        output.write("".join(map(answer, lines)).encode())
        output.flush()
    output.write(answer(rest).encode())
    output.flush()


@subcommand(COMMAND, "check", examples=(
    ("cloison policy check", "the whole set"),
    ("cloison policy check 30-user.policy", "one file by itself, before it is put in place"),
))  # fmt: skip
@click.argument(
    "files", nargs=-1, type=click.Path(path_type=Path, dir_okay=False, allow_dash=True), metavar="[FILE]..."
)
@directory_options
@system_option
@click.option("--old-syntax", is_flag=True, help="The FILEs are in the old syntax (SOURCE TARGET ACTION).")
@json_option
def check(
    session: Session,
    files: tuple[Path, ...],
    policy: Path | None,
    runtime: Path | None,
    legacy: Path | None,
    system_file: Path | None,
    old_syntax: bool,
    as_json: bool,
) -> None:
    """Find errors, and rules that can never match. Exit code 1 if there is an error; hints do not count.

    With --system the names and tags in rules are looked up too.
    """
    from cloison.policy.lint import Severity, check_policy, check_text

    system = _read_system(session, system_file) if system_file is not None else None
    if files:
        findings = [
            finding
            for file in files
            for finding in check_text(_read_input(file), str(file), old_syntax=old_syntax, system=system)
        ]
    else:
        where = Directories.choose(session, policy, runtime, legacy)
        findings = check_policy(where.policy, where.runtime, legacy=where.legacy, system=system)
    if as_json:
        session.show_json(
            [{"file": f.file, "line": f.line, "severity": f.severity.value, "message": f.message} for f in findings]
        )
    else:
        for finding in findings:
            click.echo(finding)
        if not findings:
            session.say("nothing to complain about")
    if any(finding.severity is Severity.ERROR for finding in findings):
        raise click.exceptions.Exit(1)


@subcommand(COMMAND, "explain", examples=(
    ("cloison policy explain work vault qubes.Filecopy", "which rule decides"),
    ("cloison policy explain work @dispvm qubes.OpenURL+x", "with an argument"),
))  # fmt: skip
@click.argument("source")
@click.argument("target")
@click.argument("service", metavar="SERVICE[+ARG]")
@click.option("--requested-source", metavar="QUBE", help="The RemoteVM for which SOURCE, its relay, calls.")
@directory_options
@system_option
@json_option
def explain_call(
    session: Session,
    source: str,
    target: str,
    service: str,
    requested_source: str | None,
    policy: Path | None,
    runtime: Path | None,
    legacy: Path | None,
    system_file: Path | None,
    as_json: bool,
) -> None:
    """Say which rule decides a call, which came before it, and which single line would change it."""
    from cloison.policy.evaluate import Request
    from cloison.policy.explain import explain
    from cloison.policy.output import verdict_value

    name, plus, argument = service.partition("+")
    request = Request(source, target, name, plus + argument, requested_source)
    loaded = Directories.choose(session, policy, runtime, legacy).load()
    system = _read_system(session, system_file)
    explanation = explain(loaded, system, request)
    if not as_json:
        _show_explanation(explanation)
        _show_unknown(request, system)
        return
    session.show_json({
        **verdict_value(explanation.verdict, request),
        "passed_over": [
            {"file": p.rule.place.file, "line": p.rule.place.line, "text": str(p.rule), "why": p.why}
            for p in explanation.passed_over
        ],
        "changes": [
            {"line": c.line, "where": c.where, **verdict_value(c.verdict, request)} for c in explanation.changes
        ],
    })  # fmt: skip


def _show_explanation(explanation: Explanation) -> None:
    from cloison.policy.verdicts import Allow, Ask, Deny

    verdict = explanation.verdict
    match verdict:
        case Allow():
            user = f" as user {verdict.user}" if verdict.user else ""
            click.echo(f"allow: {verdict.target}{user} ({verdict.reason})")
        case Ask():
            chosen = f", {verdict.default_target} preselected" if verdict.default_target else ""
            click.echo(f"ask: one of {', '.join(verdict.targets)}{chosen} ({verdict.reason})")
            if verdict.warning:
                click.echo(f"warning: {verdict.warning}")
        case Deny():
            click.echo(f"deny: {verdict.reason}")
    if explanation.rule is not None:
        click.echo(f"  {explanation.rule.place}: {explanation.rule}")
    if explanation.passed_over:
        click.echo("\nRules about the service that came before and did not match:")
        for passed in explanation.passed_over:
            click.echo(f"  {passed.rule.place}: {passed.rule}\n      {passed.why}")
    click.echo(f"\n{explanation.other_services} rules before it are about other services.")
    if explanation.changes:
        click.echo("\nOne line would change that:")
        for change in explanation.changes:
            click.echo(f"  {change.line}\n      {change.where}")
    else:
        click.echo("\nNo single rule would change that.")


def _show_unknown(request: Request, system: SystemInfo) -> None:
    """A name that was mistyped is no error, but it is what the explanation is about."""
    shape = system.shape
    if request.source not in shape.names:
        click.echo(printable(f"\nNo qube is named {request.source} now: only rules about all qubes can match it."))
    if request.target not in shape.targets:
        click.echo(printable(f"\nNo target is named {request.target} now: the call counts as one to @default."))


@subcommand(COMMAND, "graph", examples=(
    ("cloison policy graph --output policy.svg", "a picture, no other program needed"),
    ("cloison policy graph --service qubes.Filecopy --ask --format json", "who may copy files to whom"),
))  # fmt: skip
@click.option("--format", "form", type=click.Choice(["dot", "svg", "json"]), help="Default: by the name of --output.")
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help="Default: stdout.")
@click.option("--ask", "with_ask", is_flag=True, help="Show calls that the user is asked about, too.")
@click.option("--source", "sources", multiple=True, metavar="QUBE", help="Only calls from it (may be repeated).")
@click.option("--target", "targets", multiple=True, metavar="QUBE", help="Only calls to it.")
@click.option("--service", "services", multiple=True, metavar="SERVICE", help="Only calls of it.")
@click.option("--skip-labels", is_flag=True, help="DOT: do not name the services on the arrows.")
@directory_options
@system_option
def graph(
    session: Session,
    form: str | None,
    output: Path | None,
    with_ask: bool,
    sources: tuple[str, ...],
    targets: tuple[str, ...],
    services: tuple[str, ...],
    skip_labels: bool,
    policy: Path | None,
    runtime: Path | None,
    legacy: Path | None,
    system_file: Path | None,
) -> None:
    """Draw who may call what on whom: red arrows are allowed, orange ones asked."""
    from cloison.policy import graph as drawing

    loaded = Directories.choose(session, policy, runtime, legacy).load()
    system = _read_system(session, system_file)
    filters = drawing.Filters(frozenset(sources), frozenset(targets), frozenset(services), with_ask)
    edges = drawing.find_edges(loaded, system, filters)
    suffix = output.suffix.removeprefix(".") if output is not None else ""
    match form or (suffix if suffix in ("svg", "json") else "dot"):
        case "svg":
            text = drawing.write_svg(edges, system)
        case "json":
            text = json.dumps(drawing.edges_value(edges), indent=2) + "\n"
        case _:
            text = drawing.write_dot(edges, system, labels=not skip_labels)
    if output is None:
        click.echo(text, nl=False)
    else:
        output.write_text(text)


def policy_store(session: Session) -> PolicyStore:
    from cloison.policy.store import PolicyStore

    where = Directories.choose(session, None, None, None)
    return PolicyStore(where.policy, where.runtime, where.legacy)


@subcommand(COMMAND, "list", examples=(
    ("cloison policy list", "the policy files, in reading order"),
    ("cloison policy list --service qubes.Filecopy", "those with rules about a service"),
))  # fmt: skip
@click.option("--include", is_flag=True, help="The files of the include directory.")
@click.option("--service", metavar="SERVICE", help="Only files with rules about the service, in rule order.")
@json_option
def list_files(session: Session, include: bool, service: str | None, as_json: bool) -> None:
    """List the policy files."""
    store = policy_store(session)
    names = store.list_files(include=include) if service is None else store.find_files_for(service)
    if as_json:
        session.show_json(names)
    else:
        for name in names:
            click.echo(name)


@subcommand(COMMAND, "get", examples=(("cloison policy get 30-user", "print it"),))
@click.argument("name")
@click.option("--with-token", is_flag=True, help="Print its token as the first line, for replace --token.")
def get_file(session: Session, name: str, with_token: bool) -> None:
    """Print a policy file (NAME without ".policy", or include/NAME)."""
    token, content = policy_store(session).get(name)
    if with_token:
        click.echo(token)
    sys.stdout.flush()
    sys.stdout.buffer.write(content)


token_option = click.option(
    "--token", default="any", show_default=True, metavar="TOKEN",
    help='The state the change is based on: "sha256:..." (from get --with-token), "new", or "any".')  # fmt: skip


@subcommand(COMMAND, "replace", examples=(
    ("cloison policy replace 40-office < office.policy", "put a file in place"),
    ("cloison policy replace 40-office office.policy --token new", "only if there is none of that name"),
))  # fmt: skip
@click.argument("name")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False, allow_dash=True), default="-")
@token_option
def replace_policy(session: Session, name: str, file: Path, token: str) -> None:
    """Put FILE (default: standard input) in place as policy file NAME; refused if the set would be broken."""
    policy_store(session).replace(name, _read_input(file), token)
    _tell_daemon(session, f"{name} replaced")


@subcommand(COMMAND, "remove", examples=(("cloison policy remove 40-office", "refused while something includes it"),))
@click.argument("name")
@token_option
def remove_policy(session: Session, name: str, token: str) -> None:
    """Remove a policy file; refused if the set would be broken."""
    policy_store(session).remove(name, token)
    _tell_daemon(session, f"{name} removed")


@subcommand(COMMAND, "edit", examples=(("cloison policy edit", "your own rules: 30-user"),))
@click.argument("name", default=_DEFAULT_FILE)
def edit_policy(session: Session, name: str) -> None:
    """Edit a policy file with $VISUAL, $EDITOR or vi. What would break the policy does not get in place."""
    from cloison.policy.store import TOKEN_NEW, FileMissing, StoreError

    store = policy_store(session)
    try:
        token, content = store.get(name)
    except FileMissing:
        token, content = TOKEN_NEW, b""
    text = content.decode()
    while True:
        try:
            edited = click.edit(text, extension=".policy", require_save=True)
        except click.ClickException as error:
            raise CloisonError(
                error.message, hint="name an editor that is installed: EDITOR=nano cloison policy edit"
            ) from None
        if edited is None or edited.encode() == content:
            session.say("nothing changed")
            return
        try:
            store.replace(name, edited.encode(), token)
            _tell_daemon(session, f"{name} edited")
            return
        except StoreError as error:
            session.complain(error)
            if not sys.stdin.isatty() or not click.confirm("Edit again?", default=True, err=True):
                raise click.exceptions.Exit(1) from None
            text = edited


@subcommand(COMMAND, "apply", examples=(
    ("cloison policy apply --revoke --dry-run", "which running calls would the policy of now not let in?"),
    ("cloison policy apply --revoke", "end them"),
))  # fmt: skip
@click.option("--revoke", is_flag=True, help="End running calls that the policy of now would not let in as they were.")
@click.option("--dry-run", is_flag=True, help="Only say which.")
@json_option
def apply_policy(session: Session, revoke: bool, dry_run: bool, as_json: bool) -> None:
    """Hold running calls against the policy as it is now. New calls need nothing: each asks the files of its moment."""
    from cloison.client import calls

    ended = session.do(calls.policy_apply(dry_run=dry_run or not revoke))
    if as_json:
        session.show_json(ended)
        return
    verb = "ended" if revoke and not dry_run else "would end"
    for row in ended:
        target = row["target"] or row["requested_target"] or "@default"
        click.echo(printable(f"{verb}: {row['id']} {row['source']} to {target}: {row['service']} ({row['reason']})"))
    if not ended:
        session.say("every running call is still allowed")
    elif not revoke:
        session.say("they go on; `cloison policy apply --revoke` ends them")


def _tell_daemon(session: Session, change: str) -> None:
    """For the audit log. A daemon that does not run, or is of another version, notices at the next call by itself."""
    from cloison.client import Client, calls

    try:
        Client(session.layout, start_daemon=False).do(calls.policy_changed(change), timeout_s=TELL_TIMEOUT_S)
    except CloisonError:
        pass


def _read_input(file: Path) -> bytes:
    return sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
