"""A bucket gets each checkpoint as an object of its own, which is never overwritten: `If-None-Match: *`.

    checkpoints/ORIGIN/SIZE-HASH

SIZE has twelve digits, so that names sort, and HASH is the beginning of the note's SHA-256: the same checkpoint is put
once, and another one of the same size stands beside it, as the evidence that it is. It is a witness where the key may
put objects alone, and the bucket itself keeps them (Object Lock, or a policy that demands `If-None-Match`).
"""

from __future__ import annotations

import hashlib

from aegis_daemon.exports.object_store import S3, Bucket, Store
from aegis_daemon.exports.sink import Witness, aside

Settings = Bucket


class ObjectWitness(Witness):
    """One bucket."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def push(self, origin: str, size: int, note: str) -> None:
        """Puts the checkpoint, unless it is there."""
        data = note.encode()
        key = f"checkpoints/{origin}/{size:012}-{hashlib.sha256(data).hexdigest()[:16]}"
        await aside(lambda: self._store.put(key, data, new=True))


def make(settings: Bucket) -> ObjectWitness:
    """A witness of this type. Raises `Trouble` where a library is missing."""
    return ObjectWitness(S3(settings))
