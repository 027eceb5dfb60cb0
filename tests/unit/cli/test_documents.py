"""Documents as text: whatever a system holds is read back as it was written."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from cloison.client.declare.document import Document, QubeWish
from cloison.client.declare.text import read_document, write_document

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40) | st.sampled_from(
    ["a\nb", '"""', "${x}", "$${x}", "line\n${x}\n", '\\"\n', "\n", "\r\n", "\x7f", "'"]
)
TEXTS = st.dictionaries(TEXT.filter(lambda text: "${" not in text), TEXT, max_size=3)
NAME = st.from_regex(r"\A[A-Za-z][A-Za-z0-9_-]{0,9}\Z")
WISH = st.builds(
    QubeWish,
    name=NAME,
    klass=st.just("AppVM"),
    label=TEXT,
    template=TEXT,
    properties=st.dictionaries(st.sampled_from(["memory", "netvm", "debug"]), TEXT),
    features=TEXTS,
    pool=TEXT,
    tags=st.frozensets(TEXT, max_size=3),
    firewall=st.lists(TEXT, max_size=3).map(tuple),
    notes=TEXT,
    volumes=st.dictionaries(st.sampled_from(["root", "private"]), st.integers(0, 1 << 50)),
)


@given(st.builds(Document, system=TEXTS, labels=TEXTS, policy=TEXTS,
                 pools=st.dictionaries(NAME, TEXTS.map(lambda texts: texts | {"driver": "qcow2"}), max_size=2),
                 qubes=st.lists(WISH, max_size=3).map(lambda made: {wish.name: wish for wish in made})))  # fmt: skip
def test_a_document_comes_back_as_it_was_written(document: Document) -> None:
    with tempfile.TemporaryDirectory() as name:
        path = Path(name, "system.toml")
        path.write_text(write_document(document), encoding="utf-8", newline="")
        assert read_document(path) == document
