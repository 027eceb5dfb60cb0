"""Making and removing labels."""

from __future__ import annotations

from cloison.engine.inventory import Ledger
from cloison.errors import LabelInUse, ProtocolError
from cloison.model.labels import LAST_DEFAULT_INDEX, Label, parse_colour, parse_label_name


def create_label(ledger: Ledger, untrusted_name: str, untrusted_colour: str) -> Label:
    name, colour = parse_label_name(untrusted_name), parse_colour(untrusted_colour)
    labels = ledger.inventory.labels
    if name in labels:
        raise LabelInUse(f"a label named {name} exists")
    last = max(label.index for label in labels.values())
    label = Label(name, max(LAST_DEFAULT_INDEX, last) + 1, colour)
    with ledger.change() as records:
        records.add_label(label)
    return label


def remove_label(ledger: Ledger, name: str) -> None:
    inventory = ledger.inventory
    label = inventory.label(name)
    if label.index <= LAST_DEFAULT_INDEX:
        raise ProtocolError(f"the label {name} is built in")
    users = [qube.name for qube in inventory if qube.label == name]
    if users:
        raise LabelInUse(f"the label {name} is used by {', '.join(users)}", others=users)
    with ledger.change() as records:
        records.remove_label(name)
