"""A new key signs checkpoints once the log itself has, durably, what the old one says of it.

The key also signs what a person orders to be removed, without which no such order counts (`audit/warrants.py`).
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from aegis_daemon.audit.journal import Journal
from aegis_daemon.audit.keys import read_rotation_keys
from aegis_daemon.audit.record import Admin
from aegis_daemon.core.ports import AuditUnavailable
from aegis_daemon.manage import api, shapes

WITHIN_S: Final = 20.0


class KeyKeeper:
    """Rotates the key. What makes and checks keys runs in a process of its own, so that none of it stays here."""

    def __init__(self, path: Path, journal: Journal) -> None:
        self._path = path
        self._journal = journal
        self._lock = asyncio.Lock()

    async def rotate(self, by: str) -> shapes.KeyRotated:
        """Raises `api.Unavailable`; then the old key goes on."""
        async with self._lock:
            note = await self._run("next")
            said = read_rotation_keys(note)
            if said is None:
                raise api.Unavailable("the new key could not be made", "see the daemon's log")
            durable: asyncio.Future[AuditUnavailable | None] = asyncio.get_running_loop().create_future()

            def written(failure: AuditUnavailable | None) -> None:
                if not durable.done():
                    durable.set_result(failure)

            try:
                seq = self._journal.append(Admin(action="audit_key_rotated", by=by, detail=note))
                self._journal.when_durable(seq, written)
                async with asyncio.timeout(WITHIN_S):
                    failure = await durable
            except (AuditUnavailable, TimeoutError) as error:
                late = AuditUnavailable("the disk does not keep up")
                failure = error if isinstance(error, AuditUnavailable) else late
            if failure is not None:
                raise api.Unavailable(f"the key stays, since that cannot be recorded: {failure}", "see `aegis status`")
            await self._run("use", note)
            return shapes.KeyRotated(public=said[1].hex(), note=note)

    async def sign(self, log: str, texts: Sequence[str]) -> list[str]:
        """The key's word for each text, under the log's name. Raises `api.Unavailable` where it cannot be used."""
        given = msgspec.json.encode([(log, text) for text in texts]).decode()
        words = (await self._run("sign", given, "nothing is removed, for the order cannot be signed")).split()
        if len(words) != len(texts):
            raise api.Unavailable("nothing is removed, for the order could not be signed", "see the daemon's log")
        return words

    async def _run(self, word: str, given: str = "", what: str = "the key stays") -> str:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-I", "-m", "aegis_daemon.audit.keys", word, str(self._path),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        try:
            async with asyncio.timeout(WITHIN_S):
                out, err = await process.communicate(given.encode())
        except TimeoutError:
            process.kill()
            await process.wait()
            raise api.Unavailable(f"{what}: that took too long", "repeat it when the machine is less busy") from None
        if process.returncode:
            why = err.decode(errors="replace").strip().splitlines()[-1:] or ["it ended without a word"]
            raise api.Unavailable(f"{what}: {why[0]}", "mend that and repeat it")
        return out.decode()
