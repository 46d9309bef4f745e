"""While the daemon runs, so does its writer process (`ingest.py`): started, rung, listened to, and started again."""

from __future__ import annotations

import asyncio
import math
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from aegis_daemon.audit.journal import Journal
from aegis_daemon.audit.record import Admin
from aegis_daemon.audit.removals import ACTIONS
from aegis_daemon.core.ports import AuditUnavailable
from aegis_daemon.loop.helper import Helper

if TYPE_CHECKING:  # they need SQLite, and the path of a call does not
    from aegis_daemon.audit.notary import Duties
    from aegis_daemon.audit.retention import Policy

RING_S = 0.25
"""How long records gather before the writer is told of them; who reads the log has it brought up to date first."""
BUSY_RING_S = 1.0
BUSY = 500
"""Records in RING_S that make the writer wait for the longer time: while calls come thick, the cores are theirs."""
RESTART_S = (0.05, 0.2, 1.0, 5.0)
"""How long to wait before the first, second, … start after a death; the last for all that follow."""
FLUSH_S = 30.0
CLOSE_S = 10.0
URGENT = 64 << 20
"""Bytes of backlog from which it does not yield any more: a busy machine would starve it until calls are refused.
Nor while the journal waits for it with a new file (`Journal.make_room`)."""
HASTE_S = 0.05
HURRY_S = 0.5
"""How long whoever waits for the store leaves a writer that yields to everybody else, where its priority can be raised
(root's daemon), and where another one has to take over."""


class WriterHandle:
    """The daemon's end of the writer. Begins at once; belongs to the loop's thread."""

    def __init__(
        self,
        journal: Journal,
        db_path: Path,
        loop: asyncio.AbstractEventLoop,
        duties: Duties | None = None,
        policy: Policy | None = None,
    ) -> None:
        """`duties`: what it is to sign; nothing is signed without. `policy`: what is not kept; all is, without."""
        self.kept = ""
        """What keeps old records from being purged."""
        self._policy = policy
        self.signed = 0
        """How many records the newest checkpoint covers."""
        self.held: Callable[[], None] | None = None
        """Called where somebody's reading keeps it from going on."""
        self.signed_at = 0.0
        """When it was signed, in seconds since the epoch; 0 for not since this daemon began."""
        self.unsigned = ""
        """What keeps records from being signed."""
        self._duties = duties
        self._journal = journal
        self._db_path = db_path
        self._loop = loop
        self._timer: asyncio.TimerHandle | None = None
        self._rung_at = 0
        self._waiting: list[tuple[int, asyncio.Future[None], float]] = []
        self._closing = False
        self._urgent = True
        self._spoke = False
        self._helper = Helper(loop, self._command, RESTART_S, began=self._ring, heard=self._heard, failed=self._failed)
        journal.bell = self._rung
        self._helper.begin()

    @property
    def pid(self) -> int | None:
        """The process, while there is one."""
        return self._helper.pid

    async def flush(self, within: float = FLUSH_S) -> int:
        """Returns when SQLite holds everything appended so far; gives the newest record it holds.

        Raises `AuditUnavailable` where that takes longer than `within` seconds.
        """
        target = self._journal.last_seq
        if self._journal.ingested_seq < target:
            done: asyncio.Future[None] = self._loop.create_future()
            entry = (target, done, self._loop.time())
            self._waiting.append(entry)
            self._journal.when_durable(target, lambda _: self._ring())
            hurries = [self._loop.call_later(wait + 0.01, self._ring) for wait in (HASTE_S, HURRY_S)]
            try:
                async with asyncio.timeout(within):
                    await done
            except TimeoutError:
                why = self._journal.detail or "it is still at work"
                raise AuditUnavailable(
                    f"the audit store `{self._db_path}` did not catch up with the journal: {why}; try again"
                ) from None
            finally:
                for hurry in hurries:
                    hurry.cancel()
                if entry in self._waiting:
                    self._waiting.remove(entry)
        return self._journal.ingested_seq

    async def close(self) -> None:
        """Lets the writer finish (ten seconds), then ends it; idempotent. The journal keeps what is left."""
        self._closing = True
        self._journal.bell = None
        self._ring()
        await self._helper.close(CLOSE_S, 5)

    def _command(self) -> list[str]:
        # Whoever starts it waits for it; from its first word on only who else does counts.
        self._urgent, self._spoke = True, False
        sync = "nosync" if self._journal.durability == "full" else "sync"
        return [
            sys.executable, "-I", "-m", "aegis_daemon.audit.ingest", str(self._journal.directory), str(self._db_path),
            sync, "urgent", msgspec.json.encode(self._duties).decode(),
            msgspec.json.encode(self._policy if self._policy is not None else {}).decode(),
        ]  # fmt: skip

    def _failed(self, why: str) -> None:
        self._journal.trouble = f"the audit writer {why}"

    # --- what is said ------------------------------------------------------------------------------------------------

    def _rung(self) -> None:
        if self._timer is None:
            came, self._rung_at = self._journal.last_seq - self._rung_at, self._journal.last_seq
            self._timer = self._loop.call_later(BUSY_RING_S if came > BUSY else RING_S, self._ring)

    def _ring(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        pid = self._helper.pid
        if pid is None:
            return
        if not self._paced(pid):
            self._helper.begin()
            return
        ring = b"%d" % self._journal.checkpoint()
        if self._helper.behind:  # thousands of rings unread; any later one will do
            self._rung()
        else:
            self._helper.tell(ring)

    def _paced(self, pid: int) -> bool:
        """Lets the writer yield to everybody, or not, as is due; False where another one has to take over for that."""
        if self._closing:
            _may_hurry(pid)
            return True
        backlog = self._journal.backlog_bytes
        far = backlog > URGENT or self._journal.yielding
        if self._urgent:
            if self._spoke and not self._waiting and backlog < URGENT >> 6:
                self._urgent = False
                _yields(pid)
            return True
        waited = self._loop.time() - min((since for _, _, since in self._waiting), default=math.inf)
        if far or waited >= HASTE_S:
            self._urgent = _may_hurry(pid)
            if not self._urgent and (far or waited >= HURRY_S):
                # Nobody but root may make it less nice, so another one takes over; being killed is nothing to it.
                return False
        return True

    def _heard(self, line: str) -> None:
        word, _, rest = line.partition(" ")
        if word == "ingested":
            self._ingested(int(rest))
        elif word in ("trouble", "held", "full"):
            self._journal.trouble = f"the audit store `{self._db_path}` cannot be written: {rest}"
            if word == "trouble":
                self._journal.yielding = False  # it is not for want of room, then
            elif word == "full":
                self._journal.make_room()
                if self._helper.pid is not None and not self._paced(self._helper.pid):
                    self._helper.begin()
            if word == "held" and self.held is not None:
                self.held()
        elif word == "checkpoint":
            self.signed, self.unsigned, self.signed_at = int(rest), "", time.time()
        elif word == "unsigned":
            if rest != self.unsigned:
                self.unsigned = rest
                self._note("audit_unsigned", rest)
        elif word == "newlog":
            self._note("audit_new_log", rest)
        elif word == "remove":
            action, _, rest = rest.partition(" ")
            signature, _, detail = rest.partition(" ")
            if action in ACTIONS:
                self._note(action, detail, by="retention", signature=signature)
        elif word == "kept":
            self.kept = rest
        elif word == "gap":
            first, _, last = rest.partition(" ")
            self._note("audit_gap", f"records {first} to {last} are neither in the store nor in the journal")
        elif word == "aside":
            self._note(
                "audit_store_replaced",
                f"the store held records of another chain; it was kept as `{rest}`, and a new one was begun",
            )

    def _ingested(self, seq: int) -> None:
        journal = self._journal
        journal.trouble = ""
        self._helper.well()
        journal.ingested(seq)
        for entry in [entry for entry in self._waiting if entry[0] <= seq]:
            self._waiting.remove(entry)
            if not entry[1].done():
                entry[1].set_result(None)
        self._spoke = True
        if self._urgent and self._helper.pid is not None:
            self._paced(self._helper.pid)

    def _note(self, action: str, detail: str, by: str = "", signature: str = "") -> None:
        try:
            self._journal.append(Admin(action=action, by=by, detail=detail, signature=signature))
        except AuditUnavailable:
            self._journal.trouble = detail


def _yields(pid: int) -> None:
    """As `ingest.yield_to_everybody`, for another process of ours."""
    try:
        os.setpriority(os.PRIO_PROCESS, pid, 19)
        if sys.platform == "linux":
            os.sched_setscheduler(pid, os.SCHED_IDLE, os.sched_param(0))
    except OSError:
        pass  # sandboxes and some C libraries have no such thing; being nice must do there


def _may_hurry(pid: int) -> bool:
    """Undoes that as far as the system lets us; whether it is undone."""
    try:
        if sys.platform == "linux":
            os.sched_setscheduler(pid, os.SCHED_OTHER, os.sched_param(0))
        os.setpriority(os.PRIO_PROCESS, pid, os.getpriority(os.PRIO_PROCESS, 0))
    except OSError:
        return False
    return True
