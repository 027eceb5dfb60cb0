"""Qube classes: what each kind of qube is and may have (rules: Admin API notes, sections 5 and 7)."""

from __future__ import annotations

from enum import Enum


class Klass(Enum):
    """The class of a qube; the value is its name on the wire."""

    ADMIN = "AdminVM"
    TEMPLATE = "TemplateVM"
    APP = "AppVM"
    STANDALONE = "StandaloneVM"
    DISPOSABLE = "DispVM"
    REMOTE = "RemoteVM"

    @property
    def is_machine(self) -> bool:
        """Whether qubes of this class are virtual machines that we run."""
        return self not in (Klass.ADMIN, Klass.REMOTE)

    @property
    def has_template(self) -> bool:
        return self in (Klass.APP, Klass.DISPOSABLE)

    @property
    def may_be_disposable_template(self) -> bool:
        return self in (Klass.APP, Klass.STANDALONE)

    @property
    def keeps_root(self) -> bool:
        """Whether changes below ``/`` survive a stop."""
        return self in (Klass.TEMPLATE, Klass.STANDALONE)

    @property
    def keeps_private(self) -> bool:
        return self.is_machine and self is not Klass.DISPOSABLE


def find_klass(untrusted_text: str) -> Klass | None:
    """The class of that wire name, if there is one."""
    for klass in Klass:
        if klass.value == untrusted_text:
            return klass
    return None


MACHINES = frozenset(klass for klass in Klass if klass.is_machine)
EVERY = frozenset(Klass)
