"""``cloison pci``.

In: the host's PCI bus. Out: a network card that goes to a user's qubes and back. May import: cli, drivers/pci, model.

The one command that takes root, so it asks no daemon and needs none.
"""

from __future__ import annotations

import click

from cloison.cli.command import group, json_option, subcommand
from cloison.cli.session import Session
from cloison.cli.table import Cell
from cloison.drivers.pci.handing import give_device, take_device_back
from cloison.drivers.pci.host import Device, list_network_cards
from cloison.drivers.pci.ready import check_separable
from cloison.errors import CloisonError
from cloison.model.network import parse_pci_address


@group("pci", examples=(
    ("cloison pci list", "network cards of this computer, and which could be handed over"),
    ("sudo cloison pci give 0000:02:00.0 --to anna", "take one from the host, for Anna's qubes"),
    ("cloison features sys-net uplink pci:0000:02:00.0", "and let sys-net have it"),
))  # fmt: skip
def COMMAND() -> None:
    """Hand network cards of this computer over to qubes, and take them back.

    Handing over is the one thing that takes root: the host's driver lets go of the card, and one user may use it
    through the IOMMU until the computer is booted again. The daemon and the qube need no root then.
    """


def _address(ctx: click.Context, parameter: click.Parameter, value: str) -> str:
    return parse_pci_address(value)


ADDRESS = click.argument("address", callback=_address)


def _obstacle(device: Device) -> str:
    """Why the card cannot be handed over as it is; empty: nothing stands in the way."""
    try:
        check_separable(device)
    except CloisonError as error:
        return error.message
    return f"in use by the host: {' and '.join(device.active)} is up" if device.active else ""


@subcommand(COMMAND, "list", examples=(("cloison pci list", "addresses, drivers, interfaces"),))
@json_option
def list_cards(session: Session, as_json: bool) -> None:
    """Show this computer's network cards, who has each, and what stands in the way of handing it over."""
    found = list_network_cards()
    if as_json:
        session.show_json([
            {
                "address": card.address, "model": card.model, "driver": card.driver, "group": card.group,
                "companions": card.companions, "interfaces": card.interfaces, "handed": card.is_handed,
                "obstacle": _obstacle(card),
            }
            for card in found
        ])  # fmt: skip
        return
    rows = [
        (
            Cell(card.address),
            Cell(card.model),
            Cell("qubes" if card.is_handed else " ".join(card.interfaces) or card.driver or "-"),
            Cell(_obstacle(card) or "-"),
        )
        for card in found
    ]
    session.show_table(("ADDRESS", "MODEL", "WHO HAS IT", "OBSTACLE"), rows)


@subcommand(COMMAND, "give", examples=(
    ("sudo cloison pci give 0000:02:00.0 --to anna", "Anna's qubes may have it, the host no longer has"),
))  # fmt: skip
@ADDRESS
@click.option("--to", "user", required=True, metavar="USER", help="Whose qubes may have it.")
def give(session: Session, address: str, user: str) -> None:
    """Take a network card from the host and let a user's qubes have it (as root)."""
    device = give_device(address, user)
    session.say(f"{user}'s qubes may have {address} (IOMMU group {device.group}) until the next boot")


@subcommand(COMMAND, "take-back", examples=(
    ("sudo cloison pci take-back 0000:02:00.0", "the host's own driver has it again"),
))  # fmt: skip
@ADDRESS
def take_back(session: Session, address: str) -> None:
    """Give a network card back to the host (as root)."""
    device = take_device_back(address)
    session.say(f"the host has {address} again ({device.driver or 'no driver of it is loaded'})")
