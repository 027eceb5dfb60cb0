"""Directories to one policy: order, includes, the legacy directory. All files or none."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloison.policy import PolicyError, PolicySet, load_policy
from cloison.policy.loader import load_from

Write = Callable[[str, str], Path]


def services(policy: PolicySet) -> list[str]:
    return [rule.service for rule in policy.rules]


def test_files_are_read_by_name_over_both_directories_and_the_runtime_one_wins(policy_dir: Path, write: Write):
    for name in ("100-z", "20-b", "3-c", "20_b", "20.b", "20-bb", "a"):
        write(f"policy.d/{name}.policy", f"etc.{name} * * * deny")
    write("run/20-b.policy", "run.20-b * * * deny")
    write("run/25-x.policy", "run.25-x * * * deny")
    policy = load_policy(policy_dir, policy_dir.parent / "run")
    assert services(policy) == [
        "etc.100-z", "run.20-b", "etc.20-bb", "etc.20.b", "etc.20_b", "run.25-x", "etc.3-c", "etc.a"
    ]  # fmt: skip


def test_a_file_that_is_hidden_by_the_runtime_one_is_not_read_at_all(policy_dir: Path, write: Write):
    write("policy.d/20-b.policy", "this is broken")
    write("run/20-b.policy", "s * * * deny")
    assert services(load_policy(policy_dir, policy_dir.parent / "run")) == ["s"]


def test_other_names_are_ignored(policy_dir: Path, write: Write):
    for name in ("README", "x.policy~", "x.policy.rpmnew", ".hidden.policy", "!x.policy.tmp", "UPPER", "x.POLICY"):
        write(f"policy.d/{name}", "broken")
    (policy_dir / "directory.policy").mkdir()
    os.mkfifo(policy_dir / "fifo.policy")
    (policy_dir / "masked.policy").symlink_to("/dev/null")
    target = write("elsewhere", "s * * * deny")
    (policy_dir / "link.policy").symlink_to(target)
    assert services(load_policy(policy_dir)) == ["s"]


@pytest.mark.parametrize("name", ["Upper.policy", "a b.policy", "a+b.policy", "!x.policy", "é.policy", "a\nb.policy"])
def test_a_bad_name_breaks_the_policy(policy_dir: Path, write: Write, name: str):
    write(f"policy.d/{name}", "")
    with pytest.raises(PolicyError, match="the file name has a character") as caught:
        load_policy(policy_dir)
    assert "\n" not in str(caught.value) and caught.value.line is None


def test_both_directories_must_exist(policy_dir: Path):
    missing = policy_dir.parent / "none"
    for directories in ((policy_dir, missing), (missing, policy_dir)):
        with pytest.raises(PolicyError) as caught:
            load_policy(*directories)
        assert str(caught.value) == f"{missing}: cannot read the directory: No such file or directory"


def test_one_bad_line_anywhere_refuses_everything(policy_dir: Path, write: Write):
    write("policy.d/10-good.policy", "s * * * allow")
    write("policy.d/90-bad.policy", "# fine\ns * * * allow\nnonsense\n")
    with pytest.raises(PolicyError, match=rf"^{policy_dir}/90-bad.policy:3: a rule needs at least 5 words, here are 1"):
        load_policy(policy_dir)


@pytest.mark.skipif(os.getuid() == 0, reason="root may read everything")
def test_an_unreadable_file_refuses_everything(policy_dir: Path, write: Write):
    write("policy.d/10-x.policy", "").chmod(0)
    with pytest.raises(PolicyError, match=r"10-x.policy: cannot read the file: Permission denied$"):
        load_policy(policy_dir)


def test_a_dangling_link_refuses_everything(policy_dir: Path):
    (policy_dir / "10-x.policy").symlink_to("nowhere")
    with pytest.raises(PolicyError, match=r"10-x.policy: cannot read the file: No such file or directory$"):
        load_policy(policy_dir)


def test_includes_stand_in_place_and_are_relative_to_the_top_directory(policy_dir: Path, write: Write):
    write("policy.d/10-x.policy", "a * * * deny\n!include include/one\nz * * * deny\n")
    write("policy.d/include/one", "b * * * deny\n!include include/two\n!include ../outside\nf * * * deny")
    write("policy.d/include/two", "c * * * deny\n!include-dir sub\n")
    write("policy.d/sub/2.policy", "e * * * deny")
    write("policy.d/sub/1.policy", "d * * * deny\n")
    write("policy.d/sub/ignored", "broken")
    absolute = write("outside", "dd * * * deny\n")
    policy = load_policy(policy_dir)
    assert services(policy) == ["a", "b", "c", "d", "e", "dd", "f", "z"]
    assert policy.rules[1].place == (str(policy_dir / "include/one"), 1)
    write("policy.d/10-x.policy", f"!include {absolute}\n")
    assert services(load_policy(policy_dir)) == ["dd"]


def test_files_of_the_runtime_directory_include_from_there(policy_dir: Path, write: Write):
    write("policy.d/include/x", "etc * * * deny")
    write("run/include/x", "run * * * deny")
    write("run/10-x.policy", "!include include/x")
    write("policy.d/20-x.policy", "!include include/x")
    assert services(load_policy(policy_dir, policy_dir.parent / "run")) == ["run", "etc"]


def test_include_service_reads_the_old_syntax_for_one_service(policy_dir: Path, write: Write):
    write("policy.d/10-x.policy", "!include-service s +x include/old\n!include-service * * include/old")
    write("policy.d/include/old", "# old\n$anyvm $dispvm allow,user=root\n$include:include/more\n")
    write("policy.d/include/more", "a b deny\n")
    rules = load_policy(policy_dir).rules
    assert [str(rule) for rule in rules] == [
        "s +x @anyvm @dispvm allow user=root", "s +x a b deny", "* * @anyvm @dispvm allow user=root", "* * a b deny"
    ]  # fmt: skip
    assert rules[1].place == (str(policy_dir / "include/more"), 1)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("!include include/none", "cannot read {dir}/include/none: No such file or directory"),
        ("!include include", "{dir}/include is not a regular file"),
        ("!include-dir none", "cannot read directory {dir}/none: No such file or directory"),
        ("!include-dir include/bad", "cannot read directory {dir}/include/bad: Not a directory"),
        ("!include-service s * none", "cannot read {dir}/none: No such file or directory"),
        ("!include x\0y", "cannot read {dir}/x\0y: embedded null byte"),
        ("!include-dir x\0y", "cannot read directory {dir}/x\0y: embedded null byte"),
        ("!include " + "x" * 300, "cannot read {dir}/" + "x" * 300 + ": File name too long"),
        ("!compat-4.0", "!compat-4.0 needs a legacy policy directory, and none is known"),
    ],
)
def test_a_failed_include_names_the_line_that_asked_for_it(policy_dir: Path, write: Write, line: str, message: str):
    write("policy.d/include/bad", "broken")
    write("policy.d/10-x.policy", f"\n{line}\n")
    with pytest.raises(PolicyError) as caught:
        load_policy(policy_dir)
    assert str(caught.value) == f"{policy_dir}/10-x.policy:2: {message.format(dir=policy_dir)}"


def test_an_error_in_an_include_names_the_included_line(policy_dir: Path, write: Write):
    write("policy.d/include/bad", "\n\nbroken")
    write("policy.d/10-x.policy", "!include include/bad")
    with pytest.raises(PolicyError, match=rf"^{policy_dir}/include/bad:3: "):
        load_policy(policy_dir)


def test_an_include_loop_is_named(policy_dir: Path, write: Write):
    write("policy.d/10-x.policy", "!include include/a")
    write("policy.d/include/a", "!include include/b")
    write("policy.d/include/b", "\n!include ./include/../include/a")
    with pytest.raises(PolicyError) as caught:
        load_policy(policy_dir)
    chain = " -> ".join(f"{policy_dir}/{name}" for name in ("10-x.policy", "include/a", "include/b", "include/a"))
    assert str(caught.value).startswith(f"{policy_dir}/include/b:2: ") and chain in str(caught.value)


def test_an_old_syntax_loop_is_named(policy_dir: Path, write: Write):
    write("policy.d/10-x.policy", "!include-service s * include/a")
    write("policy.d/include/a", "$include:include/a")
    with pytest.raises(PolicyError, match=r"include/a:1: .*includes itself"):
        load_policy(policy_dir)


def test_includes_that_are_too_deep_or_too_many_are_refused(policy_dir: Path, write: Write):
    for depth in range(50):
        write(f"policy.d/include/{depth}", f"!include include/{depth + 1}")
    write("policy.d/10-x.policy", "!include include/0")
    with pytest.raises(PolicyError, match="includes are nested more than 32 deep"):
        load_policy(policy_dir)
    for depth in range(20):
        write(f"policy.d/include/{depth}", f"!include include/{depth + 1}\n" * 2)
    write("policy.d/include/20", "")
    with pytest.raises(PolicyError, match="more than 4096 files are read"):
        load_policy(policy_dir)


def test_the_legacy_directory(policy_dir: Path, write: Write):
    for name, text in {
        "b.Service": "$anyvm $anyvm ask",
        "a.Service": "$anyvm $anyvm allow,target=x",
        "a.Service+z": "p q allow",
        "a.Service+": "$include:more/x",
        "a.Service+b": "",
        "a.Service.rpmnew": "broken",
        "a.Service.swp": "broken",
        "a.Service.rpmsave": "broken",
        ".hidden": "broken",
        "na me": "broken",
        "at@": "broken",
        "more/x": "r s deny",
    }.items():
        write(f"legacy/{name}", text)
    write("policy.d/10-x.policy", "first * * * deny\n!compat-4.0\nlast * * * deny")
    rules = load_policy(policy_dir, legacy=policy_dir.parent / "legacy").rules
    assert [str(rule) for rule in rules] == [
        "first * * * deny",
        "a.Service + r s deny",
        "a.Service + @anyvm @anyvm deny",
        "a.Service + @anyvm @adminvm deny",
        "a.Service +b @anyvm @anyvm deny",
        "a.Service +b @anyvm @adminvm deny",
        "a.Service +z p q allow",
        "a.Service +z @anyvm @anyvm deny",
        "a.Service +z @anyvm @adminvm deny",
        "a.Service * @anyvm @anyvm allow target=x",
        "b.Service * @anyvm @anyvm ask",
        "last * * * deny",
    ]
    assert rules[2].place == (str(policy_dir.parent / "legacy/a.Service+"), 0)


def test_the_legacy_directory_must_exist_if_it_is_asked_for(policy_dir: Path, write: Write):
    missing = policy_dir.parent / "legacy"
    write("policy.d/10-x.policy", "")
    load_policy(policy_dir, legacy=missing)
    write("policy.d/10-x.policy", "!compat-4.0")
    with pytest.raises(PolicyError, match=r"10-x.policy:1: cannot read directory .*/legacy: No such file"):
        load_policy(policy_dir, legacy=missing)


def test_the_digest_speaks_for_names_and_contents(policy_dir: Path, write: Write):
    digests = set()
    write("policy.d/10-x.policy", "s * * * deny")
    digests.add(load_policy(policy_dir).digest)
    write("policy.d/10-x.policy", "s * * * allow")
    digests.add(load_policy(policy_dir).digest)
    write("policy.d/20-x.policy", "!include include/x")
    write("policy.d/include/x", "")
    digests.add(load_policy(policy_dir).digest)
    write("policy.d/include/x", "#")
    digests.add(load_policy(policy_dir).digest)
    (policy_dir / "10-x.policy").rename(policy_dir / "11-x.policy")
    digests.add(load_policy(policy_dir).digest)
    assert len(digests) == 5
    assert load_policy(policy_dir).digest in digests


class InMemory:
    """Files without a disk: a policy directory, an include and a legacy directory."""

    def __init__(self, files: dict[str, bytes | None]) -> None:
        self.files = files

    def list_names(self, directory: str) -> list[str]:
        names = [path.removeprefix(directory + "/") for path in self.files if path.startswith(directory + "/")]
        if not names:
            raise FileNotFoundError(2, "No such file or directory", directory)
        return [name for name in names if "/" not in name]

    def read_file(self, path: str) -> bytes | None:
        try:
            return self.files[os.path.normpath(path)]
        except KeyError:
            raise FileNotFoundError(2, "No such file or directory", path) from None


paths = st.sampled_from(
    [
        "/p/1.policy",
        "/p/2.policy",
        "/p/include/a",
        "/p/include/b",
        "/p/include/c.policy",
        "/l/s",
        "/l/s+x",
        "/l/+x",
        "/l/s+",
    ]
)
lines = st.sampled_from(
    ["s * a b allow", "a b deny", "!include include/a", "!include include/b", "!include-dir include", "!include-dir .",
     "!include-service s + include/a", "!include-service * * include/b", "$include:s", "$include:include/b",
     "!compat-4.0",
     "", "#", "broken", "!include 2.policy", "!include ../l/s"]
)  # fmt: skip


@given(
    st.dictionaries(
        paths, st.one_of(st.none(), st.binary(max_size=8), st.lists(lines).map(lambda x: "\n".join(x).encode()))
    )
)
def test_no_set_of_files_raises_anything_but_a_policy_error(files: dict[str, bytes | None]):
    try:
        policy = load_from(InMemory(files), Path("/p"), legacy=Path("/l"))
    except PolicyError as error:
        assert error.file.startswith("/") and "\n" not in str(error)
    else:
        assert all(rule.place.file in files for rule in policy.rules)
