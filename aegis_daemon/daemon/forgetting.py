"""A person has records purged, or arguments and results erased: first a signed order is logged, then it is done.

The writer process does what is ordered in SQLite (`audit/retention.py`); here it is worked out what that would be, the
order is written, and what else keeps arguments is seen to: files of the journal, and tickets that are over.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, TypeVar

from aegis_daemon.approvals.store import TicketStore
from aegis_daemon.audit import disk, removals, warrants
from aegis_daemon.audit.checkpoint import origin
from aegis_daemon.audit.journal import Journal
from aegis_daemon.audit.notary import Duties
from aegis_daemon.audit.record import Admin
from aegis_daemon.audit.retention import Policy
from aegis_daemon.audit.store import Ambiguous, CallView, NotFound, Reader
from aegis_daemon.audit.writer import WriterHandle
from aegis_daemon.config.paths import Paths
from aegis_daemon.core.past import NAME_CAP, shortened
from aegis_daemon.core.ports import AuditUnavailable
from aegis_daemon.core.units import short_duration
from aegis_daemon.daemon.keykeeper import KeyKeeper
from aegis_daemon.daemon.reload import InForce
from aegis_daemon.loop.clock import micros, monotonic, wall
from aegis_daemon.manage import api, shapes

_log = logging.getLogger("aegis.audit")
MOST: Final = 10_000
"""Calls that one erasure takes."""
SHOWN: Final = 20
SEARCH_S: Final = 30.0
DONE_S: Final = 40.0
"""How long it is waited for the writer to carry an erasure out."""
STEP_S: Final = 0.05
AGAIN_S: Final = 30.0
SHED_S: Final = 60.0
T = TypeVar("T")


class Forgetting:
    """Purges and erases. `policy` and `exports` (names of exports) are asked for each time."""

    def __init__(
        self,
        journal: Journal,
        writer: WriterHandle,
        db_path: Path,
        tickets: sqlite3.Connection | None,
        signing: KeyKeeper,
        *,
        policy: Callable[[], Policy],
        exports: Callable[[], Sequence[str]] = tuple,
    ) -> None:
        self._journal = journal
        self._writer = writer
        self._db_path = db_path
        self._tickets = tickets
        self._keys = signing
        self._policy = policy
        self._exports = exports
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Goes on with what a daemon before left undone."""
        if self._journal.shedding and (self._task is None or self._task.done()):
            self._task = asyncio.get_running_loop().create_task(self._shed())

    async def close(self) -> None:
        """Idempotent; the next daemon goes on."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])

    # --- purging ------------------------------------------------------------------------------------------------

    async def purge(self, ask: shapes.PurgeRequest, by: str) -> shapes.Purge:
        """Orders it, unless it is only asked what that would be. Raises `api.Refusal`."""
        before = _micros(ask.before)
        await self._flush()
        plan, counts = await self._read(lambda reader: reader.plan(before, self._policy(), int(wall() * 1e6)))
        found = shapes.Purge(
            first=plan.first, last=plan.last, records=counts.records if plan.last else 0,
            calls=counts.calls if plan.last else 0, bodies=counts.bodies if plan.last else 0, held=plan.held,
        )  # fmt: skip
        if ask.dry or not plan.last:
            return found
        if ask.last is not None and ask.last != plan.last:
            raise api.Conflict(f"by now it would be records up to {plan.last}, not {ask.last}", "look again")
        detail = removals.purge_detail(plan.last, f"from before {_instant(before)}; {counts.calls} calls")
        (signature,) = await self._signed(removals.PURGE, [detail], by)
        return found.model_copy(update={"seq": self._order(removals.PURGE, detail, by, signature)})

    async def purged(self) -> bool:
        """Whether all that was ordered is gone, before one grows tired of waiting (a minute per million records)."""
        until = monotonic() + 3600
        while await self._read(lambda reader: reader.undone(removals.PURGE)):
            if self._writer.kept or monotonic() > until:
                return False
            await asyncio.sleep(STEP_S)
        return True

    # --- erasing ------------------------------------------------------------------------------------------------

    async def erase(self, ask: shapes.EraseRequest, by: str) -> shapes.Erasure:
        """Has it done, unless it is only asked what that would be. Raises `api.Refusal`."""
        if bool(ask.ids) == any(each is not None for each in _wanted(ask)):
            raise api.BadRequest("say which calls: by ids, or by names, time and text", "see `aegis audit search`")
        await self._flush()
        calls = await self._read(lambda reader: self._chosen(reader, ask))
        running = [call for call in calls if call.exec_status == "pending"]
        if running and ask.ids:
            raise api.Conflict(f"call `{running[0].call_id}` has not ended yet", "wait for its end, or reject it")
        calls = [call for call in calls if call.exec_status != "pending"]
        waiting = self._open_tickets(calls)
        if waiting and ask.ids:
            raise api.Conflict(
                f"the ask of call `{waiting[0].call_id}` is still open, so its arguments are needed",
                "decide it first: `aegis pending`",
            )
        calls = [call for call in calls if call not in waiting]
        bodies = await self._read(lambda reader: reader.bodies_of([call.seq for call in calls]))
        found = shapes.Erasure(
            calls=len(calls), bodies=len(bodies), running=len(running) + len(waiting),
            elsewhere=await self._elsewhere(min(bodies, default=0)),
            first=tuple(
                shapes.ErasedCall(**{name: getattr(call, name) for name in shapes.ErasedCall.model_fields})
                for call in sorted(calls, key=lambda call: -call.seq)[:SHOWN]
            ),
        )  # fmt: skip
        if ask.dry or not bodies:
            return found
        if ask.bodies is not None and ask.bodies != len(bodies):
            raise api.Conflict(f"by now it would be {len(bodies)} bodies, not {ask.bodies}", "look again")
        why = f"{len(calls)} call{'s' * (len(calls) != 1)}, {_chosen_by(ask)}"
        why += f"; {ask.note}" if ask.note else ""
        details = list(removals.erase_details(bodies, why))
        orders = list(zip(details, await self._signed(removals.ERASE, details, by), strict=True))
        try:
            self._journal.begin_shedding()
            self._forget_tickets(calls)
        except (OSError, sqlite3.Error) as error:
            raise api.Unavailable(f"the arguments cannot be erased everywhere: {error}", "see `aegis status`") from None
        seqs = [self._order(removals.ERASE, detail, by, signature) for detail, signature in orders]
        await self._flush()
        self._task = asyncio.get_running_loop().create_task(self._shed(), name="aegis-shed")
        done = await self._carried_out()
        return found.model_copy(update={"seqs": tuple(seqs), "done": done})

    def _chosen(self, reader: Reader, ask: shapes.EraseRequest) -> list[CallView]:
        from aegis_daemon.audit.search import Query, find

        if ask.ids:
            found: dict[int, CallView] = {}
            for id in ask.ids:
                try:
                    call = reader.show(id).call
                except (NotFound, Ambiguous) as error:
                    message, _, hint = str(error).rpartition("; ")
                    raise api.NotFound(message, hint) from None
                found[call.seq] = call
            return list(found.values())
        since, until = (_micros(time) if time is not None else None for time in (ask.since, ask.before))
        query = Query(
            agent=ask.agent, backend=ask.backend, tool=ask.tool, since=since, until=until, text=ask.text, within="both"
        )
        page = find(reader, query, limit=MOST + 1, bodies=False, patience_s=SEARCH_S)
        if page.looked_to is not None or len(page.rows) > MOST:
            raise api.Conflict(
                f"that is more than {MOST} calls, or too many to look through at once", "ask for less at a time"
            )
        return page.rows

    async def _carried_out(self) -> bool:
        """Whether it is gone from the store and the journal, before one grows tired of waiting."""
        until = monotonic() + DONE_S
        while monotonic() < until:
            task = self._task
            if task is None or task.done():
                undone = await self._read(lambda reader: reader.undone(removals.ERASE))
                if not undone:
                    return not self._journal.shedding
            await asyncio.sleep(STEP_S)
        return False

    # --- where else it is ---------------------------------------------------------------------------------------

    async def _shed(self) -> None:
        """Has the journal's files overwritten that hold what was erased."""
        while self._journal.shedding:
            try:
                await self._shed_once()
            except (AuditUnavailable, OSError) as error:
                _log.warning("the journal still holds what was erased, and will be tried again: %s", error)
                await asyncio.sleep(AGAIN_S)

    async def _shed_once(self) -> None:
        mark = self._journal.turn_over()
        until = monotonic() + SHED_S
        await self._writer.flush()
        while (files := self._journal.lend(mark)) is None:
            if monotonic() > until:
                raise OSError("older files of the journal are still in use")
            await asyncio.sleep(STEP_S)
        clean = False
        try:
            await asyncio.to_thread(disk.wipe, files)
            clean = True
        finally:
            self._journal.give_back(files, clean=clean)

    async def _elsewhere(self, first: int) -> tuple[str, ...]:
        """What may hold bodies from record `first` on and is not touched: copies that somebody has to see to."""
        had = await self._read(lambda reader: reader.exported(self._policy())) if self._exports() else {}
        damaged = sorted(self._journal.directory.glob("damaged-*.jnl"))
        aside = sorted(self._db_path.parent.glob(f"{self._db_path.name}.other-*"))
        sent = (f"export {name}" for name in self._exports() if had.get(name, 0) >= first)
        return (*map(str, (*damaged, *aside)), *sent)

    def _open_tickets(self, calls: list[CallView]) -> list[CallView]:
        if self._tickets is None:
            return []
        question = "SELECT call_id FROM tickets WHERE state IN ('pending', 'approved')"
        waiting = {row[0] for row in self._tickets.execute(question)}
        return [call for call in calls if call.call_id in waiting]

    def _forget_tickets(self, calls: list[CallView]) -> None:
        db = self._tickets
        if db is None:
            return
        db.execute("PRAGMA secure_delete=ON")
        db.create_function("shortened", 1, shortened, deterministic=True)
        changed = 0
        for call in calls:
            changed += db.execute(
                "UPDATE tickets SET arguments = '{}', digest = '' WHERE call_id = ? "
                "AND state NOT IN ('pending', 'approved')", (call.call_id,),
            ).rowcount  # fmt: skip
            if _has_table(db, "approved"):
                # Of a long name the log has the beginning and a hash, by which it is found.
                tail = call.tool_name[-17:] if len(call.tool_name) > NAME_CAP else ""
                changed += db.execute(
                    "DELETE FROM approved WHERE agent = ? AND backend = ? AND method = ? AND "
                    "(name = ? OR length(name) > ? AND substr(shortened(name), -17) = ?)",
                    (call.agent_id, call.backend_id, call.method, call.tool_name, NAME_CAP, tail),
                ).rowcount
        if changed:
            db.execute("VACUUM")  # it is small, and what was there before may lie where nothing is
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    # --- inside -------------------------------------------------------------------------------------------------

    async def _signed(self, action: str, details: Sequence[str], by: str) -> list[str]:
        """The key's word for each of these orders, without which they would not count. Raises `api.Unavailable`."""
        log = origin(self._journal.tenant, await self._read(lambda reader: reader.chain()))
        return await self._keys.sign(log, [warrants.text(log, action, detail, by) for detail in details])

    def _order(self, action: str, detail: str, by: str, signature: str) -> int:
        try:
            return self._journal.append(Admin(action=action, by=by, detail=detail, signature=signature))
        except AuditUnavailable as error:
            raise api.Unavailable(f"it cannot be recorded, so it is not done: {error}") from None

    async def _flush(self) -> None:
        try:
            await self._writer.flush()
        except AuditUnavailable as error:
            raise api.Unavailable(str(error), "see `aegis status`") from None

    async def _read(self, look: Callable[[Reader], T]) -> T:
        def opened() -> T:
            with Reader(self._db_path) as reader:
                return look(reader)

        try:
            return await asyncio.to_thread(opened)
        except (OSError, sqlite3.Error) as error:
            raise api.Unavailable(f"the audit store cannot be read: {error}", "see `aegis status`") from None


def retention(force: InForce, paths: Paths) -> Policy:
    """What of the log is kept, as the configuration says; limits and budgets keep what they look back at."""
    audit, runtime = force.config.audit, force.runtime
    windows = [
        (claim.window_s, f"the limit of {claim.max_count} calls of `{claim.tool}` of `{claim.backend}` in ")
        for claim in runtime.claims
    ]
    windows += [
        (budget.window_s, f"the budget of `{budget.argument}` of `{rule.tool}` in ")
        for rule in runtime.rules
        for budget in rule.budgets
    ]
    longest, counts = max(windows, default=(0.0, ""))
    return Policy(
        days=audit.retention_days,
        bodies_days=audit.bodies_days,
        window_s=longest,
        window=counts and counts + short_duration(longest),
        exports=paths.exports_db,
        keep=tuple(name for name, export in audit.exports.items() if export.keep),
        witnesses=tuple(audit.witnesses),
    )


async def alone(
    verb: str, args: dict[str, Any], paths: Paths, force: InForce, db_path: Path, by: str
) -> dict[str, Any]:
    """Does `purge_audit` or `erase_audit` where no daemon runs: under its lock. Raises `api.Refusal`."""
    audit = force.config.audit
    policy = retention(force, paths)
    loop = asyncio.get_running_loop()
    duties = Duties(
        key_file=audit.key_file or paths.audit_key, every=audit.checkpoints.every, seconds=audit.checkpoints.seconds
    )
    key_file = Path(duties.key_file)
    journal = Journal(
        Path(paths.journal), durability=audit.durability, loop=loop, clock=micros, db_path=db_path, key_file=key_file
    )
    try:
        for note in journal.open().notes:
            journal.append(Admin(action="recovery", detail=note))
    except AuditUnavailable as error:
        journal.close()
        raise api.Unavailable(str(error)) from None
    writer = WriterHandle(journal, db_path, loop, duties, policy)
    tickets = TicketStore(Path(paths.state_db), full=True)
    names = tuple(audit.exports)
    signing = KeyKeeper(key_file, journal)
    forgetting = Forgetting(
        journal, writer, db_path, tickets.db, signing, policy=lambda: policy, exports=lambda: names
    )  # fmt: skip
    try:
        found: shapes.Purge | shapes.Erasure
        if verb == "purge_audit":
            found = await forgetting.purge(shapes.PurgeRequest.model_validate(args), by)
            if found.seq:
                await forgetting._flush()
                await forgetting.purged()
        else:
            found = await forgetting.erase(shapes.EraseRequest.model_validate(args), by)
        return found.model_dump(mode="json")
    finally:
        await forgetting.close()
        await writer.close()
        journal.close()
        tickets.close()


def _has_table(db: sqlite3.Connection, name: str) -> bool:
    return db.execute("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?", (name,)).fetchone() is not None


def _wanted(ask: shapes.EraseRequest) -> tuple[str | None, ...]:
    return ask.agent, ask.backend, ask.tool, ask.since, ask.before, ask.text


def _chosen_by(ask: shapes.EraseRequest) -> str:
    """How the calls were chosen; the text that was looked for is what is to be forgotten."""
    if ask.ids:
        return "named"
    words = [
        f"of agent {ask.agent}" if ask.agent is not None else "",
        f"of backend {ask.backend}" if ask.backend is not None else "",
        f"of tool {ask.tool}" if ask.tool is not None else "",
        f"since {ask.since}" if ask.since is not None else "",
        f"from before {ask.before}" if ask.before is not None else "",
        "with a text" if ask.text is not None else "",
    ]
    return ", ".join(word for word in words if word)


def _micros(text: str) -> int:
    try:
        return int(datetime.fromisoformat(text).astimezone().timestamp() * 1e6)
    except (ValueError, OverflowError, OSError):
        raise api.BadRequest(f"`{text[:40]}` is no time", "write 2026-01-31T08:00:00Z") from None


def _instant(micros: int) -> str:
    return datetime.fromtimestamp(micros / 1e6, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
