"""What the documents name must exist: linked files, paths, and every ``cloison`` command with its options."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

TOP = Path(__file__).parents[3]
PAGES = sorted([*TOP.glob("*.md"), *TOP.glob("docs/**/*.md"), *TOP.glob("examples/**/*.md")])
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")
CODE = re.compile(r"`([^`\n]+)`")
OUR_PATH = re.compile(r"(?:src|tests|docs|guest|templates|examples|benchmarks|scripts)/[\w./-]*\w/?")


def links(text: str) -> Iterator[str]:
    return (target for target in LINK.findall(text) if not target.startswith(("http://", "https://", "mailto:")))


def fragments(text: str) -> Iterator[str]:
    """Inline code, and the lines of code blocks without their comments."""
    for index, part in enumerate(re.split(r"^```.*$", text, flags=re.MULTILINE)):
        if index % 2:
            yield from (re.sub(r"\s+#.*$", "", line).strip() for line in part.splitlines())
        else:
            yield from CODE.findall(part)


def commands(text: str) -> Iterator[tuple[str, ...]]:
    """Every call of ``cloison`` as words; pipes and lists of commands are taken apart."""
    for fragment in fragments(text):
        if not re.search(r"(^|[ /])cloison [a-z-]", fragment):
            continue
        words = shlex.split(fragment.removeprefix("$ "))
        ends = [index for index, word in enumerate(words) if word in {"|", "&&", ";", "<", ">"}] + [len(words)]
        for begin, end in zip([0, *(end + 1 for end in ends)], ends, strict=False):
            if words[begin:end] and words[begin].removeprefix(".venv/bin/") == "cloison":
                yield ("cloison", *words[begin + 1 : end])


def problem_with(words: tuple[str, ...], program: click.Group) -> str:
    """Why this is not a command of ours, or nothing. Only names are checked; values are the reader's own."""
    found: click.Command = program
    rest = list(words[1:])
    while rest and rest[0].startswith("--") and found is program:
        del rest[: 2 if rest[0] == "--root" else 1]
    while rest and isinstance(found, click.Group) and re.fullmatch(r"[a-z][a-z-]*", rest[0]):
        below = found.get_command(click.Context(program), rest[0])
        if below is None:
            return f"{rest[0]} is not a command of {found.name}"
        found = below
        del rest[0]
    options = {name for parameter in found.params for name in (*parameter.opts, *parameter.secondary_opts)}
    ours = rest[: rest.index("--")] if "--" in rest else rest
    for word in ours:
        option = word.partition("=")[0]
        if re.fullmatch(r"--[a-z][a-z-]*", option) and option not in options | {"--help"}:
            return f"{found.name} has no option {option}"
    return ""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(TOP)))
def test_links_lead_to_files(page: Path) -> None:
    assert [target for target in links(page.read_text()) if not (page.parent / target).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(TOP)))
def test_paths_of_the_project_exist(page: Path) -> None:
    named = {fragment for fragment in fragments(page.read_text()) if OUR_PATH.fullmatch(fragment)}
    placeholders = {path for path in named if any(part.isupper() for part in Path(path).parts)}
    assert sorted(path for path in named - placeholders if not (TOP / path).exists()) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(TOP)))
def test_commands_exist_with_their_options(page: Path) -> None:
    from cloison.cli.entry import program

    problems = {line: why for line in commands(page.read_text()) if (why := problem_with(line, program))}
    assert problems == {}


def test_planted_mistakes_are_found() -> None:
    from cloison.cli.entry import program

    assert list(links("see [x](docs/nowhere.md#part) and [y](https://example.org/)")) == ["docs/nowhere.md"]
    text = "```\ncloison list --json | head # all\n```\n`cloison --root DIR run work`"
    assert list(commands(text)) == [("cloison", "list", "--json"), ("cloison", "--root", "DIR", "run", "work")]
    assert problem_with(("cloison", "lisst"), program)
    assert problem_with(("cloison", "list", "--colourful"), program)
    assert problem_with(("cloison", "--root", "DIR", "template", "biuld"), program)
    assert not problem_with(("cloison", "list", "--json"), program)
    assert not problem_with(("cloison", "run", "work", "--", "ls", "--colourful"), program)
