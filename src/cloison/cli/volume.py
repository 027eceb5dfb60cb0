"""``cloison volume``."""

from __future__ import annotations

import os
import stat
from typing import Any

import click

from cloison.cli.choices import QUBE, SIZE, VOLUME
from cloison.cli.command import group, json_option, subcommand, yes_option
from cloison.cli.session import Session
from cloison.cli.table import Cell, human_bytes
from cloison.client import calls
from cloison.errors import BadRequest

COMMAND = group("volume", examples=(
    ("cloison volume list work", "what it has, how large and how full"),
    ("cloison volume resize work:private 8G", "more room for its home"),
))(lambda: None)  # fmt: skip
COMMAND.help = """Show and change volumes: the disks of qubes.

`root` is the system (of an app qube: a throw-away layer over its template's), `private` is what it keeps
(/home, /usr/local, /rw/config), `volatile` is scratch space. A volume is written QUBE:VOLUME.
"""
VOLUME_ARGUMENT = click.argument("volume", type=VOLUME, metavar="QUBE:VOLUME")


@subcommand(COMMAND, "list", examples=(
    ("cloison volume list", "of all qubes"),
    ("cloison volume list --json work", "of one"),
))  # fmt: skip
@click.argument("qubes", nargs=-1, type=QUBE, metavar="[QUBE...]")
@json_option
def list_volumes(session: Session, qubes: tuple[str, ...], as_json: bool) -> None:
    """Show volumes with their sizes."""
    names = qubes or tuple(row.name for row in session.do(calls.list_states()) if row.klass != "AdminVM")
    found = [
        (qube, name, session.do(calls.volume_info(qube, name)))
        for qube in names
        for name in session.do(calls.volume_list(qube))
    ]
    if as_json:
        session.show_json([{"qube": q, "volume": n, **{k: _plain(v) for k, v in info.items()}} for q, n, info in found])
        return
    rows = [
        (Cell(f"{q}:{n}"), Cell(_bytes(i, "usage"), "", True), Cell(_bytes(i, "size"), "", True), Cell(_kind(i)))
        for q, n, i in found
    ]
    session.show_table(("VOLUME", "USED", "SIZE", "AT STOP"), rows)


def _bytes(info: dict[str, str], key: str) -> str:
    return human_bytes(int(info[key])) if info.get(key, "").isdecimal() else "-"


def _kind(info: dict[str, str]) -> str:
    if info.get("rw") == "False":
        return "read-only"
    return "kept" if info.get("save_on_stop") == "True" else "thrown away"


@subcommand(COMMAND, "info", examples=(("cloison volume info work:private", "everything about one"),))
@VOLUME_ARGUMENT
@json_option
def show_volume(session: Session, volume: tuple[str, str], as_json: bool) -> None:
    """Show one volume."""
    info: dict[str, Any] = dict(session.do(calls.volume_info(*volume)))
    info["revisions"] = session.do(calls.volume_revisions(*volume))
    if as_json:
        session.show_json({key: _plain(value) for key, value in info.items()})
        return
    info["revisions"] = " ".join(info["revisions"])
    rows = [(Cell(key), Cell(_shown(key, value))) for key, value in info.items()]
    session.show_table(("WHAT", "VALUE"), rows)


def _plain(value: Any) -> Any:
    if isinstance(value, str) and value.isdecimal():
        return int(value)
    return {"True": True, "False": False}.get(value, value) if isinstance(value, str) else value


def _shown(key: str, value: str) -> str:
    return f"{human_bytes(int(value))} ({value} bytes)" if key in {"size", "usage"} and value.isdecimal() else value


@subcommand(COMMAND, "resize", examples=(("cloison volume resize work:private 8G", "grow it, also while it runs"),))
@VOLUME_ARGUMENT
@click.argument("size", type=SIZE)
@click.option("--force", is_flag=True, help="Even if that is smaller: data may be lost.")
def resize_volume(session: Session, volume: tuple[str, str], size: int, force: bool) -> None:
    """Make a volume larger."""
    resize(session, volume, size, force=force)
    session.say(f"{':'.join(volume)} has now {human_bytes(size)}")


def resize(session: Session, volume: tuple[str, str], size: int, *, force: bool) -> None:
    """Resize; smaller only with ``force``."""
    now = int(session.do(calls.volume_info(*volume)).get("size", "0"))
    if size < now and not force:
        raise BadRequest(f"{':'.join(volume)} has {human_bytes(now)}, that is more than {human_bytes(size)}",
                         hint="volumes only grow; --force shrinks and may destroy data")  # fmt: skip
    session.wait(calls.volume_resize(*volume, size), f"resizing {':'.join(volume)}")


@subcommand(COMMAND, "revisions", examples=(("cloison volume revisions work:private", "oldest first"),))
@VOLUME_ARGUMENT
@json_option
def list_revisions(session: Session, volume: tuple[str, str], as_json: bool) -> None:
    """Show the earlier contents that were kept."""
    found = session.do(calls.volume_revisions(*volume))
    if as_json:
        session.show_json(found)
    elif found:
        click.echo("\n".join(found))


@subcommand(COMMAND, "revert", examples=(
    ("cloison volume revert work:private", "back to the newest kept revision"),
    ("cloison volume revert debian-13:root REVISION", "a template as it was"),
))  # fmt: skip
@VOLUME_ARGUMENT
@click.argument("revision", required=False)
@yes_option
def revert_volume(session: Session, volume: tuple[str, str], revision: str | None, yes: bool) -> None:
    """Go back to an earlier content of a volume; the present one is lost."""
    revert(session, volume, revision, yes=yes)


def revert(session: Session, volume: tuple[str, str], revision: str | None, *, yes: bool) -> None:
    """Ask, then revert; without ``revision`` to the newest."""
    shown = ":".join(volume)
    if revision is None:
        kept = session.do(calls.volume_revisions(*volume))
        if not kept:
            raise BadRequest(f"no earlier content of {shown} was kept", hint="revisions_to_keep says how many are")
        revision = kept[-1]
    session.confirm(f"Replace the content of {shown} by that of {revision}?", assume_yes=yes)
    session.wait(calls.volume_revert(*volume, revision), f"reverting {shown}")
    session.say(f"{shown} is as it was at {revision}")


@subcommand(COMMAND, "clear", examples=(("cloison volume clear lab:private", "an empty home, of the same size"),))
@VOLUME_ARGUMENT
@yes_option
def clear_volume(session: Session, volume: tuple[str, str], yes: bool) -> None:
    """Empty a volume of a halted qube, for ever."""
    shown = ":".join(volume)
    session.confirm(f"Destroy all data in {shown}?", assume_yes=yes)
    session.wait(calls.volume_clear(*volume), f"emptying {shown}")


@subcommand(COMMAND, "clone", examples=(("cloison volume clone work:private lab:private", "lab gets work's data"),))
@click.argument("source", type=VOLUME, metavar="QUBE:VOLUME")
@click.argument("volume", type=VOLUME, metavar="QUBE:VOLUME")
@yes_option
def clone_volume(session: Session, source: tuple[str, str], volume: tuple[str, str], yes: bool) -> None:
    """Replace the content of a volume of a halted qube by a copy of another's; the present one is lost."""
    session.confirm(f"Replace the content of {':'.join(volume)}?", assume_yes=yes)
    token = session.do(calls.volume_clone_from(*source))
    session.wait(calls.volume_clone_to(*volume, token), f"copying {':'.join(source)}")


@subcommand(COMMAND, "config", examples=(("cloison volume config work:private revisions_to_keep 3", "keep three"),))
@VOLUME_ARGUMENT
@click.argument("option", type=click.Choice(["revisions_to_keep", "rw", "ephemeral"]))
@click.argument("value")
def configure_volume(session: Session, volume: tuple[str, str], option: str, value: str) -> None:
    """Change a setting of a volume."""
    session.do(calls.volume_set(*volume, option, value))


@subcommand(COMMAND, "import", examples=(
    ("cloison volume import work:private home.img", "its content; the volume gets its size"),
    ("zcat home.img.gz | cloison volume import --size 2G work:private -", "from standard input"),
))  # fmt: skip
@VOLUME_ARGUMENT
@click.argument("file", type=click.Path(allow_dash=True), metavar="FILE")
@click.option("--size", type=SIZE, metavar="SIZE", help="How many bytes come; default: the size of the file.")
@click.option("--keep-size", is_flag=True, help="The volume keeps its size, and just as much must come.")
@yes_option
def import_volume(session: Session, volume: tuple[str, str], file: str, size: int | None, keep_size: bool,
                  yes: bool) -> None:  # fmt: skip
    """Replace the content of a volume of a halted qube; the present one is lost."""
    session.confirm(f"Replace the content of {':'.join(volume)}?", assume_yes=yes)
    import_data(session, volume, file, size_bytes=size, keep_size=keep_size)


def import_data(session: Session, volume: tuple[str, str], file: str, *, size_bytes: int | None,
                keep_size: bool) -> None:  # fmt: skip
    """Send a file (``-``: standard input) to be the volume's content."""
    from cloison.client.uploading import upload

    descriptor = os.dup(0) if file == "-" else os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    try:
        found = os.fstat(descriptor)
        if size_bytes is None and stat.S_ISREG(found.st_mode):
            size_bytes = found.st_size
        if keep_size:
            upload(session.client, "admin.vm.volume.Import", *volume, descriptor)
        elif size_bytes is None:
            raise click.UsageError(f"how many bytes come from {file}? Give --size")
        else:
            head = f"{size_bytes}\n".encode()
            upload(session.client, "admin.vm.volume.ImportWithSize", *volume, descriptor, head=head)
    finally:
        os.close(descriptor)
