"""``qvm-device`` and ``qvm-block``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy

import click
from click.shell_completion import CompletionItem

from cloison.cli.choices import COMPLETION_TIMEOUT_S, QUBE, complete_from
from cloison.cli.command import HELP_OPTIONS, ExampleGroup, command, json_option
from cloison.cli.create import split_setting
from cloison.cli.session import Session
from cloison.cli.table import Cell
from cloison.client import calls, devicecalls
from cloison.client.devicecalls import Device, parse_device

KEY = "cloison.devclass"
SPELLINGS = {"list": "ls l", "attach": "at a", "detach": "dt d", "assign": "s", "unassign": "u", "info": "i"}


def _complete_device(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
    def question() -> list[tuple[str, str]]:
        from cloison.client import Client

        client = Client(start_daemon=False)
        rows = client.do(calls.list_states(), timeout_s=COMPLETION_TIMEOUT_S)
        running = [row.name for row in rows if row.state == "Running"]
        found = [d for name in running for d in client.do(devicecalls.device_list("Available", name, _devclass()))]
        return [(device.name, device.description) for device in found]

    return complete_from(question, incomplete)


def _read_device(_ctx: click.Context, _: click.Parameter, text: str | None) -> Device | None:
    try:
        return None if text is None else parse_device(text)
    except ValueError as error:
        raise click.UsageError(str(error)) from None


def _device_argument(*, required: bool) -> Callable[[Callable[..., None]], Callable[..., None]]:
    return click.argument("device", metavar="BACKEND:DEVICE", required=required, callback=_read_device,
                          shell_complete=_complete_device)  # fmt: skip


QUBE_ARGUMENT = click.argument("qube", type=QUBE, metavar="VMNAME")
OPTIONS = click.option("-o", "--option", "options", multiple=True, metavar="OPTION=VALUE", help="How it is given.")
READ_ONLY = click.option("--ro", "read_only", is_flag=True, help="As --option read-only=yes.")


def _devclass() -> str:
    found = click.get_current_context().meta[KEY]
    assert isinstance(found, str)
    return found


def _settings(options: Sequence[str], read_only: bool) -> dict[str, str]:
    given = dict(split_setting("--option", item) for item in options)
    return {**given, "read-only": "yes"} if read_only else given


@command("list", examples=(
    ("qvm-block list", "all, and who has them"),
    ("qvm-block list sys-usb", "those of one qube"),
))  # fmt: skip
@click.argument("names", nargs=-1, type=QUBE, metavar="[VMNAME...]")
@click.option("--all", "everything", is_flag=True, help="Of all qubes (what it does without names anyway).")
@click.option("--exclude", multiple=True, type=QUBE, metavar="EXCLUDE", help="Leave this qube out.")
@click.option("-s", "--assignments", is_flag=True, help="Also what was assigned and is not there now.")
@json_option
def list_devices(session: Session, names: tuple[str, ...], everything: bool, exclude: tuple[str, ...],
                 assignments: bool, as_json: bool) -> None:  # fmt: skip
    """List devices: who has them, what they are, who uses them."""
    qubes = [row.name for row in session.do(calls.list_states())]
    wanted = [n for n in (qubes if everything or not names else names) if n not in exclude]
    found = {d.name: d for n in wanted for d in session.do(devicecalls.device_list("Available", n, _devclass()))}
    users = _users(session, qubes)
    if assignments:
        missing = [device for _, device in users if device.backend in wanted and device.name not in found]
        found |= {device.name: device for device in missing}
    rows = []
    for name, device in sorted(found.items()):
        used_by = [text for text, taken in users if taken.name in (name, f"{device.backend}:*")]
        rows.append((name, device.description, used_by))
    if as_json:
        session.show_json([{"device": name, "description": what, "used_by": used} for name, what, used in rows])
    elif rows:
        cells = [(Cell(name), Cell(what), Cell(", ".join(used))) for name, what, used in rows]
        session.show_table(("BACKEND:DEVID", "DESCRIPTION", "USED BY"), cells)


def _users(session: Session, qubes: Sequence[str]) -> list[tuple[str, Device]]:
    """(qube with how it has the device, the device) of everything attached, and of what is assigned beside."""
    found = []
    for qube in qubes:
        attached = session.do(devicecalls.device_list("Attached", qube, _devclass()))
        assigned = session.do(devicecalls.device_list("Assigned", qube, _devclass()))
        names = {device.name for device in attached}
        for device in [*attached, *(device for device in assigned if device.name not in names)]:
            notes = [f"{key}={value}" for key, value in sorted(device.options.items())]
            if device.name not in names:
                notes.insert(0, "assigned" if device.mode == "auto-attach" else device.mode)
            found.append((f"{qube} ({', '.join(notes)})" if notes else qube, device))
    return found


@command("info", examples=(("qvm-block info sys-usb:sda", "everything that is known of one"),))
@_device_argument(required=True)
@json_option
def show_device(session: Session, device: Device, as_json: bool) -> None:
    """Show all about a device."""
    for found in session.do(devicecalls.device_list("Available", device.backend, _devclass())):
        if found.port == device.port:
            if as_json:
                session.show_json(dict(found.fields))
            else:
                click.echo("\n".join(f"{key}: {value}" for key, value in found.fields.items()))
            return
    raise click.ClickException(f"{device.backend} exposes no {_devclass()} device {device.port}")


@command("attach", examples=(("qvm-block attach --ro work sys-usb:sda", "until it is detached or work stops"),))
@QUBE_ARGUMENT
@_device_argument(required=True)
@OPTIONS
@READ_ONLY
@click.option("-p", "--persistent", is_flag=True, help="Also assign it, to be attached whenever the qube starts.")
def attach(session: Session, qube: str, device: Device, options: tuple[str, ...], read_only: bool,
           persistent: bool) -> None:  # fmt: skip
    """Attach a device to a running qube."""
    given = _settings(options, read_only)
    if not persistent or session.do(calls.state_of(qube)).state == "Running":
        session.do(devicecalls.device_give("Attach", qube, _devclass(), device, options=given))
    if persistent:
        session.do(devicecalls.device_give("Assign", qube, _devclass(), device, mode="required", options=given))


@command("detach", examples=(("qvm-block detach work", "everything"), ("qvm-block detach work sys-usb:sda", "one")))
@QUBE_ARGUMENT
@_device_argument(required=False)
def detach(session: Session, qube: str, device: Device | None) -> None:
    """Detach a device, or all of this class."""
    for found in [device] if device else session.do(devicecalls.device_list("Attached", qube, _devclass())):
        session.do(devicecalls.device_take("Detach", qube, _devclass(), found))


@command("assign", examples=(("qvm-block assign --required work sys-usb:sda", "work starts only with it"),))
@QUBE_ARGUMENT
@_device_argument(required=True)
@OPTIONS
@READ_ONLY
@click.option("-r", "--required", "mode", flag_value="required", help="The qube does not start without it.")
@click.option("--ask", "--ask-to-attach", "mode", flag_value="ask-to-attach", help="Ask before it is attached.")
@click.option("--auto", "mode", flag_value="auto-attach", help="Attach it when both are there (the default).")
def assign(session: Session, qube: str, device: Device, options: tuple[str, ...], read_only: bool,
           mode: str | None) -> None:  # fmt: skip
    """Assign a device to a qube."""
    given = _settings(options, read_only)
    mode = mode or "auto-attach"
    session.do(devicecalls.device_give("Assign", qube, _devclass(), device, mode=mode, options=given))


@command("unassign", examples=(("qvm-block unassign work sys-usb:sda", "it stays attached until it is detached"),))
@QUBE_ARGUMENT
@_device_argument(required=False)
def unassign(session: Session, qube: str, device: Device | None) -> None:
    """Take back an assignment, or all of this class."""
    for found in [device] if device else session.do(devicecalls.device_list("Assigned", qube, _devclass())):
        session.do(devicecalls.device_take("Unassign", qube, _devclass(), found))


def show_classes(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        session = ctx.ensure_object(Session)
        click.echo("\n".join(session.do(devicecalls.class_list())))
        ctx.exit()


def fill(made: click.Group, program: str, *, spellings: bool = True) -> ExampleGroup:
    """Give a group all its commands; their examples name ``program``."""
    assert isinstance(made, ExampleGroup)
    for found in (list_devices, show_device, attach, detach, assign, unassign):
        own = copy(found)
        own.examples = [(line.replace("qvm-block", program), comment) for line, comment in found.examples]
        made.add_command(own)
        for spelling in SPELLINGS[found.name or ""].split() if spellings else ():
            made.add_command(own, spelling)
    return made


@click.group("qvm-device", cls=ExampleGroup, context_settings=HELP_OPTIONS, invoke_without_command=True, examples=(
    ("qvm-device block list", "block devices"),
    ("qvm-device --list-device-classes", "what there may be"),
))  # fmt: skip
@click.argument("devclass", metavar="DEVICE_CLASS")
@click.option("--list-device-classes", is_flag=True, is_eager=True, expose_value=False, callback=show_classes,
              help="Show the classes of devices.")  # fmt: skip
@click.pass_context
def qvm_device(ctx: click.Context, devclass: str) -> None:
    """Show devices of a class, and give them to qubes."""
    begin(ctx, devclass)


@click.group("qvm-block", cls=ExampleGroup, context_settings=HELP_OPTIONS, invoke_without_command=True, examples=(
    ("qvm-block", "all, and who has them"),
    ("qvm-block attach work sys-usb:sda", "give one to work"),
))  # fmt: skip
@click.pass_context
def qvm_block(ctx: click.Context) -> None:
    """Show block devices, and give them to qubes."""
    begin(ctx, "block")


def begin(ctx: click.Context, devclass: str) -> None:
    """Remember the class for the command that follows; without one, list."""
    if devclass != "block" and devclass not in (known := ctx.ensure_object(Session).do(devicecalls.class_list())):
        raise click.UsageError(f"{devclass!a} is no class of devices; there are {', '.join(known)}")
    ctx.meta[KEY] = devclass
    if ctx.invoked_subcommand is None:
        with list_devices.make_context("list", [], parent=ctx) as below:
            list_devices.invoke(below)


COMMANDS = {"qvm-device": fill(qvm_device, "qvm-device block"), "qvm-block": fill(qvm_block, "qvm-block")}
