"""``cloison create``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import click

from cloison.cli.choices import LABEL, QUBE, SIZE
from cloison.cli.command import command
from cloison.cli.session import Session
from cloison.client import calls
from cloison.errors import CloisonError

CLASSES = ("AppVM", "StandaloneVM", "TemplateVM", "DispVM", "RemoteVM")


@command("create", examples=(
    ("cloison create --label blue work", "an app qube on the default template"),
    ("cloison create --label black --prop netvm= vault", "one without network"),
    ("cloison create --label red --disposable-template my-dvm", "a template for disposables"),
    ("cloison create --class StandaloneVM --template debian-13 --label green lab", "one with a root of its own"),
))  # fmt: skip
@click.argument("name", type=QUBE, metavar="NAME")
@click.option("-C", "--class", "klass", type=click.Choice(CLASSES), default="AppVM", show_default=True)
@click.option(
    "-t", "--template", type=QUBE, metavar="QUBE", help="What its root comes from; default: default_template."
)
@click.option("-l", "--label", type=LABEL, default="red", show_default=True, help="Its colour: how far you trust it.")
@click.option("-p", "--prop", "--property", "properties", multiple=True, metavar="NAME=VALUE", help="Set a property.")
@click.option("--tag", "tags", multiple=True, metavar="TAG", help="Add a tag.")
@click.option("--feature", "features", multiple=True, metavar="NAME[=VALUE]", help="Set a feature.")
@click.option("--private-size", type=SIZE, metavar="SIZE", help="Size of its private volume.")
@click.option("-P", "--pool", metavar="POOL", default="", help="Where its volumes live.")
@click.option("--standalone", is_flag=True, help="As --class StandaloneVM.")
@click.option("--disp", "named_disposable", is_flag=True, help="As --class DispVM: a disposable with a name.")
@click.option("--disposable-template", is_flag=True, help="As --prop template_for_dispvms=True.")
def COMMAND(session: Session, name: str, klass: str, template: str | None, label: str, properties: tuple[str, ...],
            tags: tuple[str, ...], features: tuple[str, ...], private_size: int | None, pool: str, standalone: bool,
            named_disposable: bool, disposable_template: bool) -> None:  # fmt: skip
    """Create a qube.

    If setting it up fails half-way, the new qube is removed again.
    """
    klass = "StandaloneVM" if standalone else "DispVM" if named_disposable else klass
    settings = [split_setting("--prop", item) for item in properties]
    if disposable_template:
        settings.append(("template_for_dispvms", "True"))
    steps = [calls.tag_set(name, tag) for tag in tags]
    steps += [calls.feature_set(name, key, value) for key, _, value in (f.partition("=") for f in features)]
    if private_size is not None:
        steps.append(calls.volume_resize(name, "private", private_size))
    create_qube(session, klass, name, label, template=template, settings=settings, pool=pool, steps=steps)
    session.say(f"{session.palette.bold(name)} is there; `cloison start {name}` starts it")


def create_qube(session: Session, klass: str, name: str, label: str, *, template: str | None, pool: str,
                settings: Sequence[tuple[str, str]], steps: Sequence[calls.Call[None]] = (),
                pools: Mapping[str, str] | None = None) -> None:  # fmt: skip
    """Create a qube and set it up; if that fails, it is removed again."""
    label = next((value for key, value in settings if key == "label"), label)
    template = next((value for key, value in settings if key == "template"), template)
    given = [calls.property_set(name, key, value) for key, value in settings if key not in {"label", "template"}]
    if klass == "StandaloneVM" and template:
        pool = pool or one_pool(pools or {})
        copied = calls.clone(template, name, klass="StandaloneVM", label=label, pool=pool or None)
        session.carry_out(copied, f"copying {template} to {name}")
    else:
        session.wait(
            calls.create(klass, name, label, template=template or "", pool=pool, pools=pools), f"creating {name}"
        )
    _set_up(session, name, [*given, *steps])


def one_pool(pools: Mapping[str, str]) -> str:
    """The one pool of all volumes: a copy is made in one."""
    if len(set(pools.values())) > 1:
        raise click.UsageError(f"a copy lives in one pool, not in {', '.join(sorted(set(pools.values())))}")
    return next(iter(pools.values()), "")


def _set_up(session: Session, name: str, steps: Sequence[calls.Call[None]]) -> None:
    try:
        for step in steps:
            session.do(step)
    except (CloisonError, KeyboardInterrupt):
        session.do(calls.remove(name))
        raise


def split_setting(option: str, text: str) -> tuple[str, str]:
    """``NAME=VALUE`` as two."""
    key, sign, value = text.partition("=")
    if not sign or not key:
        raise click.UsageError(f"{option} {text!r} is not NAME=VALUE")
    return key, value
