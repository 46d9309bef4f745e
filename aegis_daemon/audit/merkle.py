"""One hash says what a whole log is: the Merkle tree of RFC 6962, section 2.1, over the hashes of its records.

A leaf is the hash kept with a record (SHA-256 over a zero byte and the record), a node is SHA-256 over a one, the left
hash and the right hash. `Frontier` grows such a tree leaf by leaf and holds no more than one hash for each bit of its
size. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import sha256

HASH = 32
EMPTY = sha256(b"").digest()
"""The root of a tree without leaves."""
_node = sha256(b"\x01").copy


def node(left: bytes, right: bytes) -> bytes:
    """The hash above two others."""
    hash = _node()
    hash.update(left + right)
    return hash.digest()


class Frontier:
    """A growing tree: the roots of its perfect subtrees, the largest one first.

    `nodes` has one hash of 32 bytes for each bit that is set in `size`.
    """

    __slots__ = ("nodes", "size")

    def __init__(self, size: int = 0, nodes: Iterable[bytes] = ()) -> None:
        self.size = size
        self.nodes = list(nodes)

    def add(self, leaf: bytes) -> None:
        """One more leaf."""
        nodes = self.nodes
        size = self.size
        while size & 1:
            hash = _node()
            hash.update(nodes.pop() + leaf)
            leaf = hash.digest()
            size >>= 1
        nodes.append(leaf)
        self.size += 1

    def root(self) -> bytes:
        """The hash of the whole tree, 32 bytes."""
        if not self.nodes:
            return EMPTY
        *rest, found = self.nodes
        for left in reversed(rest):
            found = node(left, found)
        return found

    def copy(self) -> Frontier:
        """The same, that grows by itself."""
        return Frontier(self.size, self.nodes)

    def packed(self) -> bytes:
        """Its nodes, one after the other."""
        return b"".join(self.nodes)

    @classmethod
    def unpacked(cls, size: int, packed: bytes) -> Frontier:
        """Of what `packed` gave. Raises `ValueError` where that cannot be the frontier of a tree of that size."""
        if size < 0 or len(packed) != size.bit_count() * HASH:
            raise ValueError(f"{len(packed)} bytes are no frontier of a tree of {size} leaves")
        return cls(size, (packed[at : at + HASH] for at in range(0, len(packed), HASH)))


def root(leaves: Iterable[bytes]) -> bytes:
    """The root over leaf hashes: MTH of RFC 6962, section 2.1."""
    tree = Frontier()
    for leaf in leaves:
        tree.add(leaf)
    return tree.root()


def _split(size: int) -> int:
    """The largest power of two below `size` (2 or more): where a tree parts."""
    return 1 << (size - 1).bit_length() - 1


# --- proofs -----------------------------------------------------------------------------------------------------------


def inclusion(leaves: Sequence[bytes], index: int) -> list[bytes]:
    """What shows that a leaf is in the tree: PATH of RFC 6962, section 2.1.1. Raises `IndexError`."""
    if not 0 <= index < len(leaves):
        raise IndexError(f"a tree of {len(leaves)} leaves has no leaf {index}")
    path = []
    first, size = 0, len(leaves)
    while size > 1:
        left = _split(size)
        if index - first < left:
            path.append(root(leaves[first + left : first + size]))
            size = left
        else:
            path.append(root(leaves[first : first + left]))
            first, size = first + left, size - left
    return path[::-1]


def included(leaf: bytes, index: int, size: int, path: Sequence[bytes], expected: bytes) -> bool:
    """Whether `path` shows that the tree of `size` leaves and root `expected` has this leaf at `index`.

    RFC 9162, section 2.1.3.2.
    """
    if not 0 <= index < size:
        return False
    place, last, found = index, size - 1, leaf
    for beside in path:
        if last == 0:
            return False
        if place & 1 or place == last:
            found = node(beside, found)
            while not place & 1 and place:
                place, last = place >> 1, last >> 1
        else:
            found = node(found, beside)
        place, last = place >> 1, last >> 1
    return last == 0 and found == expected


def consistency(leaves: Sequence[bytes], before: int) -> list[bytes]:
    """What shows that the tree only grew since it had `before` leaves: PROOF of RFC 6962, section 2.1.2.

    Raises `IndexError` where it never had so many; 0 and its present size need no hash at all.
    """
    if not 0 <= before <= len(leaves):
        raise IndexError(f"a tree of {len(leaves)} leaves never had {before}")
    if before in (0, len(leaves)):
        return []
    proof = []
    first, size, known = 0, len(leaves), True
    while before - first != size:
        left = _split(size)
        if before - first <= left:
            proof.append(root(leaves[first + left : first + size]))
            size = left
        else:
            proof.append(root(leaves[first : first + left]))
            first, size, known = first + left, size - left, False
    if not known:
        proof.append(root(leaves[first : first + size]))
    return proof[::-1]


def consistent(before: int, old: bytes, size: int, new: bytes, proof: Sequence[bytes]) -> bool:
    """Whether `proof` shows that the tree of `size` leaves and root `new` goes on behind the one of `before` leaves.

    RFC 9162, section 2.1.4.2.
    """
    if not 0 <= before <= size:
        return False
    if before == size:
        return not proof and old == new
    if before == 0:
        return not proof and old == EMPTY
    path = list(proof)
    if before & (before - 1) == 0:
        path.insert(0, old)
    if not path:
        return False
    place, last = before - 1, size - 1
    while place & 1:
        place, last = place >> 1, last >> 1
    was = grown = path[0]
    for beside in path[1:]:
        if last == 0:
            return False
        if place & 1 or place == last:
            was, grown = node(beside, was), node(beside, grown)
            while not place & 1 and place:
                place, last = place >> 1, last >> 1
        else:
            grown = node(grown, beside)
        place, last = place >> 1, last >> 1
    return last == 0 and was == old and grown == new
