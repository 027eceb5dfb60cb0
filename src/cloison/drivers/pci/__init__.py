"""Devices of the host on its PCI bus, and how one is handed over.

In: PCI addresses. Out: what a device is, who has it, why it cannot be handed over. May import: the standard library,
errors.

Handing over takes root once (``handing``: the host's driver lets go, ``vfio-pci`` takes the device, an ordinary user
may open its group); using what was handed over takes none (``ready``).
"""
