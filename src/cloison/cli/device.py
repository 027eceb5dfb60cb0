"""``cloison device``."""

from __future__ import annotations

import click

from cloison.cli.command import HELP_OPTIONS, ExampleGroup
from cloison.cli.qvm.device import begin, fill, show_classes


@click.group("device", cls=ExampleGroup, context_settings=HELP_OPTIONS, invoke_without_command=True, examples=(
    ("cloison device list", "block devices, and who has them"),
    ("cloison device --class usb list", "those of another class"),
    ("cloison device attach work sys-usb:sda", "give one to work"),
))  # fmt: skip
@click.option("-c", "--class", "devclass", default="block", show_default=True, metavar="CLASS", help="Which class.")
@click.option("--list-classes", is_flag=True, is_eager=True, expose_value=False, callback=show_classes,
              help="Show the classes of devices.")  # fmt: skip
@click.pass_context
def _group(ctx: click.Context, devclass: str) -> None:
    """Show devices of a class, and give them to qubes."""
    begin(ctx, devclass)


COMMAND = fill(_group, "cloison device", spellings=False)
