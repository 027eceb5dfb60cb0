"""Cloison: one person's machine divided into qubes that cannot reach each other except through one guarded door."""

__version__ = "0.1.0"
