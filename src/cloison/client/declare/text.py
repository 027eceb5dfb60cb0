"""TOML text to a document and back.

In: files. Out: a ``Document``, or BadRequest naming the file and the key. Beside the document's own tables a file may
have ``include`` (files read before it, whose tables it adds to and overrides) and ``[vars]`` (``${NAME}`` in any text;
``$${NAME}`` is ``${NAME}`` itself).
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cloison.client.declare.assignments import parse_assignment
from cloison.client.declare.document import Document, QubeWish
from cloison.errors import BadRequest

MAX_INCLUDES = 64
QUBE_KEYS = frozenset({"class", "label", "template", "features", "tags", "firewall", "notes", "volumes", "devices",
                       "pool", "build"})  # fmt: skip
TABLES = frozenset({"system", "labels", "pools", "qubes", "policy"})
_NUMBER = re.compile(r"0|-?[1-9][0-9]{0,17}", re.ASCII)
_BARE = re.compile(r"[A-Za-z0-9_-]+")
_VARIABLE = re.compile(r"(\$?)\$\{([A-Za-z0-9_-]+)\}")
_SIZE = re.compile(r"([0-9]+) ?([KMGT]?)(?:iB|B)?")
_UNITS = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}


def read_document(path: Path) -> Document:
    """The document in a file, with what it includes. Raises BadRequest."""
    table = _load(path, [])
    variables = _texts(table.pop("vars", {}), f"{path}: vars")
    table.pop("include", None)
    if unknown := set(table) - TABLES:
        known = ", ".join(sorted(TABLES | {"include", "vars"}))
        raise BadRequest(f"{path}: {sorted(unknown)[0]!a} is not known here (known: {known})")
    table = _expand(table, variables, str(path))
    return parse_document(table, str(path))


def _load(path: Path, above: list[Path]) -> dict[str, Any]:
    if path.resolve() in above:
        raise BadRequest(f"{path} includes itself ({' -> '.join(p.name for p in [*above, path])})")
    if len(above) >= MAX_INCLUDES:
        raise BadRequest(f"{path}: more than {MAX_INCLUDES} files include one another")
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadRequest(f"cannot read {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadRequest(f"{path}: {error}") from None
    included = table.get("include", [])
    if not isinstance(included, list) or not all(isinstance(name, str) for name in included):
        raise BadRequest(f"{path}: include is not a list of file names")
    merged: dict[str, Any] = {}
    for name in included:
        merged = _merge(merged, _load(path.parent / name, [*above, path.resolve()]))
    return _merge(merged, table)


def _merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Tables are joined, anything else is replaced."""
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def _expand(value: Any, variables: Mapping[str, str], where: str) -> Any:
    def put(found: re.Match[str]) -> str:
        if found[1]:
            return found[0][1:]
        try:
            return variables[found[2]]
        except KeyError:
            raise BadRequest(f"{where}: there is no variable ${{{found[2]}}}") from None

    match value:
        case str():
            return _VARIABLE.sub(put, value)
        case list():
            return [_expand(item, variables, where) for item in value]
        case dict():
            return {key: _expand(item, variables, f"{where}: {key}") for key, item in value.items()}
    return value


def parse_document(table: Mapping[str, Any], where: str) -> Document:
    """A table as TOML or JSON give it. Raises BadRequest."""
    system, policy = table.get("system"), table.get("policy")
    return Document(
        system=None if system is None else _texts(system, f"{where}: system"),
        labels=_texts(table.get("labels", {}), f"{where}: labels"),
        pools={
            name: _pool(entry, f"{where}: pools.{name}")
            for name, entry in _table(table.get("pools", {}), f"{where}: pools").items()
        },
        qubes={
            name: _qube(name, entry, f"{where}: qubes.{name}")
            for name, entry in _table(table.get("qubes", {}), f"{where}: qubes").items()
        },
        policy=None if policy is None else _texts(policy, f"{where}: policy"),
    )


def _pool(entry: object, where: str) -> Mapping[str, str]:
    pool = _texts(entry, where)
    if not pool.get("driver"):
        raise BadRequest(f"{where}: driver is missing")
    return pool


def _qube(name: str, entry: object, where: str) -> QubeWish:
    entry = _table(entry, where)
    for key in ("class", "label"):
        if not isinstance(entry.get(key, "?" if name == "dom0" else None), str):
            raise BadRequest(f"{where}: {key} is missing")
    properties = {key: value for key, value in entry.items() if key not in QUBE_KEYS}
    features, tags, firewall = entry.get("features"), entry.get("tags"), entry.get("firewall")
    notes, volumes, build = entry.get("notes"), entry.get("volumes"), entry.get("build")
    devices = entry.get("devices")
    if notes is not None and not isinstance(notes, str):
        raise BadRequest(f"{where}: notes is not a text")
    return QubeWish(
        name=name,
        klass=str(entry.get("class", "AdminVM")),
        label=str(entry.get("label", "")),
        template=_text(entry.get("template", ""), f"{where}: template"),
        properties=_texts(properties, where),
        pool=_text(entry.get("pool", ""), f"{where}: pool"),
        features=None if features is None else _texts(features, f"{where}: features"),
        tags=None if tags is None else frozenset(_list(tags, f"{where}: tags")),
        firewall=None if firewall is None else tuple(_list(firewall, f"{where}: firewall")),
        notes=notes,
        volumes=None if volumes is None else {
            volume: _size(size, f"{where}: volumes.{volume}")
            for volume, size in _table(volumes, f"{where}: volumes").items()
        },
        devices=None if devices is None else _devices(devices, f"{where}: devices"),
        build=None if build is None else _table(build, f"{where}: build"),
    )  # fmt: skip


def _devices(value: object, where: str) -> tuple[str, ...]:
    lines = _list(value, where)
    for line in lines:
        parse_assignment(line, where)
    return tuple(sorted(lines))


def _table(value: object, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise BadRequest(f"{where} is not a table")
    return value


def _texts(value: object, where: str) -> dict[str, str]:
    return {key: _text(item, f"{where}.{key}") for key, item in _table(value, where).items()}


def _text(value: object, where: str) -> str:
    """TOML's truth and whole numbers as the Admin API writes them."""
    if isinstance(value, bool | int | str):
        return str(value)
    raise BadRequest(f"{where} is neither a text, a whole number, true nor false")


def _list(value: object, where: str) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise BadRequest(f"{where} is not a list of texts")
    return value


def _size(value: object, where: str) -> int:
    found = _SIZE.fullmatch(str(value)) if isinstance(value, str | int) and not isinstance(value, bool) else None
    if found is None:
        raise BadRequest(f"{where}: {value!a} is not a size such as 4GiB")
    return int(found[1]) << _UNITS[found[2]]


def write_document(document: Document) -> str:
    """TOML that ``read_document`` reads back as the same document."""
    parts = []
    if document.system is not None:
        parts.append(_section("system", _plain(document.system)))
    if document.labels:
        parts.append(_section("labels", dict(document.labels)))
    parts += [_section(f"pools.{_key(name)}", _plain(pool)) for name, pool in document.pools.items()]
    parts += [_qube_text(wish) for wish in document.qubes.values()]
    if document.policy is not None:
        parts.append(_section("policy", dict(document.policy)))
    return "\n".join(parts)


def _plain(texts: Mapping[str, str]) -> dict[str, object]:
    """Whole numbers and truth as people write them; ``_text`` reads each back as the same text."""
    plain: dict[str, object] = {}
    for key, text in texts.items():
        number = _NUMBER.fullmatch(text) is not None
        plain[key] = text == "True" if text in ("True", "False") else int(text) if number else text
    return plain


def _qube_text(wish: QubeWish) -> str:
    head: dict[str, object] = {} if wish.klass == "AdminVM" else {"class": wish.klass, "label": wish.label}
    if wish.template:
        head["template"] = wish.template
    if wish.pool:
        head["pool"] = wish.pool
    head |= _plain(wish.properties)
    if wish.tags is not None:
        head["tags"] = sorted(wish.tags)
    if wish.firewall is not None:
        head["firewall"] = list(wish.firewall)
    if wish.devices is not None:
        head["devices"] = list(wish.devices)
    if wish.notes is not None:
        head["notes"] = wish.notes
    title = f"qubes.{_key(wish.name)}"
    text = _section(title, head)
    if wish.build is not None:
        text += _section(f"{title}.build", dict(wish.build))
    if wish.volumes is not None:
        text += _section(f"{title}.volumes", {name: size_text(size) for name, size in wish.volumes.items()})
    if wish.features is not None:
        text += _section(f"{title}.features", dict(wish.features))
    return text


def size_text(size_bytes: int) -> str:
    """The shortest exact size."""
    for unit in "TGMK":
        if size_bytes and size_bytes % (1 << _UNITS[unit]) == 0:
            return f"{size_bytes >> _UNITS[unit]}{unit}iB"
    return str(size_bytes)


def _section(title: str, entries: Mapping[str, object]) -> str:
    return "".join([f"[{title}]\n", *(f"{_key(key)} = {_value(value)}\n" for key, value in entries.items())])


def _key(key: str) -> str:
    return key if _BARE.fullmatch(key) else _basic(key)


def _value(value: object) -> str:
    match value:
        case bool():
            return str(value).lower()
        case int():
            return str(value)
        case list():
            if len(value) < 2:
                return f"[{', '.join(map(_value, value))}]"
            return "[\n" + "".join(f"  {_value(item)},\n" for item in value) + "]"
        case _:
            return _quoted(str(value))


def _quoted(text: str) -> str:
    """A basic string; a text of several lines keeps them."""
    text = _VARIABLE.sub(lambda found: f"$${{{found[2]}}}" if not found[1] else f"$$${{{found[2]}}}", text)
    if "\n" in text and text.isprintable() is False and not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", text):
        body = text.replace("\\", "\\\\").replace('"""', '""\\"')
        body = body[:-1] + '\\"' if body.endswith('"') else body
        return f'"""\n{body}"""'
    return _basic(text)


def _basic(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
