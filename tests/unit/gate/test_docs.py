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


def commands(text: str) -> Iterator[str]:
    for fragment in fragments(text):
        for piece in re.split(r"\s(?:\||&&|;)\s", fragment):
            if found := re.match(r"(?:\$ )?(?:\.venv/bin/)?(cloison [a-z-].*)", piece):
                yield found[1]


def problem_with(line: str, program: click.Group) -> str:
    """Why this is not a command of ours, or nothing. Only names are checked; values are the reader's own."""
    try:
        words = shlex.split(line)[1:]
    except ValueError as error:
        return str(error)
    found: click.Command = program
    context = click.Context(program)
    while words and isinstance(found, click.Group) and re.fullmatch(r"[a-z-]+(\|[a-z-]+)*", words[0]):
        names = words.pop(0).split("|")
        below = [found.get_command(context, name) for name in names]
        if None in below:
            return f"{' '.join(names)} is not a command of {found.name}"
        found = below[0] or found
    options = {name for parameter in found.params for name in (*parameter.opts, *parameter.secondary_opts)}
    ours = words[: words.index("--")] if "--" in words else words
    for word in ours:
        option = word.strip("[]").partition("=")[0]
        if re.fullmatch(r"--[a-z][a-z-]*", option) and option not in options | {"--help", "--json", "--quiet"}:
            return f"{found.name} has no option {option}"
    return ""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(TOP)))
def test_links_lead_to_files(page: Path) -> None:
    assert [target for target in links(page.read_text()) if not (page.parent / target).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(TOP)))
def test_paths_of_the_project_exist(page: Path) -> None:
    named = {path for fragment in fragments(page.read_text()) if (path := fragment) and OUR_PATH.fullmatch(path)}
    assert sorted(path for path in named if not (TOP / path).exists()) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(TOP)))
def test_commands_exist_with_their_options(page: Path) -> None:
    from cloison.cli.entry import program

    problems = {line: why for line in commands(page.read_text()) if (why := problem_with(line, program))}
    assert problems == {}


def test_planted_mistakes_are_found() -> None:
    from cloison.cli.entry import program

    assert list(links("see [x](docs/nowhere.md#part) and [y](https://example.org/)")) == ["docs/nowhere.md"]
    assert list(commands("```\ncloison list --json # all\n```\n`cloison run work`")) == [
        "cloison list --json",
        "cloison run work",
    ]
    assert problem_with("cloison lisst", program)
    assert problem_with("cloison list --colourful", program)
    assert not problem_with("cloison list --json", program)
