"""``cloison template``."""

from __future__ import annotations

import click

from cloison.cli.choices import LABEL, SIZE, TEMPLATE
from cloison.cli.command import group, json_option, subcommand, yes_option
from cloison.cli.session import Session
from cloison.cli.table import Cell, human_bytes
from cloison.cli.volume import revert
from cloison.client import calls

COMMAND = group("template", examples=(
    ("cloison template build debian-13", "from Debian's packages, as an ordinary user"),
    ("cloison template list", "with revisions and who uses them"),
))(lambda: None)  # fmt: skip
COMMAND.help = """Build, change and revert templates. They are the systems that qubes share read-only.

A template is changed like any qube: start it, install what you like, shut it down. That commits a new revision;
running qubes based on it are then outdated until they are restarted.
"""
TEMPLATE_ARGUMENT = click.argument("template", type=TEMPLATE)


@subcommand(COMMAND, "build", examples=(
    ("cloison template build debian-13", "the default: Debian 13"),
    ("cloison template build --include firefox-esr --include git web", "with more packages"),
    ("cloison template build --suite bookworm --size 20G debian-12", "an older Debian, a larger root"),
))  # fmt: skip
@click.argument("name", type=TEMPLATE)
@click.option("--distribution", metavar="NAME", help="Which distribution; default: debian.")
@click.option("--suite", metavar="NAME", help="Which release; default: trixie (Debian 13).")
@click.option("--include", "packages", multiple=True, metavar="PACKAGES", help="More packages (commas or repeated).")
@click.option("--size", type=SIZE, metavar="SIZE", help="Size of the root volume; default: 10G.")
@click.option("--mirror", metavar="URL", help="Where packages come from; default: this host's own sources.")
@click.option("-l", "--label", type=LABEL, help="Its colour; default: black.")
@click.option("--force", is_flag=True, help="Build anew, even if an image with the same inputs is in the cache.")
def build_template(session: Session, name: str, distribution: str | None, suite: str | None,
                   packages: tuple[str, ...], size: int | None, mirror: str | None, label: str | None,
                   force: bool) -> None:  # fmt: skip
    """Build a template from a distribution's packages and commit it.

    Interrupted builds leave nothing behind. The first template becomes the default_template of the system.
    """
    include = [word for item in packages for word in item.replace(",", " ").split()]
    wishes = {"distribution": distribution, "suite": suite, "include": include, "size_bytes": size, "mirror": mirror,
              "label": label, "force": force}  # fmt: skip
    options = {key: value for key, value in wishes.items() if value}
    built = session.carry_out(calls.template_build(name, options), f"building {name}") or {}
    session.say(f"{session.palette.bold(name)} has revision {built.get('revision', '?')}")
    if not session.do(calls.property_get(None, "default_template")).value:
        session.do(calls.property_set(None, "default_template", name))
        session.say(f"new qubes are based on {name} from now on (system-prefs default_template)")


@subcommand(COMMAND, "commit", examples=(("cloison template commit debian-13", "shut it down and commit"),))
@TEMPLATE_ARGUMENT
def commit_template(session: Session, template: str) -> None:
    """Make what was changed in a template its new revision, and a new fork point from it.

    A running template is shut down first.
    """
    done = session.carry_out(calls.template_commit(template), f"committing {template}") or {}
    session.say(f"{session.palette.bold(template)} has revision {done.get('revision', '?')}")


@subcommand(COMMAND, "list", examples=(("cloison template list --json", "for scripts"),))
@json_option
def list_templates(session: Session, as_json: bool) -> None:
    """Show all templates, their revisions and the qubes based on them."""
    found = session.do(calls.template_list())
    if as_json:
        session.show_json(found)
        return
    rows = []
    for row in found:
        outdated = f"{len(row['outdated'])} outdated" if row.get("outdated") else "-"
        used = Cell(human_bytes(row.get("usage_bytes")), "", True)
        counts = [Cell(str(n), "", True) for n in (len(row.get("revisions") or ()), len(row.get("qubes") or ()))]
        name, state = Cell(row["name"], "1"), Cell(row["state"])
        rows.append((name, state, Cell(row.get("revision") or "-"), counts[0], used, counts[1], Cell(outdated)))
    session.show_table(("TEMPLATE", "STATE", "REVISION", "KEPT", "USED", "QUBES", "RUNNING"), rows)


@subcommand(COMMAND, "revisions", examples=(("cloison template revisions debian-13", "oldest first"),))
@TEMPLATE_ARGUMENT
@json_option
def list_revisions(session: Session, template: str, as_json: bool) -> None:
    """Show the earlier revisions that were kept."""
    found = session.do(calls.volume_revisions(template, "root"))
    if as_json:
        session.show_json(found)
    elif found:
        click.echo("\n".join(found))


@subcommand(COMMAND, "revert", examples=(("cloison template revert debian-13", "to the revision before this one"),))
@TEMPLATE_ARGUMENT
@click.argument("revision", required=False)
@yes_option
def revert_template(session: Session, template: str, revision: str | None, yes: bool) -> None:
    """Go back to an earlier revision."""
    revert(session, (template, "root"), revision, yes=yes)


@subcommand(COMMAND, "remove", examples=(("cloison template remove debian-12", "refused while qubes are based on it"),))
@TEMPLATE_ARGUMENT
@yes_option
def remove_template(session: Session, template: str, yes: bool) -> None:
    """Remove a template with all its revisions and fork points."""
    session.do(calls.state_of(template))
    session.confirm(f"Remove the template {template}?", assume_yes=yes)
    session.wait(calls.remove(template), f"removing {template}")
    session.say(f"{template} is gone")
