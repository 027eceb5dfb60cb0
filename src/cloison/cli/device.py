"""``cloison device``."""

from __future__ import annotations

from pathlib import Path

import click

from cloison.cli.command import HELP_OPTIONS, ExampleGroup, json_option, subcommand
from cloison.cli.qvm.device import begin, fill, show_classes
from cloison.cli.session import Session
from cloison.client import devicecalls


@click.group("device", cls=ExampleGroup, context_settings=HELP_OPTIONS, invoke_without_command=True, examples=(
    ("cloison device list", "block devices, and who has them"),
    ("cloison device expose ~/disk.img", "a file of this host may be given to qubes: dom0:disk.img"),
    ("cloison device attach work dom0:disk.img", "give it to work, which finds it as /dev/xvdi"),
    ("cloison device --class usb list", "those of another class"),
))  # fmt: skip
@click.option("-c", "--class", "devclass", default="block", show_default=True, metavar="CLASS", help="Which class.")
@click.option("--list-classes", is_flag=True, is_eager=True, expose_value=False, callback=show_classes,
              help="Show the classes of devices.")  # fmt: skip
@click.pass_context
def _group(ctx: click.Context, devclass: str) -> None:
    """Show devices of a class, and give them to qubes."""
    begin(ctx, devclass)


COMMAND = fill(_group, "cloison device", spellings=False)


@subcommand(COMMAND, "expose", examples=(
    ("cloison device expose ~/disk.img", "as dom0:disk.img, for reading and writing"),
    ("cloison device expose --ro --name installer debian.iso", "as dom0:installer, for reading only"),
    ("cloison device expose /dev/sdb", "a block device that you may open"),
))  # fmt: skip
@click.argument("file", type=click.Path(path_type=Path), metavar="FILE")
@click.option("--name", default="", metavar="NAME", help="Its name as a device; default: the file's name.")
@click.option("--ro", "read_only", is_flag=True, help="No qube may write to it.")
@json_option
def expose(session: Session, file: Path, name: str, read_only: bool, as_json: bool) -> None:
    """Let an image file or a block device of this host be given to qubes.

    The file must hold a raw disk. It stays where it is, and is exposed until `cloison device hide`.
    """
    found = session.do(devicecalls.block_expose(str(file.absolute()), name, read_only=read_only))
    if as_json:
        session.show_json({"device": found})
    else:
        click.echo(found)


@subcommand(COMMAND, "hide", examples=(("cloison device hide disk.img", "the file itself stays"),))
@click.argument("name", metavar="NAME")
def hide(session: Session, name: str) -> None:
    """Expose a file no longer."""
    session.do(devicecalls.block_hide(name.removeprefix("dom0:")))
