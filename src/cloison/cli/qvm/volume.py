"""``qvm-volume``."""

from __future__ import annotations

import click

from cloison.cli import volume as twin
from cloison.cli.choices import SIZE, VOLUME
from cloison.cli.command import group, subcommand
from cloison.cli.session import Session
from cloison.cli.table import Cell
from cloison.client import calls

qvm_volume = group("qvm-volume", examples=(("qvm-volume list work", "its volumes"),))(lambda: None)
qvm_volume.help = "Show and change the volumes of qubes."
VOLUME_ARGUMENT = click.argument("volume", type=VOLUME, metavar="VMNAME:VOLUME")


@subcommand(qvm_volume, "list", examples=(("qvm-volume list work", "pool, vid, qube, volume"),))
@click.argument("names", nargs=-1, metavar="[VMNAME...]")
@click.option("-p", "--pool", metavar="POOL", help="Only in this pool.")
@click.option("--full", is_flag=True, help="Accepted.")
def list_volumes(session: Session, names: tuple[str, ...], pool: str | None, full: bool) -> None:
    """List volumes."""
    wanted = names or tuple(row.name for row in session.do(calls.list_states()) if row.klass != "AdminVM")
    rows = []
    for name in wanted:
        for volume in session.do(calls.volume_list(name)):
            info = session.do(calls.volume_info(name, volume))
            if pool is None or info.get("pool") == pool:
                revisions = "Yes" if session.do(calls.volume_revisions(name, volume)) else "No"
                place = f"{info.get('pool')}:{info.get('vid')}"
                rows.append((Cell(place), Cell(name), Cell(volume), Cell(revisions)))
    session.show_table(("POOL:VOLUME", "VMNAME", "VOLUME_NAME", "REVERT_POSSIBLE"), rows)


@subcommand(qvm_volume, "info", examples=(("qvm-volume info work:private size", "one value"),))
@VOLUME_ARGUMENT
@click.argument("prop", required=False, metavar="[PROPERTY]")
def show_volume(session: Session, volume: tuple[str, str], prop: str | None) -> None:
    """Show one volume."""
    info = session.do(calls.volume_info(*volume))
    revisions = session.do(calls.volume_revisions(*volume))
    if prop == "revisions":
        click.echo("\n".join(revisions))
        return
    if prop is not None:
        if prop not in info:
            raise click.UsageError(f"no such property: {prop}")
        click.echo(info[prop])
        return
    width = max(map(len, info))
    for key, value in info.items():
        click.echo(f"{key:{width}}  {value}".rstrip())
    click.echo("Available revisions (for revert):" if revisions else "No revisions available (for revert)")
    for revision in revisions:
        click.echo(f" {revision}")


@subcommand(qvm_volume, "clear", examples=(("qvm-volume clear lab:private", "all its data are gone"),))
@VOLUME_ARGUMENT
def clear_volume(session: Session, volume: tuple[str, str]) -> None:
    """Empty a volume of a halted qube."""
    session.wait(calls.volume_clear(*volume), f"emptying {':'.join(volume)}")


@subcommand(qvm_volume, "config", examples=(("qvm-volume config work:private revisions_to_keep 3", "keep three"),))
@VOLUME_ARGUMENT
@click.argument("prop", metavar="PROPERTY")
@click.argument("value", metavar="VALUE")
def configure(session: Session, volume: tuple[str, str], prop: str, value: str) -> None:
    """Change a setting of a volume."""
    session.do(calls.volume_set(*volume, prop, value))


@subcommand(qvm_volume, "resize", examples=(("qvm-volume resize work:private 8GiB", "grow it"),))
@VOLUME_ARGUMENT
@click.argument("size", type=SIZE, metavar="SIZE")
@click.option("-f", "--force", is_flag=True, help="Even if that is smaller.")
def resize(session: Session, volume: tuple[str, str], size: int, force: bool) -> None:
    """Resize a volume."""
    twin.resize(session, volume, size, force=force)


@subcommand(qvm_volume, "revert", examples=(("qvm-volume revert work:private", "to the newest kept revision"),))
@VOLUME_ARGUMENT
@click.argument("revision", required=False, metavar="[REVISION]")
def revert(session: Session, volume: tuple[str, str], revision: str | None) -> None:
    """Go back to an earlier content."""
    twin.revert(session, volume, revision, yes=True)


@subcommand(qvm_volume, "import", examples=(
    ("qvm-volume import work:private home.img", "its content; the volume grows to its size"),
    ("qvm-volume import --size 2GiB work:private -", "from standard input"),
))  # fmt: skip
@VOLUME_ARGUMENT
@click.argument("file", metavar="PATH")
@click.option("--size", type=SIZE, metavar="SIZE", help="How many bytes come; default: the size of the file.")
@click.option("--no-resize", is_flag=True, help="The volume keeps its size, and just as much must come.")
def import_data(session: Session, volume: tuple[str, str], file: str, size: int | None, no_resize: bool) -> None:
    """Replace the content of a volume of a halted qube; PATH - is standard input."""
    twin.import_data(session, volume, file, size_bytes=size, keep_size=no_resize)


for _name, _spellings in {
    "list": "ls l",
    "info": "i",
    "config": "c set s",
    "resize": "extend",
    "revert": "rv r",
}.items():
    for _spelling in _spellings.split():
        qvm_volume.add_command(qvm_volume.commands[_name], _spelling)

COMMANDS = {"qvm-volume": qvm_volume}
