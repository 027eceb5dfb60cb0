"""``cloison standalone``."""

from __future__ import annotations

from pathlib import Path

import click

from cloison.cli.choices import LABEL, QUBE, SIZE
from cloison.cli.command import group, subcommand
from cloison.cli.session import Session
from cloison.client import calls

COMMAND = group("standalone", examples=(("cloison standalone import lab disk.qcow2", "a disk image becomes a qube"),))(
    lambda: None
)
COMMAND.help = "Make qubes from disk images that were made elsewhere."


@subcommand(COMMAND, "import", examples=(
    ("cloison standalone import lab ./disk.qcow2", "boots from its own boot loader"),
    ("cloison standalone import --memory 2G --label gray old ./disk.img", "a raw image, with more memory"),
    ("cloison console lab", "then: its serial console"),
))  # fmt: skip
@click.argument("name", type=QUBE, metavar="NAME")
@click.argument("image", type=click.Path(exists=True, dir_okay=False, readable=True, resolve_path=True))
@click.option("--format", "image_format", type=click.Choice(["qcow2", "raw"]), help="Default: found out.")
@click.option("-l", "--label", type=LABEL, default="gray", show_default=True, help="Its colour.")
@click.option("--memory", type=SIZE, metavar="SIZE", help="Its memory, for example 2G.")
@click.option("--size", type=SIZE, metavar="SIZE", help="Size of its root volume; default: the image's.")
def import_image(session: Session, name: str, image: str, image_format: str | None, label: str,
                 memory: int | None, size: int | None) -> None:  # fmt: skip
    """Make a StandaloneVM from a disk image (qcow2 or raw).

    It needs none of our programs inside; without them it has its console and no services.
    """
    wishes = {"image": str(Path(image)), "format": image_format, "label": label,
              "memory_mib": memory // (1 << 20) if memory else None, "size_bytes": size}  # fmt: skip
    options = {key: value for key, value in wishes.items() if value is not None}
    session.carry_out(calls.standalone_import(name, options), f"importing {image} as {name}")
    session.say(f"{session.palette.bold(name)} is there; `cloison start {name}` boots it")
