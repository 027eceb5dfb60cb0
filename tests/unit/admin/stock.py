"""A client of our own that behaves as the stock library does: it knows the notes on the wire, and nothing of ours.

It takes every answer apart as strictly as that library (Admin API notes, section 1.3), and keeps what it was told until
an event says that it is stale (section 16).
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import NamedTuple

NOT_EMPTY = ("admin.label.List", "admin.pool.List")
WITH_NEWLINE = (*NOT_EMPTY, "admin.pool.ListDrivers", "admin.pool.Info", "admin.pool.UsageDetails",
                "admin.pool.volume.List")  # fmt: skip
NOT_CLONED = {"name", "qid", "template", "label", "uuid", "installed_by_rpm"}
STATES = {"Halted", "Transient", "Running", "Paused", "Suspended", "Halting", "Dying", "Crashed", "NA"}
POWER = {
    "domain-pre-start": "Transient",
    "domain-start": "Running",
    "domain-shutdown": "Halted",
    "domain-paused": "Paused",
    "domain-unpaused": "Running",
    "domain-start-failed": "Halted",
}


class StockError(Exception):
    def __init__(self, kind: str, text: str) -> None:
        super().__init__(f"{kind}: {text}")
        self.kind = kind
        self.text = text


class NoAnswer(Exception):
    """What the stock library shows as an access error."""


class Told(NamedTuple):
    subject: str
    name: str
    fields: dict[str, str]


class Property(NamedTuple):
    is_default: bool
    type: str
    value: str


def parse_answer(method: str, data: bytes) -> bytes:
    if not data:
        raise NoAnswer(method)
    assert data[1:2] == b"\0", data
    if data[:1] == b"2":
        kind, traceback, text, *words, end = data[2:].split(b"\0")
        assert (traceback, end) == (b"", b"")
        arguments = tuple(int(word) if word.isdigit() else word.decode() for word in words)
        raise StockError(kind.decode("ascii"), text.decode() % arguments)
    assert data[:1] == b"0", data
    body = data[2:]
    if method in WITH_NEWLINE:
        assert body.endswith(b"\n") or (not body and method not in NOT_EMPTY), (method, body)
    return body


def parse_property(text: str) -> Property:
    """``default=True type=str some value``, split as the stock library does."""
    default, kind, value = text.split(" ", 2)
    assert default in ("default=True", "default=False"), text
    assert kind.startswith("type="), text
    kind = kind.removeprefix("type=")
    assert kind in ("str", "int", "bool", "vm", "label"), text
    assert kind != "bool" or value in ("True", "False"), text
    assert kind != "int" or not value or re.fullmatch(r"-?[0-9]+", value), text
    return Property(default == "default=True", kind, value)


def unescape(text: str) -> str:
    return re.sub(r"\\(.)", lambda found: {"n": "\n", "\\": "\\"}[found[1]], text)


def parse_records(data: bytes) -> tuple[list[Told], bytes]:
    """Whole records, and what is left of the last one."""
    found: list[Told] = []
    while True:
        parts = data.split(b"\0")
        if len(parts) < 4:
            return found, data
        assert parts[0] == b"1", data
        at, fields = 3, {}
        while parts[at] != b"":
            if at + 2 >= len(parts):
                return found, data
            fields[parts[at].decode("ascii")] = parts[at + 1].decode("ascii")
            at += 2
        if at + 1 >= len(parts):
            return found, data
        found.append(Told(parts[1].decode("ascii"), parts[2].decode("ascii"), fields))
        data = b"\0".join(parts[at + 1 :])


class Stock:
    def __init__(self, path: Path, *, shuffle: Callable[[list[str]], None] = lambda _: None) -> None:
        self.path = path
        self.calls: list[str] = []
        self._shuffle = shuffle

    async def call(self, dest: str, method: str, arg: str = "", payload: bytes | str = b"") -> bytes:
        self.calls.append(method)
        reader, writer = await asyncio.open_unix_connection(str(self.path))
        body = payload.encode() if isinstance(payload, str) else payload
        writer.write(f"{method}+{arg} dom0 name {dest}".encode("ascii") + b"\0" + body)
        writer.write_eof()
        data = await reader.read()
        writer.close()
        return parse_answer(method, data)

    async def text(self, dest: str, method: str, arg: str = "", payload: bytes | str = b"") -> str:
        return (await self.call(dest, method, arg, payload)).decode("utf-8")

    async def lines(self, dest: str, method: str, arg: str = "") -> list[str]:
        text = await self.text(dest, method, arg)
        assert not text or text.endswith("\n"), (method, text)
        return text.splitlines()

    async def qubes(self) -> dict[str, dict[str, str]]:
        found = {}
        for line in await self.lines("dom0", "admin.vm.List"):
            name, *pairs = line.split(" ")
            found[name] = dict(pair.split("=", 1) for pair in pairs)
            assert found[name]["state"] in STATES
        return found

    async def properties(self, dest: str | None) -> dict[str, Property]:
        method = "admin.property.GetAll" if dest is None else "admin.vm.property.GetAll"
        found = {}
        for line in await self.lines(dest or "dom0", method):
            name, _, rest = line.partition(" ")
            parsed = parse_property(rest)
            found[name] = parsed._replace(value=unescape(parsed.value))
        return found

    async def fields(self, dest: str, method: str, arg: str = "") -> dict[str, str]:
        return dict(line.split("=", 1) for line in await self.lines(dest, method, arg))

    # -- what the stock tools do in many calls -------------------------------------------------------------------------

    async def clone(self, source: str, new: str) -> None:
        """Section 12.3, call by call; on an error the new qube is removed."""
        klass = (await self.qubes())[source]["class"]
        label = parse_property(await self.text(source, "admin.vm.property.Get", "label")).value
        try:
            template = parse_property(await self.text(source, "admin.vm.property.Get", "template")).value
        except StockError as error:
            assert error.kind == "QubesNoSuchPropertyError"
            template = ""
        volumes = {
            volume: await self.fields(source, "admin.vm.volume.Info", volume)
            for volume in await self.lines(source, "admin.vm.volume.List")
        }
        pools = [f"pool:{name}={info['pool']}" for name, info in volumes.items() if info["save_on_stop"] == "True"]
        verb = "CreateInPool" if pools else "Create"
        await self.text(
            "dom0", f"admin.vm.{verb}.{klass}", template, " ".join((f"name={new}", f"label={label}", *pools))
        )
        try:
            await self._fill(source, new, volumes)
        except BaseException:
            await self.text(new, "admin.vm.Remove")
            raise

    async def _fill(self, source: str, new: str, volumes: dict[str, dict[str, str]]) -> None:
        for name in self._shuffled(await self.lines(source, "admin.vm.property.List")):
            found = parse_property(await self.text(source, "admin.vm.property.Get", name))
            if name not in NOT_CLONED and not found.is_default:
                await self.text(new, "admin.vm.property.Set", name, found.value)
        for tag in self._shuffled(await self.lines(source, "admin.vm.tag.List")):
            if not tag.startswith("created-by-"):
                await self.text(new, "admin.vm.tag.Set", tag)
        for feature in self._shuffled(await self.lines(source, "admin.vm.feature.List")):
            if not feature.startswith("preload-dispvm") or feature == "preload-dispvm-max":
                value = await self.text(source, "admin.vm.feature.Get", feature)
                await self.text(new, "admin.vm.feature.Set", feature, value)
        if notes := await self.text(source, "admin.vm.notes.Get"):
            await self.text(new, "admin.vm.notes.Set", "", notes)
        await self.text(new, "admin.vm.firewall.Set", "", await self.text(source, "admin.vm.firewall.Get"))
        for volume, info in volumes.items():
            if info["save_on_stop"] == "True":
                token = await self.text(source, "admin.vm.volume.CloneFrom", volume)
                assert re.fullmatch(r"[A-Za-z0-9]{32}", token)
                await self.text(new, "admin.vm.volume.CloneTo", volume, token)
        for devclass in await self.lines("dom0", "admin.deviceclass.List"):
            for line in await self.lines(source, f"admin.vm.device.{devclass}.Assigned"):
                ident, _, rest = line.partition(" ")
                backend, _, port = ident.partition("+")
                port, _, device = port.partition(":")
                argument = f"{backend}+{port}+{device.replace(':', '+')}".replace("*", "_")
                wish = rest.replace(f"frontend_domain='{source}'", f"frontend_domain='{new}'")
                await self.text(new, f"admin.vm.device.{devclass}.Assign", argument, wish)

    def _shuffled(self, names: list[str]) -> list[str]:
        self._shuffle(names)
        return names


class CachingStock(Stock):
    """Asks once and then believes what it knows, until an event says otherwise."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.told: list[Told] = []
        self.names: set[str] = set()
        self.power: dict[str, str] = {}
        self.values: dict[tuple[str, str], Property] = {}
        self._rest = b""

    async def connect(self) -> None:
        self._events, self._writer = await asyncio.open_unix_connection(str(self.path))
        self._writer.write(b"admin.Events+ dom0 name dom0\0")
        self._writer.write_eof()
        await self.until(lambda told: told.name == "connection-established")

    async def close(self) -> None:
        self._writer.close()
        await self._writer.wait_closed()

    async def fill(self) -> None:
        """Know all that is not known yet."""
        rows = await self.qubes()
        self.names = self.names or set(rows)
        for name, row in rows.items():
            self.power.setdefault(name, row["state"])
        for dest in ("", *rows):
            for name, found in (await self.properties(dest or None)).items():
                self.values.setdefault((dest, name), found)

    async def until(self, is_it: Callable[[Told], bool]) -> list[Told]:
        """Take in what comes, up to and with the event that is meant."""
        heard: list[Told] = []
        while not any(is_it(told) for told in heard):
            data = await asyncio.wait_for(self._events.read(1 << 16), 20)
            assert data, "the stream ended"
            found, self._rest = parse_records(self._rest + data)
            heard += found
            for told in found:
                self._take(told)
        return heard

    def _take(self, told: Told) -> None:
        self.told.append(told)
        subject, name = told.subject, told.name
        if name.startswith(("property-set:", "property-reset:")):
            self.values.pop((subject, told.fields["name"]), None)
        elif name == "domain-add":
            assert subject == "" and told.fields["vm"] not in self.names, "a qube is added once"
            self.names.add(told.fields["vm"])
        elif name == "domain-delete":
            gone = told.fields["vm"]
            self.names.remove(gone)
            self.power.pop(gone, None)
            self.values = {key: value for key, value in self.values.items() if key[0] != gone}
        if name in POWER:
            self.power[subject] = POWER[name]

    async def lies(self) -> Iterator[str]:
        """Everything that it believes and that is not so."""
        rows = await self.qubes()
        found = [f"the names are {sorted(rows)} and not {sorted(self.names)}"] * (set(rows) != self.names)
        for name, believed in self.power.items():
            if name in rows and rows[name]["state"] != believed:
                found.append(f"{name} is {rows[name]['state']} and not {believed}")
        for dest in ("", *rows):
            for name, fresh in (await self.properties(dest or None)).items():
                believed_value = self.values.get((dest, name), fresh)
                if believed_value != fresh:
                    found.append(f"{name} of {dest or 'the system'} is {fresh} and not {believed_value}")
        return iter(found)


Operation = Callable[[], Awaitable[bytes]]
