"""The tree is RFC 6962's: its vectors, and properties against a tree as the RFC defines it, by recursion."""

from __future__ import annotations

from hashlib import sha256

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aegis_daemon.audit.merkle import EMPTY, Frontier, consistency, consistent, included, inclusion, root


def leaf(data: bytes) -> bytes:
    return sha256(b"\0" + data).digest()


def naive(leaves: list[bytes]) -> bytes:
    """MTH of section 2.1, word for word."""
    if not leaves:
        return sha256(b"").digest()
    if len(leaves) == 1:
        return leaves[0]
    k = 1
    while k * 2 < len(leaves):
        k *= 2
    return sha256(b"\1" + naive(leaves[:k]) + naive(leaves[k:])).digest()


def many(size: int) -> list[bytes]:
    return [leaf(b"%d" % number) for number in range(size)]


# The leaves and hashes by which Certificate Transparency's implementations are tested.
LEAVES = [
    leaf(bytes.fromhex(data))
    for data in ("", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f")
]
ROOTS = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
A, B, C, D, E, F = [
    "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
    "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
    "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
    "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
    "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
    "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
]


def test_roots_are_those_of_the_known_vectors() -> None:
    assert root([]) == EMPTY == bytes.fromhex("e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855")
    assert [root(LEAVES[:size]).hex() for size in range(1, 9)] == ROOTS


@pytest.mark.parametrize(
    ("before", "size", "proof"), [(1, 8, [A, B, C]), (6, 8, [D, E, ROOTS[3]]), (2, 5, [B, F]), (1, 1, [])]
)
def test_consistency_proofs_are_those_of_the_known_vectors(before: int, size: int, proof: list[str]) -> None:
    assert [hash.hex() for hash in consistency(LEAVES[:size], before)] == proof


def test_an_inclusion_proof_is_that_of_the_known_vectors() -> None:
    assert [hash.hex() for hash in inclusion(LEAVES, 0)] == [A, B, C]


def test_a_growing_tree_is_the_defined_one_at_every_size() -> None:
    leaves, tree = many(130), Frontier()
    for size, each in enumerate(leaves, 1):
        tree.add(each)
        assert tree.root() == naive(leaves[:size])
        again = Frontier.unpacked(tree.size, tree.packed())
        assert (again.size, again.root()) == (size, tree.root())


@pytest.mark.parametrize(("size", "length"), [(3, 32), (3, 63), (-1, 0), (0, 32)])
def test_what_is_no_frontier_is_not_taken_for_one(size: int, length: int) -> None:
    with pytest.raises(ValueError, match="no frontier"):
        Frontier.unpacked(size, bytes(length))


@given(st.integers(1, 70), st.data())
@settings(deadline=None)
def test_a_leaf_is_shown_to_be_in_its_place_and_in_no_other(size: int, data: st.DataObject) -> None:
    leaves = many(size)
    index = data.draw(st.integers(0, size - 1))
    path = inclusion(leaves, index)
    top = naive(leaves)
    assert included(leaves[index], index, size, path, top)
    other = data.draw(st.integers(0, size - 1))
    assert included(leaves[index], other, size, path, top) is (other == index)
    assert not included(leaf(b"x"), index, size, path, top)
    assert not included(leaves[index], index, size, [*path, top], top)
    if path:
        assert not included(leaves[index], index, size, path[:-1], top)


@given(st.integers(0, 70), st.data())
@settings(deadline=None)
def test_a_tree_is_shown_to_have_only_grown_and_not_where_it_was_changed(size: int, data: st.DataObject) -> None:
    leaves = many(size)
    before = data.draw(st.integers(0, size))
    proof = consistency(leaves, before)
    old, new = naive(leaves[:before]), naive(leaves)
    assert consistent(before, old, size, new, proof)
    assert not consistent(size + 1, new, size, new, proof)
    if before:
        changed = [*leaves]
        changed[data.draw(st.integers(0, before - 1))] = leaf(b"x")
        assert not consistent(before, naive(changed[:before]), size, new, proof)
        assert not consistent(before, old, size, naive(changed), consistency(changed, before))
    if proof:
        assert not consistent(before, old, size, new, proof[:-1])
        assert not consistent(before, old, size, new, [*proof, new])


def test_there_are_no_proofs_of_what_is_not_there() -> None:
    with pytest.raises(IndexError):
        inclusion(many(3), 3)
    with pytest.raises(IndexError):
        consistency(many(3), 4)
