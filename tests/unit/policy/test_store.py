"""Changing policy files: tokens, names, whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from cloison.policy import PolicyError, install_defaults, load_policy
from cloison.policy.store import BadFileName, BadToken, FileMissing, PolicyStore, WouldBreak, content_token

Write = Callable[[str, str], Path]
GOOD = b"s * * * deny\n"


@pytest.fixture
def store(policy_dir: Path) -> PolicyStore:
    return PolicyStore(policy_dir)


def test_files_are_put_listed_got_and_removed(store: PolicyStore, policy_dir: Path):
    store.replace("include/part", b"s * * * deny\n", "new")
    store.replace("20-b", b"!include include/part\n", "new")
    store.replace("10-a", GOOD, "any")
    assert store.list_files() == ["10-a", "20-b"]
    assert store.list_files(include=True) == ["include/part"]
    token, content = store.get("10-a")
    assert (token, content) == (content_token(GOOD), GOOD)
    store.replace("10-a", b"# nothing\n", token)
    store.remove("10-a", content_token(b"# nothing\n"))
    assert store.list_files() == ["20-b"]
    assert sorted(path.name for path in policy_dir.iterdir()) == ["20-b.policy", "include"]


def test_a_change_based_on_old_content_is_refused(store: PolicyStore):
    store.replace("10-a", GOOD, "new")
    old, _ = store.get("10-a")
    store.replace("10-a", b"# by somebody else\n", old)
    for token in (old, "new", "sha256:", "", "sha1:abc"):
        with pytest.raises(BadToken):
            store.replace("10-a", b"# lost update\n", token)
        with pytest.raises(BadToken):
            store.remove("10-a", token)
    assert store.get("10-a")[1] == b"# by somebody else\n"


def test_a_change_that_would_break_the_set_is_refused(store: PolicyStore):
    store.replace("include/part", GOOD, "new")
    store.replace("20-b", b"!include include/part\n", "new")
    with pytest.raises(WouldBreak, match=r"10-a.policy:1: a rule needs"):
        store.replace("10-a", b"broken", "new")
    with pytest.raises(WouldBreak, match=r"include/part:2: "):
        store.replace("include/part", b"\nbroken", "any")
    with pytest.raises(WouldBreak, match=r"20-b.policy:1: cannot read .*include/part"):
        store.remove("include/part", "any")
    with pytest.raises(WouldBreak, match="not UTF-8"):
        store.replace("10-a", b"\xff", "new")
    assert store.list_files() == ["20-b"] and store.get("include/part")[1] == GOOD
    store.replace("include/not-used-yet", b"broken, and nobody includes it", "new")


def test_a_broken_set_can_be_mended(store: PolicyStore, write: Write):
    write("policy.d/10-a.policy", "broken")
    with pytest.raises(WouldBreak):
        store.replace("20-b", GOOD, "new")
    store.replace("10-a", GOOD, "any")


@pytest.mark.parametrize(
    "name",
    ["", "Upper", "a.policy", "../x", "a/b", "include/", "include/../x", "include/a.b", "/etc/passwd", ".", "a b",
     "a\n", "é", "!x", "include/include/x", "other/x", "include//x"],
)  # fmt: skip
def test_only_plain_names_are_taken(store: PolicyStore, name: str):
    for act in (store.get, lambda n: store.remove(n, "any"), lambda n: store.replace(n, GOOD, "any")):
        with pytest.raises(BadFileName):
            act(name)


def test_what_is_missing_is_said_to_be_missing(store: PolicyStore):
    for act in (store.get, lambda n: store.remove(n, "any")):
        with pytest.raises(FileMissing, match="there is no policy file 10-a"):
            act("10-a")
    with pytest.raises(BadToken):
        store.replace("10-a", GOOD, content_token(GOOD))


def test_lines_are_appended_whole(store: PolicyStore, write: Write):
    store.append_line("30-user", "s * a b allow")
    path = write("policy.d/30-user.policy", "s * a b allow")
    store.append_line("30-user", "s * a c deny")
    assert path.read_text() == "s * a b allow\ns * a c deny\n"
    with pytest.raises(WouldBreak):
        store.append_line("30-user", "s * a")


def test_a_full_disk_leaves_the_old_file(store: PolicyStore, policy_dir: Path, monkeypatch: pytest.MonkeyPatch):
    store.replace("10-a", GOOD, "new")

    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("cloison.policy.files.os.fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        store.replace("10-a", b"# new\n", "any")
    assert [path.name for path in policy_dir.iterdir()] == ["10-a.policy"] and store.get("10-a")[1] == GOOD


def test_files_for_a_service_in_rule_order(store: PolicyStore, write: Write):
    write("policy.d/20-b.policy", "s * * * deny\n!include include/x")
    write("policy.d/include/x", "s * * * deny")
    write("policy.d/10-a.policy", "t * * * deny")
    write("policy.d/30-c.policy", "* * * * deny")
    assert store.find_files_for("s") == ["20-b", str(store.policy / "include/x"), "30-c"]


def test_defaults_never_touch_what_is_there_and_never_come_back(tmp_path: Path):
    directory = tmp_path / "fresh" / "policy.d"
    directory.mkdir(parents=True)
    mine = directory / "90-default.policy"
    mine.write_text("# mine\n")
    installed = install_defaults(directory)
    assert directory / "30-user.policy" in installed and mine not in installed
    assert mine.read_text() == "# mine\n"
    load_policy(directory)
    mine.unlink()
    (directory / "80-cloison.policy").unlink()
    assert install_defaults(directory) == []
    assert not mine.exists()


def test_defaults_of_a_later_version_are_added(tmp_path: Path):
    install_defaults(tmp_path)
    record = tmp_path / ".installed"
    record.write_text(record.read_text().replace("80-cloison.policy\n", ""))
    (tmp_path / "80-cloison.policy").unlink()
    assert install_defaults(tmp_path) == [tmp_path / "80-cloison.policy"]


def test_an_interrupted_installation_is_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from cloison.policy import store

    real = store.create_file

    def fail_at_user_file(path: Path, content: bytes) -> bool:
        if path.name == "30-user.policy":
            raise OSError(28, "No space left on device")
        return real(path, content)

    monkeypatch.setattr(store, "create_file", fail_at_user_file)
    with pytest.raises(OSError, match="No space left"):
        install_defaults(tmp_path)
    monkeypatch.undo()
    assert tmp_path / "30-user.policy" in install_defaults(tmp_path)
    try:
        load_policy(tmp_path)
    except PolicyError as error:
        pytest.fail(str(error))


def test_while_a_file_is_put_in_place_the_policy_is_never_broken(store: PolicyStore, policy_dir: Path, monkeypatch):
    store.replace("10-a", GOOD, "new")
    seen = []
    real = os.fsync

    def look(descriptor: int) -> None:
        seen.append([str(rule) for rule in load_policy(policy_dir).rules])
        assert store.list_files() == ["10-a"]
        real(descriptor)

    monkeypatch.setattr(os, "fsync", look)
    store.replace("10-a", b"s * * * allow\n", "any")
    assert seen[0] == ["s * * * deny"] and seen[-1] == ["s * * * allow"]
