"""Host files and devices that qubes may be given as disks."""
