"""``cloison apps``.

In: a qube. Out: its programs, listed, asked for anew, started. May import: client, wire, cli.
"""

from __future__ import annotations

import click
from click.shell_completion import CompletionItem

from cloison.cli.choices import COMPLETION_TIMEOUT_S, QUBE, TextType
from cloison.cli.command import group, json_option, subcommand
from cloison.cli.session import Session
from cloison.cli.table import Cell
from cloison.client import Client, calls
from cloison.client.failures import QubesFeatureNotFoundError
from cloison.errors import CloisonError
from cloison.wire import LEG_SESSION, Call, RemoteProtocolError
from cloison.wire.appmenus import MAX_BYTES, App, dump_apps, load_apps, parse_menu

FEATURE = "menu-available"
"""On a qube, or on the template that it is based on."""


@group("apps", examples=(
    ("cloison apps list work", "programs with an entry in a menu"),
    ("cloison apps start work org.gnome.gedit", "start one"),
))  # fmt: skip
def COMMAND() -> None:
    """Programs of a qube that belong into menus.

    Templates send their list when they start and when packages change; `refresh` asks a qube itself.
    """


def _known(client: Client, qube: str, timeout_s: float | None = None) -> tuple[App, ...]:
    """What is written down of the qube, or of its template. Raises QubesFeatureNotFoundError, RemoteProtocolError."""
    text = client.do(calls.feature_get(qube, FEATURE, through_template=True), timeout_s=timeout_s)
    return load_apps(text)


class AppType(TextType):
    """A program of the qube named before it."""

    name = "app"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        try:
            found = _known(Client(start_daemon=False), ctx.params["qube"], COMPLETION_TIMEOUT_S)
        except Exception:  # border: a shell waits; no answer is better than a traceback
            return []
        return [CompletionItem(app.id, help=app.name) for app in found if app.id.startswith(incomplete)]


@subcommand(COMMAND, "list", examples=(("cloison apps list --json work", "for scripts"),))
@click.argument("qube", type=QUBE)
@json_option
def list_apps(session: Session, qube: str, as_json: bool) -> None:
    """List the programs of a qube."""
    try:
        apps = _known(session.client, qube)
    except (QubesFeatureNotFoundError, RemoteProtocolError):
        hint = f"{session.program} apps refresh {qube}"
        raise CloisonError(f"nothing is known of the programs of {qube} yet", hint=hint) from None
    _show(session, apps, as_json)


def _show(session: Session, apps: tuple[App, ...], as_json: bool) -> None:
    if as_json:
        session.show_json([app._asdict() for app in apps])
    elif apps:
        rows = [(Cell(app.id), Cell(app.name), Cell(app.comment)) for app in apps]
        session.show_table(("APP", "NAME", "WHAT IT IS"), rows)


@subcommand(COMMAND, "refresh", examples=(("cloison apps refresh work", "start it if need be, and ask"),))
@click.argument("qube", type=QUBE)
@json_option
def refresh(session: Session, qube: str, as_json: bool) -> None:
    """Ask a qube for its programs, and keep the list. It is started if need be."""
    from cloison.client.qrexec import run_captured

    call = Call(LEG_SESSION, qube, service="qubes.GetAppmenus", nogui=True)
    ending, out, said = run_captured(session.layout, call)
    if ending.code:
        why = ending.note or said.decode("utf-8", "replace").strip()[-200:] or f"exit code {ending.code}"
        raise CloisonError(f"{qube} did not name its programs: {why}")
    try:
        apps = parse_menu(out[: MAX_BYTES + 1])
    except RemoteProtocolError as error:
        raise CloisonError(f"what {qube} says of its programs cannot be used: {error}") from None
    session.do(calls.feature_set(qube, FEATURE, dump_apps(apps)))
    _show(session, apps, as_json)


@subcommand(COMMAND, "start", examples=(("cloison apps start work org.gnome.gedit", "as its menu would"),))
@click.argument("qube", type=QUBE)
@click.argument("app", type=AppType())
def start(session: Session, qube: str, app: str) -> None:
    """Start a program by its name in the list; returns when it has ended."""
    from cloison.cli.run import Wishes, call_qube

    wishes = Wishes("", False, False, True, False, True)
    raise click.exceptions.Exit(call_qube(session, qube, [f"qubes.StartApp+{app}"], service=True, wishes=wishes))
