"""The store when things go wrong: kill -9 at any moment, damaged files, full disks."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys

import pytest

from cloison.drivers.state import schema
from cloison.drivers.state.sqlite import Store
from cloison.errors import DiskFull, StateDamaged
from cloison.model.classes import Klass
from cloison.model.qube import Host

HOST = Host(8192, 4)
WRITER = """
import os, sys
from pathlib import Path
from cloison.drivers.state.sqlite import Store
from cloison.model.classes import Klass
from cloison.model.qube import Host
store = Store.open(Path(sys.argv[1]), host=Host(1, 1))
number = 0
while True:
    number += 1
    with store.transaction(durable=number % 2 == 0) as records:
        records.add_qube(f"q{number}", qid=number, uuid=str(number), klass=Klass.APP, label="red")
        records.set_feature(f"q{number}", "a", "x" * 500)
        records.add_tag(f"q{number}", "t")
    os.write(1, b"%d\\n" % number)
"""


@pytest.fixture
def whole(path):
    """A database with some qubes, closed."""
    store = Store.open(path, host=HOST)
    with store.transaction() as records:
        for qid in range(1, 50):
            records.add_qube(f"q{qid}", qid=qid, uuid=str(qid), klass=Klass.APP, label="red")
            records.set_feature(f"q{qid}", "text", "x" * 300)
    store.close()
    return path


@pytest.mark.parametrize("milliseconds", [1, 7, 23, 60])
def test_a_kill_at_any_moment_loses_nothing_that_was_committed(path, milliseconds):
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    try:
        process.wait(milliseconds / 1000)
    except subprocess.TimeoutExpired:
        os.kill(process.pid, signal.SIGKILL)
    committed = 1 + len(process.stdout.read().splitlines())
    process.wait()
    store = Store.open(path, host=HOST)
    qubes = [qube for qube in store.inventory if qube.klass is Klass.APP]
    assert committed <= len(qubes) <= committed + 1
    assert all(qube.features and qube.tags == {"t"} for qube in qubes), "no qube is half written"
    store.close()


def damage(path, at, data):
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data)


def overwrite_header(path):
    damage(path, 0, b"garbage garbage garbage")


def overwrite_pages(path):
    damage(path, 4096, os.urandom(path.stat().st_size - 4096))


def cut_short(path):
    os.truncate(path, path.stat().st_size // 2)


def empty(path):
    os.truncate(path, 0)


def text_file(path):
    path.write_text("this is no database\n" * 100)


def foreign_database(path):
    path.unlink()
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE cats (name TEXT)")
    connection.close()


def dangling_reference(path):
    connection = sqlite3.connect(path)
    connection.execute("INSERT INTO features VALUES (4711, 'a', 'b')")
    connection.commit()
    connection.close()


def unknown_class(path):
    connection = sqlite3.connect(path)
    connection.execute("UPDATE qubes SET klass = 'CatVM' WHERE qid = 1")
    connection.commit()
    connection.close()


DAMAGES = [
    overwrite_header,
    overwrite_pages,
    cut_short,
    empty,
    text_file,
    foreign_database,
    dangling_reference,
    unknown_class,
]


@pytest.mark.parametrize("hurt", DAMAGES, ids=lambda hurt: hurt.__name__)
def test_a_damaged_database_is_refused_named_and_kept(whole, hurt):
    hurt(whole)
    before = whole.read_bytes()
    with pytest.raises(StateDamaged) as caught:
        Store.open(whole, host=HOST)
    assert str(whole) in str(caught.value)
    assert f"{whole}.good" in str(caught.value), "the hint names the copy"
    assert whole.read_bytes() == before, "nothing was written into it"


@pytest.mark.parametrize("hurt", DAMAGES, ids=lambda hurt: hurt.__name__)
def test_the_copy_of_the_last_orderly_end_can_be_put_back(whole, hurt):
    hurt(whole)
    shutil.copy(f"{whole}.good", whole)
    store = Store.open(whole, host=HOST)
    assert len(store.inventory.qubes) == 50
    store.close()


def test_a_database_of_a_newer_version_is_refused(whole):
    connection = sqlite3.connect(whole)
    connection.execute(f"PRAGMA user_version = {schema.VERSION + 1}")
    connection.close()
    with pytest.raises(StateDamaged, match="newer"):
        Store.open(whole, host=HOST)


def test_an_interrupted_first_start_is_begun_again(path):
    path.parent.mkdir(parents=True)
    path.with_name(path.name + ".new").write_bytes(b"half")
    store = Store.open(path, host=HOST)
    assert store.inventory.find("dom0")
    store.close()


def test_a_full_disk_changes_nothing_and_is_said(whole):
    store = Store.open(whole, host=HOST)
    store._connection.execute("PRAGMA max_page_count = 1")
    with pytest.raises(DiskFull, match=r"no room"), store.transaction() as records:
        for number in range(200):
            records.set_feature("q1", f"f{number}", "x" * 4000)
    assert list(store.inventory.qube("q1").features) == ["text"]
    store._connection.execute("PRAGMA max_page_count = 100000")
    with store.transaction() as records:
        records.set_feature("q1", "f", "y")
    assert store.inventory.qube("q1").features["f"] == "y"
    store.close()
