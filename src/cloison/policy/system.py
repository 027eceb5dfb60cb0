"""The frozen picture of the system that a policy is asked about.

In: the JSON value of ``internal.GetSystemInfo``. Out: ``SystemInfo``, or SystemInfoError. May import: tokens, errors.

``Shape`` is the part that decides what rules match (names, classes, tags, templates); power states and colours are
beside it, because they change far more often and must not cost the memory of earlier decisions.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import NamedTuple, assert_never

from cloison.policy.errors import SystemInfoError
from cloison.policy.tokens import (
    DISPOSABLE_PREFIX,
    DOM0,
    DOM0_SPELLINGS,
    UUID_PREFIX,
    Column,
    Token,
    TokenKind,
    parse_token,
)

RUNNING = "Running"
REMOTE = "RemoteVM"
ADMIN_CLASS = "AdminVM"
KNOWN_CLASSES = frozenset({"AppVM", "TemplateVM", "StandaloneVM", "DispVM", ADMIN_CLASS, REMOTE})


class QubeFacts(NamedTuple):
    """What rules may ask about one qube."""

    name: str
    klass: str
    uuid: str
    tags: frozenset[str]
    template_for_dispvms: bool
    default_dispvm: str | None
    internal: bool
    relayvm: str | None
    transport_rpc: str | None
    remote_name: str | None


class Appearance(NamedTuple):
    """What a prompt needs to show a qube and to know where to show it."""

    icon: str
    label: str
    guivm: str | None


_OF_A_TEMPLATE = frozenset({TokenKind.DISPOSABLE_OF, TokenKind.DISPOSABLE_TAGGED})
_DOM0_FACTS = QubeFacts(DOM0, ADMIN_CLASS, "", frozenset(), False, None, False, None, None, None)


class Shape:
    """Who exists and what rules may ask about them. Compares by content."""

    def __init__(self, qubes: Mapping[str, QubeFacts]) -> None:
        self.qubes = qubes
        self.matching = _Matching(self)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Shape) and self.qubes == other.qubes

    __hash__ = None  # type: ignore[assignment]

    @cached_property
    def names(self) -> dict[str, str]:
        """Every spelling of every existing qube (name, ``uuid:...``, dom0's words) to its name."""
        names = {name: name for name in self.qubes}
        names.update({UUID_PREFIX + facts.uuid: name for name, facts in self.qubes.items() if facts.uuid})
        names.update(dict.fromkeys(DOM0_SPELLINGS, DOM0))
        return names

    @cached_property
    def templates(self) -> frozenset[str]:
        """The qubes that disposables may be made from."""
        return frozenset(name for name, facts in self.qubes.items() if facts.template_for_dispvms)

    @cached_property
    def targets(self) -> dict[str, str]:
        """Every valid spelling of an existing target to its one form: a name, @default, @dispvm or @dispvm:NAME."""
        targets = dict(self.names)
        for spelling, name in self.names.items():
            if name in self.templates and not spelling.startswith("@"):
                targets[DISPOSABLE_PREFIX + spelling] = DISPOSABLE_PREFIX + name
        targets.update({"": "@default", "@default": "@default", "@dispvm": "@dispvm"})
        return targets

    @cached_property
    def offerable(self) -> frozenset[str]:
        """What a prompt may list: every target but "none" and internal qubes; ``@dispvm`` not yet resolved."""
        return frozenset(self.targets.values()) - {"@default"} - self.hidden

    @cached_property
    def hidden(self) -> frozenset[str]:
        """Prompt entries that are never offered, because their qube is internal."""
        names = {name for name, facts in self.qubes.items() if facts.internal}
        return frozenset(names | {DISPOSABLE_PREFIX + name for name in names})

    def spellings(self, name: str) -> tuple[str, ...]:
        facts = self.qubes.get(name)
        return (name, UUID_PREFIX + facts.uuid) if facts is not None and facts.uuid else (name,)

    def default_disposable(self, source: str) -> str | None:
        """``@dispvm:NAME`` that ``@dispvm`` means for this source; None if it has no default."""
        facts = self.qubes.get(source)
        if facts is None or facts.default_dispvm is None:
            return None
        return DISPOSABLE_PREFIX + self.names.get(facts.default_dispvm, facts.default_dispvm)

    def may_be_source(self, token: Token, source: str) -> bool:
        """``source``: a name as in ``names``, or the untrusted text of an unknown one."""
        if source in self.qubes:
            return source in self.matching[token.text]
        return token.kind in (TokenKind.EVERYTHING, TokenKind.ANY_QUBE) or (
            token.kind is TokenKind.QUBE and token.value == source
        )

    def may_be_target(self, token: Token, source: str, target: str) -> bool:
        """``target``: one of the values of ``targets``; ``@dispvm`` is also what it means for the source."""
        matching = self.matching[token.text]
        return target in matching or (
            target == "@dispvm" and token.kind in _OF_A_TEMPLATE and self.default_disposable(source) in matching
        )

    def offered(self, token: Token) -> frozenset[str]:
        """The targets a prompt lists for a token (``@dispvm`` is left as it is)."""
        return self.matching[token.text] & self.offerable


class _Matching(dict[str, frozenset[str]]):
    """Token text to the normal forms of all targets (so also: the names of all sources) that the token stands for."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self._shape = shape

    def __missing__(self, text: str) -> frozenset[str]:
        shape = self._shape
        token = parse_token(text, Column.TARGET)
        match token.kind:
            case TokenKind.EVERYTHING:
                found = frozenset(shape.targets.values())
            case TokenKind.ANY_QUBE:
                found = frozenset(shape.targets.values()) - {DOM0}
            case TokenKind.ADMIN:
                found = frozenset({DOM0})
            case TokenKind.DEFAULT | TokenKind.DISPOSABLE:
                found = frozenset({text})
            case TokenKind.QUBE:
                found = frozenset({shape.names[text]} if text in shape.names else ())
            case TokenKind.TAG:
                found = frozenset(facts.name for facts in shape.qubes.values() if token.value in facts.tags)
            case TokenKind.TYPE:
                found = frozenset(facts.name for facts in shape.qubes.values() if token.value == facts.klass)
            case TokenKind.DISPOSABLE_OF:
                found = frozenset({DISPOSABLE_PREFIX + shape.names.get(token.value, token.value)})
            case TokenKind.DISPOSABLE_TAGGED:
                tagged = (name for name in shape.templates if token.value in shape.qubes[name].tags)
                found = frozenset(DISPOSABLE_PREFIX + name for name in tagged)
            case _:
                assert_never(token.kind)
        self[text] = found
        return found


class SystemInfo:
    """One moment of the system. Immutable."""

    __slots__ = ("looks", "power_states", "shape")

    def __init__(self, shape: Shape, power_states: Mapping[str, str], looks: Mapping[str, Appearance]) -> None:
        self.shape = shape
        self.power_states = power_states
        self.looks = looks

    @classmethod
    def parse(cls, untrusted: object) -> SystemInfo:
        """From ``{"domains": {NAME: {...}}}``; a missing fact has its harmless default. Raises SystemInfoError."""
        domains = untrusted.get("domains") if isinstance(untrusted, dict) else None
        if not isinstance(domains, dict):
            raise SystemInfoError('the system information must be an object with an object "domains"')
        qubes: dict[str, QubeFacts] = {}
        power_states: dict[str, str] = {}
        looks: dict[str, Appearance] = {}
        uuids: dict[str, str] = {}
        for untrusted_name, untrusted_facts in domains.items():
            facts = _parse_facts(untrusted_name, untrusted_facts)
            if facts.uuid and uuids.setdefault(facts.uuid, facts.name) != facts.name:
                raise SystemInfoError(f"{facts.name!r} and {uuids[facts.uuid]!r} have the same uuid")
            qubes[facts.name] = facts
            power_states[facts.name] = _text(untrusted_name, untrusted_facts, "power_state") or "Halted"
            looks[facts.name] = Appearance(
                _text(untrusted_name, untrusted_facts, "icon") or "",
                _text(untrusted_name, untrusted_facts, "label") or "",
                _text(untrusted_name, untrusted_facts, "guivm"),
            )
        qubes.setdefault(DOM0, _DOM0_FACTS)
        return cls(Shape(qubes), power_states, looks)

    def is_running(self, name: str) -> bool:
        return name == DOM0 or self.power_states.get(name) == RUNNING


def _parse_facts(untrusted_name: object, untrusted_facts: object) -> QubeFacts:
    if not isinstance(untrusted_name, str) or not untrusted_name or untrusted_name[0] in "@*":
        raise SystemInfoError(f"{untrusted_name!a} cannot be the name of a qube")
    if untrusted_name.startswith(UUID_PREFIX) or not isinstance(untrusted_facts, dict):
        raise SystemInfoError(f"the facts of {untrusted_name!a} are malformed")
    tags = untrusted_facts.get("tags") or []
    if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
        raise SystemInfoError(f"tags of {untrusted_name!a} must be a list of strings")
    uuid = _text(untrusted_name, untrusted_facts, "uuid") or ""
    return QubeFacts(
        untrusted_name,
        _text(untrusted_name, untrusted_facts, "type") or "",
        uuid.removeprefix(UUID_PREFIX),
        frozenset(tags),
        untrusted_facts.get("template_for_dispvms") is True,
        _text(untrusted_name, untrusted_facts, "default_dispvm") or None,
        bool(untrusted_facts.get("internal")),
        _text(untrusted_name, untrusted_facts, "relayvm") or None,
        _text(untrusted_name, untrusted_facts, "transport_rpc") or None,
        _text(untrusted_name, untrusted_facts, "remote_name") or None,
    )


def _text(untrusted_name: str, untrusted_facts: dict[str, object], key: str) -> str | None:
    value = untrusted_facts.get(key)
    if value is None or isinstance(value, str):
        return value
    raise SystemInfoError(f"{key} of {untrusted_name!a} must be a string or null")
