"""``qvm-create``."""

from __future__ import annotations

from pathlib import Path

import click

from cloison.cli.choices import LABEL, QUBE
from cloison.cli.command import command
from cloison.cli.create import create_qube, split_setting
from cloison.cli.session import Session
from cloison.cli.volume import import_data
from cloison.client import calls
from cloison.errors import CloisonError

FILE = click.Path(exists=True, dir_okay=False, readable=True)
OWN_ROOT = ("StandaloneVM", "TemplateVM")


def _list_classes(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        session = ctx.ensure_object(Session)
        click.echo("\n".join(sorted(session.do(calls.list_classes()))))
        ctx.exit()


@command("qvm-create", examples=(
    ("qvm-create --label blue work", "an app qube on the default template"),
    ("qvm-create -C StandaloneVM -t debian-13 -l green lab", "a copy of a template"),
))  # fmt: skip
@click.argument("name", type=QUBE, metavar="VMNAME")
@click.option("-C", "--class", "klass", default="AppVM", metavar="CLS", help="Class of the qube; default: AppVM.")
@click.option("--standalone", "klass", flag_value="StandaloneVM", help="As --class StandaloneVM.")
@click.option("--disp", "klass", flag_value="DispVM", help="As --class DispVM.")
@click.option("--property", "--prop", "properties", multiple=True, metavar="NAME=VALUE", help="Set a property.")
@click.option("-p", "--pool", "pools", multiple=True, metavar="VOLUME=POOL", help="Where one volume lives.")
@click.option("-P", "pool", default="", metavar="POOL", help="Where all volumes live.")
@click.option("-t", "--template", type=QUBE, metavar="VALUE", help="What its root comes from.")
@click.option("-l", "--label", type=LABEL, metavar="VALUE", help="Its colour (needed).")
@click.option("--root-copy-from", "copied", type=FILE, metavar="FILE", help="This raw image is copied to its root.")
@click.option("--root-move-from", "moved", type=FILE, metavar="FILE", help="As above, then the file is removed.")
@click.option("--help-classes", is_flag=True, is_eager=True, expose_value=False, callback=_list_classes,
              help="Show all classes.")  # fmt: skip
def create(session: Session, name: str, klass: str, properties: tuple[str, ...], pools: tuple[str, ...], pool: str,
           template: str | None, label: str | None, copied: str | None, moved: str | None) -> None:  # fmt: skip
    """Create a qube."""
    settings = [split_setting("--property", item) for item in properties]
    label = label or dict(settings).get("label")
    if label is None:
        raise click.UsageError("--label option is mandatory")
    places = dict(split_setting("--pool", item) for item in pools)
    if pool and places:
        raise click.UsageError("give -P for all volumes, or --pool for single ones")
    image = copied or moved
    if copied and moved:
        raise click.UsageError("give one of --root-copy-from and --root-move-from")
    if image and klass not in OWN_ROOT:
        raise click.UsageError(f"the root of a {klass} is its template's; {' and '.join(OWN_ROOT)} have their own")
    create_qube(session, klass, name, label, template=template, settings=settings, pool=pool, pools=places)
    if image:
        _fill_root(session, name, image)
        if moved:
            Path(moved).unlink()


def _fill_root(session: Session, name: str, image: str) -> None:
    """The image becomes the root volume; if that fails, the qube is removed again."""
    try:
        import_data(session, (name, "root"), image, size_bytes=None, keep_size=False)
    except (CloisonError, KeyboardInterrupt):
        session.do(calls.remove(name))
        raise


COMMANDS = {"qvm-create": create}
