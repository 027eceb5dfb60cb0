"""Property values: from untrusted text to a value, and back to text.

Every parser takes decoded ASCII text and returns the value or raises BadPropertyValue with the reason only; the
caller adds which property of which qube it was.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from enum import Enum

from cloison.errors import BadPropertyValue, BadRequest
from cloison.model.names import QubeName, parse_qube_name

Value = str | int | bool | None
Parser = Callable[[str], Value]

MAX_TEXT = 4096
MAX_KERNEL_OPTIONS = 512


class PropertyType(Enum):
    """The value is the type's name on the wire."""

    STR = "str"
    INT = "int"
    BOOL = "bool"
    VM = "vm"
    LABEL = "label"


def format_value(value: Value) -> str:
    """The wire form of a value: None is empty, truth is ``True`` or ``False``."""
    return "" if value is None else str(value)


_TRUE = frozenset({"1", "yes", "true", "on"})
_FALSE = frozenset({"0", "no", "false", "off"})
_PRINTABLE = re.compile(r"[\x20-\x7e\t\n]*")


def parse_bool(untrusted_text: str) -> bool:
    folded = untrusted_text.casefold()
    if folded in _TRUE:
        return True
    if folded in _FALSE:
        return False
    raise BadPropertyValue(f"{untrusted_text[:40]!a} is neither True nor False")


def is_bool_word(untrusted_text: str) -> bool:
    return untrusted_text.casefold() in _TRUE | _FALSE


def parse_int(untrusted_text: str) -> int:
    text = untrusted_text.strip()
    if not re.fullmatch(r"-?[0-9]{1,18}", text):
        raise BadPropertyValue(f"{untrusted_text[:40]!a} is not a whole number")
    return int(text)


def parse_positive(untrusted_text: str) -> int:
    number = parse_int(untrusted_text)
    if number <= 0:
        raise BadPropertyValue(f"{number} is not greater than zero")
    return number


def parse_natural(untrusted_text: str) -> int:
    number = parse_int(untrusted_text)
    if number < 0:
        raise BadPropertyValue(f"{number} is less than zero")
    return number


def optional(parser: Callable[[str], Value]) -> Parser:
    """Empty text (what Get returns for "none") is None."""

    def parse(untrusted_text: str) -> Value:
        return None if untrusted_text == "" else parser(untrusted_text)

    return parse


def parse_text(untrusted_text: str) -> str:
    if len(untrusted_text) > MAX_TEXT:
        raise BadPropertyValue(f"text is longer than {MAX_TEXT} characters")
    if not _PRINTABLE.fullmatch(untrusted_text):
        raise BadPropertyValue("only printable ASCII is allowed")
    return untrusted_text


def parse_vm(untrusted_text: str) -> QubeName | None:
    if untrusted_text in ("", "None"):
        return None
    try:
        return parse_qube_name(untrusted_text)
    except BadRequest as error:
        raise BadPropertyValue(error.message) from None


def one_of(*words: str) -> Parser:
    """One of a closed set of words, letter case aside."""

    def parse(untrusted_text: str) -> str:
        word = untrusted_text.casefold()
        if word not in words:
            raise BadPropertyValue(f"{untrusted_text[:40]!a} is not one of: {', '.join(words)}")
        return word

    return parse


def matching(pattern: str, rule: str) -> Parser:
    """Text that matches a pattern; ``rule`` says in words what is allowed."""
    compiled = re.compile(pattern, re.ASCII)

    def parse(untrusted_text: str) -> str:
        if not compiled.fullmatch(untrusted_text):
            raise BadPropertyValue(f"{untrusted_text[:60]!a}: {rule}")
        return untrusted_text

    return parse


def parse_kernel_options(untrusted_text: str) -> str:
    if len(untrusted_text) > MAX_KERNEL_OPTIONS:
        raise BadPropertyValue(f"kernel options are longer than {MAX_KERNEL_OPTIONS} characters")
    return parse_text(untrusted_text)


def parse_mac(untrusted_text: str) -> str:
    text = untrusted_text.casefold()
    if not re.fullmatch(r"([0-9a-f]{2}:){5}[0-9a-f]{2}", text):
        raise BadPropertyValue(f"{untrusted_text[:40]!a} is not a MAC address like 00:16:3e:5e:6c:00")
    return text


def parse_interfaces(untrusted_text: str) -> str:
    """Device interface codes (seven characters each, run together): sorted, none twice."""
    if len(untrusted_text) % 7:
        raise BadPropertyValue("device interface codes are seven characters each")
    codes = {untrusted_text[at : at + 7] for at in range(0, len(untrusted_text), 7)}
    for code in codes:
        if not re.fullmatch(r"[a-z?*][0-9a-f*]{6}", code):
            raise BadPropertyValue(f"{code!a} is not a device interface code")
    return "".join(sorted(codes))


parse_pool_name = matching(r"[a-zA-Z0-9_.-]*", "a pool name is letters, digits, '_', '.' or '-'")
parse_user = matching(r"[A-Za-z0-9_+,.-]{1,64}", "a user name is letters, digits, '_', '-', '+', ',' or '.'")
parse_kernel = matching(r"[\x20-\x2e\x30-\x7e]{0,128}", "a kernel name is printable and has no '/'")
parse_keyboard = matching(r"[\x20-\x2a\x2c-\x7e]+(\+[\x20-\x2a\x2c-\x7e]*){2}", "the form is layout+variant+options")
