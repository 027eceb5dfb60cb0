"""Which layers may be merged or removed: decided on records alone."""

from __future__ import annotations

import pytest

from cloison.drivers.storage.graph import Merge, chain_of, plan_merge, referenced
from cloison.drivers.storage.records import Layer, Revision, Run, Seal, VolumeRecord, parse_layer, parse_volume
from cloison.errors import BackendFailed
from cloison.model.volumes import VolumeKind


def layers(text: str) -> dict[str, Layer]:
    """``"B! a<B b<a"``: B is a base, a lies on B..."""
    found = {}
    for word in text.split():
        name, _, parent = word.partition("<")
        found[name.rstrip("!")] = Layer(name.rstrip("!"), parent or None, "qcow2", 512, is_base=name.endswith("!"))
    return found


def volume(current: str, *older: str, vid: str = "v", run: Run | None = None) -> VolumeRecord:
    return VolumeRecord(
        vid, VolumeKind.KEPT, 512, current=Revision(current, current),
        revisions=tuple(Revision(name, name) for name in older), run=run,
    )  # fmt: skip


CHAIN = "B! a<B b<a c<b"


@pytest.mark.parametrize(
    ("why", "tree", "volumes", "merge"),
    [
        ("the oldest unneeded layer takes what is on it", CHAIN, [volume("c", "b")], Merge("b", "a")),
        ("everything is asked for", CHAIN, [volume("c", "b", "a")], None),
        ("a base is never written", "B! a<B", [volume("a")], None),
        ("the newest goes into the unneeded one below", "B! a<B b<a", [volume("b")], Merge("b", "a")),
        ("two lie on it", "B! a<B b<a c<a", [volume("b"), volume("c", vid="w")], None),
        ("the second one on it is rubbish", "B! a<B b<a c<a", [volume("b")], Merge("b", "a")),
        ("a clone asks for it", CHAIN, [volume("c"), volume("a", vid="w")], Merge("c", "b")),
        ("a run reads it", CHAIN, [volume("c", "b", run=Run("d", ("c", "b", "a", "B")))], None),
        ("another volume's run reads it", CHAIN, [volume("c", "b"), volume("B", vid="w", run=Run(None, ("a", "B")))],
         None),
        ("nothing to do", "B!", [volume("B")], None),
    ],
)  # fmt: skip
def test_merging(why: str, tree: str, volumes: list[VolumeRecord], merge: Merge | None) -> None:
    assert plan_merge(layers(tree), volumes) == merge, why


@pytest.mark.parametrize(
    ("tree", "volumes", "needed"),
    [
        ("B! a<B b<a c<a", [volume("b")], "Bab"),
        ("B! a<B", [], ""),
        ("B! a<B r<a", [volume("a", run=Run("r", ("a", "B")))], "Bar"),
        ("B! a<B", [volume("B", run=Run(None, ("a",)))], "Ba"),
    ],
)
def test_what_must_stay(tree: str, volumes: list[VolumeRecord], needed: str) -> None:
    assert referenced(layers(tree), volumes) == set(needed)


def test_a_gap_in_a_chain_is_named() -> None:
    with pytest.raises(BackendFailed, match=r"layer a \(below b\) is missing"):
        chain_of(layers("b<a"), "b")


def test_a_chain_that_bites_its_tail_ends() -> None:
    with pytest.raises(BackendFailed):
        chain_of(layers("a<b b<a"), "a")


def test_records_survive_their_json() -> None:
    layer = Layer("x", "y", "qcow2", 512, b"secret", True, Seal(1, 2))
    record = volume("c", "b", run=Run("d", ("c", "b"), "r"))
    assert parse_layer(layer.to_json(), "f") == layer
    assert parse_volume(record.to_json(), "f") == record


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", '{"id": 1}', '{"vid": "x", "kind": "odd"}', "\0"])
def test_damaged_records_are_named(text: str) -> None:
    for parse in (parse_layer, parse_volume):
        with pytest.raises(BackendFailed, match=r"/some/file\.json"):
            parse(text, "/some/file.json")
