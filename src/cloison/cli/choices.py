"""Kinds of arguments: what they accept, and what the shell completes.

In: text from the command line. Out: checked values. May import: client, model.names, errors.

Completion asks a running daemon only; it never starts one and never waits long.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import click
from click.shell_completion import CompletionItem

from cloison.errors import BadRequest

if TYPE_CHECKING:
    TextType = click.ParamType[str]
    PairType = click.ParamType[tuple[str, str]]
    NumberType = click.ParamType[int]
else:  # generic since click 8.4 only
    TextType = PairType = NumberType = click.ParamType

COMPLETION_TIMEOUT_S = 1.0


def complete_from(question: Callable[[], Sequence[tuple[str, str]]], incomplete: str) -> list[CompletionItem]:
    """What begins with the incomplete word, of (value, note) pairs; nothing if the question fails."""
    try:
        found = question()
    except Exception:  # border: a shell waits; no answer is better than a traceback
        return []
    return [CompletionItem(value, help=note) for value, note in found if value.startswith(incomplete)]


class QubeType(TextType):
    """The name of a qube that should exist; ``classes`` limits what is completed."""

    name = "qube"

    def __init__(self, *classes: str) -> None:
        self.classes = classes

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        from cloison.model.names import parse_qube_name

        try:
            return parse_qube_name(value)
        except BadRequest as error:
            self.fail(str(error), param, ctx)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        def question() -> list[tuple[str, str]]:
            from cloison.client import Client, calls

            rows = Client(start_daemon=False).do(calls.list_states(), timeout_s=COMPLETION_TIMEOUT_S)
            return [(r.name, f"{r.klass}, {r.state}") for r in rows if not self.classes or r.klass in self.classes]

        return complete_from(question, incomplete)


class LabelType(TextType):
    name = "label"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        def question() -> list[tuple[str, str]]:
            from cloison.client import Client, calls

            labels = Client(start_daemon=False).do(calls.label_list(), timeout_s=COMPLETION_TIMEOUT_S)
            return [(label, "") for label in labels]

        return complete_from(question, incomplete)


class PropertyType(TextType):
    """A property of the qube named earlier on the line (of the system if there is none)."""

    name = "property"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        def question() -> list[tuple[str, str]]:
            from cloison.client import Client, calls

            client = Client(start_daemon=False)
            names = client.do(calls.property_list(ctx.params.get("qube")), timeout_s=COMPLETION_TIMEOUT_S)
            return [(name, "") for name in names]

        return complete_from(question, incomplete)


class VolumeType(PairType):
    """``QUBE:VOLUME``."""

    name = "qube:volume"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        if isinstance(value, tuple):
            return value
        qube, colon, volume = str(value).partition(":")
        if not colon or not volume:
            self.fail(f"{value!a} is not QUBE:VOLUME, for example work:private", param, ctx)
        return QUBE.convert(qube, param, ctx), volume

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        qube, colon, _ = incomplete.partition(":")
        if colon:
            return [CompletionItem(f"{qube}:{v}") for v in ("root", "private") if f"{qube}:{v}".startswith(incomplete)]
        return [CompletionItem(f"{item.value}:") for item in QUBE.shell_complete(ctx, param, incomplete)]


class SizeType(NumberType):
    """A number of bytes: ``10G``, ``512MiB``, ``4096``. Units are powers of 1024."""

    name = "size"
    _pattern = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?", re.IGNORECASE | re.ASCII)

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        match = self._pattern.fullmatch(str(value).strip())
        if match is None:
            self.fail(f"{value!a} is not a size, for example 10G or 512M", param, ctx)
        number, unit = match.groups()
        return int(float(number) * 1024 ** " kmgt".index(unit.lower() or " "))


def complete_pool(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names of pools."""

    def question() -> list[tuple[str, str]]:
        from cloison.client import Client, calls

        pools = Client(start_daemon=False).do(calls.pool_list(), timeout_s=COMPLETION_TIMEOUT_S)
        return [(pool, "") for pool in pools]

    return complete_from(question, incomplete)


QUBE = QubeType()
TEMPLATE = QubeType("TemplateVM")
DISPOSABLE_TEMPLATE = QubeType("AppVM")
LABEL = LabelType()
PROPERTY = PropertyType()
VOLUME = VolumeType()
SIZE = SizeType()
