"""The only errors that may leave this package; the name says whose fault it is."""

from __future__ import annotations


class ProtocolError(Exception):
    """The protocol was broken by one of the two sides."""


class LocalProtocolError(ProtocolError):
    """Our own side asked for something illegal: a bug here, nothing was sent."""


class RemoteProtocolError(ProtocolError):
    """The peer sent something illegal. Nothing it says afterwards can be understood: drop the connection."""
